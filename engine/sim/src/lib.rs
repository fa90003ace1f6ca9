//! The fake world in which the engine is tried: everything in it follows from a seed.
//!
//! * [`World`]: virtual clock, executor that polls ready tasks in seeded order, history hash, deadlock report.
//! * [`Process`]: tasks that a `kill -9` takes together; the [`parallax_block::Runtime`] of a store.
//! * [`SimDisk`]: keeps live and durable bytes apart; delays, reorders, tears, crashes, holds requests back.
//! * [`SimTails`]: memory that outlives a process, not a boot.
//!
//! The engine runs in it unchanged: nothing here knows the store, and the store knows only traits.

#![forbid(unsafe_code)]

mod disk;
mod history;
mod prng;
mod select;
mod tails;
mod world;

pub use disk::{
    AfterCut, Asks, Content, DiskOptions, DiskStats, Event, FailedFlush, Fate, Fault, FaultCounts, FaultPlan,
    Hold, HoldAt, Image, Kind, Phase, Request, SimDisk, Unflushed, Zone,
};
pub use prng::Prng;
pub use select::{Either, either};
pub use tails::SimTails;
pub use world::{Deadlock, Process, World};
