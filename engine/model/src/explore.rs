//! Looks at every state that a model can reach, breadth first, so that the first counterexample is a shortest one.
//!
//! Invariants:
//! * A state is entered once. States are known by a 64-bit fingerprint of [`Model::canonical`]; with ten million
//!   states the chance that two of them share one, and a state is overlooked, is about one in 400,000.
//! * What is stored of a state that was left behind is its fingerprint and that of its predecessor, 16 bytes. A
//!   trace is found again by walking from the start and choosing, at each step, the successor with the next
//!   fingerprint.
//! * `complete` is true only if no state was left out for lack of room.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt::{self, Display},
    hash::{BuildHasherDefault, Hash, Hasher},
};

/// A protocol: where it starts, what can happen, what must never happen.
pub trait Model {
    /// Everything that the future depends on.
    type State: Clone + Hash;
    /// What happened, for a person to read.
    type Step: Display;

    /// The first state.
    fn start(&self) -> Self::State;

    /// Everything that can happen next.
    fn steps(&self, state: &Self::State, next: &mut Vec<(Self::Step, Self::State)>);

    /// Says which promise `state` breaks, if any.
    fn broken(&self, state: &Self::State) -> Option<&'static str>;

    /// The representative of all states that differ from `state` by names only.
    fn canonical(&self, state: &Self::State) -> Self::State {
        state.clone()
    }

    /// Situations that a run must have met to prove anything.
    fn sights(&self) -> &'static [&'static str];

    /// Which of the sights `state` shows: bit *n* is sight *n*.
    fn seen(&self, state: &Self::State) -> u32;
}

/// What an exploration found.
#[derive(Debug)]
pub struct Outcome {
    /// Different states that were reached.
    pub states: usize,
    /// Steps between them, those to known states included.
    pub steps: u64,
    /// Steps of the longest of the shortest ways to a state.
    pub depth: usize,
    /// Whether every reachable state was looked at.
    pub complete: bool,
    /// Sights that came up: bit *n* is sight *n* of the model.
    pub seen: u32,
    /// All sights of the model.
    pub sights: &'static [&'static str],
    /// The first state that breaks a promise, if there is one.
    pub counterexample: Option<Trace>,
}

impl Outcome {
    /// Sights that are in none of the `seen` sets.
    pub fn unseen(&self, seen: u32) -> Vec<&'static str> {
        let missing = |(bit, sight): (usize, &&'static str)| (seen >> bit & 1 == 0).then_some(*sight);
        self.sights.iter().enumerate().filter_map(missing).collect()
    }
}

/// A shortest way to a state that breaks a promise.
#[derive(Debug)]
pub struct Trace {
    /// The promise.
    pub broken: &'static str,
    /// What happened, in order.
    pub steps: Vec<String>,
}

impl Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(f, "{:>4}. {step}", number + 1)?;
        }
        write!(f, "   => {}", self.broken)
    }
}

/// Fingerprints are hashes already.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, fingerprint: u64) {
        self.0 = fingerprint;
    }
}

/// States are many small numbers: each is folded in with one wide multiplication, of which every bit of the
/// fingerprint depends on every number.
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word) ^ (chunk.len() as u64) << 60);
        }
    }
    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }
    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * 0xd6e8_feb8_6659_fd93;
        self.0 = (product as u64) ^ ((product >> 64) as u64) ^ number.rotate_left(32);
    }
}

type Known = HashMap<u64, u64, BuildHasherDefault<Same>>;

fn fingerprint<M: Model>(model: &M, state: &M::State) -> u64 {
    let mut hasher = Mixer(0x9e37_79b9_7f4a_7c15);
    model.canonical(state).hash(&mut hasher);
    hasher.finish()
}

