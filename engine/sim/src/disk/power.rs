//! The power goes, or the process: what a disk leaves to the one after it.

use super::{AfterCut, Fate, Image, InFlight, SimDisk, State, Unflushed, cache::Record, crash, no_power};
use std::{collections::BTreeSet, ops::Range, task::Waker, time::Duration};

impl SimDisk {
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
        let mut in_flight: Vec<Record> = state.in_flight.values().filter_map(InFlight::remainder).collect();
        in_flight.extend(state.ghosts.values().cloned());
        let State { durable, cache, prng, .. } = &mut *state;
        crash::survivors(durable, cache, in_flight, unflushed, prng)
    }

    /// Changes that a power cut at this moment may lose, by request, in the order in which they took effect; those
    /// that have not come last.
    pub fn unflushed(&self) -> Vec<u64> {
        let state = self.inner.state.lock();
        let cached = state.cache.records().iter().filter(|record| !record.dropped);
        let mut requests: Vec<u64> = cached.map(|record| record.request).collect();
        requests.extend(state.in_flight.values().filter_map(InFlight::remainder).map(|late| late.request));
        let mut seen = BTreeSet::new();
        requests.retain(|request| seen.insert(*request));
        requests
    }

    /// What a power cut at this moment leaves if every change that no flush covered meets this fate.
    pub fn crash_image_where(&self, fate: impl FnMut(u64) -> Fate) -> Image {
        let state = self.inner.state.lock();
        let in_flight: Vec<Record> = state.in_flight.values().filter_map(InFlight::remainder).collect();
        crash::chosen(&state.durable, &state.cache, &in_flight, fate)
    }

    /// The power goes and comes back: this disk is dead, the new one holds what was left.
    pub fn crash(&self, unflushed: Unflushed) -> Self {
        self.cut_power();
        Self::with_image(&self.inner.world, self.inner.options.clone(), self.crash_image(unflushed))
    }

    /// The process died, the machine did not: this handle is dead, requests in flight are carried out by the
    /// kernel, nothing is lost from the cache, and nothing becomes durable by it.
    pub fn handover(&self) -> Self {
        self.handover_late(None)
    }

    /// The same, but what was in flight lands some time later, within these bounds.
    pub fn handover_late(&self, delay: Option<Range<Duration>>) -> Self {
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
            next.spoiled = state.spoiled.clone();
            next.ghosts = std::mem::take(&mut state.ghosts);
            if delay.is_none() {
                late.drain(..).for_each(|record| next.admit(record));
            }
            next.cache.complete_all();
        }
        for record in late {
            let Some(bounds) = &delay else { break };
            let nanoseconds = state.prng.range(bounds.start.as_nanos() as u64..bounds.end.as_nanos() as u64);
            let heir = heir.clone();
            let land = Box::new(move || heir.land(record));
            self.inner.world.call_after(Duration::from_nanos(nanoseconds), land);
        }
        drop(state);
        *self.inner.heir.lock() = Some(heir.clone());
        heir
    }
}
