//! Everything that a seed decides, derived before the run and printed with a failure.

use crate::subject::Death;
use parallax_sim::{Prng, Unflushed};
use std::{fmt, ops::Range, time::Duration};

/// Weights of the requests that a lane sends to volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// Plain reads.
    pub read: u64,
    /// Writes, a tenth of them with FUA.
    pub write: u64,
    /// Flushes.
    pub flush: u64,
    /// Discards.
    pub discard: u64,
    /// Zeroing.
    pub zero: u64,
}

/// How the life of a pool ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Closed as it should be.
    Close,
    /// At the `after`th change or flush of the disk.
    Death {
        /// How.
        how: Death,
        /// When.
        after: u64,
    },
}

/// Derived options of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// Bytes of the disk.
    pub capacity: u64,
    /// Bytes of an extent.
    pub extent_bytes: u64,
    /// The volumes together may outgrow the pool, so running out of space is part of the run.
    pub tight: bool,
    /// Sectors of a volume at its creation.
    pub volume_sectors: Range<u64>,
    /// Volumes that are kept at most.
    pub volumes_max: usize,
    /// Snapshots of a volume that are kept at most.
    pub snapshots_max: usize,
    /// Requests to volumes that are outstanding together.
    pub lanes: usize,
    /// Management operations that are outstanding together.
    pub managers: usize,
    /// Operations of one life of the pool, for each lane.
    pub ops: u64,
    /// Lives of the pool.
    pub lives: usize,
    /// Sectors of a request at most.
    pub request_sectors_max: u64,
    /// Of requests in a hundred, how many go to the same few blocks.
    pub hot_percent: u64,
    /// See [`Weights`].
    pub weights: Weights,
    /// Slowest answer of the disk.
    pub latency_max: Duration,
}

impl Options {
    /// What `seed` decides; `ops` are spread over the lives of the pool.
    pub fn derive(seed: u64, ops: u64) -> Self {
        let mut prng = Prng::new(seed ^ 0x6f70_7469_6f6e_7300);
        let extent_bytes = 256 << 10;
        let tight = prng.chance(1, 4);
        let lives = prng.range(1..6) as usize;
        let lanes = prng.range(1..9) as usize;
        let sizes: [Range<u64>; 3] = [8..64, 64..512, 512..4096];
        Self {
            seed,
            capacity: extent_bytes * if tight { prng.range(20..48) } else { prng.range(256..1024) },
            extent_bytes,
            tight,
            volume_sectors: if tight { 4096..12288 } else { prng.pick(&sizes).clone() },
            volumes_max: prng.range(1..6) as usize,
            snapshots_max: prng.range(1..8) as usize,
            lanes,
            managers: prng.range(1..3) as usize,
            ops: ops / lives as u64 / lanes as u64 + 1,
            lives,
            request_sectors_max: if tight { 512 } else { *prng.pick(&[1, 8, 17, 64, 256]) },
            hot_percent: *prng.pick(&[0, 30, 80]),
            weights: Weights {
                read: prng.range(5..40),
                write: prng.range(if tight { 50..80 } else { 10..60 }),
                flush: prng.range(0..15),
                discard: prng.range(0..12),
                zero: prng.range(0..12),
            },
            latency_max: Duration::from_micros(*prng.pick(&[20, 200, 5000])),
        }
    }

    /// How the next life ends.
    pub fn ending(&self, prng: &mut Prng) -> Ending {
        let boundaries = self.ops * self.lanes as u64 * 2;
        let after = if prng.chance(1, 6) { prng.range(1..30) } else { prng.range(1..boundaries.max(30)) };
        match prng.range(0..10) {
            0..3 => Ending::Close,
            3..7 => Ending::Death { how: Death::PowerCut(*prng.pick(&Unflushed::ALL)), after },
            _ => Ending::Death { how: Death::Kill, after },
        }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Weights { read, write, flush, discard, zero } = self.weights;
        write!(
            f,
            "seed {}: disk {} MiB in {} KiB extents{}, up to {} volumes of {}..{} sectors with {} snapshots, \
             {} lanes and {} managers, {} lives of {} operations a lane, requests up to {} sectors ({} % hot), \
             read {read} write {write} flush {flush} discard {discard} zero {zero}, latency up to {:?}",
            self.seed,
            self.capacity >> 20,
            self.extent_bytes >> 10,
            if self.tight { ", tight" } else { "" },
            self.volumes_max,
            self.volume_sectors.start,
            self.volume_sectors.end,
            self.snapshots_max,
            self.lanes,
            self.managers,
            self.lives,
            self.ops,
            self.request_sectors_max,
            self.hot_percent,
            self.latency_max,
        )
    }
}
