//! Whose damage it is: all trees once more, if something was found, to name every volume that reaches it. The first walk
//! meets what is shared but once.
//!
//! In memory are the places of the findings that are listed and, for one volume at a time, a bit for each block.

use super::{Check, called, overlay::Overlay};
use crate::{
    registry::Known,
    space::BlockSet,
    vdi::replay,
    walk::{Place, Roots, Through, Visit, walk},
};
use parallax_block::{Error, Result};
use parallax_format::{
    BlockAddress, Entry, ExtentId, Node,
    journal::SEGMENT_BLOCKS,
    record::VdiRecord,
    root::{RootSlot, SLOTS},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

/// Where a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Spot {
    Block(BlockAddress),
    Extent(ExtentId),
}

/// The spots of the findings, and who was met there.
#[derive(Default)]
pub(super) struct Spots {
    /// By index of the finding.
    of: BTreeMap<usize, Spot>,
    users: BTreeMap<Spot, BTreeSet<String>>,
}

impl Spots {
    pub(super) fn note(&mut self, finding: usize, spot: Spot) {
        self.of.insert(finding, spot);
    }

    /// Who else reaches what the findings are about.
    pub(super) fn names(&self) -> impl Iterator<Item = (usize, &BTreeSet<String>)> {
        self.of.iter().filter_map(|(finding, spot)| Some((*finding, self.users.get(spot)?)))
    }
}

impl Check<'_> {
    /// Finds every volume that reaches a block or an extent about which something was found.
    pub(super) async fn users(&mut self, known: &Known) -> Result<()> {
        let spots: BTreeSet<Spot> = self.spots.of.values().copied().collect();
        if spots.is_empty() {
            return Ok(());
        }
        for record in known.vdis.values() {
            let visited = BlockSet::new(self.superblock.extent_blocks);
            let mut users =
                Users { spots: &spots, visited, gone: Vec::new(), data: true, met: BTreeSet::new() };
            self.uses(record, &mut users).await?;
            for spot in users.met {
                self.spots.users.entry(spot).or_default().insert(called(record));
            }
        }
        Ok(())
    }

    async fn uses(&self, record: &VdiRecord, users: &mut Users<'_>) -> Result<()> {
        for grant in [record.grant, record.previous].into_iter().flatten() {
            users.run(grant.slots, SLOTS);
        }
        // What cannot be found has been reported by that name.
        let Ok(state) = replay::state(self.disk, record).await else { return Ok(()) };
        let Some(slots) = state else {
            let roots = Roots { maps: vec![record.initial.tree()], tables: Vec::new() };
            return walk(self.disk, roots, Through::Cache, users).await;
        };
        self.slot_uses(&slots.newest, slots.durable_group, users).await?;
        if let Some(older) = &slots.older {
            // It may name data that was freed since.
            users.data = false;
            self.slot_uses(older, slots.durable_group, users).await?;
        }
        Ok(())
    }

    async fn slot_uses(&self, slot: &RootSlot, durable: u64, users: &mut Users<'_>) -> Result<()> {
        let mut overlay = Overlay::default();
        if !slot.released {
            users.run(slot.replay.segment, SEGMENT_BLOCKS);
            if let Ok(journal) = replay::replay(self.disk, slot.vdi, slot.epoch, slot.replay, durable).await {
                journal.segments.iter().for_each(|segment| users.run(*segment, SEGMENT_BLOCKS));
                journal.records.iter().for_each(|record| overlay.apply(record));
            }
        }
        if users.data {
            overlay.used().for_each(|address| users.meet(address));
        }
        users.gone = overlay.gone;
        let roots = Roots { maps: vec![slot.map], tables: vec![slot.table] };
        walk(self.disk, roots, Through::Cache, users).await
    }
}

/// What one volume reaches.
struct Users<'a> {
    spots: &'a BTreeSet<Spot>,
    visited: BlockSet,
    /// Blocks of the volume that its journal has unmapped.
    gone: Vec<Range<u64>>,
    /// Whether data counts.
    data: bool,
    met: BTreeSet<Spot>,
}

impl Users<'_> {
    fn meet(&mut self, address: BlockAddress) {
        for spot in [Spot::Block(address), Spot::Extent(address.extent())] {
            if self.spots.contains(&spot) {
                self.met.insert(spot);
            }
        }
    }

    fn run(&mut self, start: BlockAddress, count: u32) {
        (0..count).filter_map(|at| start.offset(at)).for_each(|address| self.meet(address));
    }
}

impl Visit for Users<'_> {
    fn enter(&mut self, address: BlockAddress, _place: Place) -> bool {
        self.meet(address);
        self.visited.insert(address)
    }

    fn leaf(&mut self, node: &Node, place: Place) -> Result<()> {
        if !self.data {
            return Ok(());
        }
        for (at, word) in node.words().iter().enumerate() {
            let block = place.block + at as u64;
            // Tables are walked first: what a snapshot keeps has been met by now.
            let gone = place.snapshot.is_none() && self.gone.iter().any(|gone| gone.contains(&block));
            if let Some(address) = Entry::from_raw(*word).address().filter(|_| !gone) {
                self.meet(address);
            }
        }
        Ok(())
    }

    fn damaged(&mut self, _link: Entry, _error: Error) -> Result<()> {
        // It has been reported.
        Ok(())
    }
}
