//! Creates, deletes, renames, grows, reverts and attaches VDIs.

use super::{Pool, PoolCore, snapshots::Provisional, to_format};
use crate::{
    CreateVdi, FilesystemState, Name, Publication, SnapshotId, Source, Vdi, VdiId, VdiInfo,
    vdi::{VdiCore, replay, tail},
};
use parallax_block::{BLOCK_SIZE, Error, ErrorKind, Result, ResultExt};
use parallax_format::{
    Entry,
    node::depth_for,
    record::{Filesystem, InitialRoot, Record, VdiRecord},
    root::Epoch,
    snapshot::SnapshotRecord,
};
use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};
use uuid::Uuid;

/// Largest VDI.
pub const VDI_SIZE_MAX: u64 = 256 << 40;

/// How often a deletion looks whether others have ended that use the volume for a moment.
const OTHERS_TRIES: u32 = 500;
/// Between two of these.
const OTHERS_PAUSE: Duration = Duration::from_millis(10);

fn check_size(size: u64) -> Result<()> {
    if size == 0 || !size.is_multiple_of(BLOCK_SIZE as u64) || size > VDI_SIZE_MAX {
        return Err(Error::invalid(format!(
            "a volume of {size} bytes is not possible: the size must be a multiple of 4096, at least 4096 and at most 256 TiB"
        )));
    }
    Ok(())
}

/// What a new VDI starts from.
struct Start {
    initial: InitialRoot,
    size: u64,
    snapshot: Option<SnapshotId>,
    vdi: Option<VdiId>,
    filesystem: Filesystem,
}

impl Pool {
    /// All VDIs in order of id, headless ones included.
    pub fn vdis(&self) -> Vec<VdiInfo> {
        let records: Vec<VdiRecord> = self.core.known.read().vdis.values().cloned().collect();
        records.iter().map(|record| self.core.info(record)).collect()
    }

    /// One by id.
    pub fn vdi(&self, id: VdiId) -> Result<VdiInfo> {
        Ok(self.core.info(&self.core.record(id)?))
    }

