//! The two ways into the kernel, behind one face.

use super::{IoMode, ReactorOptions, poller::Poller, ring::Ring};
use crate::operation::{Outcome, Request, Slot};
use parallax_block::{Result, ResultExt};
use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

/// A request that the kernel is done with.
pub(super) type Finished = (Request, Outcome);

/// Whether to wait for something to happen.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wait {
    /// Only submit and reap.
    No,
    /// Until something finishes, the eventfd is written, or this moment (boottime) has come.
    Until(Option<Duration>),
}

#[expect(clippy::large_enum_variant, reason = "there is one per thread, and it never moves")]
pub(super) enum Backend {
    Ring(Ring),
    Poller(Poller),
}

impl Backend {
    pub(super) fn open(options: ReactorOptions, wake: &OwnedFd) -> Result<Self> {
        let wake = wake.try_clone().context(|| "duplicating an eventfd")?;
        let poller = |wake| Ok(Self::Poller(Poller::open(options.in_flight_max, wake)?));
        match options.io {
            IoMode::Threads => poller(wake),
            IoMode::Uring => Ok(Self::Ring(Ring::open(options.in_flight_max, &wake)?)),
            IoMode::Auto => match Ring::open(options.in_flight_max, &wake) {
                Ok(ring) => Ok(Self::Ring(ring)),
                Err(error) => {
                    tracing::warn!(%error, "io_uring cannot be used here; I/O goes through threads, which is slower");
                    poller(wake)
                }
            },
        }
    }

    pub(super) fn mode(&self) -> IoMode {
        match self {
            Self::Ring(_) => IoMode::Uring,
            Self::Poller(_) => IoMode::Threads,
        }
    }

    /// Takes a request. It is submitted by the next turn at the latest.
    pub(super) fn start(&mut self, request: Request) {
        match self {
            Self::Ring(ring) => ring.start(request),
            Self::Poller(poller) => poller.start(request),
        }
    }

    /// Ends an endless request early. It still finishes, as cancelled or otherwise.
    pub(super) fn cancel(&mut self, slot: &Arc<Slot>) {
        match self {
            Self::Ring(ring) => ring.cancel(slot),
            Self::Poller(poller) => poller.cancel(slot),
        }
    }

    /// Submits, waits, and appends what has finished.
    pub(super) fn turn(&mut self, wait: Wait, finished: &mut Vec<Finished>) {
        match self {
            Self::Ring(ring) => ring.turn(wait, finished),
            Self::Poller(poller) => poller.turn(wait, finished),
        }
    }

    /// Cancels what is endless, and waits until the kernel has given everything back.
    pub(super) fn drain(&mut self, finished: &mut Vec<Finished>) {
        match self {
            Self::Ring(ring) => ring.drain(finished),
            Self::Poller(poller) => poller.drain(finished),
        }
    }
}
