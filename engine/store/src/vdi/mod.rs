//! One open VDI: its tree, its journal, its I/O.
//!
//! ```text
//! write --> lock blocks --> look up --> in place -----------------------------> acknowledge
//!                              '-----> new block --> data --> publish + tail --'
//! flush --> device flush (data, marks) --> journal blocks --> flush --> durable       (commit.rs)
//! checkpoint: seal a group, freeze the tree --> nodes --> flush --> root slot         (checkpoint.rs)
//! ```
//!
//! Invariants (design rules in brackets):
//! * Readers see a mapping only after its data is written [4e]; a record is in the tail before its write is
//!   acknowledged [4d].
//! * A journal record is written only after a flush that covers its data and marks [4b].
//! * After a failed flush or journal write nothing is acknowledged until the VDI is opened again [4h].
//! * All of [`Mapping`] changes under one lock, so a snapshot's cut is one instant [3e].

mod checkpoint;
mod commit;
mod discard;
pub(crate) mod journal;
mod lookup;
mod open;
mod read;
pub(crate) mod replay;
mod runs;
mod snapshots;
pub(crate) mod table;
pub(crate) mod tail;
pub(crate) mod view;
mod write;

pub(crate) use checkpoint::Mode;
pub(crate) use lookup::{Piece, Target};
pub(crate) use open::open;
pub(crate) use snapshots::{Cut, Listed, check_label};
pub(crate) use tail::tail_runs;

use crate::{
    VdiId,
    generation::{Generations, Ticket},
    locks::RangeLocks,
    mutants::{self, Mutant},
    pool::PoolCore,
    rounds::Rounds,
    space::{Run, Stamp},
    tree::{Dropped, Superseded, Tree},
};
use journal::{Group, JournalWriter};
use parallax_block::{Error, ErrorKind, Result, Runtime};
use parallax_format::{
    BlockAddress,
    codec::Writer,
    journal::JournalRecord,
    record::Filesystem,
    root::{Epoch, Evidence, ReplayPosition, TreeRoot},
};
use parking_lot::RwLock;
pub(crate) use runs::Runs;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};
use tail::TailWriter;
use tokio::sync::Mutex as AsyncMutex;
use uuid::Uuid;

/// What an opening goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Continuity {
    /// The epoch that it began.
    pub epoch: Epoch,
    /// The epoch before, if there was one.
    pub previous: Option<Epoch>,
    /// Of what was acknowledged in the epoch before, flushed or not.
    pub kept: Kept,
}

/// How much of an epoch is left when the next begins. Unless it is everything, whoever wrote then must not go on as if
/// nothing had happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It was released in order, or its tail was found.
    Everything,
    /// What was flushed: the machine was started anew, or somebody took the tail away.
    Flushed,
    /// What was flushed for certain, and of the rest nobody knows: a flush of the device has failed since.
    Doubtful,
}

pub(crate) struct VdiCore {
    me: Weak<VdiCore>,
    pub(crate) pool: Arc<PoolCore>,
    pub(crate) id: VdiId,
    pub(crate) continuity: Continuity,
    pub(crate) logical_block: u32,
    pub(crate) mapping: RwLock<Mapping>,
    locks: Arc<RangeLocks>,
    pub(crate) runs: Runs,
    /// Held during a commit: groups are written one after the other.
    journal: AsyncMutex<JournalWriter>,
    commits: Arc<Rounds>,
    checkpoints: Arc<Rounds>,
    /// Held while the volume grows.
    growing: AsyncMutex<()>,
    /// Held during a checkpoint.
    roots: AsyncMutex<Roots>,
}

/// What look-ups and changes need.
pub(crate) struct Mapping {
    pub(crate) size: u64,
    pub(crate) map: Tree,
    /// The durable snapshot table.
    pub(crate) table: TreeRoot,
    pub(crate) next_snapshot: u64,
    pub(crate) parent_snapshot: u64,
    /// Live snapshots, materialised or not.
    pub(crate) snapshots: u64,
    /// Cut, and not materialised yet; by number.
    pub(crate) pending: BTreeMap<u64, Pending>,
    /// Deleted since the table was written.
    pub(crate) deleted: BTreeSet<u64>,
    /// Relabelled since the table was written.
    pub(crate) labels: BTreeMap<u64, String>,
    /// Snapshots whose set was not named when they were cut, with the set.
    unnamed: BTreeMap<u64, Uuid>,
    pub(crate) generations: Generations,
    /// Requests of callers, from their call to their answer: a detach waits for them.
    requests: Generations,
    /// Nodes that the tree no longer uses, since the last checkpoint was frozen.
    superseded: Vec<Superseded>,
    /// When the list of superseded nodes began.
    superseded_since: Stamp,
    /// The open group.
    group: Group,
    /// To be freed once the open group is durable.
    freed: Vec<Freed>,
    /// When that list began.
    freed_since: Stamp,
    next_record: u64,
    /// Every record before this one is durable.
    durable_record: u64,
    /// Record that the last checkpoint began its replay at.
    checkpointed_record: u64,
    tail: Option<TailWriter>,
    /// No new I/O is admitted: the epoch is about to end in order.
    draining: bool,
    /// Why the epoch has ended.
    failed: Option<Error>,
}

