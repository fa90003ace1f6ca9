//! The bitmap of one claimed extent, in memory, and how far it is on disk.

use super::{
    Run,
    copies::{Copies, read_copies},
};
use crate::{
    disk::Disk,
    mutants::{self, Mutant},
};
use parallax_block::Result;
use parallax_format::{
    BlockAddress, ExtentId,
    bitmap::{self, BitmapBlock},
    record::ExtentKind,
};

/// See the module.
pub(crate) struct ExtentMap {
    pub(crate) extent: ExtentId,
    pub(crate) kind: ExtentKind,
    pub(crate) birth: u64,
    blocks: u32,
    /// A set bit is an allocated block. Bits past the end are set.
    words: Vec<u64>,
    free: u32,
    /// Where the next search begins.
    hint: u32,
    pub(crate) parts: Vec<Part>,
}

/// One bitmap block.
#[derive(Clone, Copy, Default)]
pub(crate) struct Part {
    /// Rises with every change in memory.
    pub(crate) version: u64,
    /// Version that the newest copy on disk holds.
    pub(crate) written: u64,
    /// Sequence of the newest copy on disk.
    pub(crate) sequence: u64,
}

impl ExtentMap {
    /// An extent of which nothing but its bitmaps is allocated.
    pub(crate) fn fresh(extent: ExtentId, kind: ExtentKind, birth: u64, blocks: u32) -> Self {
        let mut words = vec![0u64; blocks.div_ceil(64) as usize];
        for block in (0..bitmap::first_usable(blocks)).chain(blocks..words.len() as u32 * 64) {
            words[block as usize / 64] |= 1 << (block % 64);
        }
        let free = blocks - bitmap::first_usable(blocks);
        let parts = vec![Part::default(); bitmap::blocks_per_copy(blocks) as usize];
        Self { extent, kind, birth, blocks, words, free, hint: 0, parts }
    }

    /// Reads the newest valid copies from disk. Claiming writes both copies, so one that does not verify is
    /// torn or damaged or cannot be read, and may have been the newer: then `damaged` lists the bitmap block, and all of its
    /// blocks count as allocated until garbage collection has found out which are.
    pub(crate) async fn load(
        disk: &Disk,
        extent: ExtentId,
        kind: ExtentKind,
        birth: u64,
        damaged: &mut Vec<u32>,
    ) -> Result<Self> {
        let blocks = disk.superblock.extent_blocks;
        let mut map = Self::fresh(extent, kind, birth, blocks);
        for index in 0..bitmap::blocks_per_copy(blocks) {
            let Copies { newest, strange } = read_copies(disk, extent, birth, index).await?;
            if let Some((block, sequence)) = newest {
                map.adopt(index, &block, sequence);
            }
            if !strange.is_empty() && !mutants::on(Mutant::TornBitmapBelieved) {
                damaged.push(index);
                map.set_part(index);
            }
        }
        map.recount();
        Ok(map)
    }

    fn adopt(&mut self, index: u32, block: &BitmapBlock, sequence: u64) {
        let first = index as usize * bitmap::WORDS;
        for (word, stored) in self.words[first..].iter_mut().zip(&block.words) {
            *word |= stored;
        }
        self.parts[index as usize] = Part { version: 0, written: 0, sequence };
    }

    /// Takes every block of a bitmap block as allocated.
    fn set_part(&mut self, index: u32) {
        let first = index as usize * bitmap::WORDS;
        for word in self.words[first..].iter_mut().take(bitmap::WORDS) {
            *word = u64::MAX;
        }
        self.parts[index as usize].version += 1;
    }

    /// Both copies of every bitmap block, as a claim writes them.
    pub(crate) fn initial(&mut self, incarnation: u64) -> Vec<(BlockAddress, BitmapBlock, u64)> {
        let mut writes = Vec::new();
        for _ in 0..2 {
            for index in 0..self.parts.len() as u32 {
                let (at, block, sequence, _) = self.snapshot(index, incarnation);
                self.parts[index as usize].sequence = sequence;
                writes.push((at, block, sequence));
            }
        }
        writes
    }

    fn recount(&mut self) {
        self.free = self.words.iter().map(|word| word.count_zeros()).sum();
    }

    pub(crate) fn free(&self) -> u32 {
        self.free
    }

    pub(crate) fn usable(&self) -> u32 {
        self.blocks - bitmap::first_usable(self.blocks)
    }

    /// Whether a block is allocated.
    pub(crate) fn is_set(&self, block: u32) -> bool {
        self.words.get(block as usize / 64).is_some_and(|word| word & (1 << (block % 64)) != 0)
    }

