//! Faults that a test permits.
//!
//! Nothing goes wrong that the plan does not name: a run without a plan is a run on a perfect, merely slow
//! and volatile disk. The plan is policy ([`FaultPlan::judge`] answers with a [`Verdict`]); the disk carries it out.

use super::{Kind, Request};
use crate::Prng;
use parallax_block::{ByteRange, ErrorKind};
use std::{collections::BTreeSet, time::Duration};

/// What a device does with its cache when a flush fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FailedFlush {
    /// Keeps it; a later flush covers it.
    #[default]
    Keeps,
    /// Writes some of it and forgets the rest, while reads still show it: what page caches have been seen to do.
    Forgets,
}

/// Faults that may happen. All off by default.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan {
    /// Reads that touch these fail, every time: latent sector errors.
    pub read_errors: Vec<ByteRange>,
    /// Writes, discards and zeroing that touch these fail, every time. Part of the bytes may arrive.
    pub write_errors: Vec<ByteRange>,
    /// Requests by boundary number (see [`Request::boundary`]) that fail once.
    pub boundary_errors: BTreeSet<u64>,
    /// Flushes, counted from 1 on this disk, that fail once.
    pub flush_errors: BTreeSet<u64>,
    /// What a failed flush leaves behind.
    pub failed_flush: FailedFlush,
    /// Every change fails for want of space, as on a thin device that is full.
    pub no_space: bool,
    /// This many requests in a thousand take `slow_delay` longer.
    pub slow_per_mille: u64,
    /// See `slow_per_mille`.
    pub slow_delay: Duration,
}

/// What is to become of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// It takes this much longer.
    pub(crate) delay: Duration,
    /// It fails like this.
    pub(crate) error: Option<ErrorKind>,
}

impl FaultPlan {
    /// Decides; `flush` is the request's number among flushes.
    pub(crate) fn judge(&self, request: &Request, flush: u64, prng: &mut Prng) -> Verdict {
        let touches = |ranges: &[ByteRange]| ranges.iter().any(|range| request.touches(*range));
        let error = match request.kind {
            Kind::Read => touches(&self.read_errors).then_some(ErrorKind::Io),
            Kind::Flush => (self.flush_errors.contains(&flush)
                || self.boundary_errors.contains(&request.boundary))
            .then_some(ErrorKind::Io),
            _ if self.no_space => Some(ErrorKind::OutOfSpace),
            _ => (touches(&self.write_errors) || self.boundary_errors.contains(&request.boundary))
                .then_some(ErrorKind::Io),
        };
        let slow = self.slow_per_mille > 0 && prng.chance(self.slow_per_mille, 1000);
        Verdict { delay: if slow { self.slow_delay } else { Duration::ZERO }, error }
    }
}
