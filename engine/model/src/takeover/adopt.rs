//! From grant to first I/O.

use super::{
    Rule, TakeoverModel,
    state::{Broken, Epoch, OTHER, Phase, Reign, Slot, State},
    step::{Next, Step, What},
};

pub(super) fn steps(model: &TakeoverModel, state: &State, next: &mut Next) {
    if state.epochs < model.budget.epochs {
        begin(model, state, next);
    }
    for epoch in 1..=state.epochs {
        if state.reigns[usize::from(epoch) - 1].acts() {
            go_on(model, state, epoch, next);
        }
        slot_lands(model, state, epoch, next);
    }
}

/// Somebody else, or the same host again.
fn begin(model: &TakeoverModel, state: &State, next: &mut Next) {
    let last = *state.latest();
    let epoch = state.epochs + 1;
    let released = last.phase == Phase::Released;
    // 6i: the owner is known to be off; or the device refuses it, and nothing that it had accepted is left.
    let aborted = !model.keeps(Rule::Abort) || !live_flights(state, state.epochs);
    let evidence = !last.alive || (last.fenced && aborted) || !model.keeps(Rule::Evidence);
    if released || evidence {
        let mut after = state.clone();
        if last.fenced && model.keeps(Rule::Abort) {
            after.dies(state.epochs);
        }
        // The grant before stays until the latest has a valid slot; the registry holds two.
        let unused = state.newest(last.grant).is_none();
        if !(unused && state.previous.is_some() && model.keeps(Rule::KeepPrevious)) {
            after.previous = Some(last.grant);
        }
        after.epochs = epoch;
        *after.reign(epoch) =
            Reign { phase: Phase::Granted, alive: true, grant: epoch, pair: epoch - 1, ..Reign::NONE };
        next.push(Step::new(epoch, What::TakesOver { released }, after));
    }
    // A restart: the process is dead, its successor holds the device exclusively, which proves that what the dead
    // one had under way has finished.
    if !last.alive && !last.fenced && !released {
        let mut after = state.clone();
        if model.keeps(Rule::QuietRestart) {
            after.quiet(state.epochs);
        }
        let before = state.reigns[usize::from(state.epochs).saturating_sub(2)];
        let third = state.epochs >= 2 && before.grant == last.grant;
        after.epochs = epoch;
        *after.reign(epoch) = Reign {
            phase: Phase::Granted,
            alive: true,
            grant: last.grant,
            pair: if third { before.pair } else { epoch - 1 },
            clean: model.keeps(Rule::QuietRestart),
            ..Reign::NONE
        };
        next.push(Step::new(epoch, What::Restarts, after));
    }
}

/// A fenced owner that lives could still acknowledge what it has under way.
pub(super) fn live_flights(state: &State, epoch: Epoch) -> bool {
    state.data.iter().any(|block| block.flight.is_some_and(|data| data.epoch == epoch))
        || state.pairs.iter().flatten().any(|block| block.flight.is_some_and(|slot| slot.epoch == epoch))
        || state
            .journals
            .iter()
            .flatten()
            .any(|block| block.flight.is_some_and(|record| record.epoch == epoch))
}

fn go_on(model: &TakeoverModel, state: &State, epoch: Epoch, next: &mut Next) {
    let reign = state.reigns[usize::from(epoch) - 1];
    let mut after = state.clone();
    match reign.phase {
        Phase::Granted => {
            let found =
                state.newest(reign.grant).or_else(|| state.previous.and_then(|grant| state.newest(grant)));
            let Some(found) = found else {
                after.broken = Some(Broken::DoesNotOpen);
                next.push(Step::new(epoch, What::FindsNoSlot, after));
                return;
            };
            after.reign(epoch).phase = Phase::Read(found);
            next.push(Step::new(epoch, What::ReadsSlot { found }, after));
        }
        Phase::Read(found) => {
            let (mut block, mut shared) = (found.block, found.shared);
            if !found.released {
                let journal = &state.journals[usize::from(found.epoch) - 1];
                for record in journal.iter().skip(usize::from(found.from)).map(|block| block.landed) {
                    if record.epoch != found.epoch || record.block == OTHER {
                        break;
                    }
                    (block, shared) = (record.block, false);
                }
            }
            // What was proved about our own former process says nothing about somebody else's.
            let proved = state.reigns[usize::from(found.epoch) - 1].quiet;
            let taken = !model.keeps(Rule::EvidenceOfAdopted) && reign.clean;
            let clean = found.released || proved || taken;
            let mine = after.reign(epoch);
            mine.block = block;
            mine.clean = clean;
            // What an epoch marked as shared stays so after its restart: the owner before it may still have writes
            // on their way.
            mine.writable = !shared && (clean || !model.keeps(Rule::MarkShared));
            mine.number = found.number;
            if !model.keeps(Rule::OwnExtents) {
                // The first block that nothing durable names.
                after.fresh = block + 1;
            }
            let mine = after.reign(epoch);
            mine.phase = if model.keeps(Rule::SlotsFirst) { Phase::Adopts } else { Phase::Open };
            mine.checkpoint = true;
            submit_slot(model, &mut after, epoch, false);
            next.push(Step::new(epoch, What::Replays { block }, after));
        }
        _ => {}
    }
}

/// Submits the next checkpoint.
pub(super) fn submit_slot(model: &TakeoverModel, after: &mut State, epoch: Epoch, released: bool) {
    let reign = after.reign(epoch);
    let number = reign.number + 1;
    let slot =
        Slot { epoch, number, block: reign.block, from: reign.records, shared: !reign.writable, released };
    reign.checkpoint = true;
    let at =
        if reign.phase == Phase::Open && !model.keeps(Rule::OlderSlot) { 0 } else { usize::from(number) % 2 };
    let pair = usize::from(reign.pair);
    after.pairs[pair][at].submit(slot);
}

/// A root slot lands, with FUA; its owner, if it lives, learns of it in the same step.
fn slot_lands(model: &TakeoverModel, state: &State, epoch: Epoch, next: &mut Next) {
    let reign = state.reigns[usize::from(epoch) - 1];
    for at in 0..2 {
        let pair = usize::from(reign.pair);
        let Some(slot) = state.pairs[pair][at].flight.filter(|slot| slot.epoch == epoch) else { continue };
        let mut after = state.clone();
        let over = after.pairs[pair][at].land_durable();
        if over.is_some_and(|over| over.epoch > epoch) {
            after.broken = Some(Broken::OverNewerMetadata);
        }
        let mine = after.reign(epoch);
        mine.number = slot.number;
        mine.trimmed = [slot.from, reign.trimmed[0]];
        mine.checkpoint = false;
        match reign.phase {
            Phase::Adopts if model.keeps(Rule::BothSlots) => {
                mine.phase = Phase::AdoptsAgain;
                if !reign.fenced {
                    submit_slot(model, &mut after, epoch, false);
                }
            }
            // Step 4 of the opening: the registry forgets the grant before.
            Phase::Adopts | Phase::AdoptsAgain => {
                mine.phase = Phase::Open;
                after.saw.clean_in_place |= reign.clean && epoch > 1;
                after.previous = None;
            }
            Phase::Releases => {
                mine.phase = Phase::ReleasesAgain;
                if !reign.fenced {
                    submit_slot(model, &mut after, epoch, true);
                }
            }
            Phase::ReleasesAgain => {
                mine.phase = Phase::Released;
                mine.alive = false;
                mine.quiet = true;
            }
            _ => {}
        }
        next.push(Step::new(epoch, What::SlotLands { slot }, after));
    }
}
