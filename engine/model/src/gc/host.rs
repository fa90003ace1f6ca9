//! Hosts: runs, blocks that come free, crashes, restarts, joining.

use super::{
    GcModel, HOSTS, Rule,
    state::{Host, Loose, Memory, NONE, Phase, State, extents, one},
    step::{CRASHES, JOINS, Next, Step, WRITES, What},
};

impl GcModel {
    /// Whether a host may change anything now.
    pub(super) fn acts(&self, state: &State, host: usize) -> bool {
        let Host { alive, skipped, .. } = state.hosts[host];
        alive && !(skipped && state.phase != Phase::Idle && self.keeps(Rule::SilentStops))
    }
}

pub(super) fn steps(model: &GcModel, state: &State, next: &mut Next) {
    for host in 0..HOSTS {
        let Host { alive, run, releasing, skipped, .. } = state.hosts[host];
        if model.acts(state, host) {
            if run == NONE && state.spent[WRITES] < model.budget.writes {
                let mut after = state.clone();
                if let Some(block) = after.allocate(model, host) {
                    after.hosts[host].run = block;
                    after.hosts[host].run_early = state.phase == Phase::Opened && state.roots == 0;
                    next.push(Step::of_host(host, What::Reserves { block }, after));
                }
            }
            if releasing.block != NONE {
                let mut after = state.clone();
                release(model, &mut after, host);
                next.push(Step::of_host(host, What::Releases { block: releasing.block }, after));
            }
            if state.spent[CRASHES] < model.budget.crashes && host < 2 {
                next.push(crash(state, host));
            }
        }
        if alive && skipped && state.phase != Phase::Idle && model.keeps(Rule::SilentStops) {
            let mut after = state.clone();
            after.give_up();
            next.push(Step::of_host(host, What::JoinsAgain, after));
        }
        if !alive && host < 2 {
            let mut after = state.clone();
            after.hosts[host].alive = true;
            if !model.keeps(Rule::RestartKnows) {
                (after.hosts[host].started, after.hosts[host].skipped) = (false, false);
            } else if skipped {
                after.give_up();
            }
            next.push(Step::of_host(host, What::Restarts, after));
        }
    }
    if !state.hosts[2].alive && state.spent[JOINS] < model.budget.joins {
        let mut after = state.clone();
        after.spent[JOINS] += 1;
        (after.hosts[2].alive, after.hosts[2].skipped) = (true, false);
        if model.keeps(Rule::JoinRestarts) {
            after.give_up();
        }
        next.push(Step::of_host(2, What::Joins, after));
    }
}

/// I/O that began before has finished.
fn release(model: &GcModel, after: &mut State, host: usize) {
    let Loose { block, node, stale } = std::mem::replace(&mut after.hosts[host].releasing, Loose::NOTHING);
    if stale && model.keeps(Rule::Stamp) {
        return;
    }
    if model.keeps(Rule::Leaves) {
        after.candidates &= !one(block);
    }
    if node && after.hosts[host].started && model.keeps(Rule::SupersededWait) {
        after.kept |= one(block);
        after.saw |= 1 << 4;
    } else {
        after.allocated &= !one(block);
        if after.phase != Phase::Idle {
            after.freed_in_cycle |= one(block);
        }
    }
}

/// Memory is gone; what the device has of the bitmap is what is left of it.
fn crash(state: &State, host: usize) -> (Step, State) {
    let mut after = state.clone();
    after.spent[CRASHES] += 1;
    let own = extents(host);
    after.allocated = (state.allocated & !own) | (state.marked_durable & own);
    after.candidates &= !own;
    after.kept &= !own;
    for volume in after.volumes.iter_mut().filter(|volume| volume.owner == Some(host as u8)) {
        (volume.owner, volume.last, volume.memory) = (None, host as u8, Memory::NOTHING);
    }
    let host_after = &mut after.hosts[host];
    (host_after.alive, host_after.run, host_after.run_early) = (false, NONE, false);
    host_after.releasing = Loose::NOTHING;
    Step::of_host(host, What::Crashes, after)
}
