//! Takes, lists, labels, deletes and opens snapshots.

use super::{Held, Pool, PoolCore, from_format};
use crate::{
    Name, SnapshotId, SnapshotInfo, SnapshotView, TakeSnapshot, Timestamp, VdiId,
    mutants::{self, Mutant},
    vdi::{Cut, Listed, VdiCore, check_label, table, view::View},
};
use parallax_block::{Error, ErrorKind, Result, join_all};
use parallax_format::{
    record::{Record, SetRecord},
    snapshot::SnapshotRecord,
};
use std::sync::{Arc, atomic::Ordering::Relaxed};
use uuid::Uuid;

/// Keeps a snapshot from being deleted.
pub(crate) struct Pin {
    pool: Arc<PoolCore>,
    id: SnapshotId,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pool.pins.lock();
        match pins.get_mut(&self.id) {
            Some(Held::Pinned(count)) if *count > 1 => *count -= 1,
            _ => {
                pins.remove(&self.id);
            }
        }
    }
}

/// Keeps a snapshot from being opened while it is deleted.
struct Deletion<'a> {
    pool: &'a PoolCore,
    id: SnapshotId,
}

impl<'a> Deletion<'a> {
    fn begin(pool: &'a PoolCore, id: SnapshotId) -> Result<Self> {
        let mut pins = pool.pins.lock();
        match pins.get(&id) {
            None => {
                pins.insert(id, Held::Deleting);
                Ok(Self { pool, id })
            }
            Some(Held::Pinned(_)) => {
                Err(Error::new(ErrorKind::Busy, format!("snapshot {id} is open for reading or being cloned")))
            }
            Some(Held::Deleting) => {
                Err(Error::new(ErrorKind::Busy, format!("snapshot {id} is being deleted already")))
            }
        }
    }
}

impl Drop for Deletion<'_> {
    fn drop(&mut self) {
        self.pool.pins.lock().remove(&self.id);
    }
}

/// A set that is being taken: its members are kept although no record names them yet.
pub(crate) struct Provisional {
    pool: Arc<PoolCore>,
    id: Uuid,
}

impl Provisional {
    pub(crate) fn new(pool: &Arc<PoolCore>) -> Self {
        let id = Uuid::from_u128((pool.environment.entropy)());
        pool.provisional.lock().insert(id);
        Self { pool: pool.clone(), id }
    }
}

impl Drop for Provisional {
    fn drop(&mut self) {
        self.pool.provisional.lock().remove(&self.id);
    }
}

