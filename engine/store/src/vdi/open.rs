//! Opens a VDI: finds its state, replays, begins a new epoch.
//!
//! ```text
//! registry record --> slots of its grant --> newest root --> journal --> tail --> state in memory
//!      new grant (logged) unless this incarnation holds one --> open + 1
//!      checkpoint into both new slots, with {previous epoch, last group, evidence}
//!      then only: old slots and old journal are released, I/O begins
//! ```
//!
//! An epoch without a valid slot never existed: a crash before the first of the two leaves the old state.

use super::{
    Continuity, Kept, Mapping, Mode, Roots, VdiCore,
    journal::{Group, JournalWriter},
    lookup::Finder,
    replay::{self, Slots},
    tail::{self, TailWriter},
    write::{Placed, map_run},
};
use crate::{
    VdiId,
    mutants::{self, Mutant},
    pool::PoolCore,
    space::Run,
    tree::{Missing, Tree},
};
use parallax_block::{BLOCK_SIZE, Error, ErrorKind, Result, ResultExt};
use parallax_format::{
    Entry,
    journal::JournalRecord,
    node::{TABLE_LEVEL, depth_for},
    record::{ExtentKind, Grant, VdiRecord},
    root::{Epoch, Evidence, SLOTS, TreeRoot},
};
use parking_lot::RwLock;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// State that was found, before any epoch of ours.
struct Adopted {
    mapping: Mapping,
    number: u64,
    group: u64,
    record: u64,
    previous: Option<(Epoch, u64)>,
    evidence: Evidence,
    /// Journal of the epoch before; freed once ours has begun.
    segments: Vec<Run>,
    /// Tail of the epoch before.
    tail: Option<Epoch>,
    /// Grant under which the state was found.
    grant: Option<Grant>,
    /// How much of the epoch before is here.
    kept: Kept,
}

/// Opens `id` for this incarnation.
pub(crate) async fn open(pool: &Arc<PoolCore>, id: VdiId) -> Result<Arc<VdiCore>> {
    let record = pool.record(id)?;
    let adopted = adopt(pool, &record).await.context(|| format!("opening volume '{}'", record.name))?;
    let (epoch, slots) = begin_epoch(pool, &record, &adopted).await?;
    let pool_ref = pool.clone();
    let journal =
        JournalWriter::begin(&pool.space, &**pool, record.id, epoch, adopted.group + 1, adopted.record)
            .await?;
    let table = Tree::new(adopted.mapping.table, TABLE_LEVEL, &pool.dirty);
    let replay = journal.position()?;
    let Adopted {
        mapping,
        number,
        previous,
        evidence,
        segments,
        tail: old_tail,
        grant,
        record: next_record,
        kept,
        ..
    } = adopted;
    let continuity = Continuity { epoch, previous: previous.map(|(epoch, _)| epoch), kept };
    let tail_key = tail::key(pool.disk.superblock.uuid, record.id, epoch);
    let new_tail = || {
        let uuid = pool.disk.superblock.uuid;
        TailWriter::create(&*pool.environment.tails, uuid, record.id, epoch, next_record, pool.disk.salt())
    };
    // Before the first slot: a crash between the two must not look like a tail that was lost. After the last one, if
    // one was lost: that must not look as if none were.
    let mut writer = if kept == Kept::Everything { Some(new_tail()?) } else { None };
    let core = Arc::new_cyclic(|me| VdiCore {
        me: me.clone(),
        pool: pool_ref,
        id,
        continuity,
        logical_block: record.logical_block,
        mapping: RwLock::new(mapping),
        locks: Arc::default(),
        runs: super::Runs::default(),
        journal: journal.into(),
        commits: Arc::default(),
        checkpoints: Arc::default(),
        growing: ().into(),
        roots: Roots {
            epoch,
            slots,
            number,
            table,
            waiting: Vec::new(),
            waiting_since: pool.space.stamp(),
            replay,
            previous,
            evidence,
        }
        .into(),
    });
    // Both slots, before the first I/O.
    for _ in 0..2 {
        if let Err(error) = core.checkpoint_round(Mode::Always).await {
            // A slot that was written, or may have been, names the journal: then only garbage collection can tell.
            let unnamed = core.failure().is_none() && core.roots.lock().await.number == number;
            core.stop("it could not be opened");
            let segments = core.journal.lock().await.abandon();
            if unnamed {
                pool.space.give_back(&segments);
                // The next attempt makes it anew; what cannot be removed is overwritten then.
                let _ = pool.environment.tails.remove(&tail_key);
            }
            return Err(error.context(format!("opening volume '{}'", record.name)));
        }
    }
    if writer.is_none() {
        writer = Some(new_tail()?);
    }
    core.mapping.write().tail = writer;
    if let Some(old) = old_tail {
        let key = tail::key(pool.disk.superblock.uuid, record.id, old);
        pool.environment.tails.remove(&key)?;
    }
    // Nothing names the epoch before any more. If nothing proves that its last writes have landed, garbage collection lets
    // its blocks go, later.
    let now = pool.space.stamp();
    let quiet = evidence.proves_quiet();
    let segments = if quiet { segments } else { Vec::new() };
    pool.space.free(&segments, now);
    if pool.record(id)?.previous.is_some() {
        pool.update(id, |record| {
            record.previous = None;
            Ok(())
        })
        .await?;
    }
    if let Some(old) = grant.filter(|old| quiet && old.slots != slots) {
        pool.space.free(&[Run::slots(old.slots)], now);
    }
    if let Err(error) = pool.adopted(id).await {
        tracing::warn!(%error, "it stays noted that unflushed writes were in doubt");
    }
    tracing::debug!(vdi = %id, %epoch, ?evidence, "opened");
    Ok(core)
}

