//! Steps in words; and what the world does: hosts die, the device loses power, late writes land.

use super::{
    Rule, TakeoverModel,
    state::{Address, Broken, Epoch, Phase, Slot, State},
};
use std::fmt;

/// Indices of [`State::spent`].
pub(super) const WRITES: usize = 0;
pub(super) const TIMEOUTS: usize = 1;
pub(super) const CHECKPOINTS: usize = 2;
pub(super) const SNAPSHOTS: usize = 3;
pub(super) const REUSES: usize = 4;
pub(super) const CUTS: usize = 5;
pub(super) const DAMAGES: usize = 6;

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    epoch: Epoch,
    what: What,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    TakesOver { released: bool },
    Restarts,
    FindsNoSlot,
    ReadsSlot { found: Slot },
    Replays { block: Address },
    SlotLands { slot: Slot },
    Writes { version: u8, block: Address, in_place: bool },
    WriteLands { version: u8 },
    TimesOut { version: u8 },
    Commits { block: Address },
    Flushes { covers: u8 },
    Checkpoints,
    Snapshots { block: Address, stable: bool },
    Releases,
    ReusesBlock { block: Address },
    ReusesJournal { of: Epoch },
    ReusesSlot { of: Epoch },
    Dies,
    IsFenced,
    IsQuiet,
    PowerCut { torn: bool },
    SlotGoesBad { at: usize },
    GhostData { block: usize, version: u8 },
    GhostSlot { slot: Slot },
    GhostRecord,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let epoch = self.epoch;
        write!(f, "epoch {epoch}: ")?;
        match self.what {
            What::TakesOver { released: true } => {
                write!(f, "another host is granted the volume, released in order")
            }
            What::TakesOver { released: false } => write!(f, "another host takes the volume over"),
            What::Restarts => write!(f, "the same host opens the volume again after a crash"),
            What::FindsNoSlot => write!(f, "finds no root slot"),
            What::ReadsSlot { found } => {
                write!(f, "reads the root slot of epoch {}, checkpoint {}", found.epoch, found.number)
            }
            What::Replays { block } => {
                write!(f, "replays: the data is in block {block}; submits its first slot")
            }
            What::SlotLands { slot } if slot.released => {
                write!(f, "root slot {}, released, is durable", slot.number)
            }
            What::SlotLands { slot } => write!(f, "root slot {} is durable", slot.number),
            What::Writes { version, block, in_place: true } => {
                write!(f, "submits write {version} in place, to block {block}")
            }
            What::Writes { version, block, .. } => write!(f, "submits write {version} to new block {block}"),
            What::WriteLands { version } => write!(f, "write {version} has landed and is acknowledged"),
            What::TimesOut { version } => {
                write!(f, "write {version} times out; nobody knows whether it will land")
            }
            What::Commits { block } => write!(f, "flushes, and submits the record: data is in block {block}"),
            What::Flushes { covers } => write!(f, "a flush is acknowledged that covers write {covers}"),
            What::Checkpoints => write!(f, "submits a checkpoint's root slot"),
            What::Snapshots { block, stable: true } => {
                write!(f, "cuts a stable snapshot that holds block {block}")
            }
            What::Snapshots { block, .. } => {
                write!(f, "cuts a provisional snapshot that holds block {block}")
            }
            What::Releases => write!(f, "ends in order"),
            What::ReusesBlock { block } => write!(f, "block {block} is free and another volume writes it"),
            What::ReusesJournal { of } => {
                write!(f, "the journal of epoch {of} is free and is used for something else")
            }
            What::ReusesSlot { of } => {
                write!(f, "the slots of epoch {of} are free and are used for something else")
            }
            What::Dies => write!(f, "its process dies"),
            What::IsFenced => write!(f, "the device refuses its host from now on"),
            What::IsQuiet => write!(f, "its fence is proved: nothing of it lands any more"),
            What::PowerCut { torn: false } => write!(f, "the device loses power, and what was not flushed"),
            What::PowerCut { torn: true } => write!(f, "the device loses power in the middle of root slots"),
            What::SlotGoesBad { at } => write!(f, "its root slot {at} cannot be read any more"),
            What::GhostData { block, version } => {
                write!(f, "its late write {version} lands in block {block}")
            }
            What::GhostSlot { slot } => write!(f, "its late root slot {} lands", slot.number),
            What::GhostRecord => write!(f, "its late journal record lands"),
        }
    }
}

impl Step {
    pub(super) fn new(epoch: Epoch, what: What, after: State) -> (Self, State) {
        (Self { epoch, what }, after)
    }
}

