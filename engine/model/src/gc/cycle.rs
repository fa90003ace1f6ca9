//! The manager's cycle.

use super::{
    GcModel, HOSTS, Rule, VOLUMES,
    state::{Blocks, Host, NONE, Phase, State, extents, one},
    step::{ABORTS, CYCLES, Next, SILENCES, Step, What},
};

pub(super) fn steps(model: &GcModel, state: &State, next: &mut Next) {
    match state.phase {
        Phase::Idle if state.spent[CYCLES] < model.budget.cycles => open(model, state, next),
        Phase::Idle => {}
        Phase::Opened => {
            (0..HOSTS).for_each(|host| start(model, state, host, next));
            (0..VOLUMES).for_each(|volume| read_root(model, state, volume, next));
            read_nodes(state, next);
        }
        Phase::Sweep => {
            (0..HOSTS).for_each(|host| sweep(state, host, next));
        }
    }
    if state.phase != Phase::Idle && state.spent[ABORTS] < model.budget.aborts {
        let mut after = state.clone();
        after.spent[ABORTS] += 1;
        after.give_up();
        if state.phase == Phase::Sweep {
            after.old_marks = Some(state.marks);
        }
        next.push(Step::of_manager(What::GivesUp, after));
    }
    // A message of the cycle before, to a host that has started in the next.
    let Some(marks) = state.old_marks.filter(|_| !model.keeps(Rule::CycleNumber)) else { return };
    for host in (0..HOSTS).filter(|host| state.hosts[*host].started) {
        let mut after = state.clone();
        after.old_marks = None;
        free_unmarked(&mut after, host, marks);
        next.push(Step::of_host(host, What::SweepsLate, after));
    }
}

fn open(model: &GcModel, state: &State, next: &mut Next) {
    let mut opened = state.clone();
    opened.spent[CYCLES] += 1;
    opened.phase = Phase::Opened;
    next.push(Step::of_manager(What::Opens, opened.clone()));
    for host in
        (0..2).filter(|host| state.hosts[*host].alive && state.spent[SILENCES] < model.budget.silences)
    {
        let mut after = opened.clone();
        after.spent[SILENCES] += 1;
        after.hosts[host].skipped = true;
        next.push(Step::of_manager(What::OpensWithout { host }, after));
    }
}

fn start(model: &GcModel, state: &State, host: usize, next: &mut Next) {
    let Host { alive, started, skipped, run, .. } = state.hosts[host];
    if !alive || started || skipped {
        return;
    }
    let mut after = state.clone();
    let own = extents(host);
    if model.keeps(Rule::ReturnRuns) {
        after.allocated &= !one(run);
        after.hosts[host].run = NONE;
    }
    let mut in_flight: Blocks = 0;
    for volume in after.volumes.iter_mut().filter(|volume| volume.owner == Some(host as u8)) {
        in_flight |= one(volume.memory.flight);
        if let Some(slot) = volume.memory.checkpoint {
            in_flight |= one(slot.node) | one(slot.snapshot);
        }
        volume.done = false;
        // One that began before says nothing about what was allocated since.
        volume.memory.checkpoint_in_cycle = false;
        volume.memory.freed.stale = true;
        volume.memory.waiting.stale = true;
    }
    if !model.keeps(Rule::InFlight) {
        in_flight = 0;
    }
    after.candidates = (after.candidates & !own) | (after.allocated & own & !in_flight);
    after.hosts[host].started = true;
    after.hosts[host].releasing.stale = true;
    next.push(Step::of_host(host, What::Starts, after));
}

