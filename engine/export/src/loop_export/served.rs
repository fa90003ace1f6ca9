//! One export as the FUSE threads see it: requests come in, device operations run, replies go out.
//!
//! Invariants:
//! * Every request is answered once. A task that is dropped answers EIO, because a reply says so on drop; unless the
//!   connection was left to the next daemon.
//! * What is answered to a punched hole is that the range reads as zeroes: the loop driver sends both discard
//!   and write-zeroes that way and tells them not apart.
//! * `replies` is locked for reading while a read or write is answered. Whoever holds it for writing sees no
//!   completion pass, which is when the kernel accepts a new file size.

use super::{
    fuse::{Question, Reply},
    limits::Gate,
};
use parallax_block::{
    BlockDevice, Buffer, ByteRange, Error, ErrorKind, Result, Runtime, WriteOptions, ZeroOptions,
};
use parking_lot::{Condvar, Mutex, RwLock};
use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// A reply waits no longer than this for a resize: the resize would rather try again than make I/O wait.
const REPLY_WAIT_MAX: Duration = Duration::from_millis(10);

/// Bytes of one read at most: what the kernel was told that it may ask for (`max_pages`), whatever a request says.
const READ_BYTES_MAX: u32 = 1 << 20;

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
    pub(super) replies: RwLock<()>,
    state: Mutex<State>,
    idle: Condvar,
    failures: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Requests admitted and not answered.
    in_flight: u64,
    /// Nothing is admitted any more.
    given_up: bool,
}

/// One request that was admitted; it counts until this is dropped.
struct Admitted(Arc<Served>);

impl Deref for Admitted {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.0
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.in_flight -= 1;
        if state.in_flight == 0 {
            self.0.idle.notify_all();
        }
    }
}

fn errno_of(error: &Error) -> i32 {
    error.kind().errno()
}

impl Served {
    pub(super) fn new(inode: u64, device: Arc<dyn BlockDevice>, read_only: bool) -> Arc<Self> {
        Arc::new(Self {
            inode,
            device,
            read_only,
            replies: RwLock::new(()),
            state: Mutex::default(),
            idle: Condvar::new(),
            failures: AtomicU64::new(0),
        })
    }

    /// Fails every request from now on, and waits until those begun before are answered; not longer than `limit`.
    /// Answers whether they were.
    pub(super) fn give_up(&self, limit: Duration) -> bool {
        let mut state = self.state.lock();
        state.given_up = true;
        !self.idle.wait_while_for(&mut state, |state| state.in_flight > 0, limit).timed_out()
    }

    /// Whether requests are under way.
    pub(super) fn is_busy(&self) -> bool {
        self.state.lock().in_flight > 0
    }

    /// Bytes of the file.
    pub(super) fn size(&self) -> u64 {
        self.device.geometry().capacity
    }

    fn admit(self: Arc<Self>) -> Result<Admitted> {
        let mut state = self.state.lock();
        if state.given_up {
            return Err(Error::new(ErrorKind::Fenced, "the export has been shut down"));
        }
        state.in_flight += 1;
        drop(state);
        Ok(Admitted(self))
    }