impl Pool {
    /// Takes snapshots of one VDI, or of several at one instant. O(1), I/O is never paused. Returns when they are
    /// complete and durable; they are materialised in the background.
    pub async fn snapshot(&self, request: TakeSnapshot) -> Result<Vec<SnapshotInfo>> {
        check_label(&request.label)?;
        let mut ids = request.vdis.clone();
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() || ids.len() != request.vdis.len() || ids.len() > 64 {
            return Err(Error::invalid("a snapshot is taken of 1 to 64 different volumes"));
        }
        if let Some(name) = &request.name {
            let existing = self.snapshots_named(name.as_str());
            if !existing.is_empty() {
                let mut of: Vec<VdiId> = existing.iter().map(|id| id.vdi).collect();
                of.sort_unstable();
                if of != ids {
                    return Err(Error::new(
                        ErrorKind::AlreadyExists,
                        format!("there is a snapshot named '{name}' of other volumes"),
                    ));
                }
                return self.infos(&existing).await;
            }
        }
        for id in &ids {
            if self.core.record(*id)?.headless {
                return Err(Error::new(ErrorKind::NotFound, format!("volume {id} has been deleted")));
            }
        }
        self.core.admit_metadata(8 * ids.len() as u64)?;
        let mut cores = Vec::new();
        let mut outcome = Ok(Vec::new());
        for id in &ids {
            match self.core.enter(*id).await {
                Ok(core) => cores.push(core),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        if outcome.is_ok() {
            outcome = self.snapshot_open(&request, &cores).await;
        }
        for core in &cores {
            if let Err(error) = self.core.leave(core.id).await {
                tracing::warn!(vdi = %core.id, %error, "a volume could not be released in order");
            }
        }
        let taken = outcome?;
        self.infos(&taken).await
    }

    async fn snapshot_open(&self, request: &TakeSnapshot, cores: &[Arc<VdiCore>]) -> Result<Vec<SnapshotId>> {
        if request.name.is_none() && cores.len() == 1 {
            return self.cut_and_commit(request, cores, Uuid::nil()).await;
        }
        let set = Provisional::new(&self.core);
        let taken = self.cut_and_commit(request, cores, set.id).await?;
        let name = request.name.as_ref().map_or(String::new(), |name| name.as_str().to_owned());
        let mut registry = self.core.registry.lock().await;
        if !name.is_empty() && self.core.known.read().set_names.contains_key(&name) {
            drop(registry);
            // Somebody was faster with this name: ours was never promised to anybody.
            for id in &taken {
                self.core.with(id.vdi, |core| async move { core.delete_snapshot(id.number).await }).await?;
            }
            return Err(Error::new(
                ErrorKind::Busy,
                format!("a snapshot named '{name}' is being taken by another request; ask again"),
            ));
        }
        let members = taken.iter().map(|id| (id.vdi.0, id.number)).collect();
        self.core.commit(&mut registry, &[Record::Set(SetRecord { id: set.id, name, members })]).await?;
        Ok(taken)
    }

    /// The block map of a VDI as it is now, materialised, kept by a snapshot that nobody is told of and that
    /// does not survive a crash. The caller deletes it by its number.
    pub(crate) async fn moment(
        &self,
        vdi: VdiId,
        at: Timestamp,
        set: &Provisional,
    ) -> Result<SnapshotRecord> {
        let request = TakeSnapshot { vdis: vec![vdi], label: String::new(), name: None, at };
        let core = self.core.enter(vdi).await?;
        let result = async {
            let taken = self.cut_and_commit(&request, std::slice::from_ref(&core), set.id).await?;
            core.checkpoint().await?;
            let number = taken.first().map_or(0, |id| id.number);
            let listed = core.snapshot(number).await?;
            if !listed.materialised {
                // Its checkpoint was left out: the volume is being released.
                return Err(Error::new(ErrorKind::Busy, format!("volume {vdi} is being closed")));
            }
            Ok(listed.record)
        }
        .await;
        if let Err(error) = self.core.leave(vdi).await {
            tracing::warn!(%vdi, %error, "a volume could not be released in order");
        }
        result
    }

    async fn cut_and_commit(
        &self,
        request: &TakeSnapshot,
        cores: &[Arc<VdiCore>],
        set: Uuid,
    ) -> Result<Vec<SnapshotId>> {
        let cut = loop {
            let members = cores
                .iter()
                .map(|core| {
                    let record = self.core.record(core.id)?;
                    let cut = Cut {
                        taken_ms: request.at.0,
                        filesystem: record.filesystem,
                        set,
                        label: request.label.clone(),
                    };
                    Ok((&**core, cut))
                })
                .collect::<Result<Vec<_>>>()?;
            match VdiCore::cut(&members) {
                Err(error) if error.kind() == ErrorKind::Exhausted => {
                    for core in cores {
                        core.commit().await?;
                    }
                }
                other => break other?,
            }
        };
        self.core.counters.snapshots.fetch_add(cut.len() as u64, Relaxed);
        // Complete when the writes of the older generation are; durable when committed after that.
        let pending = cores
            .iter()
            .zip(&cut)
            .map(|(core, (_, closed))| {
                Box::pin(async move {
                    if !mutants::on(Mutant::SnapshotNotDrained) {
                        closed.drained().await;
                    }
                    if mutants::on(Mutant::SnapshotNotCommitted) { Ok(()) } else { core.commit().await }
                })
            })
            .collect();
        let committed: Result<Vec<()>> = join_all(pending).await.into_iter().collect();
        committed?;
        let taken: Vec<SnapshotId> = cores
            .iter()
            .zip(&cut)
            .map(|(core, (number, _))| SnapshotId { vdi: core.id, number: *number })
            .collect();
        for core in cores {
            core.request_checkpoint();
        }
        Ok(taken)
    }

    async fn infos(&self, ids: &[SnapshotId]) -> Result<Vec<SnapshotInfo>> {
        let mut infos = Vec::new();
        for id in ids {
            infos.push(self.snapshot_info(*id).await?);
        }
        Ok(infos)
    }

    fn describe(&self, vdi: VdiId, listed: Listed) -> SnapshotInfo {
        let record = listed.record;
        let name = self.core.known.read().sets.get(&record.set).map(|set| set.name.clone());
        SnapshotInfo {
            id: SnapshotId { vdi, number: record.number },
            name: name.filter(|name| !name.is_empty()).map(Name::trusted),
            label: record.label,
            taken: Timestamp(record.taken_ms),
            size: record.size,
            materialised: listed.materialised,
            filesystem: from_format(record.filesystem),
            set: (!record.set.is_nil()).then_some(record.set),
        }
    }

    /// Live snapshots of a VDI in order of number, after `after`, at most `limit`.
    pub async fn snapshots(&self, vdi: VdiId, after: u64, limit: usize) -> Result<Vec<SnapshotInfo>> {
        let mut out = Vec::new();
        let mut from = after;
        while out.len() < limit {
            let listed = self.listed(vdi, from, limit - out.len()).await?;
            let Some(last) = listed.last() else { break };
            from = last.record.number;
            out.extend(
                listed
                    .into_iter()
                    .filter(|listed| self.is_promised(vdi, &listed.record))
                    .map(|listed| self.describe(vdi, listed)),
            );
        }
        Ok(out)
    }

    /// Members of a set count from the moment at which the registry names them.
    fn is_promised(&self, vdi: VdiId, record: &SnapshotRecord) -> bool {
        record.set.is_nil() || self.core.is_recorded(record.set, vdi, record.number)
    }

    async fn listed(&self, vdi: VdiId, after: u64, limit: usize) -> Result<Vec<Listed>> {
        {
            // Nobody opens it meanwhile: an epoch that begins lets go of what the one before has written.
            let slot = self.core.slot(vdi);
            let closed = slot.core.lock().await;
            if closed.is_none()
                && let Some(slot) = self.released_slot(vdi).await?
            {
                // Its last epoch ended in order: the table says it all.
                let records = table::records(&self.core.disk, slot.table, after, limit).await?;
                return Ok(records.into_iter().map(|record| Listed { record, materialised: true }).collect());
            }
        }
        if self.core.record(vdi)?.grant.is_none() {
            return Ok(Vec::new());
        }
        self.core.with(vdi, |core| async move { core.snapshots(after, limit).await }).await
    }

    /// One.
    pub async fn snapshot_info(&self, id: SnapshotId) -> Result<SnapshotInfo> {
        let found = self.snapshots(id.vdi, id.number - 1, 1).await?;
        found.into_iter().find(|info| info.id == id).ok_or_else(|| not_found(id))
    }

    /// Those that carry an idempotency name; several for a set.
    pub fn snapshots_named(&self, name: &str) -> Vec<SnapshotId> {
        let known = self.core.known.read();
        let set = known.set_names.get(name).and_then(|id| known.sets.get(id));
        set.map_or(Vec::new(), |set| {
            set.members.iter().map(|(vdi, number)| SnapshotId { vdi: VdiId(*vdi), number: *number }).collect()
        })
    }

    /// Waits until the snapshot can be cloned, compared and opened.
    pub async fn materialise(&self, id: SnapshotId) -> Result<SnapshotInfo> {
        self.materialised(id).await?;
        self.snapshot_info(id).await
    }

    /// The same; its record.
    pub(crate) async fn materialised(&self, id: SnapshotId) -> Result<SnapshotRecord> {
        let info = self.snapshot_info(id).await?;
        if !info.materialised {
            self.core.with(id.vdi, |core| async move { core.checkpoint().await }).await?;
        }
        let listed = self.listed(id.vdi, id.number - 1, 1).await?;
        let found = listed.into_iter().find(|listed| listed.record.number == id.number);
        let found = found.ok_or_else(|| not_found(id))?;
        if !found.materialised {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("snapshot {id} is still being written; ask again"),
            ));
        }
        Ok(found.record)
    }

