//! Bytes of volumes and snapshots as streams.
//!
//! Invariants:
//! * A volume is read through a snapshot of its own, taken now and deleted afterwards: what is read is one
//!   moment, whether or not the volume is in use.
//! * Holes are not sent.
//! * Both directions hold a bounded number of pieces in memory.
//! * A written volume is marked as holding something before its first byte changes, so that nobody formats it.

use super::{
    super::{Core, to_status},
    Stream,
};
use crate::{
    engine::now,
    openings::{Opening, Target},
};
use parallax_api::v1;
use parallax_block::{
    self as block, Allocation, BlockDevice, Buffer, ByteRange, Error, ErrorKind, WriteOptions,
};
use parallax_store::{FilesystemState, SnapshotId, TakeSnapshot, VdiId};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Bytes of one message.
const PIECE: u64 = 1 << 20;

/// Pieces that wait for a slow reader.
const READ_AHEAD: usize = 4;

/// Writes in flight.
const WRITES_MAX: usize = 8;

/// Extents asked for at once.
const STATUS_EXTENTS: usize = 256;

pub(super) async fn read(core: &Core, target: Target) -> Result<Stream<v1::Content>, Status> {
    let (snapshot, temporary) = match target {
        Target::Snapshot(id) => (id, false),
        Target::Volume(id) => (moment(core, id).await.map_err(to_status)?, true),
    };
    let opening = match core.openings.open(Target::Snapshot(snapshot)).await {
        Ok(opening) => opening,
        Err(error) => {
            forget(core, snapshot, temporary).await;
            return Err(to_status(error));
        }
    };
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    let core = core.clone();
    tokio::spawn(async move {
        let device = Arc::clone(opening.device());
        let pieces = sender.clone();
        let outcome = core.engine.run(move |_| async move { send(device.as_ref(), &pieces).await }).await;
        if let Err(error) = outcome {
            let _ = sender.send(Err(to_status(error))).await;
        }
        if let Err(error) = core.openings.close(&opening).await {
            tracing::warn!(%error, "after reading content");
        }
        forget(&core, snapshot, temporary).await;
    });
    Ok(ReceiverStream::new(receiver))
}

/// A snapshot of now.
async fn moment(core: &Core, id: VdiId) -> block::Result<SnapshotId> {
    let take = TakeSnapshot { vdis: vec![id], label: "being exported".into(), name: None, at: now() };
    core.engine
        .run(move |pool| async move {
            let taken = pool.snapshot(take).await?;
            taken.first().map(|info| info.id).ok_or_else(|| Error::corrupt("a snapshot was taken of nothing"))
        })
        .await
}

async fn forget(core: &Core, snapshot: SnapshotId, temporary: bool) {
    if !temporary {
        return;
    }
    match core.engine.run(move |pool| async move { pool.delete_snapshot(snapshot).await }).await {
        Ok(()) => core.collector.deleted(),
        Err(error) => tracing::warn!(%snapshot, %error, "the snapshot of an export stays; delete it by hand"),
    }
}

/// Sends what is mapped. Ends early, without an error, when nobody listens any more.
async fn send(
    device: &dyn BlockDevice,
    pieces: &mpsc::Sender<Result<v1::Content, Status>>,
) -> block::Result<()> {
    let size = device.geometry().capacity;
    let first = v1::Content { offset: 0, data: vec![], size_bytes: size };
    if pieces.send(Ok(first)).await.is_err() {
        return Ok(());
    }
    let mut at = 0;
    while at < size {
        let extents = device.status(ByteRange::new(at, size - at)?, STATUS_EXTENTS).await?;
        let Some(end) = extents.last().map(|extent| extent.range.end()).filter(|end| *end > at) else {
            return Err(Error::corrupt(format!("the map of the device ends at byte {at} of {size}")));
        };
        for extent in extents.iter().filter(|extent| extent.allocation == Allocation::Data) {
            let mut offset = extent.range.offset();
            while offset < extent.range.end() {
                let length = PIECE.min(extent.range.end() - offset);
                let (data, outcome) = device.read(offset, Buffer::zeroed(length as usize)).await;
                outcome?;
                let piece = v1::Content { offset, data: data.to_vec(), size_bytes: 0 };
                if pieces.send(Ok(piece)).await.is_err() {
                    return Ok(());
                }
                offset += length;
            }
        }
        at = end;
    }
    Ok(())
}

pub(super) async fn write(
    core: &Core,
    mut stream: Streaming<v1::WriteContentRequest>,
) -> Result<v1::WriteContentResponse, Status> {
    let first = stream
        .message()
        .await?
        .ok_or_else(|| Status::invalid_argument("the stream is empty: its first message names the volume"))?;
    let info = core.resolve(first.volume.clone())?;
    let id = info.id;
    if info.headless {
        return Err(Status::not_found(format!("the volume {id} has been deleted")));
    }
    let found = info.filesystem;
    if found != FilesystemState::Formatted {
        core.engine
            .run(move |pool| async move { pool.set_filesystem(id, found, FilesystemState::Formatted).await })
            .await
            .map_err(to_status)?;
    }
    let opening = core.openings.open(Target::Volume(id)).await.map_err(to_status)?;
    let written = receive(core, &opening, first, &mut stream).await;
    let closed = core.openings.close(&opening).await.map_err(to_status);
    let bytes_written = written?;
    closed?;
    Ok(v1::WriteContentResponse { bytes_written })
}

/// Writes what comes, several pieces at once, and makes it durable.
async fn receive(
    core: &Core,
    opening: &Arc<Opening>,
    first: v1::WriteContentRequest,
    stream: &mut Streaming<v1::WriteContentRequest>,
) -> Result<u64, Status> {
    let device = opening.device();
    let room = Arc::new(Semaphore::new(WRITES_MAX));
    let failure: Arc<Mutex<Option<Error>>> = Arc::default();
    let mut bytes_written = 0;
    let mut next = Some(first);
    while let Some(message) = next {
        let length = message.data.len() as u64;
        if length > 0 {
            let geometry = device.geometry();
            ByteRange::new(message.offset, length)
                .and_then(|range| range.check(geometry.capacity, geometry.logical_block))
                .map_err(to_status)?;
            let permit = Arc::clone(&room)
                .acquire_owned()
                .await
                .map_err(|_| Status::unavailable("the writes were given up"))?;
            if let Some(error) = taken(&failure) {
                return Err(to_status(error));
            }
            let (device, failure) = (Arc::clone(device), Arc::clone(&failure));
            core.engine.reactors().home().spawn(async move {
                let buffer = Buffer::copy_of(&message.data);
                let (_, outcome) = device.write(message.offset, buffer, WriteOptions::default()).await;
                if let Err(error) = outcome {
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
                drop(permit);
            });
            bytes_written += length;
        }
        next = stream.message().await?;
    }
    let _all = room
        .acquire_many(WRITES_MAX as u32)
        .await
        .map_err(|_| Status::unavailable("the writes were given up"))?;
    if let Some(error) = taken(&failure) {
        return Err(to_status(error));
    }
    let device = Arc::clone(device);
    core.engine.run(move |_| async move { device.flush().await }).await.map_err(to_status)?;
    Ok(bytes_written)
}

fn taken(failure: &Mutex<Option<Error>>) -> Option<Error> {
    let found = failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
    found.map(|error| match error.kind() {
        ErrorKind::OutOfSpace => error.context("the pool is full; delete something or grow it"),
        _ => error,
    })
}
