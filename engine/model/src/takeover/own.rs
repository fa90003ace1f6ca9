//! What the owner of an open volume does: writes, flushes, checkpoints, snapshots, release; and where space that
//! came free is used again.

use super::{
    BLOCKS, JOURNAL, Rule, TakeoverModel,
    adopt::submit_slot,
    state::{Broken, Commit, Data, Epoch, OTHER, Pending, Phase, Record, Slot, Snapshot, State},
    step::{CHECKPOINTS, Next, REUSES, SNAPSHOTS, Step, TIMEOUTS, WRITES, What},
};

pub(super) fn steps(model: &TakeoverModel, state: &State, next: &mut Next) {
    for epoch in 1..=state.epochs {
        let reign = &state.reigns[usize::from(epoch) - 1];
        if !reign.alive {
            continue;
        }
        data_lands(state, epoch, next);
        record_lands(state, epoch, next);
        if reign.phase != Phase::Open {
            continue;
        }
        if reign.pending.is_some() && state.spent[TIMEOUTS] < model.budget.timeouts {
            times_out(model, state, epoch, next);
        }
        if reign.fenced {
            continue;
        }
        if state.spent[WRITES] < model.budget.writes && reign.pending.is_none() {
            write(state, epoch, next);
        }
        if reign.commit.is_none() {
            flush(model, state, epoch, next);
        }
        let idle = reign.commit.is_none() && !reign.dirty && !reign.checkpoint;
        if idle && state.spent[CHECKPOINTS] < model.budget.checkpoints {
            let mut after = state.clone();
            after.spent[CHECKPOINTS] += 1;
            submit_slot(model, &mut after, epoch, false);
            next.push(Step::new(epoch, What::Checkpoints, after));
        }
        if state.spent[SNAPSHOTS] < model.budget.snapshots
            && reign.pending.is_none()
            && state.snapshot.is_none()
        {
            snapshot(model, state, epoch, next);
        }
        let orderly = reign.unknown == 0 || !model.keeps(Rule::CleanRelease);
        let flushed = reign.acknowledged == 0 || reign.acknowledged <= state.flushed;
        if idle && orderly && flushed && reign.pending.is_none() {
            let mut after = state.clone();
            after.reign(epoch).phase = Phase::Releases;
            submit_slot(model, &mut after, epoch, true);
            next.push(Step::new(epoch, What::Releases, after));
        }
        if epoch == state.epochs && state.spent[REUSES] < model.budget.reuses && !reign.checkpoint {
            reuse(model, state, epoch, next);
        }
    }
}

fn write(state: &State, epoch: Epoch, next: &mut Next) {
    let reign = &state.reigns[usize::from(epoch) - 1];
    let mut after = state.clone();
    after.spent[WRITES] += 1;
    let version = after.spent[WRITES];
    let block = if reign.writable { reign.block } else { state.fresh };
    if usize::from(block) == BLOCKS {
        return;
    }
    after.fresh = after.fresh.max(block + 1);
    after.data[usize::from(block)].submit(Data { epoch, version });
    after.reign(epoch).pending = Some(Pending { block, version, fresh: !reign.writable });
    next.push(Step::new(epoch, What::Writes { version, block, in_place: reign.writable }, after));
}

/// The client's write lands; its owner learns of it in the same step.
fn data_lands(state: &State, epoch: Epoch, next: &mut Next) {
    let Some(pending) = state.reigns[usize::from(epoch) - 1].pending else { return };
    let mut after = state.clone();
    let over = after.data[usize::from(pending.block)].land();
    if over.is_some_and(|over| over.epoch > epoch) {
        after.broken = Some(Broken::OverNewerData);
    }
    let reign = after.reign(epoch);
    reign.pending = None;
    reign.acknowledged = pending.version;
    if pending.fresh {
        reign.block = pending.block;
        reign.writable = true;
        reign.dirty = true;
    }
    next.push(Step::new(epoch, What::WriteLands { version: pending.version }, after));
}

/// The client is told of a failure; whether the write lands is not known.
fn times_out(model: &TakeoverModel, state: &State, epoch: Epoch, next: &mut Next) {
    let Some(pending) = state.reigns[usize::from(epoch) - 1].pending else { return };
    let mut after = state.clone();
    after.spent[TIMEOUTS] += 1;
    after.data[usize::from(pending.block)].abandon();
    let reign = after.reign(epoch);
    reign.pending = None;
    reign.unknown |= 1 << pending.block;
    if !pending.fresh && model.keeps(Rule::UnknownWrite) {
        reign.writable = false;
    }
    next.push(Step::new(epoch, What::TimesOut { version: pending.version }, after));
}

