//! What the host of an open volume does with it; and opening, closing, cloning, deleting.

use super::{
    GcModel, HOSTS, Rule, VOLUMES,
    state::{Loose, Memory, NONE, Phase, Slot, State, Volume, one},
    step::{CLONES, DELETES, DISCARDS, MOVES, Next, SNAPSHOTS, Step, WRITES, What},
};

pub(super) fn steps(model: &GcModel, state: &State, next: &mut Next) {
    for volume in 0..VOLUMES {
        match state.volumes[volume].owner {
            Some(host) if model.acts(state, usize::from(host)) => {
                map(model, state, (volume, usize::from(host)), next);
                checkpoint(model, state, (volume, usize::from(host)), next);
                snapshots(model, state, (volume, usize::from(host)), next);
            }
            Some(_) => {}
            None => closed(model, state, volume, next),
        }
    }
    clone(model, state, next);
}

fn push(next: &mut Next, volume: usize, what: What, after: State) {
    next.push(Step::of_volume(volume, what, after));
}

/// Writes, discards and commits.
fn map(model: &GcModel, state: &State, (volume, host): (usize, usize), next: &mut Next) {
    let memory = state.volumes[volume].memory;
    let run = state.hosts[host];
    let may_write = memory.flight == NONE && (memory.map == NONE || !memory.writable);
    if may_write && run.run != NONE && state.spent[WRITES] < model.budget.writes {
        let mut after = state.clone();
        after.spent[WRITES] += 1;
        after.volumes[volume].memory.flight = run.run;
        after.saw |= u8::from(run.run_early && state.roots != 0) << 5;
        after.hosts[host].run = NONE;
        after.hosts[host].run_early = false;
        push(next, volume, What::Writes { block: run.run }, after);
    }
    if memory.flight != NONE {
        let mut after = state.clone();
        let mine = &mut after.volumes[volume].memory;
        (mine.map, mine.flight, mine.writable, mine.dirty) = (memory.flight, NONE, true, true);
        push(next, volume, What::Publishes { block: memory.flight }, after);
    }
    let free_hands = memory.freed.block == NONE && memory.flight == NONE;
    if memory.map != NONE && free_hands && state.spent[DISCARDS] < model.budget.discards {
        let mut after = state.clone();
        after.spent[DISCARDS] += 1;
        let mine = &mut after.volumes[volume].memory;
        (mine.map, mine.dirty) = (NONE, true);
        if memory.writable {
            mine.freed = Loose { block: memory.map, node: false, stale: false };
        }
        if !model.keeps(Rule::FreeAfterDurable) {
            let loose = std::mem::replace(&mut mine.freed, Loose::NOTHING);
            after.release_later(host, loose);
        }
        push(next, volume, What::Discards, after);
    }
    if memory.dirty && memory.checkpoint.is_none() {
        let mut after = state.clone();
        commit(&mut after, volume, host);
        push(next, volume, What::Commits, after);
    }
}

/// The mapping is in a durable record; what it cut loose is released.
fn commit(after: &mut State, volume: usize, host: usize) {
    let volume = &mut after.volumes[volume];
    volume.record = Some(volume.memory.map);
    volume.memory.dirty = false;
    let loose = std::mem::replace(&mut volume.memory.freed, Loose::NOTHING);
    after.release_later(host, loose);
}

fn checkpoint(model: &GcModel, state: &State, (volume, host): (usize, usize), next: &mut Next) {
    let Volume { memory, slots, record, done, initial, .. } = state.volumes[volume];
    let changed =
        memory.dirty || record.is_some() || memory.pending != NONE || memory.snapshot != slots[0].snapshot;
    if let Some(slot) = memory.checkpoint {
        let mut after = state.clone();
        let mine = &mut after.volumes[volume];
        mine.slots = [slot, slots[0]];
        mine.record = None;
        mine.memory.pending = NONE;
        mine.memory.snapshot = slot.snapshot;
        mine.memory.checkpoint = None;
        mine.done |= memory.checkpoint_in_cycle || !model.keeps(Rule::CheckpointBegins);
        // The root that a volume was cloned from belongs to its source too.
        let superseded = if slots[0].node == initial { NONE } else { slots[0].node };
        let superseded = Loose { block: superseded, node: true, stale: false };
        if model.keeps(Rule::ReuseAfterNext) {
            mine.memory.waiting = superseded;
            after.release_later(host, memory.waiting);
        } else {
            after.release_later(host, superseded);
        }
        push(next, volume, What::Checkpointed { slot }, after);
    } else if changed || (state.hosts[host].started && !done) {
        let mut after = state.clone();
        if memory.dirty {
            commit(&mut after, volume, host);
        }
        let mut slot = Slot { node: NONE, snapshot: memory.snapshot };
        if memory.pending != NONE {
            let Some(node) = after.allocate(model, host) else { return };
            after.content[usize::from(node)] = memory.pending;
            slot.snapshot = node;
        }
        let Some(node) = after.allocate(model, host) else { return };
        after.content[usize::from(node)] = memory.map;
        slot.node = node;
        let mine = &mut after.volumes[volume].memory;
        mine.checkpoint = Some(slot);
        mine.checkpoint_in_cycle = state.hosts[host].started;
        push(next, volume, What::Checkpoints { slot }, after);
    }
}

