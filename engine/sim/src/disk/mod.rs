//! A disk that keeps what reads see and what a power cut leaves apart.
//!
//! Life of a request: submitted when the method is called; perhaps held; takes effect, in one or two parts,
//! some time before its answer; answered after a seeded delay. So requests overtake each other, reads see
//! half of a write that is in flight, and dropping a future gives up the answer and nothing else.
//!
//! Invariants:
//! * A change is durable once it completed with FUA, or a flush *submitted* after its completion completed.
//!   Nothing else is ever promised: see [`Unflushed`] for what may happen to the rest.
//! * After [`SimDisk::cut_power`] nothing takes effect and nothing is answered with success.
//! * No fault happens that the [`FaultPlan`] does not name.

mod cache;
mod crash;
mod device;
mod event;
mod faults;
mod hold;
mod image;
mod life;
mod options;
mod power;
mod ticket;

pub use crash::{Fate, Unflushed};
pub use event::{Event, Kind, Phase, Request};
pub use faults::{Asks, Content, FailedFlush, Fault, FaultCounts, FaultPlan, Zone};
pub use hold::{Hold, HoldAt};
pub use image::Image;
pub use options::{AfterCut, DiskOptions, DiskStats};

use crate::{Prng, World, history::digest};
use cache::{Cache, Payload, Record, intersection, range as between};
use faults::Verdict;
use hold::Holds;
use parallax_block::{Buffer, ByteRange, Error, ErrorKind};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, task::Waker};
use ticket::Ticket;

type Observer = Box<dyn FnMut(&Event<'_>) + Send>;

/// A simulated disk; cheap to clone, all clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    inner: Arc<Inner>,
}

struct Inner {
    world: World,
    options: DiskOptions,
    state: Mutex<State>,
    observers: Mutex<Vec<Observer>>,
    /// The disk that came after this one when the process died: late writes land there.
    heir: Mutex<Option<SimDisk>>,
}

struct State {
    prng: Prng,
    live: Image,
    durable: Image,
    cache: Cache,
    in_flight: BTreeMap<u64, InFlight>,
    /// Writes that were answered with an error and land yet.
    ghosts: BTreeMap<u64, Record>,
    holds: Holds,
    faults: FaultPlan,
    /// Parts that cannot be read until they are written.
    spoiled: Vec<ByteRange>,
    stats: DiskStats,
    powered: bool,
    cut_at: Option<u64>,
    /// Wait for the power to go, or for nothing to be in flight.
    watchers: Vec<Waker>,
}

struct InFlight {
    request: Arc<Request>,
    /// What a change brings; `None` for reads, flushes and discards that change nothing.
    payload: Option<Payload>,
    /// Where its payload begins: elsewhere than it asked, if it went astray.
    base: u64,
    /// Parts that have not taken effect yet.
    waiting: Vec<ByteRange>,
    /// For a flush: completions that it covers.
    covers: u64,
    buffer: Buffer,
    verdict: Verdict,
    ticket: Ticket,
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimDisk").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

impl SimDisk {
    /// A disk of zeroes.
    pub fn new(world: &World, options: DiskOptions) -> Self {
        Self::with_image(world, options, Image::new())
    }