    /// One by name; headless ones have none.
    pub fn vdi_named(&self, name: &str) -> Result<VdiInfo> {
        let id = self.core.known.read().names.get(name).copied();
        match id {
            Some(id) => self.vdi(VdiId(id)),
            None => Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no volume named '{name}'; `parallax list` shows them"),
            )),
        }
    }

    /// Creates. `AlreadyExists` if the name is taken.
    pub async fn create_vdi(&self, request: CreateVdi) -> Result<VdiInfo> {
        self.core.check_open()?;
        if !matches!(request.logical_block, 512 | 4096) {
            return Err(Error::invalid("the logical block of a volume is 512 or 4096 bytes"));
        }
        self.check_name_free(request.name.as_str())?;
        let attributes: usize = request.attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
        if attributes > 2048 {
            return Err(Error::invalid("the attributes of a volume are at most 2048 bytes in all"));
        }
        if let Some(size) = request.size {
            check_size(size)?;
        }
        match request.source {
            Source::Empty => {
                let size = request
                    .size
                    .ok_or_else(|| Error::invalid("an empty volume needs a size, such as --size 10G"))?;
                let initial = InitialRoot { root: Entry::HOLE, depth: depth_for(size / BLOCK_SIZE as u64) };
                let start = Start { initial, size, snapshot: None, vdi: None, filesystem: Filesystem::Blank };
                self.create_from(request, start).await
            }
            Source::Snapshot(snapshot) => {
                let record = self.materialised(snapshot).await?;
                let _pin = self.pin(snapshot).await?;
                self.clone_of(request, &record, Some(snapshot), None).await
            }
            Source::Vdi(vdi) => {
                if self.core.record(vdi)?.headless {
                    return Err(Error::new(ErrorKind::NotFound, format!("volume {vdi} has been deleted")));
                }
                let set = Provisional::new(&self.core);
                let moment = self.moment(vdi, request.at, &set).await?;
                let result = self.clone_of(request, &moment, None, Some(vdi)).await;
                self.core.with(vdi, |core| async move { core.delete_snapshot(moment.number).await }).await?;
                // It may have been deleted meanwhile, and was kept for the sake of that moment.
                self.bury(vdi).await?;
                result
            }
        }
    }

    fn check_name_free(&self, name: &str) -> Result<()> {
        if self.core.known.read().names.contains_key(name) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("there is a volume named '{name}' already"),
            ));
        }
        Ok(())
    }

    async fn clone_of(
        &self,
        request: CreateVdi,
        moment: &SnapshotRecord,
        snapshot: Option<SnapshotId>,
        vdi: Option<VdiId>,
    ) -> Result<VdiInfo> {
        let size = request.size.unwrap_or(moment.size);
        if size < moment.size {
            return Err(Error::invalid(format!(
                "a clone cannot be smaller than its source: {size} bytes asked, the source has {}",
                moment.size
            )));
        }
        let start = Start {
            initial: InitialRoot { root: moment.map.link.with_ro(), depth: moment.map.depth },
            size,
            snapshot,
            vdi,
            filesystem: moment.filesystem,
        };
        self.create_from(request, start).await
    }

    async fn create_from(&self, request: CreateVdi, start: Start) -> Result<VdiInfo> {
        let _gate = self.core.gate.read().await;
        self.core.check_open()?;
        self.core.admit(16)?;
        let record = VdiRecord {
            id: Uuid::from_u128((self.core.environment.entropy)()),
            name: request.name.as_str().to_owned(),
            size: start.size,
            logical_block: request.logical_block,
            created_ms: request.at.0,
            source_snapshot: start.snapshot.map(|source| (source.vdi.0, source.number)),
            source_vdi: start.vdi.map(|vdi| vdi.0),
            filesystem: start.filesystem,
            headless: false,
            snapshots: 0,
            publications: Vec::new(),
            attributes: request.attributes,
            initial: start.initial,
            grant: None,
            previous: None,
        };
        let id = VdiId(record.id);
        let mut registry = self.core.registry.lock().await;
        // Again, now that nobody else can take it.
        self.check_name_free(&record.name)?;
        self.core.commit(&mut registry, &[Record::Vdi(Box::new(record))]).await?;
        drop(registry);
        self.vdi(id)
    }

    /// Deletes; the VDI stays headless while snapshots of it live. `Busy` while attached or published.
    pub async fn delete_vdi(&self, id: VdiId) -> Result<()> {
        let record = self.core.record(id)?;
        if record.headless {
            return Err(Error::new(ErrorKind::NotFound, format!("volume {id} has been deleted")));
        }
        self.check_detached(&record, "deleted")?;
        self.alone_with(id, |mut record, snapshots| {
            self.check_detached(&record, "deleted")?;
            if snapshots == 0 {
                return Ok(Some(Record::VdiDeleted(id.0)));
            }
            record.headless = true;
            record.name = String::new();
            Ok(Some(Record::Vdi(Box::new(record))))
        })
        .await?;
        if self.core.record(id).is_ok() {
            // It is deleted, whatever becomes of this. The next opening of the pool tries again.
            if let Err(error) = self.empty_headless(id).await {
                tracing::warn!(vdi = %id, %error, "a deleted volume keeps its own blocks for now");
            }
        }
        Ok(())
    }

    /// Deletes a headless VDI of which no snapshot lives any more. If it is in use, the next opening of the pool does.
    pub(crate) async fn bury(&self, id: VdiId) -> Result<()> {
        if !self.core.record(id).is_ok_and(|record| record.headless) {
            return Ok(());
        }
        let buried = self.alone_with(id, |record, snapshots| {
            Ok((record.headless && snapshots == 0).then_some(Record::VdiDeleted(id.0)))
        });
        match buried.await {
            // Whoever deleted the last snapshot at the same time has done it.
            Err(error) if [ErrorKind::Busy, ErrorKind::NotFound].contains(&error.kind()) => Ok(()),
            other => other,
        }
    }

    /// Changes the record of a VDI that nobody else uses, and that nobody opens before it has been released: `decide` is
    /// told how many snapshots of it live. `Busy` if others do not end soon.
    async fn alone_with(
        &self,
        id: VdiId,
        decide: impl Fn(VdiRecord, u64) -> Result<Option<Record>>,
    ) -> Result<()> {
        let core = &self.core;
        // Opening settles how many snapshots live, also after a crash.
        for _ in 0..OTHERS_TRIES {
            core.enter(id).await?;
            {
                // No garbage collection looks at it between its deletion and its release.
                let _gate = core.gate.read().await;
                let slot = core.slot(id);
                let mut open = slot.core.lock().await;
                if slot.users.load(SeqCst) <= 1 {
                    let recorded = match &*open {
                        Some(vdi) => self.decided(vdi, &decide).await,
                        None => Err(Error::new(ErrorKind::FailedPrecondition, "the pool has been closed")),
                    };
                    let epoch = open.as_ref().map(|vdi| vdi.continuity.epoch);
                    let left = core.leave_slot(&slot, &mut open).await;
                    if let (Err(error), Some(epoch)) = (left, epoch) {
                        match core.record(id) {
                            Ok(_) => {
                                tracing::warn!(vdi = %id, %error, "a volume could not be released in order")
                            }
                            // Nobody will ask for what its release has left.
                            Err(_) => core.remove_tail(id, epoch),
                        }
                    }
                    return recorded;
                }
            }
            // Two that wait for each other would wait for ever if they stayed.
            let left = core.leave(id).await;
            self.check_detached(&core.record(id)?, "deleted")?;
            left?;
            core.environment.runtime.sleep(OTHERS_PAUSE).await;
        }
        Err(Error::new(ErrorKind::Busy, format!("volume {id} is in use; try again")))
    }

    async fn decided(
        &self,
        vdi: &VdiCore,
        decide: &impl Fn(VdiRecord, u64) -> Result<Option<Record>>,
    ) -> Result<()> {
        vdi.failure().map_or(Ok(()), Err)?;
        let mut registry = self.core.registry.lock().await;
        let snapshots = vdi.mapping.read().snapshots;
        match decide(self.core.record(vdi.id)?, snapshots)? {
            Some(record) => self.core.commit(&mut registry, &[record]).await,
            None => Ok(()),
        }
    }

    /// Lets go of everything that only the map of a deleted volume names; its snapshots keep what is theirs.
    pub(super) async fn empty_headless(&self, id: VdiId) -> Result<()> {
        let emptied = self.core.with(id, |core| async move { core.empty().await }).await;
        // The last snapshot may have gone meanwhile.
        if self.core.record(id).is_err() { Ok(()) } else { emptied }
    }

    fn check_detached(&self, record: &VdiRecord, what: &str) -> Result<()> {
        if self.core.is_attached(VdiId(record.id)) {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "volume '{}' is attached and cannot be {what}; `parallax detach` it first",
                    record.name
                ),
            ));
        }
        if let Some((node, _)) = record.publications.first() {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("volume '{}' is published to node '{node}' and cannot be {what}", record.name),
            ));
        }
        Ok(())
    }

    /// Renames.
    pub async fn rename_vdi(&self, id: VdiId, name: Name) -> Result<VdiInfo> {
        let mut registry = self.core.registry.lock().await;
        let mut record = self.core.record(id)?;
        if record.headless {
            return Err(Error::new(ErrorKind::NotFound, format!("volume {id} has been deleted")));
        }
        if record.name != name.as_str() {
            self.check_name_free(name.as_str())?;
            record.name = name.as_str().to_owned();
            self.core.commit(&mut registry, &[Record::Vdi(Box::new(record))]).await?;
        }
        drop(registry);
        self.vdi(id)
    }

    /// Grows, on line too. The same size again is no error; a smaller one is.
    pub async fn resize_vdi(&self, id: VdiId, size: u64) -> Result<VdiInfo> {
        check_size(size)?;
        let now = self.vdi(id)?.size;
        if size < now {
            return Err(Error::invalid(format!(
                "a volume cannot shrink: it has {now} bytes and {size} were asked"
            )));
        }
        self.core.admit_metadata(8)?;
        // The registry first: whoever opens the VDI from now on, also after a crash, makes it so.
        self.core
            .update(id, |record| {
                record.size = record.size.max(size);
                Ok(())
            })
            .await?;
        self.core
            .with(id, |core| async move {
                let now = core.mapping.read().size;
                if size > now { core.resize(size).await } else { Ok(()) }
            })
            .await?;
        self.vdi(id)
    }

    /// Goes back to a snapshot of this VDI. Detached only. The size stays.
    pub async fn revert_vdi(&self, id: VdiId, to: SnapshotId) -> Result<VdiInfo> {
        if to.vdi != id {
            return Err(Error::invalid(format!(
                "snapshot {to} is not one of volume {id}; create a clone instead"
            )));
        }
        self.check_detached(&self.core.record(id)?, "reverted")?;
        let listed = self.materialised(to).await?;
        let _pin = self.pin(to).await?;
        self.core
            .with(id, |core| async move {
                self.check_detached(&self.core.record(id)?, "reverted")?;
                core.revert(listed.number, listed.map).await
            })
            .await
            .context(|| format!("reverting to {to}"))?;
        self.core
            .update(id, |record| {
                record.filesystem = listed.filesystem;
                Ok(())
            })
            .await?;
        self.vdi(id)
    }

    /// Compare-and-set of the filesystem state.
    pub async fn set_filesystem(
        &self,
        id: VdiId,
        expected: FilesystemState,
        next: FilesystemState,
    ) -> Result<VdiInfo> {
        self.core
            .update(id, |record| {
                if record.filesystem != to_format(expected) {
                    return Err(Error::new(
                        ErrorKind::FailedPrecondition,
                        format!("the filesystem state is {:?}, not {expected:?}", record.filesystem),
                    ));
                }
                record.filesystem = to_format(next);
                Ok(())
            })
            .await?;
        self.vdi(id)
    }

    /// Replaces the publications, if they are as expected; at most 8.
    pub async fn set_publications(
        &self,
        id: VdiId,
        expected: &[Publication],
        next: Vec<Publication>,
    ) -> Result<VdiInfo> {
        let plain = |publications: &[Publication]| -> Vec<(String, bool)> {
            publications.iter().map(|one| (one.node.as_str().to_owned(), one.read_only)).collect()
        };
        if next.len() > 8 {
            return Err(Error::invalid("a volume is published to at most 8 nodes"));
        }
        self.core
            .update(id, |record| {
                if record.publications != plain(expected) {
                    return Err(Error::new(
                        ErrorKind::FailedPrecondition,
                        "the publications have changed meanwhile; look again",
                    ));
                }
                record.publications = plain(&next);
                Ok(())
            })
            .await?;
        self.vdi(id)
    }

    /// Opens for I/O. One at a time: `Busy` if it is attached already. Dropping does not detach,
    /// [`Vdi::detach`] does.
    pub async fn attach(&self, id: VdiId) -> Result<Arc<Vdi>> {
        if self.core.record(id)?.headless {
            return Err(Error::new(ErrorKind::NotFound, format!("volume {id} has been deleted")));
        }
        let slot = self.core.slot(id);
        if slot.attached.swap(true, SeqCst) {
            return Err(Error::new(ErrorKind::Busy, format!("volume {id} is attached already")));
        }
        match self.core.enter(id).await {
            // It may have been deleted while this waited.
            Ok(_) if self.core.record(id).is_ok_and(|record| record.headless) => {
                self.detach(id).await?;
                Err(Error::new(ErrorKind::NotFound, format!("volume {id} has been deleted")))
            }
            Ok(core) => Ok(Arc::new(Vdi::new(core, self.clone()))),
            Err(error) => {
                slot.attached.store(false, SeqCst);
                Err(error)
            }
        }
    }

    pub(crate) async fn detach(&self, id: VdiId) -> Result<()> {
        let slot = self.core.slot(id);
        if !slot.attached.swap(false, SeqCst) {
            return Ok(());
        }
        self.core.leave(id).await
    }

    /// Whether the epoch of an attached VDI has ended by itself, and why.
    pub fn failure(&self, id: VdiId) -> Option<Error> {
        let slot = self.core.slots.lock().get(&id)?.clone();
        slot.open.lock().as_ref()?.failure()
    }

    /// Whether the state of a VDI can be read without opening it.
    pub(crate) async fn released_slot(&self, id: VdiId) -> Result<Option<parallax_format::root::RootSlot>> {
        let record = self.core.record(id)?;
        let state = match replay::state(&self.core.disk, &record).await {
            // Somebody may be writing its slots right now. Opening it tells whether it is damaged.
            Err(error) if error.kind() == ErrorKind::Corrupt => None,
            other => other?,
        };
        Ok(state.map(|slots| slots.newest).filter(|slot| slot.released))
    }
}

impl PoolCore {
    /// Gives back the memory of a tail that nobody will ask for.
    fn remove_tail(&self, id: VdiId, epoch: Epoch) {
        let key = tail::key(self.disk.superblock.uuid, id.0, epoch);
        if let Err(error) = self.environment.tails.remove(&key) {
            tracing::warn!(vdi = %id, %error, "a tail could not be removed");
        }
    }
}