/// A snapshot that is cut and not yet in the table.
#[derive(Clone)]
pub(crate) struct Pending {
    pub(crate) number: u64,
    pub(crate) taken_ms: i64,
    pub(crate) map: Tree,
    pub(crate) size: u64,
    pub(crate) set: Uuid,
    pub(crate) parent: u64,
    pub(crate) filesystem: Filesystem,
    pub(crate) label: String,
}

/// Space that an unmap has cut loose.
enum Freed {
    Blocks(Run),
    Subtree(Dropped),
}

/// Root slots of the epoch.
struct Roots {
    epoch: Epoch,
    slots: BlockAddress,
    /// Number of the newest checkpoint.
    number: u64,
    table: Tree,
    /// Nodes that the newest checkpoint superseded: the older slot still names them.
    waiting: Vec<Superseded>,
    /// When the first of them was cut loose.
    waiting_since: Stamp,
    /// Replay of the newest checkpoint.
    replay: ReplayPosition,
    previous: Option<(Epoch, u64)>,
    evidence: Evidence,
}

impl VdiCore {
    /// A handle for tasks that outlive the caller.
    fn me(&self) -> Arc<Self> {
        self.me.upgrade().expect("a method runs, so the VDI lives")
    }

    pub(crate) fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.pool.environment.runtime
    }

    /// Why the epoch has ended, if it has.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.mapping.read().failed.clone()
    }

    /// Ends the epoch: nothing more is acknowledged.
    fn fail(&self, cause: &Error) -> Error {
        let mut mapping = self.mapping.write();
        let error = Error::new(
            ErrorKind::Fenced,
            format!(
                "volume {} has stopped after a failed write; detach and attach it again, or restart parallaxd ({cause})",
                self.id
            ),
        );
        if mapping.failed.is_none() {
            tracing::error!(vdi = %self.id, %cause, "a commit failed: the epoch has ended");
            mapping.failed = Some(error.clone());
        }
        error
    }

    /// A flush of the device has failed: what was acknowledged and not flushed may be gone, whoever asked for the flush.
    pub(crate) fn doubt(&self) {
        if let Some(tail) = &mut self.mapping.write().tail
            && let Err(error) = tail.doubt()
        {
            tracing::error!(vdi = %self.id, %error, "the tail cannot say that unflushed writes are in doubt");
        }
    }

    /// Stops new I/O for good, with the reason that later callers are told.
    pub(crate) fn stop(&self, reason: &str) {
        let error = Error::new(ErrorKind::Fenced, format!("volume {}: {reason}", self.id));
        self.mapping.write().failed.get_or_insert(error);
        if self.pool.disk.is_lost() {
            self.doubt();
        }
    }

    /// Admits a request of a caller, unless its handle is detached or the volume is being released.
    pub(crate) fn admit_request(&self, detached: &AtomicBool) -> Result<Ticket> {
        let mapping = self.mapping.read();
        mapping.check()?;
        if mapping.draining || detached.load(SeqCst) {
            return Err(Error::new(ErrorKind::Fenced, "the volume is being detached"));
        }
        Ok(mapping.requests.enter())
    }

    /// Waits for every request admitted before.
    pub(crate) async fn requests_drained(&self) {
        let requests = self.mapping.write().requests.close();
        requests.drained().await;
    }

    /// Waits until no I/O begun before is under way.
    pub(crate) async fn quiesce(&self) {
        let closed = self.mapping.write().generations.close();
        closed.drained().await;
    }
}

impl Mapping {
    pub(crate) fn check(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Whether every mapping change is durable.
    fn is_durable(&self) -> bool {
        self.durable_record == self.next_record
    }

    /// Whether a record of this encoded size fits the tail now.
    fn has_room(&self, records: &[Vec<u8>]) -> bool {
        let bytes = records.iter().map(Vec::len).sum();
        self.tail.as_ref().is_none_or(|tail| tail.has_room(bytes, records.len()))
    }

    /// Appends records to the tail and to the open group. The caller has asked [`Self::has_room`].
    fn append(&mut self, records: Vec<Vec<u8>>) -> Result<()> {
        for record in records {
            if let Some(tail) = self.tail.as_mut().filter(|_| !mutants::on(Mutant::TailSkipped)) {
                tail.append(self.next_record, &record)?;
            }
            self.group.records.push(record);
            self.next_record += 1;
        }
        Ok(())
    }
}

/// A record as it is written.
pub(crate) fn encode(record: &JournalRecord) -> Vec<u8> {
    let mut writer = Writer::default();
    record.encode(&mut writer);
    writer.0
}
