//! Finds the leaf of a slot, from memory only.

use super::{Link, Tree, index};
use crate::disk::Disk;
use parallax_block::Result;
use parallax_format::{Entry, Node, node::FANOUT};
use std::sync::Arc;

/// A node that has to be read before the look-up can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) link: Entry,
    pub(crate) level: u8,
}

impl Missing {
    /// Reads it into the cache.
    pub(crate) async fn load(self, disk: &Disk) -> Result<Arc<Node>> {
        disk.node(self.link, self.level).await
    }
}

/// What lies behind a slot.
pub(crate) enum Leaf<'a> {
    /// A leaf; `shared` if some link above it is ro.
    Node { node: NodeRef<'a>, shared: bool },
    /// Nothing, from the slot up to (not including) `end`.
    Hole { end: u64 },
}

pub(crate) enum NodeRef<'a> {
    Dirty(&'a Node),
    Clean(Arc<Node>),
}

impl std::ops::Deref for NodeRef<'_> {
    type Target = Node;

    fn deref(&self) -> &Node {
        match self {
            Self::Dirty(node) => node,
            Self::Clean(node) => node,
        }
    }
}

/// Nodes that a look-up may use besides the cache: those it has just read, so that a small cache cannot make
/// it run in circles.
pub(crate) fn locate(disk: &Disk, held: &[(Entry, Arc<Node>)], link: Entry) -> Option<Arc<Node>> {
    disk.cache
        .get(link)
        .or_else(|| held.iter().find(|(held, _)| held.same_target(link)).map(|(_, node)| node.clone()))
}

impl Tree {
    /// The leaf of `slot`. `find` answers from memory.
    pub(crate) fn leaf(
        &self,
        slot: u64,
        find: &dyn Fn(Entry) -> Option<Arc<Node>>,
    ) -> std::result::Result<Leaf<'_>, Missing> {
        let mut shared = self.root.is_ro();
        let mut level = self.depth - 1;
        let mut clean: Entry = match &self.root {
            Link::Dirty(root, _) => {
                let mut dirty = root;
                loop {
                    if level == 0 {
                        return Ok(Leaf::Node { node: NodeRef::Dirty(&dirty.node), shared });
                    }
                    let at = index(slot, level);
                    match dirty.child(at) {
                        Some(child) => {
                            shared |= dirty.node.words()[at] & super::DIRTY_RO != 0;
                            dirty = child;
                            level -= 1;
                        }
                        None => {
                            level -= 1;
                            break dirty.node.entry(at);
                        }
                    }
                }
            }
            Link::Clean(entry) => *entry,
        };
        loop {
            // `clean` links to the node at `level`.
            if clean.is_hole() {
                let span = (FANOUT as u64) << (9 * u32::from(level));
                return Ok(Leaf::Hole { end: (slot / span + 1) * span });
            }
            shared |= clean.is_ro();
            let Some(node) = find(clean) else {
                return Err(Missing { link: clean, level: level + self.level_base });
            };
            if level == 0 {
                return Ok(Leaf::Node { node: NodeRef::Clean(node), shared });
            }
            clean = node.entry(index(slot, level));
            level -= 1;
        }
    }
}
