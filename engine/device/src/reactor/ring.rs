//! One io_uring, used by the thread that made it.
//!
//! Invariants, on which every `SAFETY` note here leans:
//! * Memory and descriptors of a request live in `flights` from the moment its entry is pushed until its
//!   completion has been reaped, and are not touched meanwhile. The bytes are on the heap, so they stay put
//!   when the table grows.
//! * The ring is dropped only after [`Ring::drain`]; if that fails, the table is leaked instead of freed.
//! * At most `in_flight_max` requests are with the kernel; the completion queue has room for all of them.
//!
//! Files and buffers are not registered. At queue depth 32, looking the file up takes 0.5 % of this thread's time
//! and pinning pages 3 %; registered buffers would have to come from one arena per ring, which callers on other
//! threads cannot know. Nor does the thread wait for several completions at once: it saved no processor time per
//! request and cost a tenth of the throughput.

use super::{
    backend::{Finished, Wait},
    patience::{LOOK, Patience},
};
use crate::{
    blocking,
    net::PIECES_MAX,
    operation::{Failure, Request, Slot, Work},
};
use io_uring::{
    IoUring, opcode, squeue,
    types::{Fd, FsyncFlags, TimeoutFlags, Timespec},
};
use parallax_block::{Error, ErrorKind, Result, ResultExt};
use slab::Slab;
use std::{
    collections::VecDeque,
    io,
    mem::ManuallyDrop,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// `user_data` of entries whose completion says nothing.
const NOBODY: u64 = u64::MAX;

/// Entries of the submission queue, at most.
const QUEUE_MAX: u32 = 256;

/// `IORING_RECVSEND_POLL_FIRST`: wait for the first byte before trying. The binding has no name for it.
const RECVSEND_POLL_FIRST: u16 = 1;

/// Pause after a failure that should not be, so that it does not become a busy loop.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);

/// What the kernel has been lent.
enum Flight {
    Request { request: Request, message: Option<Box<Message>> },
    Wake(Box<[u8; 8]>),
    Timeout(Box<Timespec>, Duration),
}

/// A message header and the pieces it points to.
struct Message {
    header: libc::msghdr,
    pieces: Vec<libc::iovec>,
}

pub(super) struct Ring {
    ring: ManuallyDrop<IoUring>,
    flights: ManuallyDrop<Slab<Flight>>,
    wake: OwnedFd,
    in_flight_max: usize,
    requests: usize,
    /// Those of them that end by themselves: what a device works on.
    finite: usize,
    patience: Patience,
    /// Requests above the bound.
    waiting: VecDeque<Request>,
    /// Entries that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
    /// Moments at which a timeout will wake the thread.
    timeouts: Vec<Duration>,
    reaped: Vec<(u64, i32)>,
    drained: bool,
}

impl Ring {
    pub(super) fn open(in_flight_max: u32, wake: &OwnedFd) -> Result<Self> {
        let in_flight_max = in_flight_max.clamp(1, 16384);
        let queue = in_flight_max.clamp(8, QUEUE_MAX).next_power_of_two();
        // Besides requests: the wake-up, timeouts, cancellations.
        let completions = (in_flight_max * 2 + 64).next_power_of_two();
        let ring = build(queue, completions)?;
        if !ring.params().is_feature_skip_cqe_on_success() {
            return Err(Error::new(ErrorKind::Unsupported, "io_uring of this kernel is older than 5.17"));
        }
        let mut this = Self {
            ring: ManuallyDrop::new(ring),
            flights: ManuallyDrop::new(Slab::with_capacity(64)),
            wake: wake.try_clone().context(|| "duplicating an eventfd")?,
            in_flight_max: in_flight_max as usize,
            requests: 0,
            finite: 0,
            patience: Patience::default(),
            waiting: VecDeque::new(),
            backlog: VecDeque::new(),
            timeouts: Vec::new(),
            reaped: Vec::new(),
            drained: false,
        };
        this.arm_wake();
        Ok(this)
    }

    pub(super) fn start(&mut self, request: Request) {
        if self.requests >= self.in_flight_max {
            self.waiting.push_back(request);
            return;
        }
        self.requests += 1;
        self.finite += usize::from(!request.work.is_endless());
        let slot = Arc::clone(&request.slot);
        let key = self.flights.insert(Flight::Request { request, message: None });
        slot.key.store(key, Ordering::Relaxed);
        self.submit(key);
    }

    pub(super) fn cancel(&mut self, slot: &Arc<Slot>) {
        let key = slot.key.load(Ordering::Relaxed);
        let ours = matches!(
            self.flights.get(key),
            Some(Flight::Request { request, .. }) if Arc::ptr_eq(&request.slot, slot)
        );
        if ours {
            self.push(opcode::AsyncCancel::new(key as u64).build().user_data(NOBODY));
        }
    }

    pub(super) fn turn(&mut self, wait: Wait, finished: &mut Vec<Finished>) {
        self.refill();
        let want = match wait {
            Wait::No => 0,
            Wait::Until(deadline) => {
                self.arm_timeout(deadline);
                usize::from(self.backlog.is_empty())
            }
        };
        if let Err(error) = self.enter(want) {
            // EBUSY: completions must be reaped first. EINTR: a signal. Else the next turn says it again.
            if !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINTR | libc::EAGAIN)) {
                tracing::error!(%error, "io_uring_enter failed");
                std::thread::sleep(FAILURE_PAUSE);
            }
        }
        self.reap(finished);
    }

    pub(super) fn drain(&mut self, finished: &mut Vec<Finished>) {
        for request in std::mem::take(&mut self.waiting) {
            finished.push((request, Err(Failure::Cancelled)));
        }
        self.drained = true;
        let endless: Vec<u64> = self
            .flights
            .iter()
            .filter(|(_, flight)| match flight {
                Flight::Request { request, .. } => request.work.is_endless(),
                Flight::Wake(_) | Flight::Timeout(..) => true,
            })
            .map(|(key, _)| key as u64)
            .collect();
        for key in endless {
            self.push(opcode::AsyncCancel::new(key).build().user_data(NOBODY));
        }
        let mut failures = 0;
        while !self.flights.is_empty() {
            self.refill();
            match self.enter(1) {
                Err(error)
                    if !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINTR | libc::EAGAIN)) =>
                {
                    failures += 1;
                    tracing::error!(%error, "io_uring_enter failed while stopping");
                    if failures == 3 {
                        return;
                    }
                }
                _ => {}
            }
            self.reap(finished);
        }
    }

    fn enter(&mut self, want: usize) -> io::Result<usize> {
        if want > 0 && !self.ring.completion().is_empty() {
            return self.ring.submit();
        }
        if want > 0 && !self.drained && self.requests > 0 && self.finite == 0 && self.patience.looks() {
            self.ring.submit()?;
            let came = self.look();
            self.patience.learn(came);
        }
        self.ring.submit_and_wait(want)
    }

    /// Looks for something to reap until there is, or patience ends. Enters the kernel for nothing.
    fn look(&mut self) -> bool {
        let begin = Instant::now();
        loop {
            if !self.ring.completion().is_empty() || self.ring.submission().taskrun() {
                return true;
            }
            if begin.elapsed() >= LOOK {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    /// Moves what had to wait into the queue, as far as there is room.
    fn refill(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            // SAFETY: entries of the backlog were built by `push`'s callers, for flights that are in the table.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.backlog.push_front(entry);
                break;
            }
        }
        while self.requests < self.in_flight_max && self.backlog.is_empty() {
            let Some(request) = self.waiting.pop_front() else { break };
            self.start(request);
        }
    }

    fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() {
            // SAFETY: whatever the entry points to is in `flights`, by the invariants of this module.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // Full: let the kernel take what there is, and try once more. Errors show in the next turn.
            let _ = self.ring.submit();
            // SAFETY: as above.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    fn arm_wake(&mut self) {
        let key = self.flights.insert(Flight::Wake(Box::new([0; 8])));
        let Some(Flight::Wake(bytes)) = self.flights.get_mut(key) else { return };
        let entry = opcode::Read::new(Fd(self.wake.as_raw_fd()), bytes.as_mut_ptr(), 8).build();
        self.push(entry.user_data(key as u64));
    }

    fn arm_timeout(&mut self, deadline: Option<Duration>) {
        let Some(deadline) = deadline else { return };
        if self.timeouts.iter().any(|armed| *armed <= deadline) {
            return;
        }
        let moment = Timespec::new().sec(deadline.as_secs()).nsec(deadline.subsec_nanos());
        self.timeouts.push(deadline);
        let key = self.flights.insert(Flight::Timeout(Box::new(moment), deadline));
        let Some(Flight::Timeout(moment, _)) = self.flights.get(key) else { return };
        let entry = opcode::Timeout::new(&raw const **moment)
            .flags(TimeoutFlags::ABS | TimeoutFlags::BOOTTIME)
            .build();
        self.push(entry.user_data(key as u64));
    }

    /// Builds and pushes the entry for the part of a request that is not done yet.
    fn submit(&mut self, key: usize) {
        let Some(Flight::Request { request, message }) = self.flights.get_mut(key) else { return };
        let entry = entry(&mut request.work, message);
        self.push(entry.user_data(key as u64));
    }

    fn reap(&mut self, finished: &mut Vec<Finished>) {
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        for (user_data, result) in reaped.drain(..) {
            if user_data != NOBODY {
                self.land(user_data as usize, result, finished);
            }
        }
        self.reaped = reaped;
    }

    /// Deals with one completion.
    fn land(&mut self, key: usize, result: i32, finished: &mut Vec<Finished>) {
        match self.flights.get_mut(key) {
            Some(Flight::Request { request, .. }) => {
                let outcome = match usize::try_from(result) {
                    Ok(count) => {
                        if let Work::Accept { accepted, .. } = &mut request.work {
                            // SAFETY: a successful accept returns a new descriptor, which nobody else knows.
                            *accepted = Some(unsafe { OwnedFd::from_raw_fd(result) });
                        }
                        request.work.advance(count)
                    }
                    Err(_) if -result == libc::EINTR && !self.drained => None,
                    // Files only: a socket says so if somebody made it non-blocking, and would say so for ever.
                    Err(_) if -result == libc::EAGAIN && !request.work.is_endless() => None,
                    Err(_) if -result == libc::ECANCELED => Some(Err(Failure::Cancelled)),
                    Err(_) => Some(Err(Failure::Os(-result))),
                };
                match outcome {
                    Some(outcome) => {
                        request.slot.key.store(Slot::NO_KEY, Ordering::Relaxed);
                        if let Flight::Request { request, .. } = self.flights.remove(key) {
                            self.requests -= 1;
                            self.finite -= usize::from(!request.work.is_endless());
                            finished.push((request, outcome));
                        }
                    }
                    None => self.submit(key),
                }
            }
            Some(Flight::Wake(_)) => {
                self.flights.remove(key);
                if !self.drained {
                    self.arm_wake();
                }
            }
            Some(Flight::Timeout(_, deadline)) => {
                let deadline = *deadline;
                self.timeouts.retain(|armed| *armed != deadline);
                self.flights.remove(key);
            }
            None => tracing::error!(key, result, "io_uring completed something unknown"),
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.flights.is_empty() {
            // SAFETY: neither is used again; nothing is in flight, so the kernel uses no memory of ours.
            unsafe {
                ManuallyDrop::drop(&mut self.flights);
                ManuallyDrop::drop(&mut self.ring);
            }
        }
        // Otherwise both are leaked: the kernel may still write to that memory.
    }
}

/// The newest way to set up a ring that this kernel knows.
fn build(queue: u32, completions: u32) -> Result<IoUring> {
    let deferred = {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        builder
    };
    let cooperative = {
        let mut builder = IoUring::builder();
        builder.setup_coop_taskrun().setup_taskrun_flag();
        builder
    };
    let mut last = None;
    for mut builder in [deferred, cooperative, IoUring::builder()] {
        match builder.dontfork().setup_cqsize(completions).build(queue) {
            Ok(ring) => return Ok(ring),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
            Err(error) => {
                last = Some(error);
                break;
            }
        }
    }
    let error = last.unwrap_or_else(|| io::Error::from_raw_os_error(libc::ENOSYS));
    let advice = match error.raw_os_error() {
        Some(libc::EPERM) => "io_uring is forbidden here (seccomp, or kernel.io_uring_disabled)",
        Some(libc::ENOSYS) => "this kernel has no io_uring",
        Some(libc::ENOMEM) => "no memory may be locked for io_uring (ulimit -l)",
        _ => "io_uring cannot be set up",
    };
    Err(Error::new(ErrorKind::Unsupported, advice).with_source(error))
}

/// The entry for the part of `work` that is not done yet.
fn entry(work: &mut Work, message: &mut Option<Box<Message>>) -> squeue::Entry {
    match work {
        Work::Read { file, offset, buffer, done } => {
            let rest = &mut buffer[*done..];
            opcode::Read::new(Fd(file.as_raw_fd()), rest.as_mut_ptr(), length(rest))
                .offset(*offset + *done as u64)
                .build()
        }
        Work::Write { file, offset, buffer, done, durable } => {
            let rest = &buffer[*done..];
            opcode::Write::new(Fd(file.as_raw_fd()), rest.as_ptr(), length(rest))
                .offset(*offset + *done as u64)
                .rw_flags(if *durable { libc::RWF_DSYNC } else { 0 })
                .build()
        }
        Work::Sync { file } => opcode::Fsync::new(Fd(file.as_raw_fd())).flags(FsyncFlags::DATASYNC).build(),
        Work::Reallocate { file, how, offset, length } => {
            opcode::Fallocate::new(Fd(file.as_raw_fd()), *length)
                .offset(*offset)
                .mode(blocking::flags(*how).bits().cast_signed())
                .build()
        }
        Work::Receive { socket, buffer, start, end, all } => {
            let rest = &mut buffer[*start..*end];
            opcode::Recv::new(Fd(socket.as_raw_fd()), rest.as_mut_ptr(), length(rest))
                .flags(if *all { libc::MSG_WAITALL } else { 0 })
                // Whoever asks has just seen that there is nothing.
                .ioprio(if *all { 0 } else { RECVSEND_POLL_FIRST })
                .build()
        }
        Work::Send { socket, parts, sent, .. } => {
            let pieces: Vec<_> = Work::unsent(parts, *sent, PIECES_MAX)
                .map(|bytes| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() })
                .collect();
            // SAFETY: a header of zeroes is valid: no name, no pieces, no control data.
            let header: libc::msghdr = unsafe { std::mem::zeroed() };
            let message = message.insert(Box::new(Message { header, pieces }));
            message.header.msg_iov = message.pieces.as_mut_ptr();
            message.header.msg_iovlen = message.pieces.len();
            let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL).cast_unsigned();
            opcode::SendMsg::new(Fd(socket.as_raw_fd()), &raw const message.header).flags(flags).build()
        }
        Work::Accept { socket, .. } => {
            opcode::Accept::new(Fd(socket.as_raw_fd()), std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build()
        }
    }
}

/// Length of one transfer; the rest is asked for afterwards.
fn length(bytes: &[u8]) -> u32 {
    bytes.len().min(1 << 30) as u32
}
