//! An open pool: one device, one registry, the VDIs that are open.
//!
//! Invariants:
//! * The registry's log is the only place where VDIs, grants and extents come to be; what is known in memory
//!   changes after its record is durable.
//! * A VDI is open at most once. Operations on a VDI that nobody has attached open it for their own time.
//! * `gate` is held for reading by everything that opens, closes, creates or deletes; garbage collection takes it
//!   for writing for the instant in which its cycle begins.

mod claim;
mod create;
mod diff;
mod gc;
mod hosts;
mod loss;
mod open;
mod slots;
mod snapshots;
mod usage;
mod vdis;

pub(crate) use create::read_superblock;
pub use create::recognise;
use loss::Loss;
use slots::Slot;
pub(crate) use snapshots::Pin;
pub use vdis::VDI_SIZE_MAX;

use crate::{
    Environment, Limits, Name, PoolInfo, Publication, SnapshotId, Timestamp, VdiId, VdiInfo,
    disk::Disk,
    registry::{Area, Known},
    space::{Run, Space, Stamp},
    tree::DirtyCount,
    types::FilesystemState,
    vdi::replay,
    walk::Roots,
};
use parallax_block::{BLOCK_SIZE, Error, ErrorKind, Result, join_all};
use parallax_format::{
    record::{Filesystem, Record, VdiRecord},
    root::Evidence,
    superblock::{FORMAT_VERSION, incompat},
};
use parallax_lease::Membership;
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
};
use tokio::sync::{Mutex as AsyncMutex, Notify, RwLock as AsyncRwLock};
use uuid::Uuid;

/// Counters for metrics; they only rise.
#[derive(Debug, Default)]
pub struct Counters {
    /// Commits of journals.
    pub commits: AtomicU64,
    /// Checkpoints.
    pub checkpoints: AtomicU64,
    /// Snapshots cut.
    pub snapshots: AtomicU64,
    /// Garbage collections that ended.
    pub collections: AtomicU64,
}

pub(crate) struct PoolCore {
    pub(crate) disk: Arc<Disk>,
    pub(crate) space: Arc<Space>,
    pub(crate) environment: Environment,
    pub(crate) limits: Limits,
    pub(crate) incarnation: u64,
    /// This machine's, this one included.
    own_incarnations: Vec<u64>,
    /// Those of them that belong to this boot.
    boot_incarnations: Vec<u64>,
    /// What proves that the I/O of whoever had the pool before has finished.
    pub(crate) evidence: Evidence,
    pub(crate) dirty: DirtyCount,
    pub(crate) counters: Counters,
    /// Rung when a checkpoint is durable.
    pub(crate) materialised: Notify,
    pub(crate) gate: AsyncRwLock<()>,
    registry: AsyncMutex<Registry>,
    known: RwLock<Known>,
    claims: AtomicU64,
    /// VDIs that are open.
    opened: AtomicU64,
    slots: Mutex<BTreeMap<VdiId, Arc<Slot>>>,
    /// Sets that are being taken: their members count although no record names them yet.
    provisional: Mutex<BTreeSet<Uuid>>,
    /// VDIs whose deletion could not be recorded and may be yet: nobody opens them before the pool is opened again.
    half_deleted: Mutex<BTreeSet<VdiId>>,
    /// Snapshots that are open for reading or being deleted.
    pins: Mutex<BTreeMap<SnapshotId, Held>>,
    membership: AsyncMutex<Membership>,
    closed: AtomicBool,
    background_checkpoint: AtomicBool,
    /// No epoch has ended by halves since garbage was collected last.
    settled: AtomicBool,
    /// Held by the garbage collection under way.
    collecting: AsyncMutex<()>,
    loss: Loss,
    /// Held by the scrub under way.
    pub(crate) scrubbing: AsyncMutex<()>,
}

/// Why a snapshot is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// By this many readers: it cannot be deleted.
    Pinned(usize),
    /// By its deletion: it cannot be opened.
    Deleting,
}

struct Registry {
    area: Area,
    known: Known,
}

/// An open pool; cheap to clone.
#[derive(Clone)]
pub struct Pool {
    pub(crate) core: Arc<PoolCore>,
    _handle: Arc<Handle>,
}

/// Shared by all handles of a pool, those of its attached VDIs included. VDIs that are open and their pool know each
/// other: when nobody can ask for anything any more, this parts them, or their memory would never be given back.
struct Handle(Arc<PoolCore>);

impl Drop for Handle {
    fn drop(&mut self) {
        let slots = std::mem::take(&mut *self.0.slots.lock());
        drop(slots);
    }
}

impl PoolCore {
    fn check_open(&self) -> Result<()> {
        if self.closed.load(SeqCst) {
            return Err(Error::new(ErrorKind::FailedPrecondition, "the pool has been closed"));
        }
        Ok(())
    }

