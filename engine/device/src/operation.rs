//! One request to the kernel, from the future that asks to the completion that answers.
//!
//! ```text
//! Operation (future)  --first poll-->  Request { Work, Slot }  --> backend --> Slot.complete(Work, Outcome)
//!        ^-------------------------------- waker -------------------------------------------'
//! ```
//!
//! Invariants:
//! * [`Work`] owns everything that the kernel may touch: file, socket, memory. It stays with the backend until
//!   the kernel is done, whatever becomes of the future.
//! * A slot is completed exactly once.

use crate::reactor::{self, ReactorHandle};
use crate::workers::{Job, Workers};
use parallax_block::Buffer;
use parking_lot::Mutex;
use std::{
    fs::File,
    future::Future,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

/// A piece of an outgoing message.
#[derive(Debug)]
pub enum SendPart {
    /// A few bytes held in place, such as a header.
    Inline {
        /// The bytes.
        bytes: [u8; 32],
        /// How many of them are sent.
        length: u8,
    },
    /// Bytes of any number, such as a message.
    Bytes(Vec<u8>),
    /// All of a buffer.
    Data(Buffer),
}

impl SendPart {
    /// A header of at most 32 bytes.
    ///
    /// Panics if there are more, which is a bug in the caller.
    pub fn inline(header: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes[..header.len()].copy_from_slice(header);
        Self::Inline { bytes, length: header.len() as u8 }
    }

    /// What is sent.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Inline { bytes, length } => &bytes[..usize::from(*length)],
            Self::Bytes(bytes) => bytes,
            Self::Data(buffer) => buffer,
        }
    }
}

/// How a range of a file is reallocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reallocate {
    /// Space is given back; reads as zeroes.
    PunchHole,
    /// Space stays; reads as zeroes.
    ZeroRange,
}

/// What is asked, with all that it needs, and how far it has got.
pub(crate) enum Work {
    Read { file: Arc<File>, offset: u64, buffer: Buffer, done: usize },
    Write { file: Arc<File>, offset: u64, buffer: Buffer, done: usize, durable: bool },
    Sync { file: Arc<File> },
    Reallocate { file: Arc<File>, how: Reallocate, offset: u64, length: u64 },
    Receive { socket: Arc<OwnedFd>, buffer: Buffer, start: usize, end: usize, all: bool },
    Send { socket: Arc<OwnedFd>, parts: Vec<SendPart>, sent: usize, total: usize },
    Accept { socket: Arc<OwnedFd>, accepted: Option<OwnedFd> },
}

impl Work {
    /// Whether it may wait for a peer for ever, so that giving up the answer must give up the request.
    pub(crate) fn is_endless(&self) -> bool {
        matches!(self, Self::Receive { .. } | Self::Send { .. } | Self::Accept { .. })
    }

    /// Takes the memory back.
    pub(crate) fn into_buffer(self) -> Buffer {
        match self {
            Self::Read { buffer, .. } | Self::Write { buffer, .. } | Self::Receive { buffer, .. } => buffer,
            Self::Sync { .. } | Self::Reallocate { .. } | Self::Send { .. } | Self::Accept { .. } => {
                Buffer::default()
            }
        }
    }

    /// Takes note of a positive result. Returns what to answer, or `None` if the rest must be asked for again.
    pub(crate) fn advance(&mut self, result: usize) -> Option<Outcome> {
        match self {
            Self::Read { buffer, done, .. } => {
                *done += result;
                match () {
                    () if *done >= buffer.len() => Some(Ok(*done)),
                    () if result == 0 => Some(Err(Failure::EndOfFile)),
                    () => None,
                }
            }
            Self::Write { buffer, done, .. } => {
                *done += result;
                match () {
                    () if *done >= buffer.len() => Some(Ok(*done)),
                    () if result == 0 => Some(Err(Failure::EndOfFile)),
                    () => None,
                }
            }
            Self::Receive { start, end, all, .. } => {
                *start += result;
                if *all && result > 0 && start < end { None } else { Some(Ok(*start)) }
            }
            Self::Send { sent, total, .. } => {
                *sent += result;
                (*sent >= *total).then_some(Ok(*sent))
            }
            Self::Sync { .. } | Self::Reallocate { .. } | Self::Accept { .. } => Some(Ok(result)),
        }
    }

    /// The parts of a message that are not sent yet; at most `parts_max`.
    pub(crate) fn unsent(parts: &[SendPart], sent: usize, parts_max: usize) -> impl Iterator<Item = &[u8]> {
        let mut skip = sent;
        parts
            .iter()
            .filter_map(move |part| {
                let bytes = part.bytes();
                let passed = skip.min(bytes.len());
                skip -= passed;
                (passed < bytes.len()).then(|| &bytes[passed..])
            })
            .take(parts_max)
    }
}

