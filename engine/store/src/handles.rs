//! What callers hold: an attached VDI, an open snapshot. Both are block devices.

use crate::{
    SnapshotId, VdiId,
    detached::Detached,
    generation::Ticket,
    pool::{Pin, Pool},
    vdi::{Continuity, VdiCore, view::View},
};
use parallax_block::{
    BLOCK_SIZE, BlockDevice, BoxFuture, Buffer, ByteRange, Completion, Error, ErrorKind, Geometry, Result,
    ResultExt, StatusExtent, WriteOptions, ZeroOptions,
};
use parking_lot::Mutex;
use std::{
    future::{Future, ready},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

/// An attached VDI: a [`BlockDevice`].
///
/// An operation such as a snapshot may keep the VDI open beyond its detachment, so the handle itself admits
/// nothing more once it is detached, and detaching waits for what was admitted.
pub struct Vdi {
    core: Arc<VdiCore>,
    pool: Pool,
    detached: AtomicBool,
}

impl Vdi {
    pub(crate) fn new(core: Arc<VdiCore>, pool: Pool) -> Self {
        Self { core, pool, detached: AtomicBool::new(false) }
    }

    /// Identity.
    pub fn id(&self) -> VdiId {
        self.core.id
    }

    /// What it goes on from.
    pub fn continuity(&self) -> Continuity {
        self.core.continuity
    }

    /// Finishes what is under way, checkpoints, releases. Later I/O fails.
    pub async fn detach(&self) -> Result<()> {
        if self.detached.swap(true, SeqCst) {
            return Ok(());
        }
        self.core.requests_drained().await;
        // Others may use the volume still, so the release and its checkpoint may come later than the answer.
        let flushed = self.core.flush().await;
        flushed.and(self.pool.detach(self.core.id).await)
    }

    /// Writes dirty nodes and pending snapshots, so that what follows has less to do.
    pub async fn checkpoint(&self) -> Result<()> {
        self.core.checkpoint().await
    }
}

impl BlockDevice for Vdi {
    fn geometry(&self) -> Geometry {
        Geometry {
            capacity: self.core.mapping.read().size,
            logical_block: self.core.logical_block,
            physical_block: BLOCK_SIZE as u32,
            discard_granularity: BLOCK_SIZE as u32,
            read_only: false,
        }
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Completion> {
        match self.core.admit_request(&self.detached) {
            Ok(ticket) => Box::pin(during(ticket, self.core.read(offset, buffer))),
            Err(error) => Box::pin(ready((buffer, Err(error)))),
        }
    }

    fn write(&self, offset: u64, buffer: Buffer, options: WriteOptions) -> BoxFuture<'_, Completion> {
        match self.core.admit_request(&self.detached) {
            Ok(ticket) => {
                let work = during(ticket, self.core.clone().write(offset, buffer, options));
                Box::pin(Detached::new(self.core.runtime(), work))
            }
            Err(error) => Box::pin(ready((buffer, Err(error)))),
        }
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        match self.core.admit_request(&self.detached) {
            Ok(ticket) => Box::pin(during(ticket, self.core.flush())),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }

    fn discard(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        match self.core.admit_request(&self.detached) {
            Ok(ticket) => {
                let work = during(ticket, self.core.clone().discard(range));
                Box::pin(Detached::new(self.core.runtime(), work))
            }
            Err(error) => Box::pin(ready(Err(error))),
        }
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> BoxFuture<'_, Result<()>> {
        match self.core.admit_request(&self.detached) {
            Ok(ticket) => {
                let work = during(ticket, self.core.clone().write_zeroes(range, options));
                Box::pin(Detached::new(self.core.runtime(), work))
            }
            Err(error) => Box::pin(ready(Err(error))),
        }
    }

    fn status(&self, range: ByteRange, extents_max: usize) -> BoxFuture<'_, Result<Vec<StatusExtent>>> {
        match self.core.admit_request(&self.detached) {
            Ok(ticket) => Box::pin(during(ticket, self.core.status(range, extents_max))),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }
}

/// Does the work of a request that a detach has to wait for.
async fn during<T>(ticket: Ticket, work: impl Future<Output = T>) -> T {
    let done = work.await;
    drop(ticket);
    done
}

/// An open snapshot: a read-only [`BlockDevice`].
pub struct SnapshotView {
    id: SnapshotId,
    view: View,
    /// Reads hold on to it, each for itself.
    pin: Mutex<Option<Arc<Pin>>>,
}

impl SnapshotView {
    pub(crate) fn new(id: SnapshotId, view: View, pin: Pin) -> Self {
        Self { id, view, pin: Mutex::new(Some(Arc::new(pin))) }
    }

    /// Identity.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Lets it be deleted again, once the reads under way have ended. Later reads fail.
    pub async fn close(&self) -> Result<()> {
        self.pin.lock().take();
        Ok(())
    }

    /// How errors name it.
    fn name(&self) -> String {
        format!("snapshot {}", self.id)
    }

    fn pinned(&self) -> Result<Arc<Pin>> {
        match &*self.pin.lock() {
            Some(pin) => Ok(pin.clone()),
            None => Err(Error::new(ErrorKind::Fenced, format!("snapshot {} has been closed", self.id))),
        }
    }
}

fn read_only<T: Send + 'static>() -> BoxFuture<'static, Result<T>> {
    Box::pin(async {
        Err(Error::new(ErrorKind::ReadOnly, "a snapshot cannot be written; create a clone of it"))
    })
}

impl BlockDevice for SnapshotView {
    fn geometry(&self) -> Geometry {
        Geometry {
            capacity: self.view.size,
            logical_block: self.view.logical_block,
            physical_block: BLOCK_SIZE as u32,
            discard_granularity: 0,
            read_only: true,
        }
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Completion> {
        Box::pin(async move {
            match self.pinned() {
                Ok(_pin) => {
                    let (buffer, result) = self.view.read(offset, buffer).await;
                    (buffer, result.context(|| self.name()))
                }
                Err(error) => (buffer, Err(error)),
            }
        })
    }

    fn write(&self, _: u64, buffer: Buffer, _: WriteOptions) -> BoxFuture<'_, Completion> {
        Box::pin(async move { (buffer, read_only().await) })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.pinned().map(drop) })
    }

    fn discard(&self, _: ByteRange) -> BoxFuture<'_, Result<()>> {
        read_only()
    }

    fn write_zeroes(&self, _: ByteRange, _: ZeroOptions) -> BoxFuture<'_, Result<()>> {
        read_only()
    }

    fn status(&self, range: ByteRange, extents_max: usize) -> BoxFuture<'_, Result<Vec<StatusExtent>>> {
        Box::pin(async move {
            let _pin = self.pinned()?;
            self.view.status(range, extents_max).await.context(|| self.name())
        })
    }
}