/// The epoch's number and its slots.
async fn begin_epoch(
    pool: &Arc<PoolCore>,
    record: &VdiRecord,
    adopted: &Adopted,
) -> Result<(Epoch, parallax_format::BlockAddress)> {
    // After a root write that failed its slots are not written again: it may land yet.
    let ours = record.grant.filter(|grant| {
        grant.incarnation == pool.incarnation && adopted.grant == Some(*grant) && !pool.space.has_doubts()
    });
    if let Some(grant) = ours {
        let open = adopted.previous.map_or(0, |(epoch, _)| epoch.open);
        return Ok((Epoch { grant: grant.number, open: open + 1 }, grant.slots));
    }
    let run = pool.space.take(&**pool, ExtentKind::Metadata, SLOTS, SLOTS, None).await?;
    // The marks are durable before the registry names the slots.
    pool.disk.flush().await?;
    let number = record.grant.map_or(0, |grant| grant.number) + 1;
    let grant = Grant { number, incarnation: pool.incarnation, slots: run.start };
    // Number 0 says: before this grant, the initial root counts.
    let before = adopted.grant.unwrap_or(Grant { number: 0, incarnation: 0, slots: run.start });
    let granted = pool
        .update(VdiId(record.id), |record| {
            record.grant = Some(grant);
            record.previous = Some(before);
            Ok(())
        })
        .await;
    // The record may be there although its write has failed: then it names the slots, and garbage collection decides.
    granted?;
    Ok((Epoch { grant: number, open: 1 }, run.start))
}