/// Explores `model` until every state is known, a promise is broken, or `states_max` states are known.
pub fn explore<M: Model>(model: &M, states_max: usize) -> Outcome {
    let start = model.start();
    let mut seen = model.seen(&start);
    let first = fingerprint(model, &start);
    let mut known = Known::default();
    known.insert(first, first);
    let mut outcome = Outcome {
        states: 1,
        steps: 0,
        depth: 0,
        complete: true,
        seen: 0,
        sights: model.sights(),
        counterexample: model.broken(&start).map(|broken| Trace { broken, steps: Vec::new() }),
    };
    let mut layer = vec![(first, start)];
    let mut successors = Vec::new();
    'all: while !layer.is_empty() && outcome.counterexample.is_none() {
        let mut next_layer = Vec::new();
        for (from, state) in layer {
            successors.clear();
            model.steps(&state, &mut successors);
            outcome.steps += successors.len() as u64;
            for (_, next) in successors.drain(..) {
                let print = fingerprint(model, &next);
                let Entry::Vacant(place) = known.entry(print) else { continue };
                place.insert(from);
                seen |= model.seen(&next);
                if let Some(broken) = model.broken(&next) {
                    outcome.counterexample = Some(trace(model, &known, first, print, broken));
                    break 'all;
                }
                next_layer.push((print, next));
            }
            if known.len() >= states_max {
                outcome.complete = false;
                break 'all;
            }
        }
        outcome.depth += usize::from(!next_layer.is_empty());
        layer = next_layer;
    }
    outcome.states = known.len();
    outcome.seen = seen;
    outcome
}

fn trace<M: Model>(model: &M, known: &Known, first: u64, last: u64, broken: &'static str) -> Trace {
    let mut way = Vec::new();
    let mut at = last;
    while at != first {
        way.push(at);
        at = known[&at];
    }
    let mut steps = Vec::with_capacity(way.len());
    let mut state = model.start();
    for print in way.into_iter().rev() {
        let mut successors = Vec::new();
        model.steps(&state, &mut successors);
        let (step, next) = successors
            .into_iter()
            .find(|(_, next)| fingerprint(model, next) == print)
            .expect("a state has the successors that it had when it was first met");
        steps.push(step.to_string());
        state = next;
    }
    Trace { broken, steps }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two counters that must not both reach two.
    struct Counters {
        max: u8,
    }

    impl Model for Counters {
        type State = [u8; 2];
        type Step = String;

        fn start(&self) -> [u8; 2] {
            [0, 0]
        }
        fn steps(&self, state: &[u8; 2], next: &mut Vec<(String, [u8; 2])>) {
            for which in 0..2 {
                if state[which] < self.max {
                    let mut after = *state;
                    after[which] += 1;
                    next.push((format!("counter {which} rises"), after));
                }
            }
        }
        fn broken(&self, state: &[u8; 2]) -> Option<&'static str> {
            (*state == [2, 2]).then_some("both are two")
        }
        fn canonical(&self, state: &[u8; 2]) -> [u8; 2] {
            let mut sorted = *state;
            sorted.sort_unstable();
            sorted
        }
        fn sights(&self) -> &'static [&'static str] {
            &["one is ahead", "one is three"]
        }
        fn seen(&self, state: &[u8; 2]) -> u32 {
            u32::from(state[0] != state[1]) | u32::from(state[0] == 3) << 1
        }
    }

    #[test]
    fn every_state_is_counted_once_up_to_names() {
        let outcome = explore(&Counters { max: 1 }, 100);
        assert_eq!((outcome.states, outcome.depth), (3, 2));
        assert!(outcome.complete && outcome.counterexample.is_none());
        assert_eq!(outcome.unseen(outcome.seen), ["one is three"]);
    }

    #[test]
    fn the_shortest_way_to_a_broken_promise_is_told() {
        let trace = explore(&Counters { max: 9 }, 1000).counterexample.expect("both can be two");
        assert_eq!((trace.broken, trace.steps.len()), ("both are two", 4));
    }

    #[test]
    fn an_exploration_without_room_says_so() {
        assert!(!explore(&Counters { max: 1 }, 2).complete);
    }
}
