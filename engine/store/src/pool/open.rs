//! Opens and closes a pool.

use super::{Handle, Pool, PoolCore, Registry, create::read_superblock, loss::Loss};
use crate::{
    Environment, Limits, VdiId,
    disk::Disk,
    registry::Area,
    space::{ExtentMap, Space},
    vdi::tail,
};
use parallax_block::{BlockDevice, Error, ErrorKind, Result, ResultExt};
use parallax_format::{
    area::AreaId,
    record::{ExtentKind, Record},
    root::Evidence,
};
use parallax_lease::Applicant;
use std::sync::{Arc, atomic::Ordering::SeqCst};

impl Pool {
    /// Opens a formatted device that is held exclusively: that proves that nobody else's I/O is under way.
    pub async fn open(device: Arc<dyn BlockDevice>, environment: Environment) -> Result<Self> {
        Self::open_with(device, environment, Limits::default(), Evidence::ExclusiveDevice).await
    }

    /// Opens a formatted device: joins it as a host, becomes its manager, takes over its extents.
    pub async fn open_with(
        device: Arc<dyn BlockDevice>,
        environment: Environment,
        limits: Limits,
        evidence: Evidence,
    ) -> Result<Self> {
        if device.geometry().read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "the pool's device is read-only"));
        }
        let superblock = read_superblock(&*device).await.context(|| "opening the pool")?;
        let disk = Arc::new(Disk::new(device, superblock, environment.runtime.clone(), limits.cache_nodes()));
        let (old, known) = Area::find(&disk).await.context(|| "opening the pool")?;
        let applicant = Applicant {
            name: environment.host.as_str(),
            boot_id: environment.tails.boot_id(),
            now: environment.runtime.now(),
            incarnation_floor: known.incarnation,
            epoch_floor: old.id.epoch + 1,
        };
        let membership = parallax_lease::join(&*disk.device, &disk.superblock, applicant)
            .await
            .context(|| "joining the pool")?;
        // A process that was killed leaves writes that everybody sees and no flush has covered. What is read from here on is
        // durable: whatever is written over because of it will not be needed again.
        disk.flush().await.context(|| "opening the pool")?;
        // Read again: whoever left just before we joined may have recorded something since.
        let (old, mut known) = Area::find(&disk).await.context(|| "opening the pool")?;
        if old.id.epoch >= membership.manager_epoch {
            let text = "somebody else has become manager of the pool at this moment; try again";
            return Err(Error::new(ErrorKind::Busy, text));
        }
        let incarnation = membership.incarnation;
        let own = membership.own_incarnations().collect();
        let of_this_boot = membership.boot_incarnations().collect();
        known.apply(&Record::Counters { birth: known.birth, incarnation: incarnation + 1 });
        let mut extents: Vec<_> = known.extents.values().copied().collect();
        for extent in &mut extents {
            disk.map_extent(extent.extent, extent.position);
            extent.owner = incarnation;
            known.apply(&Record::Extent(*extent));
        }
        let id = AreaId { epoch: membership.manager_epoch, generation: old.id.generation + 1 };
        let group = disk.superblock.host_group(membership.slot);
        let area = Area::compact(&disk, id, group, &old.runs, &mut known)
            .await
            .context(|| "writing the registry")?;
        let (uuid, salt) = (disk.superblock.uuid, disk.salt());
        let was_lost = tail::was_lost(&*environment.tails, uuid, salt)?;
        let space = Arc::new(Space::new(disk.clone(), incarnation));
        let mut damaged = Vec::new();
        for extent in known.extents.values().filter(|extent| extent.kind != ExtentKind::System) {
            let map = ExtentMap::load(&disk, extent.extent, extent.kind, extent.birth, &mut damaged).await?;
            space.add(map);
        }
        let core = Arc::new(PoolCore {
            disk,
            space,
            environment,
            limits,
            incarnation,
            own_incarnations: own,
            boot_incarnations: of_this_boot,
            evidence,
            dirty: Arc::default(),
            counters: super::Counters::default(),
            materialised: tokio::sync::Notify::new(),
            gate: tokio::sync::RwLock::new(()),
            registry: Registry { area, known: known.clone() }.into(),
            known: known.into(),
            claims: 0.into(),
            opened: 0.into(),
            slots: parking_lot::Mutex::default(),
            provisional: parking_lot::Mutex::default(),
            half_deleted: parking_lot::Mutex::default(),
            settled: false.into(),
            pins: parking_lot::Mutex::default(),
            membership: membership.into(),
            closed: false.into(),
            background_checkpoint: false.into(),
            loss: Loss::new(was_lost),
            collecting: tokio::sync::Mutex::new(()),
            scrubbing: tokio::sync::Mutex::new(()),
        });
        let (weak, tails) = (Arc::downgrade(&core), core.environment.tails.clone());
        core.disk.when_lost(move || {
            let cores = weak.upgrade().map_or(Vec::new(), |core| core.all_cores());
            cores.iter().for_each(|vdi| vdi.doubt());
            if let Err(error) = tail::note_loss(&*tails, uuid, salt) {
                tracing::error!(%error, "it cannot be noted that unflushed writes are in doubt");
            }
        });
        let pool = Self { _handle: Handle(core.clone()).into(), core };
        // Neither is worth a pool that does not open: what is left over stays allocated until the next collection.
        if let Err(error) = pool.bury_headless().await {
            tracing::warn!(%error, "a deletion that was interrupted could not be finished");
        }
        if !damaged.is_empty() {
            tracing::warn!(
                blocks = damaged.len(),
                "allocation bitmaps did not verify; collecting garbage to rebuild them"
            );
            if let Err(error) = pool.collect_garbage(&|_| {}).await {
                tracing::warn!(%error, "the bitmaps could not be rebuilt: their extents count as full");
            }
        }
        Ok(pool)
    }

    /// Deletes headless VDIs whose last snapshot went just before the registry could say so.
    async fn bury_headless(&self) -> Result<()> {
        let headless: Vec<VdiId> =
            self.core.known().vdis.values().filter(|vdi| vdi.headless).map(|vdi| VdiId(vdi.id)).collect();
        for id in headless {
            let (snapshots, is_empty) = match self.released_slot(id).await? {
                Some(slot) => (slot.snapshots, slot.map.link.is_hole()),
                None => {
                    let live = self.core.with(id, |core| async move { Ok(core.mapping.read().snapshots) });
                    (live.await?, false)
                }
            };
            if snapshots == 0 {
                let mut registry = self.core.registry.lock().await;
                self.core.commit(&mut registry, &[Record::VdiDeleted(id.0)]).await?;
            } else if !is_empty {
                self.empty_headless(id).await?;
            }
        }
        Ok(())
    }

    /// Drains, checkpoints and releases everything. Other handles fail afterwards.
    pub async fn close(&self) -> Result<()> {
        let core = &self.core;
        if core.closed.swap(true, SeqCst) {
            return Ok(());
        }
        let _gate = core.gate.write().await;
        let slots: Vec<_> = std::mem::take(&mut *core.slots.lock()).into_iter().collect();
        let mut outcome = Ok(());
        for (id, slot) in slots {
            slot.open.lock().take();
            if let Some(open) = slot.core.lock().await.take() {
                let released = open.release().await.context(|| format!("releasing volume {id}"));
                if released.is_err() {
                    open.stop("the pool was closed");
                }
                outcome = outcome.and(released);
            }
        }
        // Whoever is late finds the pool closed.
        core.registry.lock().await.area.close();
        core.space.write_lagging().await?;
        core.disk.flush().await?;
        if outcome.is_ok() {
            core.forget_loss().await?;
        }
        // Who leaves in order vouches for having nothing under way.
        if core.space.has_doubts() || core.space.has_late_record() {
            tracing::warn!(
                "a write has failed that may land yet, so this machine stays a user of the pool; opening and closing the \
                 pool once more here ends that"
            );
        } else if outcome.is_ok() {
            let mut membership = core.membership.lock().await;
            let now = core.environment.runtime.now();
            membership.release(&*core.disk.device, &core.disk.superblock, now).await?;
        }
        outcome
    }

    /// Waits for everything that has been acknowledged so far to be durable.
    pub async fn sync(&self) -> Result<()> {
        for core in self.core.open_cores() {
            core.flush().await?;
        }
        match self.core.closed.load(SeqCst) {
            true => Err(Error::new(ErrorKind::FailedPrecondition, "the pool has been closed")),
            false => Ok(()),
        }
    }
}