    pub(crate) async fn pin(&self, id: SnapshotId) -> Result<Pin> {
        match self.core.pins.lock().entry(id).or_insert(Held::Pinned(0)) {
            Held::Pinned(count) => *count += 1,
            Held::Deleting => return Err(not_found(id)),
        }
        let pin = Pin { pool: self.core.clone(), id };
        // Looked up again now that it can no longer go.
        self.snapshot_info(id).await?;
        Ok(pin)
    }

    /// Opens a snapshot read-only; it cannot be deleted while it is open.
    pub async fn open_snapshot(&self, id: SnapshotId) -> Result<Arc<SnapshotView>> {
        let record = self.materialised(id).await?;
        let pin = self.pin(id).await?;
        let logical_block = self.core.record(id.vdi)?.logical_block;
        let view = View::new(self.core.disk.clone(), record.map, record.size, logical_block);
        Ok(Arc::new(SnapshotView::new(id, view, pin)))
    }

    /// Replaces the label.
    pub async fn label_snapshot(&self, id: SnapshotId, label: &str) -> Result<SnapshotInfo> {
        check_label(label)?;
        self.snapshot_info(id).await?;
        self.core.with(id.vdi, |core| async move { core.label_snapshot(id.number, label).await }).await?;
        self.snapshot_info(id).await
    }

    /// Deletes. `NotFound` if there is none; `Busy` while it is open. The last snapshot of a headless VDI takes
    /// the VDI with it. Space comes back with the next garbage collection.
    pub async fn delete_snapshot(&self, id: SnapshotId) -> Result<()> {
        self.snapshot_info(id).await?;
        let _deletion = Deletion::begin(&self.core, id)?;
        let left = self
            .core
            .with(id.vdi, |core| async move {
                core.delete_snapshot(id.number).await?;
                Ok(core.mapping.read().snapshots)
            })
            .await?;
        let mut registry = self.core.registry.lock().await;
        let mut records = Vec::new();
        for set in self.core.known.read().sets.values() {
            if set.members.contains(&(id.vdi.0, id.number)) {
                let mut set = set.clone();
                set.members.retain(|member| *member != (id.vdi.0, id.number));
                records.push(if set.members.is_empty() {
                    Record::SetDeleted(set.id)
                } else {
                    Record::Set(set)
                });
            }
        }
        if !records.is_empty() {
            self.core.commit(&mut registry, &records).await?;
        }
        drop(registry);
        if left == 0 { self.bury(id.vdi).await } else { Ok(()) }
    }
}

impl PoolCore {
    /// The VDI, if it is open now.
    pub(crate) fn open_core(&self, id: VdiId) -> Option<Arc<VdiCore>> {
        let slot = self.slots.lock().get(&id)?.clone();
        slot.open.lock().clone()
    }
}

fn not_found(id: SnapshotId) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no snapshot {id}; `parallax snap-list` shows them"))
}
