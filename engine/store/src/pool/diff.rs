//! Differences of two snapshots, found by walking both trees and skipping what is the same in both.

use super::Pool;
use crate::{DiffExtent, SnapshotId, disk::Disk};
use parallax_block::{BLOCK_SIZE, ByteRange, Error, Result};
use parallax_format::{Entry, Node, node::FANOUT, root::TreeRoot};
use std::sync::Arc;

impl Pool {
    /// Differences from `base` (or from nothing) to `target` from byte `from` on, at most `limit` extents, in
    /// order and without overlap; complete if there are fewer than `limit`.
    pub async fn diff(
        &self,
        base: Option<SnapshotId>,
        target: SnapshotId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<DiffExtent>> {
        let to = self.materialised(target).await?;
        let _target_pin = self.pin(target).await?;
        if from > to.size {
            return Err(Error::invalid(format!("offset {from} lies past the snapshot's {} bytes", to.size)));
        }
        let (old, _base_pin) = match base {
            Some(base) => (Some(self.materialised(base).await?), Some(self.pin(base).await?)),
            None => (None, None),
        };
        let hole = TreeRoot { link: Entry::HOLE, depth: 1 };
        let old = old.map_or(hole, |old| old.map);
        let depth = to.map.depth.max(old.depth);
        let mut differ = Differ {
            disk: &self.core.disk,
            first: from / BLOCK_SIZE as u64,
            end: to.size / BLOCK_SIZE as u64,
            limit,
            out: Vec::new(),
        };
        differ.compare(raise(old, depth), raise(to.map, depth), depth).await?;
        Ok(differ.out)
    }
}

/// A link at a level that may lie above the tree's own root: then only its first child is there.
#[derive(Debug, Clone, Copy)]
struct Raised {
    link: Entry,
    /// Levels above the tree's root.
    above: u8,
}

fn raise(root: TreeRoot, depth: u8) -> Raised {
    Raised { link: root.link, above: depth - root.depth }
}

struct Differ<'a> {
    disk: &'a Disk,
    first: u64,
    end: u64,
    limit: usize,
    out: Vec<DiffExtent>,
}

impl Differ<'_> {
    async fn compare(&mut self, old: Raised, new: Raised, depth: u8) -> Result<()> {
        let mut stack = vec![(old, new, depth - 1, 0u64)];
        while let Some((old, new, level, start)) = stack.pop() {
            let span = 1u64 << (9 * u32::from(level));
            let same = old.above == new.above && old.link.same_target(new.link);
            if same || start >= self.end || start + span * FANOUT as u64 <= self.first {
                continue;
            }
            let (before, after) = (self.open(old, level).await?, self.open(new, level).await?);
            if level > 0 {
                for at in (0..FANOUT).rev() {
                    let (before, after) = (child(&before, old, at), child(&after, new, at));
                    if !(before.link.is_hole() && after.link.is_hole()) {
                        stack.push((before, after, level - 1, start + at as u64 * span));
                    }
                }
                continue;
            }
            for at in 0..FANOUT {
                let block = start + at as u64;
                let (before, after) = (child(&before, old, at).link, child(&after, new, at).link);
                if block < self.first || block >= self.end || before.same_target(after) {
                    continue;
                }
                if !self.push(block, !after.is_hole())? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn open(&self, link: Raised, level: u8) -> Result<Option<Arc<Node>>> {
        if link.link.is_hole() || link.above > 0 {
            return Ok(None);
        }
        self.disk.node(link.link, level).await.map(Some)
    }

    /// Adds a block; `false` once there are enough extents.
    fn push(&mut self, block: u64, data: bool) -> Result<bool> {
        let size = BLOCK_SIZE as u64;
        if let Some(last) = self.out.last_mut()
            && last.data == data
            && last.range.end() == block * size
        {
            last.range = ByteRange::new(last.range.offset(), last.range.length() + size)?;
            return Ok(true);
        }
        if self.out.len() == self.limit {
            return Ok(false);
        }
        self.out.push(DiffExtent { range: ByteRange::new(block * size, size)?, data });
        Ok(true)
    }
}

fn child(node: &Option<Arc<Node>>, of: Raised, at: usize) -> Raised {
    match node {
        Some(node) => Raised { link: node.entry(at), above: 0 },
        None if of.above > 0 && at == 0 => Raised { link: of.link, above: of.above - 1 },
        None => Raised { link: Entry::HOLE, above: 0 },
    }
}
