//! The way into the kernel where io_uring is forbidden: threads for files, poll(2) for sockets.
//!
//! A socket request is tried at once; if it would block, the thread polls for readiness and tries again.

use super::{
    backend::{Finished, Wait},
    boottime,
};
use crate::{
    blocking,
    net::send_now,
    operation::{Failure, Outcome, Request, Slot, Work},
    workers::Workers,
};
use parallax_block::{Result, ResultExt};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::OFlags,
    io::Errno,
    net::{RecvFlags, SocketFlags},
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags},
};
use slab::Slab;
use std::{
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// Threads that carry out requests on files.
const THREADS: usize = 8;

/// Pause after a failure that should not be, so that it does not become a busy loop.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Poller {
    wake: OwnedFd,
    /// Counts suspended time, as poll's own timeout does not.
    timer: OwnedFd,
    armed: Option<Duration>,
    workers: Workers,
    sockets: Slab<Request>,
    finished: Vec<Finished>,
}

impl Poller {
    pub(super) fn open(in_flight_max: u32, wake: OwnedFd) -> Result<Self> {
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .map_err(std::io::Error::from)
        .context(|| "creating a timerfd")?;
        Ok(Self {
            wake,
            timer,
            armed: None,
            workers: Workers::new("io-worker", THREADS, in_flight_max as usize),
            sockets: Slab::new(),
            finished: Vec::new(),
        })
    }

    pub(super) fn start(&mut self, mut request: Request) {
        if !request.work.is_endless() {
            self.workers.push(Box::new(move || blocking::run(request)));
            return;
        }
        match progress(&mut request.work) {
            Some(outcome) => self.finished.push((request, outcome)),
            None => {
                let slot = Arc::clone(&request.slot);
                let key = self.sockets.insert(request);
                slot.key.store(key, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn cancel(&mut self, slot: &Arc<Slot>) {
        let key = slot.key.load(Ordering::Relaxed);
        let ours = self.sockets.get(key).is_some_and(|request| Arc::ptr_eq(&request.slot, slot));
        if ours {
            self.finish(key, Err(Failure::Cancelled));
        }
    }

    pub(super) fn turn(&mut self, wait: Wait, finished: &mut Vec<Finished>) {
        let ready = match wait {
            Wait::No if self.sockets.is_empty() => Vec::new(),
            Wait::No => self.poll(false),
            Wait::Until(deadline) => {
                self.arm(deadline);
                self.poll(self.finished.is_empty())
            }
        };
        for key in ready {
            if let Some(outcome) = self.sockets.get_mut(key).and_then(|request| progress(&mut request.work)) {
                self.finish(key, outcome);
            }
        }
        finished.append(&mut self.finished);
    }

    pub(super) fn drain(&mut self, finished: &mut Vec<Finished>) {
        let keys: Vec<_> = self.sockets.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.finish(key, Err(Failure::Cancelled));
        }
        finished.append(&mut self.finished);
        self.workers.quiesce();
    }

    fn finish(&mut self, key: usize, outcome: Outcome) {
        let request = self.sockets.remove(key);
        request.slot.key.store(Slot::NO_KEY, Ordering::Relaxed);
        self.finished.push((request, outcome));
    }

    fn arm(&mut self, deadline: Option<Duration>) {
        if deadline == self.armed {
            return;
        }
        // A deadline of zero would disarm it, and one that has passed fires at once.
        let moment = deadline.map_or(Duration::ZERO, |deadline| deadline.max(Duration::from_nanos(1)));
        let value = Timespec {
            tv_sec: i64::try_from(moment.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: moment.subsec_nanos().into(),
        };
        let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        match rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec) {
            Ok(_) => self.armed = deadline,
            Err(error) => tracing::error!(%error, "cannot arm a timer"),
        }
    }

    /// Sockets that are ready; waits until there is one, or something else to do.
    fn poll(&mut self, wait: bool) -> Vec<usize> {
        let mut keys = Vec::with_capacity(self.sockets.len());
        let mut polled =
            vec![PollFd::new(&self.wake, PollFlags::IN), PollFd::new(&self.timer, PollFlags::IN)];
        for (key, request) in &self.sockets {
            let (socket, flags) = match &request.work {
                Work::Receive { socket, .. } | Work::Accept { socket, .. } => (socket, PollFlags::IN),
                Work::Send { socket, .. } => (socket, PollFlags::OUT),
                Work::Read { .. } | Work::Write { .. } | Work::Sync { .. } | Work::Reallocate { .. } => {
                    continue;
                }
            };
            keys.push(key);
            polled.push(PollFd::new(&**socket, flags));
        }
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if let Err(error) = rustix::event::poll(&mut polled, if wait { None } else { Some(&now) })
            && error != Errno::INTR
        {
            tracing::error!(%error, "poll failed");
            std::thread::sleep(FAILURE_PAUSE);
        }
        let fired = |index: usize| !polled[index].revents().is_empty();
        let (woken, timed_out) = (fired(0), fired(1));
        let ready =
            keys.into_iter().enumerate().filter(|(index, _)| fired(index + 2)).map(|(_, key)| key).collect();
        let mut counter = [0; 8];
        // Nobody else reads them, so what is ready does not block; the timer is non-blocking besides.
        if woken {
            let _ = rustix::io::read(&self.wake, &mut counter);
        }
        if timed_out || self.armed.is_some_and(|deadline| deadline <= boottime()) {
            let _ = rustix::io::read(&self.timer, &mut counter);
            self.armed = None;
        }
        ready
    }
}

/// Does what can be done without blocking. `None` if that is not all.
fn progress(work: &mut Work) -> Option<Outcome> {
    loop {
        match attempt(work) {
            Ok(count) => {
                if let Some(outcome) = work.advance(count) {
                    return Some(outcome);
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return None,
            Err(errno) => return Some(Err(Failure::Os(errno.raw_os_error()))),
        }
    }
}

fn attempt(work: &mut Work) -> std::result::Result<usize, Errno> {
    match work {
        Work::Receive { socket, buffer, start, end, .. } => {
            rustix::net::recv(&**socket, &mut buffer[*start..*end], RecvFlags::DONTWAIT)
                .map(|(count, _)| count)
        }
        Work::Send { socket, parts, sent, .. } => send_now(socket, parts, *sent),
        Work::Accept { socket, accepted } => {
            let flags = rustix::fs::fcntl_getfl(&**socket)?;
            if !flags.contains(OFlags::NONBLOCK) {
                rustix::fs::fcntl_setfl(&**socket, flags | OFlags::NONBLOCK)?;
            }
            *accepted = Some(rustix::net::accept_with(&**socket, SocketFlags::CLOEXEC)?);
            Ok(0)
        }
        Work::Read { .. } | Work::Write { .. } | Work::Sync { .. } | Work::Reallocate { .. } => {
            Err(Errno::OPNOTSUPP)
        }
    }
}
