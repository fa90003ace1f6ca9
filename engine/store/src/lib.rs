//! The Parallax store: virtual disk images with instant snapshots and clones, cut out of one block device.
//!
//! ```text
//! Pool ── registry, extents ──┐
//!   │                         ├── disk (one shared BlockDevice)
//!   └── VDI: tree, journal ───┘
//! ```
//!
//! Read in this order: `types` (what callers see), `pool` (what there is), `vdi` (one disk's data path), `tree`
//! (the radix tree), `space` (who may use which block), `pool/gc` (what brings space back).
//!
//! The store never looks at a clock, a thread or a file: it is given a device, a [`Runtime`](parallax_block::Runtime)
//! and tails, and behaves the same over any of them. Given the same device, scheduler and entropy it does the same
//! again.

#![forbid(unsafe_code)]

mod cache;
mod check;
#[cfg(feature = "damage")]
mod damage;
mod detached;
mod disk;
mod findings;
mod generation;
mod handles;
mod locks;
pub mod mutants;
mod pool;
mod registry;
mod rounds;
mod scrub;
mod space;
mod tree;
mod types;
mod vdi;
mod walk;

pub use check::{Repaired, check, repair};
#[cfg(feature = "damage")]
pub use damage::{Damage, damage};
pub use handles::{SnapshotView, Vdi};
pub use parallax_block::{Tail, TailStore};
pub use parallax_format::{
    host::Standing,
    root::{Epoch, Evidence},
};
pub use pool::{Counters, Pool, VDI_SIZE_MAX, recognise};
pub use scrub::{ScrubOptions, ScrubProgress, ScrubReport};
pub use types::*;
pub use vdi::{Continuity, Kept};

use parallax_block::Runtime;
use std::sync::Arc;

/// What the store needs from outside.
#[derive(Clone)]
pub struct Environment {
    /// Tasks and time.
    pub runtime: Arc<dyn Runtime>,
    /// Shared memory that outlives the process.
    pub tails: Arc<dyn TailStore>,
    /// Name of this host in the pool's host slots.
    pub host: Name,
    /// Randomness for identities (never for decisions): seeded in tests.
    pub entropy: Arc<dyn Fn() -> u128 + Send + Sync>,
}

/// Formatting a device as a pool.
#[derive(Debug, Clone, Copy, Default)]
pub struct CreatePool {
    /// Bytes of an extent; `None` chooses by capacity. A power of two from 256 KiB to 2 GiB.
    pub extent_bytes: Option<u64>,
    /// Format over something recognisable.
    pub force: bool,
}

/// Bounds of memory.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Radix nodes in memory that were read.
    pub cache_bytes: u64,
    /// Nodes in memory that no checkpoint has written yet: 4 KiB each.
    pub dirty_nodes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20, dirty_nodes_max: 16_384 }
    }
}

/// For a pool that is only looked at: there is nothing to run and no time to tell.
struct NoRuntime;

impl Runtime for NoRuntime {
    fn spawn(&self, task: parallax_block::BoxFuture<'static, ()>) {
        drop(task);
    }

    fn now(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }

    fn sleep(&self, _delay: std::time::Duration) -> parallax_block::BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}