pub(super) type Next = Vec<(Step, State)>;

pub(super) fn world(model: &TakeoverModel, state: &State, next: &mut Next) {
    for epoch in 1..=state.epochs {
        let reign = &state.reigns[usize::from(epoch) - 1];
        let last = epoch == state.epochs;
        if reign.alive && (last || !model.keeps(Rule::Evidence)) {
            let mut after = state.clone();
            after.dies(epoch);
            next.push(Step::new(epoch, What::Dies, after));
        }
        // With nothing under way, a fenced owner is no different from a dead one.
        let busy =
            reign.pending.is_some() || reign.commit.is_some() || super::adopt::live_flights(state, epoch);
        if reign.alive && !reign.fenced && busy && last && state.epochs < model.budget.epochs {
            let mut after = state.clone();
            after.reign(epoch).fenced = true;
            next.push(Step::new(epoch, What::IsFenced, after));
        }
        if !reign.alive && !reign.quiet && !last {
            let mut after = state.clone();
            after.quiet(epoch);
            next.push(Step::new(epoch, What::IsQuiet, after));
        }
    }
    if state.spent[CUTS] < model.budget.cuts {
        power_cut(state, next);
    }
    if state.spent[DAMAGES] < model.budget.damages && state.latest().phase == Phase::Open {
        for at in 0..2 {
            let mut after = state.clone();
            after.spent[DAMAGES] += 1;
            let slot = &mut after.pairs[usize::from(state.latest().pair)][at];
            slot.landed = Slot { number: 0, ..slot.landed };
            slot.flush();
            next.push(Step::new(state.epochs, What::SlotGoesBad { at }, after));
        }
    }
    ghosts(state, next);
}

/// Everybody dies with it; data that was not flushed is lost; a root slot on its way may be torn.
fn power_cut(state: &State, next: &mut Next) {
    for torn in [false, true] {
        let on_their_way = state.pairs.iter().flatten().any(|slot| slot.flight.is_some());
        // One fault at a time: a slot that went bad and one that was torn would be two.
        if torn && (!on_their_way || state.spent[DAMAGES] > 0) {
            continue;
        }
        let mut after = state.clone();
        after.spent[CUTS] += 1;
        after.spent[DAMAGES] += u8::from(torn);
        for slot in after.pairs.iter_mut().flatten() {
            if torn && slot.flight.is_some() {
                slot.durable = Slot { number: 0, ..slot.durable };
            }
            slot.cut();
        }
        after.data.iter_mut().for_each(crate::device::Block::cut);
        after.journals.iter_mut().flatten().for_each(crate::device::Block::cut);
        for epoch in 1..=state.epochs {
            if after.reign(epoch).phase != Phase::Released {
                after.dies(epoch);
            }
            after.reign(epoch).quiet = true;
        }
        next.push(Step::new(state.epochs, What::PowerCut { torn }, after));
    }
}

fn ghosts(state: &State, next: &mut Next) {
    for (block, cell) in state.data.iter().enumerate() {
        for (number, data) in cell.ghosts() {
            let mut after = state.clone();
            let over = after.data[block].ghost_lands(number).unwrap_or_default();
            if over.epoch > data.epoch {
                after.broken = Some(Broken::OverNewerData);
            }
            after.saw.inherited_ghost |= state.latest().phase == Phase::Open && state.epochs > data.epoch;
            next.push(Step::new(data.epoch, What::GhostData { block, version: data.version }, after));
        }
    }
    for (pair, at) in (0..super::EPOCHS).flat_map(|pair| [(pair, 0), (pair, 1)]) {
        for (number, slot) in state.pairs[pair][at].ghosts() {
            let mut after = state.clone();
            let over = after.pairs[pair][at].ghost_lands(number).unwrap_or_default();
            after.pairs[pair][at].flush();
            if over.epoch > slot.epoch {
                after.broken = Some(Broken::OverNewerMetadata);
            }
            next.push(Step::new(slot.epoch, What::GhostSlot { slot }, after));
        }
    }
    for (journal, at) in (0..super::EPOCHS).flat_map(|journal| [(journal, 0), (journal, 1)]) {
        for (number, record) in state.journals[journal][at].ghosts() {
            let mut after = state.clone();
            let over = after.journals[journal][at].ghost_lands(number).unwrap_or_default();
            after.journals[journal][at].flush();
            if over.epoch > record.epoch {
                after.broken = Some(Broken::OverNewerMetadata);
            }
            next.push(Step::new(record.epoch, What::GhostRecord, after));
        }
    }
}
