//! A set of blocks: a bit for each block of the extents that it has met.

use parallax_format::{BlockAddress, ExtentId};
use std::collections::BTreeMap;

pub(crate) struct BlockSet {
    extent_blocks: u32,
    extents: BTreeMap<ExtentId, Vec<u64>>,
}

impl BlockSet {
    pub(crate) fn new(extent_blocks: u32) -> Self {
        Self { extent_blocks, extents: BTreeMap::new() }
    }

    /// Adds a block; `true` the first time. One that lies outside of its extent is never added.
    pub(crate) fn insert(&mut self, address: BlockAddress) -> bool {
        let words = self
            .extents
            .entry(address.extent())
            .or_insert_with(|| vec![0; self.extent_blocks.div_ceil(64) as usize]);
        let Some(word) = words.get_mut(address.block() as usize / 64) else { return false };
        let bit = 1 << (address.block() % 64);
        let first = *word & bit == 0;
        *word |= bit;
        first
    }
}