    fn admit_range(
        self: Arc<Self>,
        offset: u64,
        length: u64,
        writing: bool,
    ) -> Result<(Admitted, ByteRange)> {
        if writing && self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "the export is read-only"));
        }
        let geometry = self.device.geometry();
        let range = ByteRange::new(offset, length)?;
        range.check(geometry.capacity, geometry.logical_block)?;
        Ok((self.admit()?, range))
    }

    fn hold_reply(&self, answer: impl FnOnce()) {
        let _hold = self.replies.try_read_for(REPLY_WAIT_MAX);
        answer();
    }

    /// Answers what is asked about the bytes of the file.
    pub(super) fn ask(self: Arc<Self>, engine: &Engine, question: Question<'_>, reply: Reply) {
        match question {
            Question::Read { offset, length } => self.read(engine, offset, length, reply),
            Question::Write { offset, data } => self.write(engine, offset, data, reply),
            Question::Sync => self.flush(engine, reply),
            Question::Allocate { offset, length, mode } => self.allocate(engine, offset, length, mode, reply),
            _ => reply.error(libc::ENOSYS),
        }
    }

    fn read(self: Arc<Self>, engine: &Engine, offset: u64, length: u32, reply: Reply) {
        if length > READ_BYTES_MAX {
            return reply.error(libc::EINVAL);
        }
        let request = match self.admit_range(offset, u64::from(length), false) {
            Ok((request, _)) => request,
            Err(error) => return reply.error(errno_of(&error)),
        };
        let permit = engine.gate.enter(u64::from(length));
        engine.runtime.spawn(Box::pin(async move {
            let (mut buffer, result) = request.device.read(offset, Buffer::zeroed(length as usize)).await;
            match result {
                Ok(()) => request.hold_reply(|| reply.data(&mut buffer)),
                Err(error) => {
                    request.log("read", offset, &error);
                    reply.error(errno_of(&error));
                }
            }
            drop((buffer, permit, request));
        }));
    }

    fn write(self: Arc<Self>, engine: &Engine, offset: u64, data: &[u8], reply: Reply) {
        let request = match self.admit_range(offset, data.len() as u64, true) {
            Ok((request, _)) => request,
            Err(error) => return reply.error(errno_of(&error)),
        };
        // The kernel's requests are at most a few MiB, so the length fits.
        let length = data.len() as u32;
        let permit = engine.gate.enter(u64::from(length));
        let buffer = Buffer::copy_of(data);
        engine.runtime.spawn(Box::pin(async move {
            let (buffer, result) = request.device.write(offset, buffer, WriteOptions::default()).await;
            match result {
                Ok(()) => request.hold_reply(|| reply.written(length)),
                Err(error) => {
                    request.log("write", offset, &error);
                    reply.error(errno_of(&error));
                }
            }
            drop((buffer, permit, request));
        }));
    }

    fn flush(self: Arc<Self>, engine: &Engine, reply: Reply) {
        let request = match self.admit() {
            Ok(request) => request,
            Err(error) => return reply.error(errno_of(&error)),
        };
        engine.runtime.spawn(Box::pin(async move {
            let result = request.device.flush().await;
            request.finish("flush", 0, result, reply);
        }));
    }

    fn allocate(self: Arc<Self>, engine: &Engine, offset: u64, length: u64, mode: i32, reply: Reply) {
        let unmap = match mode {
            PUNCH_HOLE => true,
            ZERO_RANGE => false,
            _ => return reply.error(libc::EOPNOTSUPP),
        };
        if unmap && self.device.geometry().discard_granularity == 0 {
            return reply.error(libc::EOPNOTSUPP);
        }
        let (request, range) = match self.admit_range(offset, length, true) {
            Ok(admitted) => admitted,
            Err(error) => return reply.error(errno_of(&error)),
        };
        engine.runtime.spawn(Box::pin(async move {
            let result = request.device.write_zeroes(range, ZeroOptions { unmap, fua: false }).await;
            request.finish("write-zeroes", offset, result, reply);
        }));
    }

    fn finish(&self, operation: &str, offset: u64, result: Result<()>, reply: Reply) {
        match result {
            Ok(()) => reply.ok(),
            Err(error) => {
                self.log(operation, offset, &error);
                reply.error(errno_of(&error));
            }
        }
    }

    /// Logs the first failure, the second, the fourth and so on: a failing device fails many requests a second.
    fn log(&self, operation: &str, offset: u64, error: &Error) {
        let failures = self.failures.fetch_add(1, Relaxed) + 1;
        if failures.is_power_of_two() {
            tracing::warn!(
                inode = self.inode, operation, offset, failures, %error, "requests of a loop device failed"
            );
        }
    }
}
