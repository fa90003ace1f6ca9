//! When may another host believe that a silent host is dead, if a watchdog is the only evidence?
//!
//! One holder, one observer, time in ticks. In each tick either clock advances by one, two or three: right, or half
//! again as fast, or half as fast, as it likes. The holder may be paused anywhere, so each of its steps may come
//! late; a watchdog ends it when it has not been fed for `WATCHDOG` of its clock. Its writes are dead
//! `LINGER` ticks after they were submitted.
//!
//! ```text
//! holder    renews: notes its clock, submits its slot; the write lands; it learns of that, and counts from the note
//!           looks at its lease; if that is younger than LEASE, feeds the watchdog: a pause may fall between
//!           writes while it lives
//! observer  reads the slot; counts on its own clock since it first read this content
//!           after the wait reads again; if the slot is unchanged, takes over
//! ```
//!
//! Promise: whoever is taken over is dead, and so are its writes.
//!
//! The wait is `(LEASE + 2 * WATCHDOG) * drift + LINGER`, all on the observer's clock: twice the watchdog, since the
//! pause between look and feed may be as long as the watchdog allows; and drift between two clocks, of which one
//! may be slow while the other is fast.

use crate::explore::Model;
use std::fmt;

/// Of the holder's clock: how long a lease is good.
const LEASE: u8 = 4;
/// Of the holder's clock: how long without food.
const WATCHDOG: u8 = 4;
/// Ticks that a write may live on its own.
const LINGER: u8 = 4;
/// A clock per tick, at its slowest and fastest.
const SLOW: u8 = 1;
const FAST: u8 = 3;
/// By how much the observer's clock leads the holder's, for those who compare clocks.
const AHEAD: u8 = 15;

/// What the model is allowed to leave out, to see whether it is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The holder counts from the start of its last good renewal.
    FromStart,
    /// The watchdog is fed only while the lease is good.
    FeedWhileGood,
    /// The observer waits for the watchdog.
    WaitForWatchdog,
    /// Twice: once for a pause between look and feed.
    WaitForPause,
    /// The wait allows for drift.
    Drift,
    /// Of both clocks.
    DriftOfBoth,
    /// The observer waits for writes that were under way.
    WaitForWrites,
    /// The observer counts from its own reads; no clocks are compared.
    OwnReads,
    /// It reads again before it takes over.
    ReadAgain,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::FromStart,
        Self::FeedWhileGood,
        Self::WaitForWatchdog,
        Self::WaitForPause,
        Self::Drift,
        Self::DriftOfBoth,
        Self::WaitForWrites,
        Self::OwnReads,
        Self::ReadAgain,
    ];
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FromStart => "6-from-start",
            Self::FeedWhileGood => "6-feed-while-good",
            Self::WaitForWatchdog => "6-wait-for-watchdog",
            Self::WaitForPause => "6-wait-for-pause",
            Self::Drift => "6-drift",
            Self::DriftOfBoth => "6-drift-of-both",
            Self::WaitForWrites => "6-wait-for-writes",
            Self::OwnReads => "6-own-reads",
            Self::ReadAgain => "6-read-again",
        })
    }
}

/// The model.
#[derive(Debug, Clone, Copy)]
pub struct LeaseModel {
    /// The rule that nobody keeps, if any.
    pub dropped: Option<Rule>,
}

impl LeaseModel {
    fn keeps(&self, rule: Rule) -> bool {
        self.dropped != Some(rule)
    }

    /// Of the observer's clock.
    fn wait(&self) -> u8 {
        let watchdogs =
            u8::from(self.keeps(Rule::WaitForWatchdog)) * (1 + u8::from(self.keeps(Rule::WaitForPause)));
        let holder = LEASE + WATCHDOG * watchdogs;
        // In halves, since one clock alone may be off by half.
        let drift_halves = match (self.keeps(Rule::Drift), self.keeps(Rule::DriftOfBoth)) {
            (true, true) => 2 * FAST / SLOW,
            (true, false) => 3,
            (false, _) => 2,
        };
        let linger = if self.keeps(Rule::WaitForWrites) { LINGER * FAST } else { 0 };
        holder * drift_halves / 2 + linger
    }
}

