//! Vocabulary that every room of the engine shares.
//!
//! * [`BlockDevice`]: anything that can be read and written in sectors: a disk, a VDI, a layer.
//! * [`Buffer`]: owned, aligned memory that travels with an I/O and comes back with its completion.
//! * [`Sector`]-free addressing: offsets and lengths are bytes ([`ByteRange`]); blocks of the store are
//!   [`BLOCK_SIZE`] bytes and have their own address types in `parallax-format`.
//! * [`ByteRange`]: offsets and lengths are bytes; blocks of the store have address types in `parallax-format`.
//! * [`Error`]: kind + context + source.
//! * [`Runtime`]: tasks and time, so that nothing below `export` knows a clock or an executor.

mod buffer;
mod device;
mod error;
mod range;
mod runtime;
mod tail;

pub use buffer::{Buffer, MEMORY_ALIGNMENT};
pub use device::{
    Allocation, BlockDevice, BoxFuture, Completion, Geometry, StatusExtent, WriteOptions, ZeroOptions,
};
pub use error::{Error, ErrorKind, Result, ResultExt};
pub use range::ByteRange;
pub use runtime::{Runtime, join_all};
pub use tail::{Tail, TailStore};

/// Bytes of one block: the unit of mapping, allocation and copy-on-write.
pub const BLOCK_SIZE: usize = 4096;

/// Bytes of the smallest sector that a device may offer.
pub const SECTOR_SIZE: usize = 512;
