//! Disks that fail while a pool lives on them, and what the drill then takes for granted.
//!
//! | fault | what must follow |
//! |---|---|
//! | a write, flush or read fails, once or for a while | an error at the most; never wrong data; nothing hangs |
//! | the device has no room | the same |
//! | a failed flush forgets what it was to write | the same, and the life ends with a power cut |
//!
//! From the first fault on any operation may fail, and one that did has an open outcome, like one that a death has
//! interrupted. The life ends with a death; the next one, on a disk that behaves, holds every byte that a flush has
//! covered.

use crate::{Failure, run::Drill};
use parallax_block::{ByteRange, Error, ErrorKind};
use parallax_sim::{Asks, FailedFlush, Fault, FaultCounts, FaultPlan, Prng, SimDisk, Zone};
use std::time::Duration;

/// What a manager says when it has met a fault: it stops, and the run goes on.
const GIVEN_UP: &str = "given up after a fault of the disk";

impl Failure {
    /// An operation has met a fault that was meant.
    pub(crate) fn given_up() -> Self {
        Self::new(GIVEN_UP)
    }

    /// Whether it is none: an operation has met a fault that was meant.
    pub(crate) fn is_given_up(&self) -> bool {
        self.message == GIVEN_UP
    }
}

/// Faults that make requests fail.
fn failures(counts: FaultCounts) -> u64 {
    counts.total() - counts.slowed
}

/// The disk of a life that meets faults.
pub(crate) struct Ailing {
    disk: SimDisk,
    before: u64,
    /// A failed flush loses what was written: only a power cut shows what is left.
    pub(crate) forgets: bool,
}

impl Drill {
    /// Makes the disk of this life slow now and then, and faulty if the seed wants it. Whether it is faulty.
    pub(crate) fn ail(&self, disk: &SimDisk, prng: &mut Prng) -> bool {
        let slow = FaultPlan {
            slow_per_mille: self.options.stuck_per_mille,
            slow_delay: Duration::from_millis(30),
            ..FaultPlan::default()
        };
        if !prng.chance(self.options.faulty_percent, 100) {
            disk.set_faults(slow);
            return false;
        }
        let (stats, whole) = (disk.stats(), ByteRange::new(0, self.options.capacity).expect("not empty"));
        let span = (self.options.ops * self.options.lanes as u64).max(30);
        let zone = |asks, kind, per_mille, times_max| Zone {
            range: whole,
            asks,
            fault: Fault::Fails(kind),
            per_mille,
            times_max,
        };
        let mut plan = slow;
        match if self.options.plan.forgetful { 1 } else { prng.range(0..5) } {
            0 => {
                let count = prng.range(1..4);
                plan.boundary_errors =
                    (0..count).map(|_| stats.boundaries + prng.range(1..span * 2)).collect();
            }
            1 => {
                let count = prng.range(1..4);
                plan.flush_errors = (0..count).map(|_| stats.flushes + prng.range(1..span / 3)).collect();
                if self.options.plan.forgetful {
                    plan.failed_flush = FailedFlush::Forgets;
                }
            }
            2 => {
                let per_mille = *prng.pick(&[5, 50, 1000]);
                plan.zones.push(zone(Asks::Changes, ErrorKind::OutOfSpace, per_mille, prng.range(1..40)));
            }
            3 => plan.zones.push(zone(Asks::Reads, ErrorKind::Io, 10, prng.range(1..5))),
            _ => plan.zones.push(zone(Asks::Changes, ErrorKind::Io, 10, prng.range(1..5))),
        }
        self.sicken(disk, plan);
        self.count(|summary| summary.faulty_lives += 1);
        true
    }

    /// Sets a plan whose failures are taken for granted.
    pub(crate) fn sicken(&self, disk: &SimDisk, plan: FaultPlan) {
        let forgets = plan.failed_flush == FailedFlush::Forgets;
        let before = failures(disk.stats().faults);
        disk.set_faults(plan);
        *self.ailing.lock() = Some(Ailing { disk: disk.clone(), before, forgets });
    }

    /// The next flush of a script's disk fails and forgets.
    pub(crate) fn let_flush_fail(&self) {
        let disk = self.disk.lock().clone();
        if let Some(disk) = disk {
            let flush_errors = [disk.stats().flushes + 1].into();
            let failed_flush = FailedFlush::Forgets;
            self.sicken(&disk, FaultPlan { flush_errors, failed_flush, ..FaultPlan::default() });
        }
    }

    /// The disk behaves from now on. Whether a failed flush may have lost what was written.
    pub(crate) fn heal(&self) -> bool {
        let Some(Ailing { disk, before, forgets }) = self.ailing.lock().take() else { return false };
        disk.set_faults(FaultPlan::default());
        forgets && failures(disk.stats().faults) > before
    }

    /// Whether an operation may fail because of what the disk has done.
    pub(crate) fn is_struck(&self) -> bool {
        self.ailing.lock().as_ref().is_some_and(|ailing| failures(ailing.disk.stats().faults) > ailing.before)
    }

    /// Whether this error may follow from a fault. Damage never does: no fault of a living disk damages anything.
    pub(crate) fn may_fail(&self, error: &Error) -> bool {
        error.kind() != ErrorKind::Corrupt && self.is_struck()
    }

    /// What to make of an operation that failed.
    pub(crate) fn trouble(&self, what: &str, error: &Error) -> Failure {
        if self.may_fail(error) {
            return Failure::given_up();
        }
        Failure::new(format!("{what} failed: {error:?}"))
    }
}
