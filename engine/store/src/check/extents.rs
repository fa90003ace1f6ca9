//! Extents: what the catalogue says of them, their bitmaps, and which of their blocks are in use.

use super::{Check, REACHED, families::Chunk, users::Spot};
use crate::{Severity, registry::Known, space::read_copies};
use parallax_block::{BLOCK_SIZE, Result};
use parallax_format::{
    ExtentId,
    area::AreaHeader,
    bitmap,
    record::{ExtentKind, ExtentRecord},
};
use std::collections::BTreeMap;

/// See the module.
pub(super) struct Extent {
    pub(super) kind: ExtentKind,
    /// The bitmap, newest copies; a set bit is an allocated block.
    pub(super) allocated: Vec<u64>,
    /// What was found about each block.
    pub(super) seen: Vec<u8>,
    /// Of metadata: check and level in the last link to each node.
    pub(super) links: Vec<u32>,
    /// Which family uses each block.
    pub(super) families: Vec<Chunk>,
    /// Its bitmap blocks.
    pub(super) parts: Vec<Part>,
}

/// One bitmap block.
pub(super) struct Part {
    pub(super) birth: u64,
    /// A copy does not verify: what it would say is not known.
    pub(super) torn: bool,
    /// Incarnation and sequence of the newest copy that does.
    pub(super) newest: (u64, u64),
}

impl Extent {
    /// Whether a block counts as allocated; `None` if nobody can tell.
    pub(super) fn is_allocated(&self, block: u32) -> Option<bool> {
        let part = self.parts.get((block / bitmap::BITS) as usize)?;
        let marked =
            self.allocated.get(block as usize / 64).is_some_and(|word| word & (1 << (block % 64)) != 0);
        (marked || !part.torn).then_some(marked)
    }
}

impl Check<'_> {
    pub(super) async fn catalogue(&mut self, known: &Known, area: &AreaHeader) -> Result<()> {
        let mut positions: BTreeMap<u32, ExtentId> = BTreeMap::new();
        self.registry(known, area);
        for record in known.extents.values() {
            let spot = Spot::Extent(record.extent);
            self.owner(record, known);
            if record.position >= self.superblock.extents || record.device != 0 {
                let detail = format!(
                    "extent {} lies outside of the pool's device: place {} of {}",
                    record.extent, record.position, self.superblock.extents
                );
                self.find_in(Severity::Damage, "extent-range", spot, detail, &[]);
                continue;
            }
            if let Some(other) = positions.insert(record.position, record.extent) {
                for (one, two) in [(other, record.extent), (record.extent, other)] {
                    let detail = format!("extent {one} lies where {two} does: place {}", record.position);
                    self.find_in(Severity::Damage, "extent-overlap", Spot::Extent(one), detail, &[]);
                }
            }
            self.disk.map_extent(record.extent, record.position);
            let blocks = self.superblock.extent_blocks;
            let mut extent = Extent {
                kind: record.kind,
                allocated: Vec::new(),
                seen: vec![0; blocks as usize],
                links: Vec::new(),
                families: Vec::new(),
                parts: Vec::new(),
            };
            if record.kind != ExtentKind::System {
                for index in 0..bitmap::blocks_per_copy(blocks) {
                    let (words, part) = self.bitmap(record.extent, record.birth, index).await?;
                    extent.allocated.extend(words);
                    extent.parts.push(part);
                }
            }
            self.extents.insert(record.extent, extent);
        }
        Ok(())
    }

    /// An extent belongs to nobody or to an incarnation that was handed out, and its claim was counted.
    fn owner(&mut self, record: &ExtentRecord, known: &Known) {
        if record.owner >= known.incarnation || record.birth > known.birth {
            let detail = format!(
                "extent {}: claim {} by incarnation {}, and the last claim was {}, the next incarnation is {}",
                record.extent, record.birth, record.owner, known.birth, known.incarnation
            );
            self.find_in(Severity::Damage, "extent-owner", Spot::Extent(record.extent), detail, &[]);
        }
    }

    /// The registry lies in extents of its own.
    fn registry(&mut self, known: &Known, area: &AreaHeader) {
        let system = |record: &&ExtentRecord| record.kind == ExtentKind::System;
        let starts: Vec<u64> = known
            .extents
            .values()
            .filter(system)
            .filter(|record| record.position < self.superblock.extents)
            .map(|record| self.superblock.extent_start(record.position))
            .collect();
        for run in &area.runs {
            let (first, end) = (run.start, run.start + u64::from(run.blocks));
            let holds =
                |start: &u64| *start <= first && end <= *start + u64::from(self.superblock.extent_blocks);
            if !starts.iter().any(holds) {
                let detail =
                    format!("blocks #{first} to #{end} are the registry's, and no extent of its own");
                self.find(Severity::Damage, "extent-overlap", detail, &[]);
            }
        }
    }

    async fn bitmap(&mut self, extent: ExtentId, birth: u64, index: u32) -> Result<(Vec<u64>, Part)> {
        let copies = read_copies(self.disk, extent, birth, index).await?;
        let at = bitmap::location(extent, self.superblock.extent_blocks, index, 0);
        for error in &copies.strange {
            let detail = format!("extent {extent}: a copy of the bitmap block whose first is {at}: {error}");
            self.find(Severity::Leak, "bitmap-copy", detail, &[]);
        }
        let newest = copies.newest;
        let part = Part {
            birth,
            torn: !copies.strange.is_empty(),
            newest: newest.as_ref().map_or((0, 0), |(block, sequence)| (block.incarnation, *sequence)),
        };
        Ok((newest.map_or_else(|| vec![0; bitmap::WORDS], |(block, _)| block.words), part))
    }

    pub(super) fn unreachable(&mut self) {
        let usable = bitmap::first_usable(self.superblock.extent_blocks);
        let mut leaks = Vec::new();
        for (id, extent) in &self.extents {
            let lost = (usable..self.superblock.extent_blocks)
                .filter(|block| {
                    extent.is_allocated(*block) == Some(true) && extent.seen[*block as usize] & REACHED == 0
                })
                .count();
            if lost > 0 && extent.kind != ExtentKind::System {
                leaks.push(format!("extent {id} ({:?}): {} KiB", extent.kind, lost * BLOCK_SIZE / 1024));
            }
        }
        for leak in leaks {
            self.find(Severity::Leak, "unreachable", leak, &[]);
        }
    }
}