    pub(crate) fn record(&self, id: VdiId) -> Result<VdiRecord> {
        self.known.read().vdis.get(&id.0).cloned().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no volume {id}; `parallax list` shows them"))
        })
    }

    pub(crate) fn known(&self) -> Known {
        self.known.read().clone()
    }

    /// Makes records durable, then known.
    async fn commit(&self, registry: &mut Registry, records: &[Record]) -> Result<()> {
        self.make_room_for(registry, records).await?;
        self.record_all(registry, records).await
    }

    /// As [`Self::commit`], where room has been made.
    async fn record_all(&self, registry: &mut Registry, records: &[Record]) -> Result<()> {
        registry.area.check()?;
        let id = registry.area.id();
        if let Err(error) = registry.area.commit(&self.disk, &mut registry.known, records).await {
            if registry.area.check().is_err() {
                self.doubt(records);
            }
            return Err(error);
        }
        let mut known = self.known.write();
        if registry.area.id() == id {
            records.iter().for_each(|record| known.apply(record));
        } else {
            // A compaction may have claimed a system extent.
            *known = registry.known.clone();
        }
        Ok(())
    }

    /// Notes that these records may come to count with the next opening of the pool, although nobody was promised that.
    fn doubt(&self, records: &[Record]) {
        self.space.doubt_record();
        let known = self.known.read();
        let is_deletion =
            |vdi: &VdiRecord| vdi.headless && known.vdis.get(&vdi.id).is_some_and(|now| !now.headless);
        self.half_deleted.lock().extend(records.iter().filter_map(|record| match record {
            Record::VdiDeleted(id) => Some(VdiId(*id)),
            Record::Vdi(vdi) if is_deletion(vdi) => Some(VdiId(vdi.id)),
            _ => None,
        }));
    }

    /// The record of a VDI that may be opened.
    fn usable(&self, id: VdiId) -> Result<VdiRecord> {
        let record = self.record(id)?;
        if self.half_deleted.lock().contains(&id) {
            return Err(Error::new(
                ErrorKind::Fenced,
                format!(
                    "the deletion of volume {id} met a failed write and may have happened; restart parallaxd to see"
                ),
            ));
        }
        Ok(record)
    }

    /// Changes a VDI's record.
    pub(crate) async fn update(
        &self,
        id: VdiId,
        change: impl FnOnce(&mut VdiRecord) -> Result<()>,
    ) -> Result<()> {
        let mut registry = self.registry.lock().await;
        let mut record = self.record(id)?;
        let before = record.clone();
        change(&mut record)?;
        if record == before {
            return Ok(());
        }
        self.commit(&mut registry, &[Record::Vdi(Box::new(record))]).await
    }

    /// Whether the registry names this member of a set.
    pub(crate) fn is_recorded(&self, set: Uuid, vdi: VdiId, number: u64) -> bool {
        self.known.read().sets.get(&set).is_some_and(|set| set.members.contains(&(vdi.0, number)))
    }

    /// Whether an incarnation was this machine's.
    pub(crate) fn is_own(&self, incarnation: u64) -> bool {
        self.own_incarnations.contains(&incarnation)
    }

    /// Whether an incarnation was this machine's since it was started.
    pub(crate) fn is_of_this_boot(&self, incarnation: u64) -> bool {
        self.boot_incarnations.contains(&incarnation)
    }

    /// Whether a record may name this set yet: somebody is taking it, or recording it has failed.
    pub(crate) fn is_provisional(&self, set: Uuid) -> bool {
        self.provisional.lock().contains(&set) || self.space.has_late_record()
    }

    /// Keeps the registry as it is on disk.
    pub(crate) async fn hold_registry(&self) -> impl Drop + '_ {
        self.registry.lock().await
    }

    /// Roots of a VDI as they are on disk: both of its root slots, or the tree that it was made from.
    pub(crate) async fn durable_roots(&self, id: VdiId) -> Result<Roots> {
        // Nobody opens or closes it meanwhile.
        let _gate = self.gate.read().await;
        let slot = self.slot(id);
        let _still = slot.core.lock().await;
        let record = self.record(id)?;
        let Some(slots) = replay::state(&self.disk, &record).await? else {
            return Ok(Roots { maps: vec![record.initial.tree()], tables: Vec::new() });
        };
        Ok(Roots {
            maps: slots.both().map(|slot| slot.map).collect(),
            tables: slots.both().map(|slot| slot.table).collect(),
        })
    }

    /// Tells the device that blocks are unused which nobody can reach. Those of a discard that failed are put aside.
    pub(crate) async fn trim(&self, runs: &[Run]) {
        for run in runs {
            if !self.disk.trim(run.start, run.count).await {
                self.space.quarantine(&[*run]);
            }
        }
    }

    pub(crate) fn dirty_nodes(&self) -> u64 {
        self.dirty.load(Relaxed)
    }

    pub(crate) fn begin_background_checkpoint(&self) -> bool {
        !self.background_checkpoint.swap(true, SeqCst)
    }

    pub(crate) fn end_background_checkpoint(&self) {
        self.background_checkpoint.store(false, SeqCst);
    }

    /// Checkpoints every open VDI.
    pub(crate) async fn checkpoint_all(&self) -> Result<()> {
        let cores = self.open_cores();
        let pending = cores.iter().map(|core| Box::pin(core.checkpoint())).collect();
        join_all(pending).await.into_iter().find(Result::is_err).unwrap_or(Ok(()))
    }

    /// Takes back runs that open VDIs have reserved and not used. Whether there were any.
    pub(crate) fn reclaim_runs(&self) -> bool {
        let mut any = false;
        for core in self.all_cores() {
            let runs = core.runs.drain();
            any |= !runs.is_empty();
            self.space.give_back(&runs);
        }
        any
    }

    /// Frees data blocks, and tells the device.
    pub(crate) async fn release_data(&self, runs: &[Run], since: Stamp) {
        if self.space.stamp() != since {
            // A garbage collection has begun since, and may have freed them already: they may not be trimmed.
            return;
        }
        // Out of reach of a sweep first; trimmed before anybody can allocate them again, so that a late discard
        // never hits their next owner.
        let held = self.space.hold(runs, since);
        self.trim(&held).await;
        self.space.release_held(&held);
    }

    fn info(&self, record: &VdiRecord) -> VdiInfo {
        let id = VdiId(record.id);
        let slot = self.slots.lock().get(&id).cloned();
        let open = slot.as_ref().and_then(|slot| slot.open.lock().clone());
        let (size, snapshots) = match &open {
            Some(core) => {
                let mapping = core.mapping.read();
                (mapping.size, mapping.snapshots)
            }
            None => (record.size, record.snapshots),
        };
        VdiInfo {
            id,
            name: Name::trusted(if record.headless { format!("deleted-{id}") } else { record.name.clone() }),
            size,
            logical_block: record.logical_block,
            created: Timestamp(record.created_ms),
            source_snapshot: record
                .source_snapshot
                .map(|(vdi, number)| SnapshotId { vdi: VdiId(vdi), number }),
            source_vdi: record.source_vdi.map(VdiId),
            filesystem: from_format(record.filesystem),
            attributes: record.attributes.clone(),
            publications: record
                .publications
                .iter()
                .map(|(node, read_only)| Publication {
                    node: Name::trusted(node.clone()),
                    read_only: *read_only,
                })
                .collect(),
            attached: slot.is_some_and(|slot| slot.attached.load(SeqCst)),
            headless: record.headless,
            snapshots,
        }
    }
}

