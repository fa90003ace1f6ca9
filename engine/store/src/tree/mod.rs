//! A radix tree of which a part is in memory only.
//!
//! Durable nodes are write-once. Changing a tree makes *dirty* copies of the nodes on the path, held in memory
//! and reached through their parents; a checkpoint writes them and turns them into links again.
//!
//! ```text
//! Link::Clean(entry)        a durable node (or a hole)
//! Link::Dirty(node, ro)     a node in memory; its parent's word holds nothing but the ro bit
//! ```
//!
//! Invariants:
//! * A dirty node that anyone else holds (a checkpoint that is writing it, a snapshot that is not yet
//!   materialised) is never changed: it is copied first. Nodes are shared by `Arc`, so this is a count.
//! * A node copied through an ro link has ro set on all its links.
//! * A node replaced through a path without ro is exclusively this tree's: it is reported as superseded, and
//!   may be freed once no root slot names it. A node replaced through an ro link is never reported.

mod lookup;
mod reap;
mod update;
mod write;

pub(crate) use lookup::{Leaf, Missing, locate};
pub(crate) use reap::{Child, open_exclusive};
pub(crate) use update::{Dropped, Superseded};
pub(crate) use write::{Writer, count_dirty};

use parallax_format::{Entry, Node, node, root::TreeRoot};
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Marks a dirty child below which everything is shared, in its parent's word.
const DIRTY_RO: u64 = 1 << 63;

/// Counts dirty nodes of a pool.
pub(crate) type DirtyCount = Arc<AtomicU64>;

/// A link to a subtree.
#[derive(Clone)]
pub(crate) enum Link {
    /// Durable, or a hole.
    Clean(Entry),
    /// In memory; `true` if everything below is shared.
    Dirty(Arc<DirtyNode>, bool),
}

impl Link {
    fn is_hole(&self) -> bool {
        matches!(self, Self::Clean(entry) if entry.is_hole())
    }

    /// The same link, with everything below shared.
    pub(crate) fn with_ro(self) -> Self {
        match self {
            Self::Clean(entry) => Self::Clean(entry.with_ro()),
            Self::Dirty(node, _) => Self::Dirty(node, true),
        }
    }

    fn is_ro(&self) -> bool {
        match self {
            Self::Clean(entry) => entry.is_ro(),
            Self::Dirty(_, ro) => *ro,
        }
    }
}

/// A node in memory.
pub(crate) struct DirtyNode {
    node: Node,
    children: Option<Box<[Option<Arc<DirtyNode>>; node::FANOUT]>>,
    /// The link by which it can be found once its checkpoint is durable.
    written: Arc<OnceLock<Entry>>,
    count: DirtyCount,
}

impl DirtyNode {
    fn new(node: Node, children: Option<Box<[Option<Arc<Self>>; node::FANOUT]>>, count: &DirtyCount) -> Self {
        count.fetch_add(1, Relaxed);
        Self { node, children, written: Arc::default(), count: count.clone() }
    }

    fn child(&self, index: usize) -> Option<&Arc<Self>> {
        self.children.as_ref()?[index].as_ref()
    }

    /// What the word at `index` links to.
    fn link(&self, index: usize) -> Link {
        match self.child(index) {
            Some(child) => Link::Dirty(child.clone(), self.node.words()[index] & DIRTY_RO != 0),
            None => Link::Clean(self.node.entry(index)),
        }
    }

    fn set_link(&mut self, index: usize, link: Link) {
        match link {
            Link::Clean(entry) => {
                self.node.set(index, entry);
                if let Some(children) = &mut self.children {
                    children[index] = None;
                }
            }
            Link::Dirty(child, ro) => {
                self.node.words_mut()[index] = if ro { DIRTY_RO } else { 0 };
                self.children.get_or_insert_with(|| Box::new([const { None }; node::FANOUT]))[index] =
                    Some(child);
            }
        }
    }

    /// Takes the link out, so that its node is held here no more.
    fn take_link(&mut self, index: usize) -> Link {
        let ro = self.node.words()[index] & DIRTY_RO != 0;
        match self.children.as_mut().and_then(|children| children[index].take()) {
            Some(child) => {
                self.node.set(index, Entry::HOLE);
                Link::Dirty(child, ro)
            }
            None => Link::Clean(self.node.entry(index)),
        }
    }

    fn duplicate(&self) -> Self {
        Self::new(self.node.clone(), self.children.clone(), &self.count)
    }

    fn duplicate_ro(&self) -> Self {
        let mut copy = self.duplicate();
        copy.node.mark_ro();
        if let Some(children) = &copy.children {
            for (index, _) in children.iter().enumerate().filter(|(_, child)| child.is_some()) {
                copy.node.words_mut()[index] = DIRTY_RO;
            }
        }
        copy
    }
}

impl Drop for DirtyNode {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
    }
}

/// A tree over 512^depth slots.
#[derive(Clone)]
pub(crate) struct Tree {
    root: Link,
    depth: u8,
    /// Added to every level in checks: 0 for block maps, [`node::TABLE_LEVEL`] for snapshot tables.
    level_base: u8,
    count: DirtyCount,
}

impl Tree {
    pub(crate) fn new(root: TreeRoot, level_base: u8, count: &DirtyCount) -> Self {
        Self { root: Link::Clean(root.link), depth: root.depth, level_base, count: count.clone() }
    }

    pub(crate) fn depth(&self) -> u8 {
        self.depth
    }

    pub(crate) fn root(&self) -> &Link {
        &self.root
    }

    /// Marks everything as shared: O(1), no node is touched.
    pub(crate) fn share(&mut self) {
        let root = std::mem::replace(&mut self.root, Link::Clean(Entry::HOLE));
        self.root = root.with_ro();
    }

    /// Adds levels until `slots` fit.
    pub(crate) fn grow(&mut self, slots: u64) {
        while node::blocks_at_depth(self.depth) < slots {
            if !self.root.is_hole() {
                let mut root = DirtyNode::new(Node::empty(), None, &self.count);
                root.set_link(0, std::mem::replace(&mut self.root, Link::Clean(Entry::HOLE)));
                self.root = Link::Dirty(Arc::new(root), false);
            }
            self.depth += 1;
        }
    }

    /// Turns everything that has been written into clean links again. Call when its checkpoint is durable.
    pub(crate) fn settle(&mut self) {
        settle(&mut self.root);
    }
}

fn settle(link: &mut Link) {
    let Link::Dirty(node, ro) = link else { return };
    if let Some(written) = node.written.get() {
        *link = Link::Clean(if *ro { written.with_ro() } else { *written });
        return;
    }
    // A node that is shared (with a snapshot not yet materialised) is settled when it is written itself.
    let Some(node) = Arc::get_mut(node) else { return };
    for index in 0..node::FANOUT {
        if node.child(index).is_some() {
            let mut child = node.take_link(index);
            settle(&mut child);
            node.set_link(index, child);
        }
    }
}

/// Index of `slot` in the node at `level`.
fn index(slot: u64, level: u8) -> usize {
    ((slot >> (9 * u32::from(level))) & 511) as usize
}
