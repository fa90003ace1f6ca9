//! When to collect: a pure function of what happened and what time it is.
//!
//! Invariants:
//! * Nothing deleted, nothing collected.
//! * A wave of deletes is collected once, after it has been quiet, but no delete waits for more than
//!   [`PATIENCE`] quiet periods.
//! * Collecting takes at most about a tenth of the time, unless the pool is nearly full.

use crate::config::GcConfig;
use parallax_store::PoolInfo;
use std::time::Duration;

/// Quiet periods that a delete waits at most while others follow it.
pub const PATIENCE: u32 = 6;

/// Least idle time after a collection, in multiples of its duration.
const REST: u32 = 9;

/// Shortest time between two collections, however full the pool is.
const GAP_MIN: Duration = Duration::from_secs(1);

/// What happened so far. Times are since the collector began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    first_delete: Option<Duration>,
    last_delete: Option<Duration>,
    begun: Option<Duration>,
    ended: Option<Duration>,
    took: Duration,
}

impl State {
    /// Something was deleted.
    pub fn deleted(&mut self, now: Duration) {
        self.first_delete.get_or_insert(now);
        self.last_delete = Some(now);
    }

    /// A collection begins: what is deleted from here on counts for the next one.
    pub fn begun(&mut self, now: Duration) {
        self.begun = Some(now);
        self.first_delete = None;
        self.last_delete = None;
    }

    /// A collection ended; one that failed is due again.
    pub fn ended(&mut self, now: Duration, succeeded: bool) {
        self.ended = Some(now);
        self.took = now.saturating_sub(self.begun.unwrap_or(now));
        if !succeeded {
            self.deleted(now);
        }
    }
}

/// How full the pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// There is room.
    None,
    /// Less than a tenth is free.
    Tight,
}

impl Pressure {
    /// From the pool's own figures.
    pub fn of(info: &PoolInfo) -> Self {
        if info.free < info.capacity / 10 { Self::Tight } else { Self::None }
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Until something is deleted.
    Sleep,
    /// For this long, then choose again.
    Wait(Duration),
    /// Now.
    Collect,
}

/// What to do at `now`.
pub fn choose(config: &GcConfig, state: &State, pressure: Pressure, now: Duration) -> Choice {
    let (Some(first), Some(last)) = (state.first_delete, state.last_delete) else { return Choice::Sleep };
    let quiet = config.quiet.0;
    let (due, rest) = match pressure {
        Pressure::None => {
            let due = (last + quiet).min(first + quiet * PATIENCE);
            (due, config.every.0.max(state.took * REST))
        }
        Pressure::Tight => (first, GAP_MIN.max(state.took)),
    };
    let due = state.ended.map_or(due, |ended| due.max(ended + rest));
    if due <= now { Choice::Collect } else { Choice::Wait(due - now) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Span;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const CONFIG: GcConfig = GcConfig { automatic: true, quiet: Span(s(5)), every: Span(s(60)) };

    #[test]
    fn nothing_deleted_means_sleep_even_when_full() {
        assert_eq!(choose(&CONFIG, &State::default(), Pressure::Tight, s(9)), Choice::Sleep);
    }

    #[test]
    fn a_wave_of_deletes_is_one_collection() {
        let mut state = State::default();
        for second in 0..4 {
            state.deleted(s(second));
            assert_eq!(choose(&CONFIG, &state, Pressure::None, s(second)), Choice::Wait(s(5)));
        }
        assert_eq!(choose(&CONFIG, &state, Pressure::None, s(8)), Choice::Collect);
        state.begun(s(8));
        state.ended(s(9), true);
        assert_eq!(choose(&CONFIG, &state, Pressure::None, s(9)), Choice::Sleep);
    }

    #[test]
    fn an_endless_wave_does_not_starve_the_first_delete() {
        let mut state = State::default();
        let collected = (0..100).find(|second| {
            state.deleted(s(*second));
            choose(&CONFIG, &state, Pressure::None, s(*second)) == Choice::Collect
        });
        assert_eq!(collected, Some(30));
    }

    #[test]
    fn a_long_collection_is_followed_by_a_long_rest() {
        let mut state = State::default();
        state.begun(s(0));
        state.ended(s(100), true);
        state.deleted(s(101));
        assert_eq!(choose(&CONFIG, &state, Pressure::None, s(200)), Choice::Wait(s(800)));
        assert_eq!(choose(&CONFIG, &state, Pressure::Tight, s(200)), Choice::Collect);
    }

    #[test]
    fn a_failed_collection_is_tried_again_later() {
        let mut state = State::default();
        state.deleted(s(1));
        state.begun(s(6));
        state.ended(s(7), false);
        assert_eq!(choose(&CONFIG, &state, Pressure::None, s(7)), Choice::Wait(s(60)));
    }

    #[test]
    fn deletes_during_a_collection_count_for_the_next() {
        let mut state = State::default();
        state.deleted(s(0));
        state.begun(s(5));
        state.deleted(s(6));
        state.ended(s(7), true);
        assert_eq!(choose(&CONFIG, &state, Pressure::None, s(7)), Choice::Wait(s(60)));
    }
}
