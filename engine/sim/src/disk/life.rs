//! The life of a request: submitted, perhaps held, effective in parts, answered.

use super::{
    AfterCut, FailedFlush, HoldAt, InFlight, Kind, Phase, Request, SimDisk, State, between,
    cache::{Payload, Record},
    intersection, no_power,
    ticket::Ticket,
    without,
};
use parallax_block::{BLOCK_SIZE, Buffer, ByteRange, Error, ErrorKind, SECTOR_SIZE};
use std::{sync::Arc, task::Waker, time::Duration};

impl SimDisk {
    pub(super) fn submit(
        &self,
        kind: Kind,
        range: ByteRange,
        payload: Option<Payload>,
        buffer: Buffer,
    ) -> Ticket {
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
        let State { faults, prng, stats, spoiled, .. } = &mut *state;
        let bytes: &[u8] = if let Some(Payload::Bytes(bytes)) = &payload { bytes } else { &[] };
        let mut verdict = faults.judge(&request, bytes, flush, inner.options.capacity, prng);
        stats.faults.note(&verdict);
        if kind == Kind::Read && spoiled.iter().any(|spoiled| request.touches(*spoiled)) {
            stats.faults.unreadable += 1;
            verdict.error = Some(ErrorKind::Io);
        }
        let base = verdict.astray.unwrap_or(range.offset());
        let flying = InFlight {
            request: request.clone(),
            payload,
            base,
            waiting: if range.is_empty() { vec![] } else { vec![between(base, base + range.length())] },
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
    pub(super) fn schedule(&self, number: u64) {
        let mut state = self.inner.state.lock();
        let State { prng, in_flight, ghosts, .. } = &mut *state;
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
        if let Some(error) = flying.verdict.error
            && !parts.is_empty()
        {
            // A failed change may have reached the medium in part; a failed read brings nothing. Room is found for all of a
            // block or for none of it.
            let is_refused =
                error == ErrorKind::OutOfSpace && flying.request.range.length() <= BLOCK_SIZE as u64;
            let nothing = flying.request.kind == Kind::Read || is_refused;
            let kept = if nothing { 0 } else { prng.index(parts.len() + 1) };
            prng.shuffle(&mut parts);
            parts.truncate(kept);
        }
        if flying.verdict.lost {
            parts.clear();
        }
        if let Some(delay) = flying.verdict.ghost {
            parts.clear();
            let late = flying.record(flying.waiting.clone());
            ghosts.extend(late.map(|late| (number, late)));
            let disk = self.clone();
            self.inner.world.call_after(delay, Box::new(move || disk.haunt(number)));
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

    /// A write that was given up long ago arrives, if it has not yet.
    fn haunt(&self, number: u64) {
        let heir = self.inner.heir.lock().clone();
        if let Some(heir) = heir {
            return heir.haunt(number);
        }
        let late = self.inner.state.lock().ghosts.remove(&number);
        if let Some(late) = late {
            self.land(late);
        }
    }

    /// Every write that was given up arrives now, if it ever does: what an exclusive open of the device waits for.
    pub fn lay_ghosts(&self) {
        let mut late: Vec<Record> = {
            let mut state = self.inner.state.lock();
            let mut late: Vec<Record> = std::mem::take(&mut state.ghosts).into_values().collect();
            state.prng.shuffle(&mut late);
            late
        };
        late.drain(..).for_each(|late| self.land(late));
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
            state.admit(record);
        }
        let astray = flying_astray(&request, part);
        drop(guard);
        self.emit(&request, Phase::Effect, part, payload.as_ref().filter(|_| !astray));
    }

    /// A write that was given up long ago arrives, at this disk or at the one that came after it.
    pub(super) fn land(&self, late: Record) {
        let heir = self.inner.heir.lock().clone();
        if let Some(heir) = heir {
            return heir.land(late);
        }
        let mut state = self.inner.state.lock();
        if state.powered {
            let completed = Some(state.stats.completions);
            state.admit(Record { completed, ..late });
        }
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

    pub(super) fn answer(&self, number: u64) {
        let mut state = self.inner.state.lock();
        if !state.powered {
            return;
        }
        let Some(flying) = state.in_flight.remove(&number) else { return };
        state.stats.completions += 1;
        let completion = state.stats.completions;
        let State { cache, durable, prng, faults, .. } = &mut *state;
        cache.complete(number, completion);
        match (flying.request.kind, flying.verdict.error) {
            (Kind::Write { .. } | Kind::WriteZeroes { .. }, None) if flying.verdict.lost => {}
            (Kind::Flush, None) => {
                let lies_of = |piece: &ByteRange| {
                    flying.verdict.except.is_some_and(|except| intersection(*piece, except).is_some())
                };
                cache.settle(durable, |record| {
                    record.completed.is_some_and(|at| at <= flying.covers)
                        && !record.pieces.iter().any(lies_of)
                });
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
}

/// Whether a part that takes effect lies outside of what its request asked.
fn flying_astray(request: &Request, part: ByteRange) -> bool {
    part.offset() < request.range.offset() || request.range.end() < part.end()
}
