//! What the engine asks of a disk, and what a VDI offers in turn.
//!
//! Contract of every [`BlockDevice`]:
//! * Requests may be outstanding together; nothing orders them but their completions and [`BlockDevice::flush`].
//! * A completed write is visible to every read begun afterwards. It is durable once a flush begun after its
//!   completion has succeeded, or at once if it carried `fua`.
//! * Two overlapping requests in flight, one of them a write, may take effect in either order.
//! * Buffers are owned by the request and come back with its completion, whatever its outcome. Dropping a
//!   future gives up the answer, not the request: it may still take effect.

use crate::{Buffer, ByteRange, Result};
use std::{future::Future, pin::Pin};

/// A boxed future that may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The buffer of a finished request, and how the request went.
pub type Completion = (Buffer, Result<()>);

/// Shape of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes.
    pub capacity: u64,
    /// Bytes of the smallest request; offsets and lengths are multiples of it.
    pub logical_block: u32,
    /// Bytes that the device writes without reading; a multiple of `logical_block`.
    pub physical_block: u32,
    /// Bytes that discards are rounded to, or 0 if the device cannot discard.
    pub discard_granularity: u32,
    /// Whether writing is refused.
    pub read_only: bool,
}

/// How a write is to be done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Durable before it completes.
    pub fua: bool,
}

/// How zeroes are to be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ZeroOptions {
    /// The space behind the range may be given back.
    pub unmap: bool,
    /// Durable before it completes.
    pub fua: bool,
}

/// What a range of a device holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// Space is behind it.
    Data,
    /// Nothing is behind it; it reads as zeroes.
    Hole,
}

/// A range and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusExtent {
    /// Where.
    pub range: ByteRange,
    /// What.
    pub allocation: Allocation,
}

/// A disk: real, virtual or simulated. See the module for the contract.
pub trait BlockDevice: Send + Sync {
    /// Shape; the capacity of a growing device may rise between calls.
    fn geometry(&self) -> Geometry;

    /// Fills `buffer` from `offset`.
    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Completion>;

    /// Writes `buffer` at `offset`.
    fn write(&self, offset: u64, buffer: Buffer, options: WriteOptions) -> BoxFuture<'_, Completion>;

    /// Makes every write completed before this call durable.
    fn flush(&self) -> BoxFuture<'_, Result<()>>;

    /// Says that the range's content is no longer wanted; what it reads afterwards is undefined unless the
    /// device is a VDI, where whole blocks read as zeroes.
    fn discard(&self, range: ByteRange) -> BoxFuture<'_, Result<()>>;

    /// Makes the range read as zeroes.
    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> BoxFuture<'_, Result<()>>;

    /// What is behind the range, as adjoining extents in order that begin at its start. At most
    /// `extents_max` are returned, so they may end before the range does, but at least one is returned for a
    /// range that is not empty. A device that does not know answers [`Allocation::Data`].
    fn status(&self, range: ByteRange, extents_max: usize) -> BoxFuture<'_, Result<Vec<StatusExtent>>> {
        let whole = StatusExtent { range, allocation: Allocation::Data };
        Box::pin(async move { Ok(if extents_max == 0 || range.is_empty() { vec![] } else { vec![whole] }) })
    }
}