pub(crate) fn from_format(state: Filesystem) -> FilesystemState {
    match state {
        Filesystem::Blank => FilesystemState::Blank,
        Filesystem::Formatting => FilesystemState::Formatting,
        Filesystem::Formatted => FilesystemState::Formatted,
    }
}

pub(crate) fn to_format(state: FilesystemState) -> Filesystem {
    match state {
        FilesystemState::Blank => Filesystem::Blank,
        FilesystemState::Formatting => Filesystem::Formatting,
        FilesystemState::Formatted => Filesystem::Formatted,
    }
}

impl Pool {
    /// Shape and fill.
    pub fn info(&self) -> PoolInfo {
        let superblock = &self.core.disk.superblock;
        let totals = self.core.space.totals();
        let usable = u64::from(
            superblock.extent_blocks - parallax_format::bitmap::first_usable(superblock.extent_blocks),
        );
        let extents = u64::from(superblock.extents);
        let extents_free = extents - self.core.known.read().extents.len() as u64;
        let block = BLOCK_SIZE as u64;
        let reserve = self.core.metadata_reserve();
        let spare = (extents_free * usable + totals.metadata_free).saturating_sub(reserve);
        PoolInfo {
            uuid: superblock.uuid,
            format_version: FORMAT_VERSION,
            features: incompat::names(superblock.incompat),
            capacity: superblock.devices[0].blocks * block,
            extent_bytes: u64::from(superblock.extent_blocks) * block,
            extents,
            extents_free,
            free: (totals.data_free + spare.min(extents_free * usable)) * block,
            data_used: totals.data_used * block,
            metadata_used: totals.metadata_used * block,
            metadata_reserved: reserve * block,
        }
    }

    /// Counters for metrics.
    pub fn counters(&self) -> &Counters {
        &self.core.counters
    }

    /// Nodes in memory that no checkpoint has written yet.
    pub fn dirty_nodes(&self) -> u64 {
        self.core.dirty_nodes()
    }
}