    /// A disk that durably holds `image`.
    pub fn with_image(world: &World, options: DiskOptions, image: Image) -> Self {
        let state = State {
            prng: world.prng(),
            live: image.clone(),
            durable: image,
            cache: Cache::default(),
            in_flight: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            holds: Holds::default(),
            faults: FaultPlan::default(),
            spoiled: Vec::new(),
            stats: DiskStats::default(),
            powered: true,
            cut_at: None,
            watchers: Vec::new(),
        };
        let inner = Inner {
            world: world.clone(),
            options,
            state: Mutex::new(state),
            observers: Mutex::default(),
            heir: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What may go wrong from now on.
    pub fn set_faults(&self, plan: FaultPlan) {
        self.inner.state.lock().faults = plan;
    }

    /// Calls `observer` at every step of every request. It must not submit requests itself.
    pub fn observe(&self, observer: impl FnMut(&Event<'_>) + Send + 'static) {
        self.inner.observers.lock().push(Box::new(observer));
    }

    /// Counters so far.
    pub fn stats(&self) -> DiskStats {
        self.inner.state.lock().stats
    }

    /// Requests that are not answered yet, held ones included.
    pub fn in_flight(&self) -> Vec<Request> {
        self.inner.state.lock().in_flight.values().map(|flying| (*flying.request).clone()).collect()
    }

    /// Waits until nothing is in flight: what an exclusive open of the device waits for.
    pub fn quiesce(&self) -> impl Future<Output = ()> + Send + use<> {
        self.watch(|state| state.in_flight.is_empty())
    }

    /// Waits for the power to go.
    pub fn power_lost(&self) -> impl Future<Output = ()> + Send + use<> {
        self.watch(|state| !state.powered)
    }

    fn watch<F: Fn(&State) -> bool + Send>(&self, done: F) -> impl Future<Output = ()> + Send + use<F> {
        let disk = self.clone();
        std::future::poll_fn(move |cx| {
            let mut state = disk.inner.state.lock();
            if done(&state) {
                return std::task::Poll::Ready(());
            }
            state.watchers.push(cx.waker().clone());
            std::task::Poll::Pending
        })
    }

    /// Bytes that a read would see now. For oracles: takes no time and leaves no trace.
    pub fn peek(&self, offset: u64, bytes: &mut [u8]) {
        self.inner.state.lock().live.read(offset, bytes);
    }

    /// Everything that is durable now.
    pub fn durable(&self) -> Image {
        self.inner.state.lock().durable.clone()
    }

    /// A part of the disk goes bad: reads of it fail until it has been written again.
    pub fn spoil(&self, range: ByteRange) {
        self.inner.state.lock().spoiled.push(range);
    }

    /// Changes bytes at rest, below every cache: rot, or the hand of a stranger.
    pub fn damage(&self, range: ByteRange, damage: impl FnOnce(&mut [u8])) {
        let mut state = self.inner.state.lock();
        let mut bytes = vec![0; range.length() as usize];
        state.live.read(range.offset(), &mut bytes);
        damage(&mut bytes);
        state.live.write(range.offset(), &bytes);
        state.durable.write(range.offset(), &bytes);
    }

    /// Keeps back every request for which `which` is true, until the hold is released.
    pub fn hold(&self, at: HoldAt, which: impl Fn(&Request) -> bool + Send + 'static) -> Hold {
        let id = self.inner.state.lock().holds.add(at, Box::new(which));
        Hold::new(self.clone(), id)
    }

    fn emit(&self, request: &Request, phase: Phase, range: ByteRange, payload: Option<&Payload>) {
        let bytes = match payload {
            Some(Payload::Bytes(bytes)) => {
                let start = (range.offset() - request.range.offset()) as usize;
                &bytes[start..start + range.length() as usize]
            }
            _ => &[],
        };
        self.inner.world.note(
            16 + phase as u64,
            request.number,
            range.offset() ^ digest(bytes).rotate_left(17),
        );
        let event = Event { disk: self, request, phase, range, bytes };
        for observer in &mut *self.inner.observers.lock() {
            observer(&event);
        }
    }

    fn note_held(&self, request: &Request) {
        let text = format!(
            "{:?} {} (request {} of {})",
            request.kind, request.range, request.number, request.process
        );
        self.inner.world.note_held(self.held_key(request.number), Some(text));
        self.emit(request, Phase::Held, request.range, None);
        let watchers = std::mem::take(&mut self.inner.state.lock().watchers);
        watchers.into_iter().for_each(Waker::wake);
    }

    /// Numbers are unique on one disk only; its address tells disks of one world apart.
    fn held_key(&self, number: u64) -> (usize, u64) {
        (Arc::as_ptr(&self.inner) as usize, number)
    }
}

impl State {
    /// A change takes effect: reads begun now see it.
    fn admit(&mut self, record: Record) {
        for piece in &record.pieces {
            cache::subtract(&mut self.spoiled, *piece);
        }
        record.apply(&mut self.live);
        self.cache.push(record);
    }
}

impl InFlight {
    fn record(&self, pieces: Vec<ByteRange>) -> Option<Record> {
        let payload = self.payload.clone()?;
        let (request, base) = (self.request.number, self.base);
        Some(Record { request, base, pieces, payload, completed: None, dropped: false })
    }

    /// What has not taken effect yet.
    fn remainder(&self) -> Option<Record> {
        let arrives = !self.verdict.lost && self.verdict.ghost.is_none();
        self.record(self.waiting.clone()).filter(|record| arrives && !record.pieces.is_empty())
    }
}

fn without(whole: ByteRange, part: ByteRange) -> Vec<ByteRange> {
    match intersection(whole, part) {
        None => vec![whole],
        Some(cut) => [between(whole.offset(), cut.offset()), between(cut.end(), whole.end())]
            .into_iter()
            .filter(|left| !left.is_empty())
            .collect(),
    }
}

fn no_power() -> Error {
    Error::new(ErrorKind::Io, "the simulated disk has no power")
}
