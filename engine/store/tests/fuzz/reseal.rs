//! Makes checksums match after metadata was changed: of the changed blocks, and of all that name them.
//!
//! Nothing is known of where things are but what the blocks say: a block's checksum is looked for in all others
//! (journals, areas and root slots name their predecessors by it), and so is the check of a node in every word that
//! could be a link to it.

use crate::image::{PAGE, is_metadata};
use parallax_format::{
    Entry, EntryKind, PoolSalt,
    node::{self, TABLE_LEVEL},
    seal::{HEADER, crc32c},
};
use std::collections::{BTreeMap, VecDeque};

/// Blocks that are sealed anew at most: forged chains may be loops.
const STEPS_MAX: usize = 200;
/// Edits that change more pages than that have moved the whole pool; who names whom is lost.
const CHANGED_MAX: usize = 16;

const SUPERBLOCK: u8 = 1;

struct Pool<'a> {
    bytes: &'a mut [u8],
    salt: PoolSalt,
    extents_start: usize,
    extent_blocks: usize,
    /// Pages as those that name them know them.
    known: BTreeMap<usize, Vec<u8>>,
    metadata: Vec<usize>,
    waiting: VecDeque<usize>,
}

fn sealed(page: &[u8]) -> bool {
    page[..4] == *b"PLX1"
}

pub(crate) fn reseal(before: &[u8], after: &mut Vec<u8>) {
    after.resize(before.len(), 0);
    let word = |at: usize| u64::from_le_bytes(before[at..at + 8].try_into().unwrap());
    let half = |at: usize| u32::from_le_bytes(before[at..at + 4].try_into().unwrap()) as usize;
    // The superblock's salt, size of an extent and place of the first.
    let (salt, extent_blocks, extents_start) = (PoolSalt(word(56)), half(88), word(112) as usize);
    let pages = before.len() / PAGE;
    let page = |bytes: &[u8], number: usize| bytes[number * PAGE..(number + 1) * PAGE].to_vec();
    let changed: VecDeque<usize> =
        (0..pages).filter(|number| page(before, *number) != page(after, *number)).collect();
    let metadata: Vec<usize> = (0..pages).filter(|number| is_metadata(&page(before, *number))).collect();
    let cascades = changed.len() <= CHANGED_MAX;
    let known = metadata.iter().chain(&changed).map(|number| (*number, page(before, *number))).collect();
    let mut pool =
        Pool { bytes: after, salt, extents_start, extent_blocks, known, metadata, waiting: changed };
    for _ in 0..STEPS_MAX {
        let Some(number) = pool.waiting.pop_front() else { break };
        pool.settle(number, cascades);
    }
}

impl Pool<'_> {
    fn page(&mut self, number: usize) -> &mut [u8] {
        &mut self.bytes[number * PAGE..(number + 1) * PAGE]
    }

    fn settle(&mut self, number: usize, cascades: bool) {
        let old = self.known[&number].clone();
        let salt = if old[4] == SUPERBLOCK { PoolSalt(0) } else { self.salt };
        if sealed(&old) {
            let page = self.page(number);
            page[8..12].fill(0);
            let crc = crc32c(salt, &[page]).to_le_bytes();
            page[8..12].copy_from_slice(&crc);
            if cascades && old[8..12] != crc {
                self.rename(number, &old[8..12], &crc);
            }
        } else if cascades {
            self.relink(number, &old);
        }
        let now = self.page(number).to_vec();
        self.known.insert(number, now);
    }

    /// Replaces a checksum wherever a sealed block has it.
    fn rename(&mut self, own: usize, old: &[u8], new: &[u8]) {
        for number in self.metadata.clone() {
            let page = self.page(number);
            if number == own || !sealed(page) {
                continue;
            }
            let mut found = false;
            for at in HEADER..PAGE - 4 {
                if page[at..at + 4] == *old {
                    page[at..at + 4].copy_from_slice(new);
                    found = true;
                }
            }
            self.again(number, found);
        }
    }

    /// Replaces the check in every word that links to a node.
    fn relink(&mut self, own: usize, old: &[u8]) {
        let Some(block) = own.checked_sub(self.extents_start).map(|block| block % self.extent_blocks) else {
            return;
        };
        let new = self.page(own).to_vec();
        let salt = self.salt;
        for number in self.metadata.clone() {
            let page = self.page(number);
            // Records of the registry put links at any byte.
            let step = if sealed(page) { 1 } else { 8 };
            let mut found = false;
            for at in (0..=PAGE - 8).step_by(step) {
                let word = u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
                let entry = Entry::from_raw(word);
                let Some(address) = entry.address().filter(|address| address.block() as usize == block)
                else {
                    continue;
                };
                if number == own || entry.kind() != EntryKind::Plain || entry.check() == 0 {
                    continue;
                }
                let levels = (0..node::DEPTH_MAX).chain(TABLE_LEVEL..TABLE_LEVEL + 4);
                for level in levels {
                    if node::check(old, address, level, salt) == entry.check() {
                        let link =
                            Entry::node(address, node::check(&new, address, level, salt), entry.is_ro());
                        page[at..at + 8].copy_from_slice(&link.raw().to_le_bytes());
                        found = true;
                    }
                }
            }
            self.again(number, found);
        }
    }

    fn again(&mut self, number: usize, found: bool) {
        if found && !self.waiting.contains(&number) {
            self.waiting.push_back(number);
        }
    }
}
