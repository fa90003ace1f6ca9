//! Shape and manners of a disk, and what it counts.

use super::FaultCounts;
use parallax_block::SECTOR_SIZE;
use std::{ops::Range, time::Duration};

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
    /// What went wrong because the plan said so.
    pub faults: FaultCounts,
}