/// Ages, on the clock of whom they concern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// The holder runs.
    alive: bool,
    /// Since the start of its last good renewal.
    lease: u8,
    /// Since the start of a renewal that is under way, and whether it has landed.
    renewal: Option<(u8, bool)>,
    /// Since the watchdog was fed.
    hunger: u8,
    /// The holder looked at its lease, found it good, and has not fed the watchdog yet.
    will_feed: bool,
    /// Ticks for which its last write may still land.
    writes: u8,
    /// The observer has read the slot as it is now.
    seen: bool,
    /// Since it first did; up to the wait.
    unchanged: u8,
    /// It has taken over.
    taken: bool,
    /// Sights.
    renewed: bool,
}

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// Time passes.
    Tick {
        /// By how much the holder's clock advances.
        holder: u8,
        /// By how much the observer's.
        observer: u8,
        /// The watchdog ends the holder.
        fires: bool,
    },
    /// The holder submits its slot.
    Renews,
    /// The slot lands.
    Lands,
    /// The holder learns of it.
    Learns,
    /// The holder looks at its lease.
    Looks,
    /// The holder feeds the watchdog.
    Feeds,
    /// The holder submits a write.
    Writes,
    /// The observer reads a slot that has changed.
    Reads,
    /// The observer takes over.
    TakesOver,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tick { holder, observer, fires } => {
                write!(f, "a tick: the holder's clock advances by {holder}, the observer's by {observer}")?;
                if *fires { f.write_str("; the watchdog ends the holder") } else { Ok(()) }
            }
            Self::Renews => f.write_str("holder: notes its clock and submits its slot"),
            Self::Lands => f.write_str("the slot has landed"),
            Self::Learns => f.write_str("holder: learns that its renewal was good"),
            Self::Looks => f.write_str("holder: looks at its lease and finds it good"),
            Self::Feeds => f.write_str("holder: feeds the watchdog"),
            Self::Writes => f.write_str("holder: submits a write"),
            Self::Reads => f.write_str("observer: reads the slot, which has changed, and begins to count"),
            Self::TakesOver => f.write_str("observer: has waited long enough and takes over"),
        }
    }
}

impl Model for LeaseModel {
    type State = State;
    type Step = Step;

    fn start(&self) -> State {
        State {
            alive: true,
            lease: 0,
            renewal: None,
            hunger: 0,
            will_feed: false,
            writes: 0,
            seen: false,
            unchanged: 0,
            taken: false,
            renewed: false,
        }
    }

    fn steps(&self, state: &State, next: &mut Vec<(Step, State)>) {
        if state.taken {
            return;
        }
        for (holder, observer) in [(SLOW, FAST), (SLOW, 2), (2, FAST), (2, 2), (FAST, SLOW)] {
            next.push(tick(self, state, holder, observer));
        }
        if state.alive {
            self.holder(state, next);
        }
        if let Some((since, false)) = state.renewal {
            let mut after = state.clone();
            after.renewal = Some((since, true));
            after.seen = false;
            next.push((Step::Lands, after));
        }
        if !state.seen {
            let mut after = state.clone();
            after.renewed |= state.unchanged > 0;
            after.seen = true;
            after.unchanged = if self.keeps(Rule::OwnReads) { 0 } else { AHEAD };
            next.push((Step::Reads, after));
        }
        if state.unchanged >= self.wait() && (state.seen || !self.keeps(Rule::ReadAgain)) {
            let mut after = state.clone();
            after.taken = true;
            next.push((Step::TakesOver, after));
        }
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        match (state.taken, state.alive, state.writes > 0) {
            (true, true, _) => Some("a host was taken over that is not dead"),
            (true, false, true) => Some("a host was taken over whose writes are not dead"),
            _ => None,
        }
    }

    fn sights(&self) -> &'static [&'static str] {
        &["a takeover", "a renewal while the observer counts", "the holder lives on an old lease"]
    }

    fn seen(&self, state: &State) -> u32 {
        let old = state.alive && state.lease > LEASE + WATCHDOG;
        u32::from(state.taken) | u32::from(state.renewed) << 1 | u32::from(old) << 2
    }
}

impl LeaseModel {
    fn holder(&self, state: &State, next: &mut Vec<(Step, State)>) {
        let mut push = |step, change: &dyn Fn(&mut State)| {
            let mut after = state.clone();
            change(&mut after);
            next.push((step, after));
        };
        match state.renewal {
            None => push(Step::Renews, &|after| after.renewal = Some((0, false))),
            Some((since, true)) => push(Step::Learns, &|after| {
                after.renewal = None;
                after.lease = if self.keeps(Rule::FromStart) { since } else { 0 };
            }),
            Some((_, false)) => {}
        }
        let good = state.lease < LEASE || !self.keeps(Rule::FeedWhileGood);
        if good && !state.will_feed {
            push(Step::Looks, &|after| after.will_feed = true);
        }
        if state.will_feed {
            push(Step::Feeds, &|after| {
                after.will_feed = false;
                after.hunger = 0;
            });
        }
        if state.writes < LINGER {
            push(Step::Writes, &|after| after.writes = LINGER);
        }
    }
}

fn tick(model: &LeaseModel, state: &State, holder: u8, observer: u8) -> (Step, State) {
    /// Older than this is all the same.
    const OLD: u8 = LEASE + 3 * WATCHDOG;
    let mut after = state.clone();
    after.lease = (state.lease + holder).min(OLD);
    after.renewal = state.renewal.map(|(since, landed)| ((since + holder).min(OLD), landed));
    after.hunger = (state.hunger + holder).min(OLD);
    after.writes = state.writes.saturating_sub(1);
    // Also for one who does not look whether the slot has changed.
    after.unchanged = (state.unchanged + observer).min(model.wait());
    let fires = state.alive && after.hunger >= WATCHDOG;
    if fires {
        after.alive = false;
        after.will_feed = false;
    }
    if !after.alive && after.renewal.is_some_and(|(_, landed)| landed) {
        after.renewal = None;
    }
    (Step::Tick { holder, observer, fires }, after)
}
