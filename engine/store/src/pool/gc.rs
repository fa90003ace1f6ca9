//! Garbage collection: frees everything that no root reaches, while VDIs are attached and busy.
//!
//! 0. Volumes of whose last epoch only one root says that it ended are opened and closed: see [`Collection::settle`].
//! 1. *Begin*, in one instant in which nothing is opened or closed: every allocated block is a candidate. Whatever
//!    is taken or freed from now on leaves the candidates by itself.
//! 2. Wait for I/O that was under way, take back unused runs, wait for I/O that may have used them meanwhile,
//!    checkpoint every open VDI twice: what was allocated before step 1 and is still in use is now reachable from
//!    both of its root slots.
//! 3. *Roots*, in one instant: root slots, snapshot tables, journals that nobody has replayed, initial roots.
//! 4. *Mark*: walk them. Nodes superseded meanwhile are not reused before the cycle ends, so whatever a root
//!    names stays as it was.
//! 5. Wait for reads that began before step 3, then *sweep*: free the candidates that are left.
//!
//! Why a clone made meanwhile is safe: its root is a snapshot that was there in step 3, or one cut later from a
//! tree whose blocks were reachable in step 3 or were allocated after step 1. The same holds for reverting.

use super::{Pool, PoolCore};
use crate::{
    GcProgress, VdiId,
    mutants::{self, Mutant},
    space::Run,
    vdi::{Mode, replay, tail_runs},
    walk::{Place, Roots, Through, Visit, walk},
};
use parallax_block::{BLOCK_SIZE, Error, ErrorKind, Result, ResultExt};
use parallax_format::{
    BlockAddress, Entry, Node,
    record::{ExtentKind, VdiRecord},
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, SeqCst},
    },
};

/// The one garbage collection that a pool may have under way. However it ends, nothing stays a candidate.
pub(super) struct Collection<'a> {
    core: &'a Arc<PoolCore>,
    _alone: tokio::sync::MutexGuard<'a, ()>,
}

impl Drop for Collection<'_> {
    fn drop(&mut self) {
        self.core.space.end_cycle();
    }
}

impl Pool {
    /// Frees everything that nothing reaches. `Busy` if a collection is under way.
    pub async fn collect_garbage(&self, progress: &(dyn Fn(GcProgress) + Send + Sync)) -> Result<GcProgress> {
        let alone = self.core.collecting.try_lock();
        let alone = alone.map_err(|_| Error::new(ErrorKind::Busy, "a garbage collection is under way"))?;
        Collection { core: &self.core, _alone: alone }.run(progress).await
    }
}

impl<'a> Collection<'a> {
    /// Waits for the collection under way, if there is one.
    pub(super) async fn wait(core: &'a Arc<PoolCore>) -> Self {
        Self { core, _alone: core.collecting.lock().await }
    }

    pub(super) async fn run(self, progress: &(dyn Fn(GcProgress) + Send + Sync)) -> Result<GcProgress> {
        let result = self.cycle(progress).await;
        self.core.space.end_cycle();
        let result = match result {
            Ok(done) => self.finish(done).await,
            Err(error) => Err(error),
        };
        self.core.counters.collections.fetch_add(1, Relaxed);
        if let Ok(done) = &result {
            progress(*done);
        }
        result
    }

    /// Lets both roots of a volume that nobody uses say the same. A death, or a release that failed, may come between the two;
    /// then the older keeps whatever its last epoch let go, perhaps a snapshot, for as long as nobody opens the volume.
    async fn settle(&self) {
        let core = self.core;
        if core.settled.swap(true, SeqCst) {
            return;
        }
        for record in core.known().vdis.values() {
            let id = VdiId(record.id);
            if core.open_core(id).is_some() {
                continue;
            }
            let slots = match replay::state(&core.disk, record).await {
                Ok(Some(slots)) => slots,
                Ok(None) => continue,
                // One that is damaged, or being written, is looked at with the others.
                Err(_) => {
                    core.settled.store(false, SeqCst);
                    continue;
                }
            };
            if !slots.newest.released || slots.older.is_some_and(|older| older.released) {
                continue;
            }
            // Not with a collection for want of room: this is one.
            let renewed = match core.try_enter(id).await {
                Ok(_) => core.leave(id).await,
                Err(error) => Err(error),
            };
            if let Err(error) = renewed {
                tracing::warn!(vdi = %id, %error, "what the volume's last epoch let go stays for now");
                core.settled.store(false, SeqCst);
            }
        }
    }

    async fn finish(&self, mut done: GcProgress) -> Result<GcProgress> {
        self.core.release_extents().await?;
        self.core.space.write_lagging().await?;
        done.phase = "done";
        Ok(done)
    }

