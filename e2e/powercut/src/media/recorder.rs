//! A disk in memory with a volatile cache, that keeps a history of what it was asked.
//!
//! Invariants:
//! * A write takes effect and its end is recorded in one step, so overlapping writes took effect in the recorded order.
//! * What a flush covers is decided by the history, not here: reads see every write that has ended.
//! * Now and then a request takes longer, so that others overtake it.

use super::{
    Image,
    history::{Content, Event, History, Memory},
};
use parallax_block::{
    BLOCK_SIZE, BlockDevice, BoxFuture, Buffer, ByteRange, Completion, Geometry, Result, Runtime,
    WriteOptions, ZeroOptions,
};
use parallax_sim::Prng;
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Longest time that a request is held back.
const DELAY_MAX: Duration = Duration::from_micros(400);
/// One request in so many is held back.
const DELAYED_ONE_IN: u64 = 4;

/// A machine's disk and its memory for tails; cheap to clone, all clones are the same.
#[derive(Clone)]
pub(crate) struct Recorder(Arc<Shared>);

struct Shared {
    runtime: Arc<dyn Runtime>,
    boot: u128,
    logical_block: u32,
    state: Mutex<State>,
}

struct State {
    image: Image,
    tails: Memory,
    /// Events since the recording began; `None`: nobody records.
    events: Option<Vec<Event>>,
    before: (Image, Memory),
    promises: BTreeMap<u32, u64>,
    writes: u64,
    flushes: u64,
    /// Requests are held back by it.
    delays: Option<Prng>,
}

impl Recorder {
    /// A disk that holds `image`, beside `tails` of the boot `boot`.
    pub(crate) fn new(
        image: Image,
        tails: Memory,
        boot: u128,
        logical_block: u32,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        let before = (Image::new(0), Memory::new());
        let state = State {
            image,
            tails,
            events: None,
            before,
            promises: BTreeMap::new(),
            writes: 0,
            flushes: 0,
            delays: None,
        };
        Self(Arc::new(Shared { runtime, boot, logical_block, state: Mutex::new(state) }))
    }

    /// Begins to record. Nothing may be in flight.
    pub(crate) fn record(&self, delays: Prng) {
        let mut state = self.0.state.lock();
        state.before = (state.image.clone(), state.tails.clone());
        state.events = Some(Vec::new());
        (state.writes, state.flushes) = (0, 0);
        state.delays = Some(delays);
    }

    /// Ends the recording.
    pub(crate) fn take(&self) -> Option<History> {
        let mut state = self.0.state.lock();
        let events = state.events.take()?;
        state.delays = None;
        let (base, tails) = std::mem::replace(&mut state.before, (Image::new(0), Memory::new()));
        Some(History { boot: self.0.boot, base, tails, events })
    }

    /// Records that a promise was kept.
    pub(crate) fn promise(&self, worker: u32, number: u64) {
        let mut state = self.0.state.lock();
        state.promises.insert(worker, number);
        state.note(Event::Promise { worker, number });
    }

    /// The last promise of each worker.
    pub(crate) fn promises(&self) -> BTreeMap<u32, u64> {
        self.0.state.lock().promises.clone()
    }

    pub(super) fn boot(&self) -> u128 {
        self.0.boot
    }

    pub(super) fn tails<T>(&self, event: Option<Event>, change: impl FnOnce(&mut Memory) -> T) -> T {
        let mut state = self.0.state.lock();
        if let Some(event) = event {
            state.note(event);
        }
        change(&mut state.tails)
    }

    async fn delay(&self) {
        let delay = {
            let mut state = self.0.state.lock();
            let Some(delays) = &mut state.delays else { return };
            if !delays.chance(1, DELAYED_ONE_IN) {
                return;
            }
            Duration::from_nanos(delays.range(0..DELAY_MAX.as_nanos() as u64))
        };
        self.0.runtime.sleep(delay).await;
    }

    async fn change(&self, offset: u64, content: Content, fua: bool) {
        let write = {
            let mut state = self.0.state.lock();
            let write = state.writes;
            state.writes += 1;
            state.note(Event::WriteBegins { offset, content: content.clone(), fua });
            write
        };
        self.delay().await;
        let mut state = self.0.state.lock();
        let length = content.len();
        content.apply(&mut state.image, offset, 0..length);
        state.note(Event::WriteEnds { write });
    }
}

impl State {
    fn note(&mut self, event: Event) {
        if let Some(events) = &mut self.events {
            events.push(event);
        }
    }
}

impl BlockDevice for Recorder {
    fn geometry(&self) -> Geometry {
        Geometry {
            capacity: self.0.state.lock().image.capacity(),
            logical_block: self.0.logical_block,
            physical_block: BLOCK_SIZE as u32,
            discard_granularity: BLOCK_SIZE as u32,
            read_only: false,
        }
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Completion> {
        Box::pin(async move {
            self.delay().await;
            self.0.state.lock().image.read(offset, &mut buffer);
            (buffer, Ok(()))
        })
    }

    fn write(&self, offset: u64, buffer: Buffer, options: WriteOptions) -> BoxFuture<'_, Completion> {
        Box::pin(async move {
            self.change(offset, Content::Bytes(buffer[..].into()), options.fua).await;
            (buffer, Ok(()))
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let flush = {
                let mut state = self.0.state.lock();
                let flush = state.flushes;
                state.flushes += 1;
                state.note(Event::FlushBegins { flush });
                flush
            };
            self.delay().await;
            self.0.state.lock().note(Event::FlushEnds { flush });
            Ok(())
        })
    }

    fn discard(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        self.write_zeroes(range, ZeroOptions { unmap: true, fua: false })
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.change(range.offset(), Content::Zeroes(range.length() as usize), options.fua).await;
            Ok(())
        })
    }
}
