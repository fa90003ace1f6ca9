//! Changes a tree: makes the path to a leaf dirty, drops whole subtrees.

use super::{DirtyNode, Link, Missing, Tree, index};
use crate::mutants::{self, Mutant};
use parallax_format::{
    Entry, Node,
    node::{self, FANOUT},
};
use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

/// A node that this tree alone used and no longer does.
#[derive(Clone)]
pub(crate) enum Superseded {
    /// A durable node.
    Clean(Entry),
    /// A node that a checkpoint was writing when it was replaced.
    Writing(Arc<OnceLock<Entry>>),
}

impl Superseded {
    /// The node's link; `None` if it was never written.
    pub(crate) fn link(&self) -> Option<Entry> {
        match self {
            Self::Clean(entry) => Some(*entry),
            Self::Writing(written) => written.get().copied(),
        }
    }
}

/// A subtree that was cut off as a whole; what it alone held can be freed.
pub(crate) struct Dropped {
    pub(crate) link: Link,
    /// Level of the node behind the link, counted from the leaves.
    pub(crate) level: u8,
    /// Whether some link above was ro: then nothing in it may be freed.
    pub(crate) shared: bool,
}

type Find<'a> = &'a dyn Fn(Entry) -> Option<Arc<Node>>;

impl Tree {
    /// The leaf of `slot`, dirty and exclusively ours, to be changed; made if there is none.
    pub(crate) fn leaf_mut(
        &mut self,
        slot: u64,
        find: Find<'_>,
        superseded: &mut Vec<Superseded>,
    ) -> Result<&mut Node, Missing> {
        // First without changing anything: a missing node is reported before the path is touched.
        self.leaf(slot, find)?;
        let (depth, base, count) = (self.depth, self.level_base, self.count.clone());
        own(&mut self.root, depth - 1 + base, find, superseded, &count)?;
        let Link::Dirty(root, _) = &mut self.root else { unreachable!("`own` leaves a dirty link") };
        let mut node = Arc::get_mut(root).expect("`own` leaves an exclusive node");
        for level in (1..depth).rev() {
            let at = index(slot, level);
            let mut child = node.take_link(at);
            let owned = own(&mut child, level - 1 + base, find, superseded, &count);
            node.set_link(at, child);
            owned?;
            node = exclusive_child(node, at);
        }
        Ok(&mut node.node)
    }

    /// Makes every slot of `range` a hole. Whole subtrees are cut off without being read and are pushed to
    /// `dropped`; data entries of leaves that are only partly covered are passed to `gone` unless shared.
    pub(crate) fn clear(
        &mut self,
        range: Range<u64>,
        find: Find<'_>,
        superseded: &mut Vec<Superseded>,
        dropped: &mut Vec<Dropped>,
        gone: &mut dyn FnMut(Entry),
    ) -> Result<(), Missing> {
        let range = range.start..range.end.min(node::blocks_at_depth(self.depth));
        if range.is_empty() || self.root.is_hole() {
            return Ok(());
        }
        let mut clearing =
            Clearing { find, superseded, dropped, gone, base: self.level_base, count: &self.count };
        clearing.prepare(&self.root, self.depth - 1, 0, &range)?;
        let mut root = std::mem::replace(&mut self.root, Link::Clean(Entry::HOLE));
        let result = clearing.apply(&mut root, self.depth - 1, 0, &range, false);
        self.root = root;
        result
    }
}

fn exclusive_child(node: &mut DirtyNode, at: usize) -> &mut DirtyNode {
    let child = node.children.as_mut().and_then(|children| children[at].as_mut());
    child.and_then(Arc::get_mut).expect("the child was just made exclusive")
}

