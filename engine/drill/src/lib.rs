//! The whole engine inside the fake world, driven by seeds, compared with a naive model.
//!
//! A run is some lives of one pool. In each, lanes send requests to volumes and managers create, snapshot,
//! clone, revert, grow, delete and collect garbage, all together, until the pool is closed, the power goes or
//! the process is killed at some request of the disk. Then the pool is verified, opened again, and everything in
//! it compared with the model:
//!
//! ```text
//! options   what the seed decides
//! subject   what is drilled: the store, or a fake that tries the drill itself
//! model     which values every sector may hold; volumes and snapshots
//! life      one life of a pool: lanes, managers, its end
//! io        requests to volumes
//! manage    operations on volumes and snapshots
//! faults    disks that fail, and what must follow
//! probe     damage at rest, on a copy
//! account   space, recomputed on a copy
//! verify    comparison of an open pool with the model
//! run       lives in a row, and the report of a failure
//! enumerate every crash point of small workloads
//! shrink    a failing run, made smaller
//! mutants   bugs of the store, switched on to see that they are found
//! ```

#![forbid(unsafe_code)]

mod account;
pub mod enumerate;
pub mod fake;
mod faults;
mod io;
mod life;
mod manage;
pub mod model;
#[cfg(feature = "mutants")]
pub mod mutants;
pub mod options;
pub mod plan;
mod probe;
mod run;
pub mod shrink;
pub mod store;
pub mod subject;
mod verify;

pub use run::{Failure, Report, Summary, run, run_plan};
