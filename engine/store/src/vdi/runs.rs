//! Runs that a VDI has reserved and not used up: where its next blocks go.
//!
//! A sequential stream gets runs of its own, long ones, so that it stays contiguous; everything else shares one
//! run. What is left of a run goes back when the VDI is released, when space is short and when garbage
//! collection begins: those blocks were never named.

use crate::space::Run;
use parking_lot::Mutex;
use std::collections::VecDeque;

/// Blocks reserved at once for scattered writes.
const SHARED_RUN: u32 = 512;
/// Blocks reserved at once for a stream.
const STREAM_RUN: u32 = 2048;
/// A write of this many blocks begins a stream.
const STREAM_MIN: u32 = 16;
/// Streams at a time.
const STREAMS: usize = 8;

#[derive(Default)]
pub(crate) struct Runs {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    shared: Option<Run>,
    streams: VecDeque<Stream>,
}

struct Stream {
    next: u64,
    run: Run,
}

/// What to do for some blocks of a VDI.
pub(crate) enum Choice {
    /// Use these.
    Use(Run),
    /// Reserve `want` more, for this stream or shared; [`Runs::add`] what is left.
    Reserve { want: u32, stream: bool, near: Option<Run> },
}

impl Runs {
    /// Takes up to `count` blocks for `lba`.
    pub(crate) fn take(&self, lba: u64, count: u32) -> Choice {
        let mut inner = self.inner.lock();
        if let Some(at) = inner.streams.iter().position(|stream| stream.next == lba) {
            let stream = &mut inner.streams[at];
            if let Some(run) = stream.run.split_front(count) {
                stream.next += u64::from(run.count);
                return Choice::Use(run);
            }
            let near = Some(stream.run);
            return Choice::Reserve { want: STREAM_RUN.max(count), stream: true, near };
        }
        if count >= STREAM_MIN {
            return Choice::Reserve { want: STREAM_RUN.max(count), stream: true, near: None };
        }
        match inner.shared.as_mut().and_then(|run| run.split_front(count)) {
            Some(run) => Choice::Use(run),
            None => Choice::Reserve { want: SHARED_RUN, stream: false, near: inner.shared },
        }
    }

    /// Adds what is left of a reservation for `lba` of which `used` blocks are taken; returns what it displaces.
    pub(crate) fn add(&self, lba: u64, used: u32, rest: Run, stream: bool) -> Option<Run> {
        let mut inner = self.inner.lock();
        if !stream {
            return inner.shared.replace(rest).filter(|old| old.count > 0);
        }
        let next = lba + u64::from(used);
        if let Some(stream) = inner.streams.iter_mut().find(|stream| stream.next == lba) {
            let old = std::mem::replace(stream, Stream { next, run: rest });
            return Some(old.run).filter(|old| old.count > 0);
        }
        inner.streams.push_back(Stream { next, run: rest });
        let displaced = if inner.streams.len() > STREAMS { inner.streams.pop_front() } else { None };
        displaced.map(|stream| stream.run).filter(|run| run.count > 0)
    }

    /// Gives up everything.
    pub(crate) fn drain(&self) -> Vec<Run> {
        let mut inner = self.inner.lock();
        let shared = inner.shared.take();
        let streams = std::mem::take(&mut inner.streams);
        streams.into_iter().map(|stream| stream.run).chain(shared).filter(|run| run.count > 0).collect()
    }
}