async fn adopt(pool: &Arc<PoolCore>, record: &VdiRecord) -> Result<Adopted> {
    let disk = &pool.disk;
    let Some(Slots { grant, newest, durable_group, .. }) = replay::state(disk, record).await? else {
        let initial = record.initial.tree();
        let root = TreeRoot { link: initial.link.with_ro(), ..initial };
        let mut mapping = mapping(pool, root, TreeRoot { link: Entry::HOLE, depth: 1 }, record.size);
        mapping.resize(record.size);
        return Ok(Adopted {
            mapping,
            number: 0,
            group: 0,
            record: 1,
            previous: None,
            evidence: Evidence::First,
            segments: Vec::new(),
            tail: None,
            grant: None,
            kept: Kept::Everything,
        });
    };
    let mut state = mapping(pool, newest.map, newest.table, newest.size);
    state.next_snapshot = newest.next_snapshot;
    state.parent_snapshot = newest.parent_snapshot;
    state.snapshots = newest.snapshots;
    let (mut group, mut next_record) = (newest.replay.group - 1, newest.replay.record);
    let mut segments = Vec::new();
    let mut kept = Kept::Everything;
    // Other volumes allocate from the same bitmaps before this one is opened. The marks of what it uses are durable
    // before anything names it; but a bitmap that was rebuilt, or lost, may not know.
    let mut used = vec![Run::slots(grant.slots)];
    if !newest.released {
        let journal = replay::replay(disk, record.id, newest.epoch, newest.replay, durable_group).await?;
        (group, next_record) = (journal.last_group, journal.next_record);
        segments.extend(journal.segments.iter().copied().map(Run::segment));
        used.extend(&segments);
        used.extend(journal.records.iter().filter_map(Run::mapped));
        apply(pool, &mut state, journal.records).await?;
        let tail = tail::read(
            &*pool.environment.tails,
            disk.superblock.uuid,
            record.id,
            newest.epoch,
            next_record,
            disk.salt(),
        )?;
        match tail {
            Some(found) => {
                next_record += found.records.len() as u64;
                used.extend(found.records.iter().filter_map(Run::mapped));
                apply(pool, &mut state, found.records).await?;
                if found.doubtful || pool.is_in_doubt(VdiId(record.id)) {
                    tracing::warn!(vdi = %record.id, "a flush had failed: unflushed writes may be gone");
                    kept = Kept::Doubtful;
                }
            }
            None => {
                tracing::debug!(vdi = %record.id, "no tail of this boot: unflushed writes are gone");
                kept = Kept::Flushed;
            }
        }
    }
    pool.space.adopt(&used).await?;
    if record.size > state.size {
        // A resize that the registry knows and the journal does not.
        state.resize(record.size);
    }
    // Members of a set that was never named were never promised to anybody.
    let mut cut: Vec<(u64, uuid::Uuid)> =
        state.pending.values().map(|pending| (pending.number, pending.set)).collect();
    let mut after = newest.unnamed_from;
    while after > 0 {
        let records = super::table::records(disk, newest.table, after - 1, 1024).await?;
        cut.extend(records.iter().map(|record| (record.number, record.set)));
        after = records.last().map_or(0, |record| record.number + 1);
    }
    for (number, set) in cut {
        if set.is_nil() || pool.is_recorded(set, VdiId(record.id), number) || state.deleted.contains(&number)
        {
            continue;
        }
        if pool.is_provisional(set) || mutants::on(Mutant::UnnamedSetKept) {
            // Somebody is about to name it.
            state.unnamed.insert(number, set);
        } else {
            state.delete_snapshot(number);
        }
    }
    let evidence = match newest.released {
        true => Evidence::Released,
        // What proves that this machine's I/O has ended says nothing about another's, nor about writes of this
        // process that have failed.
        false if pool.is_own(grant.incarnation) && !pool.space.has_doubts() => pool.evidence,
        false => Evidence::None,
    };
    if !evidence.proves_quiet() {
        state.map.share();
    }
    state.next_record = next_record;
    state.durable_record = next_record;
    state.group = Group { first: next_record, records: Vec::new() };
    // Superseded nodes of the epoch before are left to garbage collection: the older of its slots names them.
    state.superseded.clear();
    Ok(Adopted {
        mapping: state,
        number: newest.number,
        group,
        record: next_record,
        previous: Some((newest.epoch, group)),
        evidence,
        segments,
        tail: Some(newest.epoch),
        grant: Some(grant),
        kept,
    })
}

fn mapping(pool: &PoolCore, map: TreeRoot, table: TreeRoot, size: u64) -> Mapping {
    Mapping {
        size,
        map: Tree::new(map, 0, &pool.dirty),
        table,
        next_snapshot: 1,
        parent_snapshot: 0,
        snapshots: 0,
        pending: BTreeMap::new(),
        deleted: BTreeSet::new(),
        labels: BTreeMap::new(),
        unnamed: BTreeMap::new(),
        generations: super::Generations::default(),
        superseded: Vec::new(),
        superseded_since: pool.space.stamp(),
        group: Group { first: 1, records: Vec::new() },
        freed: Vec::new(),
        freed_since: pool.space.stamp(),
        next_record: 1,
        durable_record: 1,
        checkpointed_record: 0,
        tail: None,
        requests: super::Generations::default(),
        draining: false,
        failed: None,
    }
}