fn snapshots(model: &GcModel, state: &State, (volume, host): (usize, usize), next: &mut Next) {
    let Volume { memory, record, .. } = state.volumes[volume];
    if memory.checkpoint.is_some() {
        return;
    }
    let none = memory.pending == NONE && memory.snapshot == NONE;
    if none && memory.map != NONE && state.spent[SNAPSHOTS] < model.budget.snapshots {
        let mut after = state.clone();
        after.spent[SNAPSHOTS] += 1;
        let mine = &mut after.volumes[volume].memory;
        (mine.pending, mine.writable) = (memory.map, false);
        push(next, volume, What::Snapshots, after);
    }
    let pinned = state.cloning != NONE && model.keeps(Rule::Pins);
    let waits = state.hosts[host].started && model.keeps(Rule::DeletesWait);
    if memory.snapshot != NONE && !pinned && !waits && state.spent[DELETES] < model.budget.deletes {
        let mut after = state.clone();
        after.spent[DELETES] += 1;
        after.volumes[volume].memory.snapshot = NONE;
        after.saw |= u8::from(state.phase != Phase::Idle && state.cloned_in_cycle) << 2;
        push(next, volume, What::DeletesSnapshot, after);
    }
    let quiet = memory.flight == NONE && memory.freed.block == NONE && !memory.dirty;
    if quiet && record.is_none() && memory.pending == NONE && state.spent[MOVES] < model.budget.moves {
        let mut after = state.clone();
        after.spent[MOVES] += 1;
        let mine = &mut after.volumes[volume];
        mine.slots[1] = mine.slots[0];
        (mine.owner, mine.last, mine.memory) = (None, host as u8, Memory::NOTHING);
        push(next, volume, What::Closes, after);
    }
}

fn closed(model: &GcModel, state: &State, volume: usize, next: &mut Next) {
    let found = state.volumes[volume];
    if !found.registered {
        return;
    }
    for host in (0..HOSTS).filter(|host| model.acts(state, *host)) {
        let mut after = state.clone();
        let map = state.recovered(&found);
        let mine = &mut after.volumes[volume];
        if found.slots[0].node == NONE {
            mine.slots = [Slot { node: found.initial, snapshot: NONE }; 2];
        }
        mine.owner = Some(host as u8);
        mine.memory = Memory { map, snapshot: mine.slots[0].snapshot, ..Memory::NOTHING };
        mine.done = found.record.is_none() && state.hosts[host].started;
        after.saw |= u8::from(state.phase != Phase::Idle && usize::from(found.last) != host) << 3;
        push(next, volume, What::OpensOn { host }, after);
    }
    let waits = state.phase != Phase::Idle && model.keeps(Rule::DeletesWait);
    let bare = found.slots[0].snapshot == NONE && state.cloning == NONE;
    if bare && !waits && state.spent[DELETES] < model.budget.deletes {
        let mut after = state.clone();
        after.spent[DELETES] += 1;
        let mine = &mut after.volumes[volume];
        (mine.registered, mine.initial, mine.slots, mine.record) = (false, NONE, [Slot::EMPTY; 2], None);
        push(next, volume, What::DeletesVolume, after);
    }
}

/// Volume 1 is cloned from volume 0's snapshot: its root is read, later the registry says so.
fn clone(model: &GcModel, state: &State, next: &mut Next) {
    let source = &state.volumes[0];
    let node = source.slots[0].snapshot;
    let there =
        source.registered && node != NONE && (source.owner.is_none() || source.memory.snapshot == node);
    if there && state.cloning == NONE && state.spent[CLONES] < model.budget.clones {
        let mut after = state.clone();
        after.spent[CLONES] += 1;
        after.cloning = node;
        push(next, 1, What::BeginsToClone { node }, after);
    }
    if state.cloning != NONE {
        let mut after = state.clone();
        after.volumes[1].registered = true;
        after.volumes[1].initial = state.cloning;
        after.cloning = NONE;
        after.cloned_in_cycle = state.phase != Phase::Idle;
        push(next, 1, What::IsCloned, after);
    }
}

impl State {
    /// Takes the lowest free block of a host.
    pub(super) fn allocate(&mut self, model: &GcModel, host: usize) -> Option<u8> {
        let free = super::state::extents(host) & !self.allocated;
        if free == 0 {
            return None;
        }
        let block = free.trailing_zeros() as u8;
        self.allocated |= one(block);
        if model.keeps(Rule::MarkFirst) {
            // One bitmap block covers all of a host's extents here.
            let own = super::state::extents(host);
            self.marked_durable = (self.marked_durable & !own) | (self.allocated & own);
        }
        if model.keeps(Rule::Leaves) {
            self.candidates &= !one(block);
        }
        self.reused |= one(block) & self.to_read;
        self.saw |= u8::from(self.freed_in_cycle & one(block) != 0) << 1;
        self.content[usize::from(block)] = NONE;
        Some(block)
    }

    /// What nobody needs any more waits for I/O that began before. A host remembers one such block; others are left
    /// to the next cycle, and so is what lies in another host's extents.
    fn release_later(&mut self, host: usize, loose: Loose) {
        if one(loose.block) & super::state::extents(host) != 0 && self.hosts[host].releasing.block == NONE {
            self.hosts[host].releasing = loose;
        }
    }
}