/// Why a request did not do what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The kernel said so: an errno.
    Os(i32),
    /// The file ended before the request did.
    EndOfFile,
    /// The reactor ended first.
    Cancelled,
}

/// Bytes done, or why not. For a receive: where the next byte goes.
pub(crate) type Outcome = Result<usize, Failure>;

/// Where the answer is left.
pub(crate) struct Slot {
    state: Mutex<SlotState>,
    /// Index in the backend's table while the kernel has it. Only that backend's thread uses it.
    pub(crate) key: AtomicUsize,
}

enum SlotState {
    Waiting(Waker),
    Finished(Work, Outcome),
    Taken,
}

impl Slot {
    /// No index yet.
    pub(crate) const NO_KEY: usize = usize::MAX;

    fn new(waker: Waker) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(SlotState::Waiting(waker)), key: AtomicUsize::new(Self::NO_KEY) })
    }

    /// Leaves the answer and wakes whoever waits for it. Must not be called with the backend borrowed.
    pub(crate) fn complete(&self, work: Work, outcome: Outcome) {
        let before = std::mem::replace(&mut *self.state.lock(), SlotState::Finished(work, outcome));
        if let SlotState::Waiting(waker) = before {
            waker.wake();
        }
    }

    fn take(&self, cx: &Context<'_>) -> Poll<(Work, Outcome)> {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, SlotState::Taken) {
            SlotState::Finished(work, outcome) => Poll::Ready((work, outcome)),
            SlotState::Waiting(mut waker) => {
                waker.clone_from(cx.waker());
                *state = SlotState::Waiting(waker);
                Poll::Pending
            }
            SlotState::Taken => panic!("an operation was polled after it had answered"),
        }
    }
}

/// Work on its way to a backend.
pub(crate) struct Request {
    pub(crate) work: Work,
    pub(crate) slot: Arc<Slot>,
}

impl Request {
    pub(crate) fn complete(self, outcome: Outcome) {
        self.slot.complete(self.work, outcome);
    }
}

/// Who carries out the work.
#[derive(Clone)]
pub(crate) enum Route {
    /// The reactor of the polling thread, or this one if it has none.
    Reactor(ReactorHandle),
    /// A pool of threads.
    Workers(Workers),
    /// The reactor of the polling thread; fails if it has none.
    Here,
}

/// A request as a future. Nothing happens before it is first polled.
pub(crate) struct Operation {
    route: Route,
    state: State,
}

enum State {
    Idle(Option<Work>),
    Queueing(Option<Job>, Arc<Slot>),
    Waiting(Arc<Slot>, bool),
    Done,
}

impl Operation {
    pub(crate) fn new(route: Route, work: Work) -> Self {
        Self { route, state: State::Idle(Some(work)) }
    }
}

impl Future for Operation {
    type Output = (Work, Outcome);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let State::Idle(work) = &mut this.state {
            let Some(work) = work.take() else { unreachable!("idle operations hold their work") };
            let slot = Slot::new(cx.waker().clone());
            let request = Request { work, slot: Arc::clone(&slot) };
            match &this.route {
                Route::Workers(_) => {
                    let job: Job = Box::new(move || crate::blocking::run(request));
                    this.state = State::Queueing(Some(job), slot);
                }
                Route::Reactor(home) => {
                    let endless = request.work.is_endless();
                    reactor::submit(request, Some(home));
                    this.state = State::Waiting(slot, endless);
                }
                Route::Here => {
                    let endless = request.work.is_endless();
                    reactor::submit(request, None);
                    this.state = State::Waiting(slot, endless);
                }
            }
        }
        if let (State::Queueing(job, slot), Route::Workers(workers)) = (&mut this.state, &this.route) {
            std::task::ready!(workers.poll_submit(cx, job));
            let slot = Arc::clone(slot);
            this.state = State::Waiting(slot, false);
        }
        let State::Waiting(slot, _) = &this.state else {
            panic!("an operation was polled after it had answered");
        };
        let answer = std::task::ready!(slot.take(cx));
        this.state = State::Done;
        Poll::Ready(answer)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if let State::Waiting(slot, true) = &self.state {
            // A backend that does not know the slot any more ignores this.
            if slot.key.load(Ordering::Relaxed) != Slot::NO_KEY {
                reactor::cancel(slot);
            }
        }
    }
}
