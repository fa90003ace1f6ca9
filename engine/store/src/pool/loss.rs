//! A flush of the device has failed: what was acknowledged and not flushed may be gone, whoever had asked for the flush.
//!
//! Invariants:
//! * Whoever opens a volume that was in use before the flush failed is told once that it is in doubt. Until then the note
//!   stays in shared memory, beside the tails, and outlives the process.
//! * After a flush has failed here nothing is forgotten any more: only another process can tell.

use super::PoolCore;
use crate::{
    VdiId,
    vdi::{replay, tail},
};
use parallax_block::Result;
use parallax_format::record::VdiRecord;
use parking_lot::Mutex;
use std::collections::BTreeSet;

/// Who has been told of a loss that an earlier process has noted; `None` when there is nothing left to tell.
#[derive(Default)]
pub(crate) struct Loss(Mutex<Option<BTreeSet<VdiId>>>);

impl Loss {
    pub(super) fn new(was_noted: bool) -> Self {
        Self(was_noted.then(BTreeSet::new).into())
    }

    fn is_over(&self) -> bool {
        self.0.lock().is_none()
    }

    fn concerns(&self, id: VdiId) -> bool {
        self.0.lock().as_ref().is_some_and(|told| !told.contains(&id))
    }

    fn told(&self, id: VdiId) {
        if let Some(told) = &mut *self.0.lock() {
            told.insert(id);
        }
    }
}

impl PoolCore {
    /// Whether a flush has failed since `id` was last in use.
    pub(crate) fn is_in_doubt(&self, id: VdiId) -> bool {
        self.loss.concerns(id)
    }

    /// Notes that whoever opened `id` has been told what it goes on from.
    pub(crate) async fn adopted(&self, id: VdiId) -> Result<()> {
        self.loss.told(id);
        self.forget_loss().await
    }

    /// Forgets the loss when no volume is left of which somebody is to be told.
    pub(super) async fn forget_loss(&self) -> Result<()> {
        if self.loss.is_over() || self.disk.is_lost() {
            return Ok(());
        }
        let waits = |record: &&VdiRecord| self.is_in_doubt(VdiId(record.id));
        for record in self.known().vdis.values().filter(waits) {
            if replay::state(&self.disk, record).await?.is_some_and(|slots| !slots.newest.released) {
                return Ok(());
            }
        }
        tail::forget_loss(&*self.environment.tails, self.disk.superblock.uuid)?;
        *self.loss.0.lock() = None;
        Ok(())
    }
}
