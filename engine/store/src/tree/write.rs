//! Turns dirty nodes into blocks: children before parents, each once, whoever shares it.

use super::{DirtyNode, Link};
use parallax_block::{BLOCK_SIZE, Buffer};
use parallax_format::{BlockAddress, Entry, Node, PoolSalt, node};
use std::{collections::BTreeSet, sync::Arc};

/// Dirty nodes behind the links that have not been written yet, each counted once.
pub(crate) fn count_dirty<'a>(links: impl IntoIterator<Item = &'a Link>) -> usize {
    fn visit(node: &Arc<DirtyNode>, seen: &mut BTreeSet<usize>) {
        if node.written.get().is_some() || !seen.insert(Arc::as_ptr(node) as usize) {
            return;
        }
        for child in node.children.iter().flat_map(|children| children.iter().flatten()) {
            visit(child, seen);
        }
    }
    let mut seen = BTreeSet::new();
    for link in links {
        if let Link::Dirty(node, _) = link {
            visit(node, &mut seen);
        }
    }
    seen.len()
}

/// Assigns addresses and encodes nodes.
pub(crate) struct Writer {
    salt: PoolSalt,
    /// In reverse: the next is at the end.
    addresses: Vec<BlockAddress>,
    writes: Vec<(BlockAddress, Vec<Buffer>)>,
    nodes: Vec<(Entry, Arc<Node>)>,
    /// Blocks of one write at the most.
    batch: u32,
}

impl Writer {
    /// Will use `addresses` in order: at least as many as [`count_dirty`] says.
    pub(crate) fn new(salt: PoolSalt, mut addresses: Vec<BlockAddress>) -> Self {
        addresses.reverse();
        Self { salt, addresses, writes: Vec::new(), nodes: Vec::new(), batch: 64 }
    }

    /// Encodes everything dirty behind `link`; `level` is that of its node, with the tree's base.
    pub(crate) fn add(&mut self, link: &Link, level: u8) -> Entry {
        match link {
            Link::Clean(entry) => *entry,
            Link::Dirty(node, ro) => {
                let entry = self.node(node, level);
                if *ro { entry.with_ro() } else { entry }
            }
        }
    }

    fn node(&mut self, dirty: &Arc<DirtyNode>, level: u8) -> Entry {
        if let Some(written) = dirty.written.get() {
            return *written;
        }
        let mut words = dirty.node.clone();
        if let Some(children) = &dirty.children {
            for (at, child) in children.iter().enumerate() {
                if let Some(child) = child {
                    let entry = self.node(child, level - 1);
                    let ro = dirty.node.words()[at] & super::DIRTY_RO != 0;
                    words.set(at, if ro { entry.with_ro() } else { entry });
                }
            }
        }
        let address = self.addresses.pop().expect("the caller counted the dirty nodes");
        let mut block = Buffer::zeroed(BLOCK_SIZE);
        words.write_to(&mut block);
        let entry = Entry::node(address, node::check(&block, address, level, self.salt), false);
        self.push(address, block);
        self.nodes.push((entry, Arc::new(words)));
        // Only this checkpoint writes this tree, so nobody else has set it.
        let _ = dirty.written.set(entry);
        entry
    }

    fn push(&mut self, address: BlockAddress, block: Buffer) {
        if let Some((start, blocks)) = self.writes.last_mut() {
            let count = blocks.len() as u32;
            if count < self.batch && start.offset(count) == Some(address) {
                blocks.push(block);
                return;
            }
        }
        self.writes.push((address, vec![block]));
    }

    /// Writes to be done, nodes for the cache, addresses that were not needed.
    #[expect(clippy::type_complexity, reason = "three lists, named above, taken apart at once by the caller")]
    pub(crate) fn finish(self) -> (Vec<(BlockAddress, Buffer)>, Vec<(Entry, Arc<Node>)>, Vec<BlockAddress>) {
        let join = |blocks: Vec<Buffer>| {
            let mut joined = Buffer::zeroed(blocks.len() * BLOCK_SIZE);
            for (out, block) in joined.chunks_exact_mut(BLOCK_SIZE).zip(&blocks) {
                out.copy_from_slice(block);
            }
            joined
        };
        let writes = self.writes.into_iter().map(|(address, blocks)| (address, join(blocks))).collect();
        (writes, self.nodes, self.addresses)
    }
}