/// Applies records in order to a state that nobody else sees yet.
async fn apply(pool: &PoolCore, mapping: &mut Mapping, records: Vec<JournalRecord>) -> Result<()> {
    let disk = &pool.disk;
    for record in records {
        let mut held = Vec::new();
        loop {
            let missing = {
                let finder = Finder::new(disk, std::mem::take(&mut held), true);
                let find = |link| finder.find(link);
                match apply_one(mapping, &record, &find) {
                    Ok(done) => {
                        done?;
                        break;
                    }
                    Err(missing) => {
                        held = finder.into_held();
                        missing
                    }
                }
            };
            held.push((missing.link, missing.load(disk).await?));
        }
    }
    Ok(())
}

fn apply_one(
    mapping: &mut Mapping,
    record: &JournalRecord,
    find: &dyn Fn(Entry) -> Option<Arc<parallax_format::Node>>,
) -> std::result::Result<Result<()>, Missing> {
    match record {
        JournalRecord::Map { lba, count, address } => {
            if !in_range(mapping, *lba, u64::from(*count)) {
                return Ok(Err(Error::corrupt(format!(
                    "a record maps blocks from {lba}, past the volume's end"
                ))));
            }
            let run = Run { start: *address, count: *count };
            map_run(mapping, Placed { lba: *lba, run }, find)?;
        }
        JournalRecord::Unmap { lba, count } => {
            if !in_range(mapping, *lba, *count) {
                return Ok(Err(Error::corrupt(format!(
                    "a record unmaps blocks from {lba}, past the volume's end"
                ))));
            }
            // What this cuts loose may be another volume's by now: only garbage collection can tell.
            let mut dropped = Vec::new();
            mapping.map.clear(*lba..lba + count, find, &mut mapping.superseded, &mut dropped, &mut |_| {})?;
        }
        JournalRecord::Snapshot { number, taken_ms, filesystem, set, label } => {
            if *number != mapping.next_snapshot {
                return Ok(Err(Error::corrupt(format!(
                    "a record cuts snapshot {number} where {} is next",
                    mapping.next_snapshot
                ))));
            }
            mapping.cut(*taken_ms, *filesystem, *set, label.clone());
        }
        JournalRecord::SnapshotDeleted { number } => mapping.delete_snapshot(*number),
        JournalRecord::SnapshotLabel { number, label } => mapping.label_snapshot(*number, label),
        JournalRecord::Resize { size } => {
            let blocks = size / BLOCK_SIZE as u64;
            if *size < mapping.size || depth_for(blocks) > parallax_format::node::DEPTH_MAX {
                return Ok(Err(Error::new(ErrorKind::Corrupt, "a record shrinks the volume")));
            }
            mapping.resize(*size);
        }
    }
    Ok(Ok(()))
}

fn in_range(mapping: &Mapping, lba: u64, count: u64) -> bool {
    lba.checked_add(count).is_some_and(|end| end <= mapping.size.div_ceil(BLOCK_SIZE as u64))
}

impl VdiCore {
    /// Ends the epoch in order: everything acknowledged is durable and nothing follows. Later I/O fails.
    pub(crate) async fn release(self: &Arc<Self>) -> Result<()> {
        let requests = {
            let mut mapping = self.mapping.write();
            mapping.draining = true;
            mapping.requests.close()
        };
        requests.drained().await;
        self.quiesce().await;
        if let Some(error) = self.failure() {
            return Err(error);
        }
        self.pool.space.give_back(&self.runs.drain());
        // Twice, so that both slots say so and nothing holds journal or old nodes back.
        for _ in 0..2 {
            self.checkpoint_round(Mode::Release).await?;
        }
        self.stop("it was detached");
        let roots = self.roots.lock().await;
        let segments = self.journal.lock().await.abandon();
        self.pool.space.free(&segments, self.pool.space.stamp());
        // The last checkpoint's superseded nodes are named by no slot: both say the same.
        let mut runs = Vec::new();
        for link in roots.waiting.iter().filter_map(crate::tree::Superseded::link) {
            super::discard::collect(&mut runs, link);
        }
        self.pool.space.free(&runs, roots.waiting_since);
        self.mapping.write().tail = None;
        let key = tail::key(self.pool.disk.superblock.uuid, self.id.0, roots.epoch);
        self.pool.environment.tails.remove(&key)?;
        let (size, snapshots) = {
            let mapping = self.mapping.read();
            (mapping.size, mapping.snapshots)
        };
        self.pool
            .update(self.id, |record| {
                // One who grows it may be ahead of us.
                record.size = record.size.max(size);
                record.snapshots = snapshots;
                Ok(())
            })
            .await
    }
}
