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
mod event;
mod faults;
mod hold;
mod image;
mod ticket;

pub use crash::Unflushed;
pub use event::{Event, Kind, Phase, Request};
pub use faults::{FailedFlush, FaultPlan};
pub use hold::{Hold, HoldAt};
pub use image::Image;

use crate::{Prng, World, history::digest};
use cache::{Cache, Payload, Record, intersection, range as between};
use faults::Verdict;
use hold::Holds;
use parallax_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Completion, Error, ErrorKind, Geometry, Result, SECTOR_SIZE,
    WriteOptions, ZeroOptions,
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, ops::Range, sync::Arc, task::Waker, time::Duration};
use ticket::Ticket;

/// What becomes of requests that are sent to a disk without power.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AfterCut {
    /// They are never answered: the machine died with its disk.
    #[default]
    Silence,
    /// They fail: the disk went, the machine lives.
    Failure,
}

/// Shape and manners of a disk.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// Bytes; a multiple of 4096.
    pub capacity: u64,
    /// Bytes of a sector; 512 or 4096.
    pub logical_block: u32,
    /// Bytes that discards are rounded to, or 0 if it cannot discard.
    pub discard_granularity: u32,
    /// Bounds of the time that a request takes.
    pub latency: Range<Duration>,
    /// See [`AfterCut`].
    pub after_cut: AfterCut,
}

impl DiskOptions {
    /// A disk of `capacity` bytes with 512-byte sectors that answers within 10 to 200 microseconds.
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity,
            logical_block: SECTOR_SIZE as u32,
            discard_granularity: 4096,
            latency: Duration::from_micros(10)..Duration::from_micros(200),
            after_cut: AfterCut::Silence,
        }
    }
}

/// Counters of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Requests of any kind.
    pub requests: u64,
    /// Of those, the ones that change something or make it durable.
    pub boundaries: u64,
    /// Of those, flushes.
    pub flushes: u64,
    /// Requests answered, with success or without.
    pub completions: u64,
    /// Requests that failed because the plan said so.
    pub faults: u64,
}

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
}

