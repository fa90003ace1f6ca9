//! One export as the FUSE threads see it: requests come in, device operations run, replies go out.
//!
//! Invariants:
//! * Every request is answered once. A task that is dropped answers EIO, because a reply says so on drop.
//! * What is answered to a punched hole is that the range reads as zeroes: the loop driver sends both discard
//!   and write-zeroes that way and tells them not apart.
//! * `replies` is locked for reading while a read or write is answered. Whoever holds it for writing sees no
//!   completion pass, which is when the kernel accepts a new file size.

use super::limits::Gate;
use fuser::{Errno, ReplyData, ReplyEmpty, ReplyWrite};
use parallax_block::{
    BlockDevice, Buffer, ByteRange, Error, ErrorKind, Result, Runtime, WriteOptions, ZeroOptions,
};
use parking_lot::RwLock;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

/// A reply waits no longer than this for a resize: the resize would rather try again than make I/O wait.
const REPLY_WAIT_MAX: Duration = Duration::from_millis(10);

const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// What all exports share.
pub(super) struct Engine {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) gate: Arc<Gate>,
}

/// One export.
pub(super) struct Served {
    pub(super) inode: u64,
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) read_only: bool,
    /// Set when the export is given up.
    failed: AtomicBool,
    pub(super) replies: RwLock<()>,
}

fn errno_of(error: &Error) -> Errno {
    Errno::from_i32(error.kind().errno())
}

impl Served {
    pub(super) fn new(inode: u64, device: Arc<dyn BlockDevice>, read_only: bool) -> Arc<Self> {
        Arc::new(Self { inode, device, read_only, failed: AtomicBool::new(false), replies: RwLock::new(()) })
    }

    /// Every request fails from now on.
    pub(super) fn fail(&self) {
        self.failed.store(true, Relaxed);
    }

    /// Bytes of the file.
    pub(super) fn size(&self) -> u64 {
        self.device.geometry().capacity
    }

    fn admit(&self, offset: u64, length: u64, writing: bool) -> Result<ByteRange> {
        if self.failed.load(Relaxed) {
            return Err(Error::new(ErrorKind::Fenced, "the export has been shut down"));
        }
        if writing && self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "the export is read-only"));
        }
        let geometry = self.device.geometry();
        let range = ByteRange::new(offset, length)?;
        range.check(geometry.capacity, geometry.logical_block)?;
        Ok(range)
    }

    fn hold_reply(&self, answer: impl FnOnce()) {
        let _hold = self.replies.try_read_for(REPLY_WAIT_MAX);
        answer();
    }

    pub(super) fn read(self: Arc<Self>, engine: &Engine, offset: u64, length: u32, reply: ReplyData) {
        if let Err(error) = self.admit(offset, u64::from(length), false) {
            return reply.error(errno_of(&error));
        }
        let permit = engine.gate.enter(u64::from(length));
        engine.runtime.spawn(Box::pin(async move {
            let (buffer, result) = self.device.read(offset, Buffer::zeroed(length as usize)).await;
            match result {
                Ok(()) => self.hold_reply(|| reply.data(&buffer)),
                Err(error) => {
                    self.log("read", offset, &error);
                    reply.error(errno_of(&error));
                }
            }
            drop((buffer, permit));
        }));
    }

    pub(super) fn write(self: Arc<Self>, engine: &Engine, offset: u64, data: &[u8], reply: ReplyWrite) {
        if let Err(error) = self.admit(offset, data.len() as u64, true) {
            return reply.error(errno_of(&error));
        }
        // The kernel's requests are at most a few MiB, so the length fits.
        let length = data.len() as u32;
        let permit = engine.gate.enter(u64::from(length));
        let buffer = Buffer::copy_of(data);
        engine.runtime.spawn(Box::pin(async move {
            let (buffer, result) = self.device.write(offset, buffer, WriteOptions::default()).await;
            match result {
                Ok(()) => self.hold_reply(|| reply.written(length)),
                Err(error) => {
                    self.log("write", offset, &error);
                    reply.error(errno_of(&error));
                }
            }
            drop((buffer, permit));
        }));
    }

    pub(super) fn flush(self: Arc<Self>, engine: &Engine, reply: ReplyEmpty) {
        if self.failed.load(Relaxed) {
            return reply.error(Errno::EIO);
        }
        engine.runtime.spawn(Box::pin(async move {
            let result = self.device.flush().await;
            self.finish("flush", 0, result, reply);
        }));
    }

    pub(super) fn allocate(
        self: Arc<Self>,
        engine: &Engine,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let unmap = match mode {
            PUNCH_HOLE => true,
            ZERO_RANGE => false,
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        if unmap && self.device.geometry().discard_granularity == 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let range = match self.admit(offset, length, true) {
            Ok(range) => range,
            Err(error) => return reply.error(errno_of(&error)),
        };
        engine.runtime.spawn(Box::pin(async move {
            let result = self.device.write_zeroes(range, ZeroOptions { unmap, fua: false }).await;
            self.finish("write-zeroes", offset, result, reply);
        }));
    }

    fn finish(&self, operation: &str, offset: u64, result: Result<()>, reply: ReplyEmpty) {
        match result {
            Ok(()) => reply.ok(),
            Err(error) => {
                self.log(operation, offset, &error);
                reply.error(errno_of(&error));
            }
        }
    }

    fn log(&self, operation: &str, offset: u64, error: &Error) {
        tracing::warn!(inode = self.inode, operation, offset, %error, "a request of a loop device failed");
    }
}