    async fn cycle(&self, progress: &(dyn Fn(GcProgress) + Send + Sync)) -> Result<GcProgress> {
        let core = self.core;
        self.settle().await;
        // One that cannot record anything may be about to name what would be freed.
        core.registry.lock().await.area.check()?;
        let mut now = GcProgress { phase: "checkpoint", ..GcProgress::default() };
        {
            let _still = core.gate.write().await;
            core.reclaim_runs();
            core.space.begin_cycle();
        }
        let open = core.all_cores();
        now.total = open.len() as u64;
        for vdi in &open {
            vdi.quiesce().await;
        }
        // A run may have been reserved before the cycle began and entered only now. Writes that began since may
        // have taken blocks from it: those are candidates, so they must be in the tree before the checkpoints.
        core.reclaim_runs();
        for vdi in &open {
            vdi.quiesce().await;
        }
        for vdi in &open {
            for _ in 0..2 {
                // One that has been detached or has failed meanwhile is looked at on disk.
                if vdi.failure().is_none()
                    && !mutants::on(Mutant::GcRootsEarly)
                    && let Err(error) = vdi.checkpoint_round(Mode::Always).await
                    && vdi.failure().is_none()
                {
                    return Err(error);
                }
            }
            // One of an epoch that has failed may be under way still, with nodes that no root names yet.
            drop(vdi.no_checkpoint().await);
            now.done += 1;
            progress(now);
        }
        let roots = {
            let _still = core.gate.write().await;
            core.roots().await?
        };
        now = GcProgress { phase: "mark", total: roots.total() as u64, ..now };
        now.done = 0;
        let mut marker = Marker { core, now, progress };
        walk(&core.disk, roots, Through::Cache, &mut marker).await.context(|| "marking what is in use")?;
        now = marker.now;
        for vdi in core.all_cores() {
            vdi.quiesce().await;
        }
        core.space.begin_sweep();
        now.phase = "sweep";
        now.done = 0;
        now.total = core.space.with_candidates(|candidates| candidates.extents() as u64).unwrap_or(0);
        let mut after = None;
        while let Some((extent, runs, kind)) = core.space.sweep(after) {
            let blocks: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
            match kind {
                ExtentKind::Data => {
                    core.trim(&runs).await;
                    now.freed_data += blocks * BLOCK_SIZE as u64;
                }
                ExtentKind::Metadata | ExtentKind::System => now.freed_metadata += blocks * BLOCK_SIZE as u64,
            }
            core.space.release_held(&runs);
            after = Some(extent);
            now.done += 1;
            progress(now);
        }
        Ok(now)
    }
}

impl PoolCore {
    /// Everything that counts as in use, as it is on disk. Nothing is opened or closed meanwhile.
    async fn roots(&self) -> Result<Roots> {
        let mut roots = Roots::default();
        let known = self.known();
        for record in known.vdis.values() {
            let open = self.open_core(VdiId(record.id)).filter(|core| core.failure().is_none());
            let mut private: Vec<Run> = match &open {
                Some(open) => open.private_runs().await,
                None => Vec::new(),
            };
            // Its slots are not written while they are read.
            let _still = match &open {
                Some(open) => Some(open.no_checkpoint().await),
                None => None,
            };
            self.roots_of(record, open.is_none(), &mut roots, &mut private)
                .await
                .context(|| format!("looking for what volume '{}' uses", record.name))?;
            self.space.with_candidates(|candidates| {
                for run in &private {
                    candidates.clear(run.start, run.count);
                }
            });
        }
        Ok(roots)
    }

    /// Adds the trees of a VDI to `roots`, and the blocks that it owns besides to `private`.
    async fn roots_of(
        &self,
        record: &VdiRecord,
        replay_journal: bool,
        roots: &mut Roots,
        private: &mut Vec<Run>,
    ) -> Result<()> {
        private.extend(record.grant.map(|grant| Run::slots(grant.slots)));
        let Some(slots) = replay::state(&self.disk, record).await? else {
            roots.maps.push(record.initial.tree());
            return Ok(());
        };
        if let Some(error) = slots.unreadable {
            return Err(error.context("one of its two root slots may name anything"));
        }
        private.push(Run::slots(slots.grant.slots));
        let mut replayed: BTreeSet<u64> = BTreeSet::new();
        for slot in slots.both() {
            roots.maps.push(slot.map);
            if !mutants::on(Mutant::GcForgetsSnapshots) {
                roots.tables.push(slot.table);
            }
            let replay_journal = replay_journal && !mutants::on(Mutant::GcForgetsJournals);
            if slot.released || !replay_journal || !replayed.insert(slot.replay.group) {
                continue;
            }
            let journal =
                replay::replay(&self.disk, record.id, slot.epoch, slot.replay, slots.durable_group).await?;
            private.extend(journal.segments.iter().copied().map(Run::segment));
            let this_boot = self.is_of_this_boot(slots.grant.incarnation);
            let tail = tail_runs(self, record.id, slot.epoch, journal.next_record, this_boot)?;
            private.extend(journal.records.iter().chain(&tail).filter_map(Run::mapped));
        }
        Ok(())
    }
}

struct Marker<'a> {
    core: &'a PoolCore,
    now: GcProgress,
    progress: &'a (dyn Fn(GcProgress) + Send + Sync),
}

impl Visit for Marker<'_> {
    fn enter(&mut self, address: BlockAddress, _place: Place) -> bool {
        self.now.nodes += 1;
        self.core.space.with_candidates(|candidates| candidates.visit(address)).unwrap_or(false)
    }

    fn leaf(&mut self, node: &Node, _place: Place) -> Result<()> {
        self.core.space.with_candidates(|candidates| {
            for word in node.words() {
                if let Some(address) = Entry::from_raw(*word).address() {
                    candidates.clear(address, 1);
                }
            }
        });
        Ok(())
    }

    fn root_done(&mut self) {
        self.now.done += 1;
        (self.progress)(self.now);
    }
}