struct State {
    prng: Prng,
    live: Image,
    durable: Image,
    cache: Cache,
    in_flight: BTreeMap<u64, InFlight>,
    holds: Holds,
    faults: FaultPlan,
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
    /// Parts that have not taken effect yet.
    waiting: Vec<ByteRange>,
    /// For a flush: completions that it covers.
    covers: u64,
    buffer: Buffer,
    verdict: Verdict,
    ticket: Ticket,
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
            holds: Holds::default(),
            faults: FaultPlan::default(),
            stats: DiskStats::default(),
            powered: true,
            cut_at: None,
            watchers: Vec::new(),
        };
        let inner =
            Inner { world: world.clone(), options, state: Mutex::new(state), observers: Mutex::default() };
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

    /// Changes bytes at rest, below every cache: rot, or the hand of a stranger.
    pub fn damage(&self, range: ByteRange, damage: impl FnOnce(&mut [u8])) {
        let mut state = self.inner.state.lock();
        let mut bytes = vec![0; range.length() as usize];
        state.live.read(range.offset(), &mut bytes);
        damage(&mut bytes);
        state.live.write(range.offset(), &bytes);
        state.durable.write(range.offset(), &bytes);
    }

    /// The power goes: nothing in flight takes effect any more.
    pub fn cut_power(&self) {
        let mut state = self.inner.state.lock();
        self.cut(&mut state);
        let lost = if self.inner.options.after_cut == AfterCut::Failure {
            state
                .in_flight
                .values_mut()
                .map(|flying| (flying.ticket.clone(), std::mem::take(&mut flying.buffer)))
                .collect()
        } else {
            Vec::new()
        };
        drop(state);
        for (ticket, buffer) in lost {
            ticket.answer((buffer, Err(no_power())));
        }
    }

    fn cut(&self, state: &mut State) {
        state.powered = false;
        state.watchers.drain(..).for_each(Waker::wake);
    }

    /// Cuts the power when the `n`th boundary from now (1 is the next change or flush) has been submitted; that
    /// one is in flight then.
    pub fn crash_after(&self, n: u64) {
        let mut state = self.inner.state.lock();
        state.cut_at = Some(state.stats.boundaries + n);
    }

    /// Takes [`SimDisk::crash_after`] back.
    pub fn crash_never(&self) {
        self.inner.state.lock().cut_at = None;
    }

    /// What a power cut at this moment leaves. May be asked again and again for other outcomes.
    pub fn crash_image(&self, unflushed: Unflushed) -> Image {
        let mut state = self.inner.state.lock();
        let in_flight = state.in_flight.values().filter_map(InFlight::remainder).collect();
        let State { durable, cache, prng, .. } = &mut *state;
        crash::survivors(durable, cache, in_flight, unflushed, prng)
    }

    /// The power goes and comes back: this disk is dead, the new one holds what was left.
    pub fn crash(&self, unflushed: Unflushed) -> Self {
        self.cut_power();
        Self::with_image(&self.inner.world, self.inner.options.clone(), self.crash_image(unflushed))
    }

    /// The process died, the machine did not: this handle is dead, requests in flight are carried out by the
    /// kernel, nothing is lost from the cache, and nothing becomes durable by it.
    pub fn handover(&self) -> Self {
        self.cut_power();
        let heir = Self::new(&self.inner.world, self.inner.options.clone());
        let mut state = self.inner.state.lock();
        let mut late: Vec<Record> = state.in_flight.values().filter_map(InFlight::remainder).collect();
        state.prng.shuffle(&mut late);
        {
            let mut next = heir.inner.state.lock();
            next.live = state.live.clone();
            next.durable = state.durable.clone();
            next.cache = state.cache.clone();
            // Numbers go on, so that those of inherited records stay theirs.
            next.stats = state.stats;
            for record in late {
                record.apply(&mut next.live);
                next.cache.push(record);
            }
            next.cache.complete_all();
        }
        drop(state);
        heir
    }

    /// Keeps back every request for which `which` is true, until the hold is released.
    pub fn hold(&self, at: HoldAt, which: impl Fn(&Request) -> bool + Send + 'static) -> Hold {
        let id = self.inner.state.lock().holds.add(at, Box::new(which));
        Hold::new(self.clone(), id)
    }

    fn submit(&self, kind: Kind, range: ByteRange, payload: Option<Payload>, buffer: Buffer) -> Ticket {
        let ticket = Ticket::default();
        let inner = &self.inner;
        if kind != Kind::Flush
            && let Err(error) = range.check(inner.options.capacity, inner.options.logical_block)
        {
            ticket.answer((buffer, Err(error)));
            return ticket;
        }
        let process = inner.world.current_process();
        let mut state = inner.state.lock();
        state.stats.requests += 1;
        if kind.is_boundary() {
            state.stats.boundaries += 1;
        }
        if kind == Kind::Flush {
            state.stats.flushes += 1;
        }
        let boundary = if kind.is_boundary() { state.stats.boundaries } else { 0 };
        let number = state.stats.requests;
        let request = Arc::new(Request { number, boundary, kind, range, process });
        if !state.powered {
            drop(state);
            self.emit(&request, Phase::Lost, range, None);
            if inner.options.after_cut == AfterCut::Failure {
                ticket.answer((buffer, Err(no_power())));
            }
            return ticket;
        }
        let flush = state.stats.flushes;
        let State { faults, prng, .. } = &mut *state;
        let verdict = faults.judge(&request, flush, prng);
        let flying = InFlight {
            request: request.clone(),
            payload,
            waiting: if range.is_empty() { vec![] } else { vec![range] },
            covers: state.stats.completions,
            buffer,
            verdict,
            ticket: ticket.clone(),
        };
        let payload = flying.payload.clone();
        state.in_flight.insert(number, flying);
        let cut = kind.is_boundary() && state.cut_at == Some(boundary);
        let held = !cut && state.holds.catch(HoldAt::Submission, &request);
        drop(state);
        self.emit(&request, Phase::Begun, range, payload.as_ref());
        if cut {
            self.cut_power();
        } else if held {
            self.note_held(&request);
        } else {
            self.schedule(number);
        }
        ticket
    }

    /// Decides when a request takes effect and when it is answered.
    fn schedule(&self, number: u64) {
        let mut state = self.inner.state.lock();
        let State { prng, in_flight, .. } = &mut *state;
        let Some(flying) = in_flight.get(&number) else { return };
        let latency = &self.inner.options.latency;
        let nanoseconds = prng.range(latency.start.as_nanos() as u64..latency.end.as_nanos() as u64).max(2);
        let answer = Duration::from_nanos(nanoseconds) + flying.verdict.delay;
        let mut parts = Vec::new();
        for part in &flying.waiting {
            let sectors = part.length() / SECTOR_SIZE as u64;
            if sectors > 1 && prng.chance(1, 4) {
                let middle = part.offset() + prng.range(1..sectors) * SECTOR_SIZE as u64;
                parts.extend([between(part.offset(), middle), between(middle, part.end())]);
            } else {
                parts.push(*part);
            }
        }
        if flying.verdict.error.is_some() && !parts.is_empty() {
            // A failed change may have reached the medium in part; a failed read brings nothing.
            let kept = if flying.request.kind == Kind::Read { 0 } else { prng.index(parts.len() + 1) };
            prng.shuffle(&mut parts);
            parts.truncate(kept);
        }
        let parts: Vec<(Duration, ByteRange)> = parts
            .into_iter()
            .map(|part| (Duration::from_nanos(prng.range(1..answer.as_nanos() as u64)), part))
            .collect();
        drop(state);
        for (at, part) in parts {
            let disk = self.clone();
            self.inner.world.call_after(at, Box::new(move || disk.take_effect(number, part)));
        }
        let disk = self.clone();
        self.inner.world.call_after(answer, Box::new(move || disk.finish(number)));
    }

    fn take_effect(&self, number: u64, part: ByteRange) {
        let mut guard = self.inner.state.lock();
        let state = &mut *guard;
        if !state.powered {
            return;
        }
        let Some(flying) = state.in_flight.get_mut(&number) else { return };
        let request = flying.request.clone();
        let record = if request.kind == Kind::Read {
            let start = (part.offset() - request.range.offset()) as usize;
            state.live.read(part.offset(), &mut flying.buffer[start..start + part.length() as usize]);
            None
        } else {
            flying.record(vec![part])
        };
        flying.waiting = flying.waiting.iter().flat_map(|whole| without(*whole, part)).collect();
        let payload = record.as_ref().map(|record| record.payload.clone());
        if let Some(record) = record {
            record.apply(&mut state.live);
            state.cache.push(record);
        }
        drop(guard);
        self.emit(&request, Phase::Effect, part, payload.as_ref());
    }

    fn finish(&self, number: u64) {
        let mut state = self.inner.state.lock();
        if !state.powered {
            return;
        }
        let Some(request) = state.in_flight.get(&number).map(|flying| flying.request.clone()) else { return };
        if state.holds.catch(HoldAt::Answer, &request) {
            drop(state);
            self.note_held(&request);
            return;
        }
        drop(state);
        self.answer(number);
    }

    fn answer(&self, number: u64) {
        let mut state = self.inner.state.lock();
        if !state.powered {
            return;
        }
        let Some(flying) = state.in_flight.remove(&number) else { return };
        state.stats.completions += 1;
        let completion = state.stats.completions;
        let State { cache, durable, prng, faults, stats, .. } = &mut *state;
        cache.complete(number, completion);
        match (flying.request.kind, flying.verdict.error) {
            (Kind::Flush, None) => {
                cache.settle(durable, |record| record.completed.is_some_and(|at| at <= flying.covers));
            }
            (Kind::Flush, Some(_)) if faults.failed_flush == FailedFlush::Forgets => {
                let lucky = prng.next_u64();
                let covered = |record: &Record| record.completed.is_some_and(|at| at <= flying.covers);
                cache.settle(durable, |record| covered(record) && (lucky >> (record.request % 64)) & 1 == 1);
                cache.forget(covered);
            }
            (Kind::Write { fua: true } | Kind::WriteZeroes { fua: true }, None) => {
                cache.settle(durable, |record| record.request == number);
            }
            _ => {}
        }
        if flying.verdict.error.is_some() {
            stats.faults += 1;
        }
        let watchers =
            if state.in_flight.is_empty() { std::mem::take(&mut state.watchers) } else { Vec::new() };
        drop(state);
        let result = match flying.verdict.error {
            None => Ok(()),
            Some(kind) => {
                Err(Error::new(kind, format!("the simulated disk fails request {number} as planned")))
            }
        };
        let phase = if result.is_ok() { Phase::Completed } else { Phase::Failed };
        self.emit(&flying.request, phase, flying.request.range, None);
        flying.ticket.answer((flying.buffer, result));
        watchers.into_iter().for_each(Waker::wake);
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
        let event = Event { request, phase, range, bytes };
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

impl InFlight {
    fn record(&self, pieces: Vec<ByteRange>) -> Option<Record> {
        let payload = self.payload.clone()?;
        let base = self.request.range.offset();
        Some(Record { request: self.request.number, base, pieces, payload, completed: None, dropped: false })
    }

    /// What has not taken effect yet.
    fn remainder(&self) -> Option<Record> {
        self.record(self.waiting.clone()).filter(|record| !record.pieces.is_empty())
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

impl BlockDevice for SimDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            capacity: self.inner.options.capacity,
            logical_block: self.inner.options.logical_block,
            physical_block: 4096,
            discard_granularity: self.inner.options.discard_granularity,
            read_only: false,
        }
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Completion> {
        match ByteRange::new(offset, buffer.len() as u64) {
            Ok(range) => Box::pin(self.submit(Kind::Read, range, None, buffer)),
            Err(error) => Box::pin(std::future::ready((buffer, Err(error)))),
        }
    }

    fn write(&self, offset: u64, buffer: Buffer, options: WriteOptions) -> BoxFuture<'_, Completion> {
        match ByteRange::new(offset, buffer.len() as u64) {
            Ok(range) => {
                let payload = Payload::Bytes(Arc::from(&buffer[..]));
                Box::pin(self.submit(Kind::Write { fua: options.fua }, range, Some(payload), buffer))
            }
            Err(error) => Box::pin(std::future::ready((buffer, Err(error)))),
        }
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        let ticket = self.submit(Kind::Flush, between(0, 0), None, Buffer::default());
        Box::pin(async move { ticket.await.1 })
    }

    fn discard(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        if self.inner.options.discard_granularity == 0 {
            let error = Error::new(ErrorKind::Unsupported, "this simulated disk cannot discard");
            return Box::pin(std::future::ready(Err(error)));
        }
        // What a discarded range reads is undefined, so each discard may leave it, clear it or spoil it.
        let payload = match self.inner.state.lock().prng.range(0..3) {
            0 => None,
            1 => Some(Payload::Fill(0)),
            _ => Some(Payload::Fill(0xdb)),
        };
        let ticket = self.submit(Kind::Discard, range, payload, Buffer::default());
        Box::pin(async move { ticket.await.1 })
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> BoxFuture<'_, Result<()>> {
        let kind = Kind::WriteZeroes { fua: options.fua };
        let ticket = self.submit(kind, range, Some(Payload::Fill(0)), Buffer::default());
        Box::pin(async move { ticket.await.1 })
    }
}