/// Makes the node behind `link` dirty and exclusively ours. The link loses its ro bit: the copy is ours.
fn own(
    link: &mut Link,
    level: u8,
    find: Find<'_>,
    superseded: &mut Vec<Superseded>,
    count: &super::DirtyCount,
) -> Result<(), Missing> {
    let replacement = match link {
        Link::Dirty(node, true) => node.duplicate_ro(),
        Link::Dirty(node, false) => {
            if node.written.get().is_none() && Arc::get_mut(node).is_some() {
                return Ok(());
            }
            superseded.push(Superseded::Writing(node.written.clone()));
            node.duplicate()
        }
        Link::Clean(entry) if entry.is_hole() => DirtyNode::new(Node::empty(), None, count),
        Link::Clean(entry) => {
            let node = find(*entry).ok_or(Missing { link: *entry, level })?;
            let mut copy = Node::clone(&node);
            if entry.is_ro() {
                if !mutants::on(Mutant::CopyKeepsWritable) {
                    copy.mark_ro();
                }
            } else {
                superseded.push(Superseded::Clean(*entry));
            }
            DirtyNode::new(copy, None, count)
        }
    };
    *link = Link::Dirty(Arc::new(replacement), false);
    Ok(())
}

struct Clearing<'a> {
    find: Find<'a>,
    superseded: &'a mut Vec<Superseded>,
    dropped: &'a mut Vec<Dropped>,
    gone: &'a mut dyn FnMut(Entry),
    base: u8,
    count: &'a super::DirtyCount,
}

impl Clearing<'_> {
    /// Children of a node at `level` that starts at slot `start`, as far as `range` touches them: index, first
    /// slot, and whether it is covered as a whole.
    fn children(level: u8, start: u64, range: &Range<u64>) -> impl Iterator<Item = (usize, u64, bool)> {
        let span = 1u64 << (9 * u32::from(level));
        let first = range.start.saturating_sub(start) / span;
        let last = (range.end - start).div_ceil(span).min(FANOUT as u64);
        let range = range.clone();
        (first..last).map(move |at| {
            let begin = start + at * span;
            (at as usize, begin, range.start <= begin && begin + span <= range.end)
        })
    }

    /// Reports the first missing node on the two edges of the range, without changing anything.
    fn prepare(&self, link: &Link, level: u8, start: u64, range: &Range<u64>) -> Result<(), Missing> {
        let span = (FANOUT as u64) << (9 * u32::from(level));
        if link.is_hole() || (range.start <= start && start + span <= range.end) {
            return Ok(());
        }
        let missing = |entry: Entry| Missing { link: entry, level: level + self.base };
        let clean = match link {
            Link::Clean(entry) => Some((self.find)(*entry).ok_or(missing(*entry))?),
            Link::Dirty(..) => None,
        };
        if level == 0 {
            return Ok(());
        }
        for (at, begin, _) in Self::children(level, start, range).filter(|(.., whole)| !whole) {
            let child = match (link, &clean) {
                (Link::Dirty(node, _), _) => node.link(at),
                (_, Some(node)) => Link::Clean(node.entry(at)),
                _ => continue,
            };
            self.prepare(&child, level - 1, begin, range)?;
        }
        Ok(())
    }

    fn apply(
        &mut self,
        link: &mut Link,
        level: u8,
        start: u64,
        range: &Range<u64>,
        shared: bool,
    ) -> Result<(), Missing> {
        if link.is_hole() {
            return Ok(());
        }
        let shared = shared || link.is_ro();
        let span = (FANOUT as u64) << (9 * u32::from(level));
        if range.start <= start && start + span <= range.end {
            let link = std::mem::replace(link, Link::Clean(Entry::HOLE));
            self.dropped.push(Dropped { link, level, shared });
            return Ok(());
        }
        own(link, level + self.base, self.find, self.superseded, self.count)?;
        let Link::Dirty(node, _) = link else { unreachable!("`own` leaves a dirty link") };
        let node = Arc::get_mut(node).expect("`own` leaves an exclusive node");
        if level == 0 {
            for (at, ..) in Self::children(0, start, range) {
                let entry = node.node.entry(at);
                // Owning the leaf through a shared link has set ro on its entries.
                if !entry.is_hole() && !entry.is_ro() {
                    (self.gone)(entry);
                }
                node.node.set(at, Entry::HOLE);
            }
            return Ok(());
        }
        for (at, begin, _) in Self::children(level, start, range) {
            let mut child = node.take_link(at);
            // The copy's links carry what was shared above, so nothing more is inherited.
            let result = self.apply(&mut child, level - 1, begin, range, false);
            node.set_link(at, child);
            result?;
        }
        Ok(())
    }
}
