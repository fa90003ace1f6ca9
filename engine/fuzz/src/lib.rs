//! Bad inputs for everything that reads bytes from outside: a notation for them, the corpus that keeps them, and a
//! driver that makes more. Used by tests only.
//!
//! A room that parses something has a folder `tests/corpus/`, one file for each target, and a test `fuzz` that calls
//! [`replay`] and [`explore`] for each. Reading order: [`Target`] says what is tried, [`Input`] writes down bytes,
//! [`Corpus`] keeps them with what must come of them, `guard` runs one under bounds, [`explore`] looks for more.
//!
//! Invariants:
//! * Whatever the input, the code under test ends within its time, holds no more memory than its bound, and no thread
//!   of the process panics. A refusal has words.
//! * An input is named by text that a person can read and change; the same text makes the same bytes.
//! * Without `FUZZ_SEED` the same inputs are made on every run.
//!
//! ```text
//! FUZZ=keep         keeps inputs that break a promise
//! FUZZ=write        writes outcomes of the corpus anew, too
//! FUZZ=harvest      keeps inputs that are refused in words that no kept one has
//! FUZZ_CASES=N      inputs that each target makes
//! FUZZ_SECONDS=N    makes inputs for so long instead
//! FUZZ_SEED=N       other inputs than the last time
//! ```
#![forbid(unsafe_code)]

mod corpus;
mod explore;
#[cfg(feature = "grpc")]
pub mod grpc;
mod guard;
mod harvest;
mod input;
mod mutate;
mod target;

pub use corpus::{Corpus, Entry};
pub use explore::{explore, replay};
pub use input::{Edit, Input, Value};
pub use target::{Bound, Outcome, Runner, Sealer, Seed, Target};