    /// Allocated runs of up to `longest` blocks each.
    pub(crate) fn allocated(&self, longest: u32) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for block in (0..self.blocks).filter(|block| self.is_set(*block)) {
            match runs.last_mut() {
                Some(run) if run.start.block() + run.count == block && run.count < longest => run.count += 1,
                _ => runs.extend(BlockAddress::new(self.extent, block).map(|start| Run { start, count: 1 })),
            }
        }
        runs
    }

    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    /// Finds and marks up to `want` neighbouring blocks, from `near` on if given: the first run that is long
    /// enough, else the longest met. At least `least`, or `None`.
    pub(crate) fn take(&mut self, want: u32, least: u32, near: Option<u32>) -> Option<(u32, u32)> {
        if self.free < least {
            return None;
        }
        let start = near.unwrap_or(self.hint).min(self.blocks);
        let mut best: Option<(u32, u32)> = None;
        for range in [start..self.blocks, 0..start] {
            let mut at = range.start;
            while let Some((begin, length)) = self.next_run(at, range.end, want) {
                if best.is_none_or(|(_, longest)| length > longest) {
                    best = Some((begin, length));
                }
                if length >= want {
                    break;
                }
                at = begin + length;
            }
            if best.is_some_and(|(_, length)| length >= want) {
                break;
            }
        }
        let (begin, length) = best.filter(|(_, length)| *length >= least)?;
        self.set(begin, length);
        self.hint = begin + length;
        Some((begin, length))
    }

    /// First run of clear bits at or after `at`, cut at `end` and at `want`.
    fn next_run(&self, at: u32, end: u32, want: u32) -> Option<(u32, u32)> {
        let mut begin = at;
        loop {
            if begin >= end {
                return None;
            }
            let word = !self.words[begin as usize / 64] >> (begin % 64);
            if word == 0 {
                begin = (begin / 64 + 1) * 64;
                continue;
            }
            begin += word.trailing_zeros();
            break;
        }
        if begin >= end {
            return None;
        }
        let mut length = 0;
        while length < want && begin + length < end {
            let at = begin + length;
            let clear = (self.words[at as usize / 64] >> (at % 64)).trailing_zeros().min(64 - at % 64);
            if clear == 0 {
                break;
            }
            length += clear;
        }
        Some((begin, length.min(want).min(end - begin)))
    }

    /// Marks blocks as allocated; returns how many were not.
    pub(crate) fn set(&mut self, begin: u32, count: u32) -> u32 {
        let mut taken = 0;
        for block in begin..(begin + count).min(self.blocks) {
            let word = &mut self.words[block as usize / 64];
            if *word & (1 << (block % 64)) == 0 {
                *word |= 1 << (block % 64);
                taken += 1;
            }
        }
        self.free -= taken;
        if taken > 0 {
            self.touch(begin, count);
        }
        taken
    }

    /// Marks blocks as free; returns how many were not.
    pub(crate) fn clear(&mut self, begin: u32, count: u32) -> u32 {
        let mut freed = 0;
        for block in begin..(begin + count).min(self.blocks) {
            let word = &mut self.words[block as usize / 64];
            if *word & (1 << (block % 64)) != 0 {
                *word &= !(1 << (block % 64));
                freed += 1;
            }
        }
        self.free += freed;
        self.touch(begin, count);
        freed
    }

    fn touch(&mut self, begin: u32, count: u32) {
        for part in begin / bitmap::BITS..=(begin + count.max(1) - 1) / bitmap::BITS {
            if let Some(part) = self.parts.get_mut(part as usize) {
                part.version += 1;
            }
        }
    }

    /// Bitmap blocks whose disk copy lags behind.
    pub(crate) fn lagging(&self) -> impl Iterator<Item = u32> {
        self.parts
            .iter()
            .enumerate()
            .filter(|(_, part)| part.written < part.version)
            .map(|(index, _)| index as u32)
    }

    /// The next copy of a bitmap block: where it goes, its content, its sequence and version.
    pub(crate) fn snapshot(&self, index: u32, incarnation: u64) -> (BlockAddress, BitmapBlock, u64, u64) {
        let part = self.parts[index as usize];
        let sequence = part.sequence + 1;
        let first = index as usize * bitmap::WORDS;
        let mut words: Vec<u64> = self.words[first..self.words.len().min(first + bitmap::WORDS)].to_vec();
        words.resize(bitmap::WORDS, u64::MAX);
        let at = bitmap::location(self.extent, self.blocks, index, (sequence % 2) as u32);
        (at, BitmapBlock { incarnation, birth: self.birth, words }, sequence, part.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(blocks: u32) -> ExtentMap {
        ExtentMap::fresh(ExtentId::new(1).unwrap(), ExtentKind::Data, 1, blocks)
    }

    #[test]
    fn a_fresh_extent_holds_only_its_bitmaps() {
        let map = map(1 << 19);
        assert_eq!(map.free(), (1 << 19) - 34);
        assert_eq!((map.words()[0] >> 33 & 1, map.words()[0] >> 34 & 1), (1, 0));
    }

    #[test]
    fn runs_are_taken_whole_where_they_fit_and_longest_where_they_do_not() {
        let mut map = map(256);
        assert_eq!(map.take(100, 1, None), Some((2, 100)));
        assert_eq!(map.take(100, 1, None), Some((102, 100)));
        assert_eq!(map.take(100, 1, None), Some((202, 54)));
        assert_eq!(map.take(1, 1, None), None);
        assert_eq!(map.clear(50, 10), 10);
        assert_eq!(map.clear(100, 20), 20);
        assert_eq!(map.clear(100, 20), 0);
        assert_eq!(map.take(64, 64, None), None);
        assert_eq!(map.take(64, 1, None), Some((100, 20)));
        assert_eq!(map.free(), 10);
    }
}