/// Whether the roots of `volume` may be read.
fn ready(model: &GcModel, state: &State, volume: usize) -> bool {
    let host_ready = |host: &Host| !host.alive || host.skipped || host.started;
    let volume_ready = |volume: usize| {
        let volume = &state.volumes[volume];
        let done = volume.done || !model.keeps(Rule::Checkpoint);
        volume.owner.is_none_or(|owner| {
            let owner = &state.hosts[usize::from(owner)];
            owner.skipped || (owner.started && done)
        })
    };
    if model.keeps(Rule::AfterLastHost) {
        // Once the first root was read, a volume that is opened meanwhile holds nothing up.
        let all = (0..VOLUMES).all(volume_ready) || state.roots != 0;
        state.hosts.iter().all(host_ready) && all
    } else {
        volume_ready(volume)
    }
}

fn read_root(model: &GcModel, state: &State, index: usize, next: &mut Next) {
    if state.roots >> index & 1 == 1 || !ready(model, state, index) {
        return;
    }
    let mut after = state.clone();
    after.roots |= 1 << index;
    if model.keeps(Rule::AfterLastHost) {
        // A host that is dead now has no part in this cycle, and must join before it does anything.
        after.hosts.iter_mut().filter(|host| !host.alive).for_each(|host| host.skipped = true);
    }
    let volume = &state.volumes[index];
    if volume.registered {
        after.to_read |= one(volume.initial);
        for slot in volume.slots {
            after.to_read |= one(slot.node) | one(slot.snapshot);
        }
        let settled =
            volume.done && volume.owner.is_some_and(|owner| state.hosts[usize::from(owner)].started);
        if !settled && model.keeps(Rule::ReplayUnclean) {
            after.marks |= one(volume.record.unwrap_or(NONE));
        }
    }
    next.push(Step::of_manager(What::ReadsRoots { volume: index }, after));
}

fn read_nodes(state: &State, next: &mut Next) {
    let all = state.roots == (1 << VOLUMES) - 1;
    if state.to_read == 0 {
        if all {
            let mut after = state.clone();
            after.phase = Phase::Sweep;
            next.push(Step::of_manager(What::HasMarked, after));
        }
        return;
    }
    let node = state.to_read.trailing_zeros() as u8;
    let mut after = state.clone();
    after.to_read &= !one(node);
    after.marks |= state.tree(node);
    after.reused_unread = state.reused & one(node) != 0;
    next.push(Step::of_manager(What::ReadsNode { node }, after));
}

fn sweep(state: &State, host: usize, next: &mut Next) {
    let Host { alive, started, swept, .. } = state.hosts[host];
    if !alive || !started || swept {
        return;
    }
    let mut after = state.clone();
    free_unmarked(&mut after, host, state.marks);
    after.hosts[host].swept = true;
    after.hosts[host].started = false;
    if after.hosts.iter().all(|host| !host.alive || host.swept || !host.started) {
        after.end();
    }
    next.push(Step::of_host(host, What::Sweeps, after));
}

fn free_unmarked(after: &mut State, host: usize, marks: Blocks) {
    let own = extents(host);
    let garbage = after.candidates & own & !marks;
    after.saw |= u8::from(garbage != 0);
    after.freed_in_cycle |= garbage;
    after.allocated &= !(garbage | (after.kept & own));
    after.candidates &= !own;
    after.kept &= !own;
    after.hosts[host].releasing.stale = true;
    for volume in after.volumes.iter_mut().filter(|volume| volume.owner == Some(host as u8)) {
        volume.memory.freed.stale = true;
        volume.memory.waiting.stale = true;
    }
}

impl State {
    /// The cycle is over.
    fn end(&mut self) {
        self.phase = Phase::Idle;
        self.allocated &= !self.kept;
        (self.candidates, self.kept, self.to_read, self.reused, self.marks) = (0, 0, 0, 0, 0);
        (self.roots, self.freed_in_cycle, self.cloned_in_cycle) = (0, 0, false);
        for host in &mut self.hosts {
            (host.started, host.swept, host.skipped) = (false, false, false);
        }
    }

    /// The cycle is given up: nothing more is freed by it.
    pub(super) fn give_up(&mut self) {
        if self.phase != Phase::Idle {
            self.end();
        }
    }
}
