//! VDIs that are open, and who uses them.
//!
//! Invariants:
//! * A VDI is opened by its first user and released by its last one. Nobody opens or closes it while its slot is locked.
//! * One whose epoch has failed is opened anew by its next user, unless it is attached: its device fails until it is detached.

use super::{PoolCore, gc::Collection};
use crate::{
    VdiId,
    vdi::{self, VdiCore},
};
use parallax_block::{ErrorKind, Result};
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};
use tokio::sync::Mutex as AsyncMutex;

/// A VDI's place among the open ones.
#[derive(Default)]
pub(super) struct Slot {
    /// Held while it is opened or closed.
    pub(super) core: AsyncMutex<Option<Arc<VdiCore>>>,
    /// The same for whoever only looks: what is open, and not being closed. Held for an instant.
    pub(super) open: Mutex<Option<Arc<VdiCore>>>,
    /// Operations that use it now; the attachment counts as one.
    pub(super) users: AtomicU64,
    pub(super) attached: AtomicBool,
}

impl PoolCore {
    /// VDIs that are open, those whose epoch has failed included: their I/O may still be under way.
    pub(crate) fn all_cores(&self) -> Vec<Arc<VdiCore>> {
        self.slots.lock().values().filter_map(|slot| slot.open.lock().clone()).collect()
    }

    /// VDIs that are open and whose epoch has not failed.
    pub(crate) fn open_cores(&self) -> Vec<Arc<VdiCore>> {
        let mut cores = self.all_cores();
        cores.retain(|core| core.failure().is_none());
        cores
    }

    pub(super) fn slot(&self, id: VdiId) -> Arc<Slot> {
        self.slots.lock().entry(id).or_default().clone()
    }

    pub(super) fn is_attached(&self, id: VdiId) -> bool {
        self.slots.lock().get(&id).is_some_and(|slot| slot.attached.load(SeqCst))
    }

    /// Opens `id` if need be and counts a user. A pool that is too full for it is swept first: deletes must
    /// work in a full pool, and a crash leaves space that only garbage collection finds.
    pub(super) async fn enter(self: &Arc<Self>, id: VdiId) -> Result<Arc<VdiCore>> {
        match self.try_enter(id).await {
            Err(error) if error.kind() == ErrorKind::OutOfSpace => {
                let collection = Collection::wait(self).await;
                // Another's may have made room.
                match self.try_enter(id).await {
                    Err(error) if error.kind() == ErrorKind::OutOfSpace => {
                        tracing::info!(vdi = %id, "the pool is too full to open a volume; collecting garbage");
                        Box::pin(collection.run(&|_| {})).await?;
                        self.try_enter(id).await
                    }
                    other => other,
                }
            }
            other => other,
        }
    }

    /// The same where nothing may be swept.
    pub(super) async fn try_enter(self: &Arc<Self>, id: VdiId) -> Result<Arc<VdiCore>> {
        self.usable(id)?;
        let _gate = self.gate.read().await;
        self.check_open()?;
        let slot = self.slot(id);
        let mut core = slot.core.lock().await;
        // It may have been deleted while this waited, or half deleted.
        self.usable(id)?;
        let attached = slot.attached.load(SeqCst);
        match &*core {
            Some(open) if open.failure().is_none() || attached => {
                open.failure().map_or(Ok(()), Err)?;
                slot.users.fetch_add(1, SeqCst);
                Ok(open.clone())
            }
            _ => {
                if let Some(failed) = core.take() {
                    slot.open.lock().take();
                    self.opened.fetch_sub(1, SeqCst);
                    failed.quiesce().await;
                    drop(failed.no_checkpoint().await);
                }
                let open = vdi::open(self, id).await?;
                self.opened.fetch_add(1, SeqCst);
                *core = Some(open.clone());
                *slot.open.lock() = Some(open.clone());
                if self.disk.is_lost() {
                    // Whoever was told went by before this one could be seen.
                    open.doubt();
                }
                slot.users.fetch_add(1, SeqCst);
                Ok(open)
            }
        }
    }

    /// Counts a user less; the last one releases the VDI.
    pub(super) async fn leave(self: &Arc<Self>, id: VdiId) -> Result<()> {
        let _gate = self.gate.read().await;
        let slot = self.slot(id);
        let mut core = slot.core.lock().await;
        self.leave_slot(&slot, &mut core).await
    }

    /// The same, for whoever keeps the volume from being opened and closed.
    pub(super) async fn leave_slot(&self, slot: &Slot, core: &mut Option<Arc<VdiCore>>) -> Result<()> {
        if slot.users.fetch_sub(1, SeqCst) != 1 {
            return Ok(());
        }
        let Some(open) = core.take() else { return Ok(()) };
        slot.open.lock().take();
        self.opened.fetch_sub(1, SeqCst);
        match open.release().await {
            Ok(()) => Ok(()),
            Err(error) => {
                open.stop("its release failed");
                self.settled.store(false, SeqCst);
                drop(open.no_checkpoint().await);
                Err(error)
            }
        }
    }

    /// Runs an operation on an open VDI.
    pub(crate) async fn with<T, F: Future<Output = Result<T>>>(
        self: &Arc<Self>,
        id: VdiId,
        work: impl FnOnce(Arc<VdiCore>) -> F,
    ) -> Result<T> {
        let core = self.enter(id).await?;
        let result = work(core).await;
        match self.leave(id).await {
            Ok(()) => result,
            // The operation itself is durable or has failed on its own account.
            Err(error) => {
                tracing::warn!(vdi = %id, %error, "a volume could not be released in order");
                result
            }
        }
    }
}