fn flush(model: &TakeoverModel, state: &State, epoch: Epoch, next: &mut Next) {
    let reign = state.reigns[usize::from(epoch) - 1];
    if reign.acknowledged <= state.flushed && !reign.dirty {
        return;
    }
    let mut after = state.clone();
    if model.keeps(Rule::DataBeforeRecord) || !reign.dirty {
        after.data.iter_mut().for_each(crate::device::Block::flush);
    }
    if reign.dirty {
        let at = usize::from(reign.records);
        if at == JOURNAL {
            return;
        }
        after.journals[usize::from(epoch) - 1][at].submit(Record { epoch, block: reign.block });
        after.reign(epoch).commit = Some(Commit { block: reign.block, covers: reign.acknowledged });
        next.push(Step::new(epoch, What::Commits { block: reign.block }, after));
    } else {
        acknowledge_flush(model.budget.epochs, &mut after, epoch, reign.acknowledged);
        next.push(Step::new(epoch, What::Flushes { covers: reign.acknowledged }, after));
    }
}

fn acknowledge_flush(last: Epoch, after: &mut State, epoch: Epoch, covers: u8) {
    after.saw.last_flush |= epoch == last;
    after.flushed = after.flushed.max(covers);
}

/// A journal record lands, with FUA; the flush that waits for it is acknowledged in the same step, by a fenced
/// owner too: it was told that its write is durable.
fn record_lands(state: &State, epoch: Epoch, next: &mut Next) {
    let Some(commit) = state.reigns[usize::from(epoch) - 1].commit else { return };
    let mut after = state.clone();
    let at = usize::from(after.reign(epoch).records);
    let over = after.journals[usize::from(epoch) - 1][at].land_durable();
    if over.is_some_and(|over| over.epoch > epoch) {
        after.broken = Some(Broken::OverNewerMetadata);
    }
    let reign = after.reign(epoch);
    reign.records += 1;
    reign.commit = None;
    reign.dirty &= reign.block != commit.block;
    let last = super::EPOCHS as u8;
    acknowledge_flush(last, &mut after, epoch, commit.covers);
    next.push(Step::new(epoch, What::Flushes { covers: commit.covers }, after));
}

fn snapshot(model: &TakeoverModel, state: &State, epoch: Epoch, next: &mut Next) {
    let reign = state.reigns[usize::from(epoch) - 1];
    let mut after = state.clone();
    after.spent[SNAPSHOTS] += 1;
    let content = state.data[usize::from(reign.block)].landed;
    // Blocks that this epoch allocated have no other writer, unless it is an unknown write of its own.
    let own = content.epoch == epoch && reign.block != 0 && reign.unknown >> reign.block & 1 == 0;
    let quiet =
        state.reigns[..usize::from(epoch) - 1].iter().all(|before| before.quiet) && reign.unknown == 0;
    let stable = own || quiet || !model.keeps(Rule::Provisional);
    after.snapshot = Some(Snapshot { block: reign.block, content, stable });
    after.reign(epoch).writable = false;
    next.push(Step::new(epoch, What::Snapshots { block: reign.block, stable }, after));
}

/// The other volume, on the same host, takes a block that this one does not need any more.
fn reuse(model: &TakeoverModel, state: &State, epoch: Epoch, next: &mut Next) {
    let reign = state.reigns[usize::from(epoch) - 1];
    let quiet = state.reigns[..usize::from(epoch) - 1].iter().all(|before| before.quiet);
    let proved = quiet || !model.keeps(Rule::Quarantine);
    let unmapped = (!reign.dirty && reign.commit.is_none()) || !model.keeps(Rule::ReuseAfterDurable);
    let take = |mut after: State, what: What, next: &mut Next| {
        after.spent[REUSES] += 1;
        after.saw.reused |= epoch > 1;
        next.push(Step::new(epoch, what, after));
    };
    for block in 0..state.fresh {
        let needed = reign.block == block
            || reign.pending.is_some_and(|pending| pending.block == block)
            || state.snapshot.is_some_and(|snapshot| snapshot.block == block)
            || reign.unknown >> block & 1 == 1;
        // A block that this epoch allocated has had no other writer.
        let own = state.data[usize::from(block)].landed.epoch == epoch;
        if needed || !unmapped || !(own || proved) {
            continue;
        }
        let mut after = state.clone();
        after.data[usize::from(block)].landed = Data { epoch, version: OTHER };
        after.data[usize::from(block)].flush();
        take(after, What::ReusesBlock { block }, next);
    }
    if reign.trimmed[1] > 0 {
        let mut after = state.clone();
        after.journals[usize::from(epoch) - 1][0].landed = Record { epoch, block: OTHER };
        after.journals[usize::from(epoch) - 1][0].flush();
        take(after, What::ReusesJournal { of: epoch }, next);
    }
    for former in 1..epoch {
        if !proved {
            continue;
        }
        let mut after = state.clone();
        after.journals[usize::from(former) - 1][0].landed = Record { epoch, block: OTHER };
        after.journals[usize::from(former) - 1][0].flush();
        take(after, What::ReusesJournal { of: former }, next);
        let pair = state.reigns[usize::from(former) - 1].pair;
        if state.reigns[usize::from(former) - 1].grant != reign.grant {
            let mut after = state.clone();
            after.pairs[usize::from(pair)][0].landed = Slot { epoch, number: 0, ..Slot::default() };
            after.pairs[usize::from(pair)][0].flush();
            take(after, What::ReusesSlot { of: former }, next);
        }
    }
}
