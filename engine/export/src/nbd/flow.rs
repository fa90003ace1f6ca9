//! Between requests and replies of one connection: how much is in flight, and what is to be sent.
//!
//! ```text
//! reader --admit--> Ticket --answer--> outgoing --batch--> sender --settle--> room for the reader
//! ```
//!
//! Invariants:
//! * A request counts until its reply has been sent, so a client that does not read its replies cannot make
//!   the server hold more than the bounds.
//! * Every ticket is answered exactly once; one that is dropped says that the server failed.
//! * Replies that are ready together leave together, in one call to the kernel.

use super::{
    pool::Pool,
    wire::{DataChunk, Errno, SimpleReply, error_chunk, status_chunk},
};
use parallax_block::Buffer;
use parallax_device::{SendPart, Stream};
use parking_lot::Mutex;
use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker},
};
use zerocopy::IntoBytes;

pub(super) struct Flow {
    requests_max: usize,
    bytes_max: usize,
    structured: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    in_flight: usize,
    in_flight_bytes: usize,
    outgoing: Batch,
    pool: Pool,
    reader: Option<Waker>,
    sender: Option<Waker>,
    /// No more requests will come.
    finishing: bool,
}

/// Replies on their way out.
#[derive(Default)]
struct Batch {
    parts: Vec<SendPart>,
    requests: usize,
    bytes: usize,
}

fn remember(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

impl Flow {
    pub(super) fn new(requests_max: usize, bytes_max: usize, structured: bool) -> Arc<Self> {
        Arc::new(Self { requests_max: requests_max.max(1), bytes_max, structured, state: Mutex::default() })
    }

    /// Waits for room. A request larger than all room is admitted alone.
    pub(super) async fn admit(self: &Arc<Self>, cookie: u64, bytes: usize) -> Ticket {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            let fits = state.in_flight < self.requests_max && state.in_flight_bytes + bytes <= self.bytes_max;
            if !fits && state.in_flight > 0 {
                remember(&mut state.reader, cx);
                return Poll::Pending;
            }
            state.in_flight += 1;
            state.in_flight_bytes += bytes;
            Poll::Ready(())
        })
        .await;
        Ticket { flow: Arc::clone(self), cookie, bytes, answered: false }
    }

    /// Memory for a payload; what it holds is undefined.
    pub(super) fn buffer(&self, length: usize) -> Buffer {
        let used = self.state.lock().pool.take(length);
        used.unwrap_or_else(|| Buffer::zeroed(length))
    }

    /// Gives memory back.
    pub(super) fn recycle(&self, buffer: Buffer) {
        self.state.lock().pool.put(buffer);
    }

    /// No more requests will come; the sender ends when the last is answered.
    pub(super) fn finish(&self) {
        let mut state = self.state.lock();
        state.finishing = true;
        if let Some(waker) = &state.sender {
            waker.wake_by_ref();
        }
    }

    /// Sends replies until the end. If the client has gone, replies are dropped, but still awaited.
    pub(super) async fn send(&self, stream: &Stream) {
        let mut broken = false;
        while let Some(mut batch) = self.next_batch().await {
            if !broken {
                let (parts, result) = stream.send(batch.parts).await;
                batch.parts = parts;
                if let Err(error) = result {
                    tracing::debug!(%error, "the client is gone");
                    broken = true;
                    // Wakes the reader, which has nothing more to hope for.
                    stream.shutdown();
                }
            }
            self.settle(batch);
        }
    }

    async fn next_batch(&self) -> Option<Batch> {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.outgoing.requests > 0 {
                return Poll::Ready(Some(std::mem::take(&mut state.outgoing)));
            }
            if state.finishing && state.in_flight == 0 {
                return Poll::Ready(None);
            }
            remember(&mut state.sender, cx);
            Poll::Pending
        })
        .await
    }

    fn settle(&self, mut batch: Batch) {
        let mut state = self.state.lock();
        state.in_flight -= batch.requests;
        state.in_flight_bytes -= batch.bytes;
        for part in batch.parts.drain(..) {
            if let SendPart::Data(buffer) = part {
                state.pool.put(buffer);
            }
        }
        if state.outgoing.parts.capacity() == 0 {
            state.outgoing.parts = batch.parts;
        }
        if let Some(waker) = &state.reader {
            waker.wake_by_ref();
        }
    }
}

/// A request that was admitted and must be answered.
pub(super) struct Ticket {
    flow: Arc<Flow>,
    cookie: u64,
    bytes: usize,
    answered: bool,
}

impl Ticket {
    /// It was done.
    pub(super) fn done(mut self) {
        self.push([SendPart::inline(SimpleReply::new(self.cookie, None).as_bytes())]);
    }

    /// It was read.
    pub(super) fn data(mut self, offset: u64, data: Buffer) {
        let header = if self.flow.structured {
            SendPart::inline(DataChunk::new(self.cookie, offset, data.len()).as_bytes())
        } else {
            SendPart::inline(SimpleReply::new(self.cookie, None).as_bytes())
        };
        self.push([header, SendPart::Data(data)]);
    }

    /// Lengths and flags of extents.
    pub(super) fn status(mut self, extents: &[(u32, u32)]) {
        self.push([SendPart::Bytes(status_chunk(self.cookie, extents))]);
    }

    /// It was not done.
    pub(super) fn failed(mut self, error: Errno, message: &str) {
        self.fail(error, message);
    }

    /// Memory for this request; see [`Flow::buffer`].
    pub(super) fn flow(&self) -> &Flow {
        &self.flow
    }

    fn fail(&mut self, error: Errno, message: &str) {
        let part = if self.flow.structured {
            SendPart::Bytes(error_chunk(self.cookie, error, message))
        } else {
            SendPart::inline(SimpleReply::new(self.cookie, Some(error)).as_bytes())
        };
        self.push([part]);
    }

    fn push<const PARTS: usize>(&mut self, parts: [SendPart; PARTS]) {
        self.answered = true;
        let mut state = self.flow.state.lock();
        state.outgoing.parts.extend(parts);
        state.outgoing.requests += 1;
        state.outgoing.bytes += self.bytes;
        if let Some(waker) = &state.sender {
            waker.wake_by_ref();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            self.fail(Errno::Io, "the server gave this request up");
        }
    }
}
