//! What a garbage collection may free: blocks that were allocated when it began and that nothing has taken,
//! freed or reached since.

use super::{ExtentMap, Run, blocks::BlockSet};
use parallax_format::{BlockAddress, ExtentId, bitmap};
use std::{collections::BTreeMap, ops::Bound};

pub(crate) struct Candidates {
    extents: BTreeMap<ExtentId, Vec<u64>>,
    /// Metadata nodes that were visited, candidates or not: shared subtrees are walked once.
    visited: BlockSet,
}

impl Candidates {
    pub(crate) fn of<'a>(extents: impl Iterator<Item = &'a ExtentMap>, extent_blocks: u32) -> Self {
        let usable = bitmap::first_usable(extent_blocks);
        let extents = extents
            .map(|map| {
                let mut words = map.words().to_vec();
                for block in (0..usable).chain(extent_blocks..words.len() as u32 * 64) {
                    words[block as usize / 64] &= !(1 << (block % 64));
                }
                (map.extent, words)
            })
            .collect();
        Self { extents, visited: BlockSet::new(extent_blocks) }
    }

    /// Takes blocks out: they are in use, or were freed by others.
    pub(crate) fn clear(&mut self, start: BlockAddress, count: u32) {
        if let Some(words) = self.extents.get_mut(&start.extent()) {
            for block in start.block()..start.block() + count {
                if let Some(word) = words.get_mut(block as usize / 64) {
                    *word &= !(1 << (block % 64));
                }
            }
        }
    }

    /// Marks a node as reached; `true` the first time.
    pub(crate) fn visit(&mut self, address: BlockAddress) -> bool {
        self.clear(address, 1);
        self.visited.insert(address)
    }

    /// Frees nothing after all.
    pub(crate) fn keep_all(&mut self) {
        self.extents.clear();
    }

    /// Extents that are looked at.
    pub(crate) fn extents(&self) -> usize {
        self.extents.len()
    }

    /// Takes what is left in the next extent after `after`.
    pub(crate) fn take_next(&mut self, after: Option<ExtentId>) -> Option<(ExtentId, Vec<Run>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (extent, words) = self.extents.range_mut((from, Bound::Unbounded)).next()?;
        let extent = *extent;
        let mut runs: Vec<Run> = Vec::new();
        for (index, word) in words.iter_mut().enumerate() {
            while *word != 0 {
                let bit = word.trailing_zeros();
                *word &= *word - 1;
                let block = index as u32 * 64 + bit;
                match runs.last_mut() {
                    Some(run) if run.start.block() + run.count == block => run.count += 1,
                    _ => runs.extend(BlockAddress::new(extent, block).map(|start| Run { start, count: 1 })),
                }
            }
        }
        Some((extent, runs))
    }
}
