//! Faults that a test permits.
//!
//! Nothing goes wrong that the plan does not name: a run without a plan is a run on a perfect, merely slow
//! and volatile disk. The plan is policy ([`FaultPlan::judge`] answers with a [`Verdict`]); the disk carries it out.
//!
//! What a power cut may leave is no fault: see [`Unflushed`](super::Unflushed). Damage at rest is done by hand:
//! [`SimDisk::damage`](super::SimDisk::damage), [`SimDisk::spoil`](super::SimDisk::spoil).

use super::{Kind, Request};
use crate::Prng;
use parallax_block::{ByteRange, ErrorKind, SECTOR_SIZE};
use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

/// What a device does with its cache when a flush fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FailedFlush {
    /// Keeps it; a later flush covers it.
    #[default]
    Keeps,
    /// Writes some of it and forgets the rest, while reads still show it: what page caches have been seen to do.
    Forgets,
}

/// Something that goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails. Part of a change may have arrived.
    Fails(ErrorKind),
    /// It is answered with success and does nothing: a lost write. A flush lies of what touches the zone.
    Lost,
    /// A change goes so many bytes further, round the end of the disk.
    Misdirected(u64),
    /// A change goes so many bytes further, round the end of the piece of the disk that it is in.
    Displaced {
        /// How far.
        by: u64,
        /// Where the first piece begins.
        origin: u64,
        /// Bytes of a piece.
        piece: u64,
    },
    /// It takes so much longer.
    Slow(Duration),
    /// It is answered with an error, as if it had timed out, and lands as a whole so much later.
    Ghost(Duration),
}

/// Requests that a zone is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// Reads.
    Reads,
    /// Whatever changes bytes.
    Changes,
    /// Flushes, wherever the zone is.
    Flushes,
}

type Which = dyn Fn(&[u8]) -> bool + Send + Sync;

/// Writes by what they bring.
#[derive(Clone)]
pub struct Content(Arc<Which>);

impl Content {
    /// Those for whose bytes `which` is true.
    pub fn new(which: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(which))
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Content")
    }
}

/// A part of the disk where something may go wrong.
#[derive(Debug, Clone)]
pub struct Zone {
    /// Where; a request that touches it is in it.
    pub range: ByteRange,
    /// Only with writes that bring this.
    pub content: Option<Content>,
    /// With which requests.
    pub asks: Asks,
    /// What.
    pub fault: Fault,
    /// With how many of a thousand.
    pub per_mille: u64,
    /// How often at most.
    pub times_max: u64,
}

/// Faults that may happen. All off by default.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan {
    /// Chances by place; the first zone that strikes does.
    pub zones: Vec<Zone>,
    /// Reads that touch these fail, every time.
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// It takes this much longer.
    pub(crate) delay: Duration,
    /// It fails like this.
    pub(crate) error: Option<ErrorKind>,
    /// It has no effect.
    pub(crate) lost: bool,
    /// A change lands here instead.
    pub(crate) astray: Option<u64>,
    /// A flush leaves out what touches this.
    pub(crate) except: Option<ByteRange>,
    /// It lands so much later.
    pub(crate) ghost: Option<Duration>,
}

/// Faults that have happened, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct FaultCounts {
    pub failed: u64,
    pub lost: u64,
    pub misdirected: u64,
    pub slowed: u64,
    pub ghosts: u64,
    pub unreadable: u64,
}

impl FaultCounts {
    /// Adds another disk's.
    pub fn add(&mut self, other: &Self) {
        self.failed += other.failed;
        self.lost += other.lost;
        self.misdirected += other.misdirected;
        self.slowed += other.slowed;
        self.ghosts += other.ghosts;
        self.unreadable += other.unreadable;
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.failed + self.lost + self.misdirected + self.slowed + self.ghosts + self.unreadable
    }

    pub(crate) fn note(&mut self, verdict: &Verdict) {
        self.failed += u64::from(verdict.error.is_some() && verdict.ghost.is_none());
        self.lost += u64::from(verdict.lost);
        self.misdirected += u64::from(verdict.astray.is_some());
        self.slowed += u64::from(!verdict.delay.is_zero());
        self.ghosts += u64::from(verdict.ghost.is_some());
    }
}

impl Zone {
    fn strikes(&self, request: &Request, bytes: &[u8], prng: &mut Prng) -> bool {
        let inside = match self.asks {
            Asks::Reads => request.kind == Kind::Read && request.touches(self.range),
            Asks::Changes => request.kind.is_change() && request.touches(self.range),
            Asks::Flushes => request.kind == Kind::Flush,
        };
        let meant = self.content.as_ref().is_none_or(|content| !bytes.is_empty() && (content.0)(bytes));
        self.times_max > 0 && inside && meant && prng.chance(self.per_mille, 1000)
    }
}

impl FaultPlan {
    /// Decides; `flush` is the request's number among flushes, `bytes` what a write brings to a disk of `capacity`.
    pub(crate) fn judge(
        &mut self,
        request: &Request,
        bytes: &[u8],
        flush: u64,
        capacity: u64,
        prng: &mut Prng,
    ) -> Verdict {
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
        let mut verdict = Verdict {
            delay: if slow { self.slow_delay } else { Duration::ZERO },
            error,
            ..Verdict::default()
        };
        if error.is_none()
            && let Some(zone) = self.zones.iter_mut().find(|zone| zone.strikes(request, bytes, prng))
        {
            zone.times_max -= 1;
            match zone.fault {
                Fault::Fails(kind) => verdict.error = Some(kind),
                Fault::Lost => {
                    verdict.lost = true;
                    verdict.except = Some(zone.range);
                }
                Fault::Misdirected(by) if request.kind.is_change() => {
                    verdict.astray = Some(round(request.range, by, 0, capacity));
                }
                Fault::Displaced { by, origin, piece } if request.kind.is_change() => {
                    let start = origin + request.range.offset().saturating_sub(origin) / piece * piece;
                    verdict.astray = Some(round(request.range, by, start, piece));
                }
                Fault::Misdirected(_) | Fault::Displaced { .. } => {}
                Fault::Slow(delay) => verdict.delay += delay,
                Fault::Ghost(delay) => {
                    verdict.error = Some(ErrorKind::Io);
                    verdict.ghost = request.kind.is_change().then_some(delay);
                }
            }
        }
        verdict
    }
}

/// Where a change lands that goes `by` bytes too far, round the end of a piece of the disk.
fn round(range: ByteRange, by: u64, start: u64, length: u64) -> u64 {
    match length.saturating_sub(range.length()) {
        0 => range.offset(),
        room => {
            start
                + (range.offset().saturating_sub(start) + by) % room / SECTOR_SIZE as u64 * SECTOR_SIZE as u64
        }
    }
}
