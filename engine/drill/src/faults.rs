//! Disks that fail while a pool lives on them, and what the drill then takes for granted.
//!
//! | fault | what must follow |
//! |---|---|
//! | a write, flush or read fails, once or for a while | an error at the most; never wrong data; nothing hangs |
//! | the device has no room | the same |
//! | a failed flush forgets what it was to write | the same, and the life ends with a power cut |
//! | a write fails and lands long after: a ghost | the same; it shows where nothing newer was acknowledged, if at all |
//! | a write of metadata is lost, or lands elsewhere | it is noticed where it matters; see [`Drill::autopsy`] |
//! | a flush lies | after a power cut nothing crashes or hangs; metadata that is gone is noticed |
//!
//! From the first fault on any operation may fail, and one that did has an open outcome, like one that a death has
//! interrupted. The life ends with a death; the next one, on a disk that behaves, holds every byte that a flush has
//! covered. A disk that lies is another matter: what it said it had need not be there, so its life is the last of the
//! run, and what it leaves is looked at by itself.

use crate::{
    Failure,
    probe::{self, kind},
    run::Drill,
};
use parallax_block::{ByteRange, Error, ErrorKind};
use parallax_sim::{
    Asks, Content, FailedFlush, Fault, FaultCounts, FaultPlan, Prng, SimDisk, Unflushed, Zone,
};
use parallax_store::{Finding, Severity};
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
    /// It says that it has what it has not.
    lies: Option<Lie>,
    /// Writes that failed may land yet.
    haunts: bool,
}

/// What a disk has done.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Healed {
    /// A failed flush has lost what was written.
    pub(crate) forgot: bool,
    /// It has lied.
    pub(crate) lied: Option<Lie>,
}

/// What a disk says that is not so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// That it has written metadata, of this kind; it has not, or has written it elsewhere.
    Metadata(u8),
    /// That everything is durable.
    Flush,
}

impl Drill {
    /// Makes the disk of this life slow now and then, and faulty if the seed wants it. Whether it is faulty.
    pub(crate) fn ail(&self, disk: &SimDisk, prng: &mut Prng) -> bool {
        let mut slow = FaultPlan {
            slow_per_mille: self.options.stuck_per_mille,
            slow_delay: Duration::from_millis(30),
            ..FaultPlan::default()
        };
        let (stats, whole) = (disk.stats(), ByteRange::new(0, self.options.capacity).expect("not empty"));
        if let Some(delay) = self.options.slow_reads {
            let fault = Fault::Slow(delay);
            let (asks, per_mille, times_max) = (Asks::Reads, 300, u64::MAX);
            slow.zones.push(Zone { range: whole, content: None, asks, fault, per_mille, times_max });
        }
        if !prng.chance(self.options.faulty_percent, 100) {
            disk.set_faults(slow);
            return false;
        }
        let span = (self.options.ops * self.options.lanes as u64).max(30);
        let any = |asks, fault, per_mille, times_max| Zone {
            range: whole,
            content: None,
            asks,
            fault,
            per_mille,
            times_max,
        };
        let zone = |asks, kind, per_mille, times_max| any(asks, Fault::Fails(kind), per_mille, times_max);
        let mut plan = slow;
        let (mut lies, mut haunts) = (None, false);
        let always = self.options.plan.haunted;
        if self.options.haunted && (prng.chance(2, 3) || always) {
            let delay = Duration::from_micros(*prng.pick(&[500, 5_000, 50_000, 60_000_000]));
            let per_mille = *prng.pick(&[3, 20]);
            let mut ghosts = any(Asks::Changes, Fault::Ghost(delay), per_mille, prng.range(1..6));
            if always && prng.chance(3, 4) {
                let what = *prng.pick(&[kind::NODE, kind::ROOT, kind::JOURNAL, kind::AREA_LOG, kind::BITMAP]);
                ghosts.content = Some(Content::new(move |bytes| probe::kind_of(bytes) == Some(what)));
                ghosts.per_mille = *prng.pick(&[20, 200]);
            }
            plan.zones.push(ghosts);
            haunts = true;
        } else if self.options.lying && prng.chance(1, 2) {
            let (lie, zone) = self.lie(disk, whole, prng);
            lies = Some(lie);
            plan.zones.push(zone);
        } else {
            match if self.options.plan.forgetful { 1 } else { prng.range(0..5) } {
                0 => {
                    let count = prng.range(1..4);
                    plan.boundary_errors =
                        (0..count).map(|_| stats.boundaries + prng.range(1..span * 2)).collect();
                }
                1 => {
                    let count = prng.range(1..4);
                    plan.flush_errors = (0..count).map(|_| stats.flushes + prng.range(1..span / 3)).collect();
                    if self.options.plan.forgetful || prng.chance(1, 2) {
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
        }
        self.sicken(disk, plan);
        if let Some(ailing) = &mut *self.ailing.lock() {
            (ailing.lies, ailing.haunts) = (lies, haunts);
        }
        self.count(|summary| summary.faulty_lives += 1);
        true
    }

    /// Something to lie about, and where.
    fn lie(&self, disk: &SimDisk, whole: ByteRange, prng: &mut Prng) -> (Lie, Zone) {
        let zone = |asks, fault, content, per_mille| Zone {
            range: whole,
            content,
            asks,
            fault,
            per_mille,
            times_max: 1,
        };
        if prng.chance(1, 3) {
            return (Lie::Flush, zone(Asks::Flushes, Fault::Lost, None, 200));
        }
        let what = *prng.pick(&[
            kind::NODE,
            kind::NODE,
            kind::ROOT,
            kind::JOURNAL,
            kind::NODE,
            kind::AREA_LOG,
            kind::BITMAP,
        ]);
        let piece = self.options.extent_bytes;
        let displaced = prng.chance(1, 2);
        let fault = if !displaced || what == kind::BITMAP {
            // A bitmap of data would fall on data.
            Fault::Lost
        } else {
            // Within its extent, so that it falls on metadata.
            Fault::Displaced {
                by: prng.range(1..64) * 4096,
                origin: probe::first_extent(&disk.durable()),
                piece,
            }
        };
        let content = Content::new(move |bytes| probe::kind_of(bytes) == Some(what));
        (Lie::Metadata(what), zone(Asks::Changes, fault, Some(content), *prng.pick(&[20, 300])))
    }

    /// Looks at what a disk that lied has left: a check may report it, and opening and reading may fail, saying why.
    /// Neither crashes nor hangs, and if a check finds everything in order, what is shown was once written there.
    ///
    /// What nobody can notice: a lie about data, which has no checksums; and one about the last group of a journal,
    /// which looks as if the power had gone before it was written, so blocks that it gave away may hold anything.
    pub(crate) async fn autopsy(&self, disk: &SimDisk, lie: Lie) -> Result<(), Failure> {
        let image = disk.crash_image(Unflushed::Kept);
        let copy = SimDisk::with_image(&self.world, self.disk_options(), image.clone());
        let found = self.system.check(&copy).await;
        let is_damage = |found: &Vec<Finding>| found.iter().any(|f| f.severity == Severity::Damage);
        let reported = found.as_ref().map_or(true, is_damage);
        let seen = self.look(&image, None, false).await;
        self.count(|summary| {
            summary.lies += 1;
            summary.lies_noticed += u64::from(reported || !matches!(seen, Ok(Ok(_))));
        });
        match (seen, lie) {
            (Err(failure), _) if !failure.message.contains(probe::WHAT_NOBODY_WROTE) => Err(failure),
            (Err(failure), Lie::Metadata(what)) if !reported && what != kind::JOURNAL => Err(failure),
            _ => Ok(()),
        }
    }

    /// Sets a plan whose failures are taken for granted.
    pub(crate) fn sicken(&self, disk: &SimDisk, plan: FaultPlan) {
        let forgets = plan.failed_flush == FailedFlush::Forgets;
        let before = failures(disk.stats().faults);
        disk.set_faults(plan);
        let disk = disk.clone();
        *self.ailing.lock() = Some(Ailing { disk, before, forgets, lies: None, haunts: false });
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

    /// The disk behaves from now on. What it has done that its end must be chosen by.
    pub(crate) fn heal(&self) -> Healed {
        let Some(Ailing { disk, before, forgets, lies, .. }) = self.ailing.lock().take() else {
            return Healed::default();
        };
        disk.set_faults(FaultPlan::default());
        let struck = failures(disk.stats().faults) > before;
        Healed { forgot: struck && forgets, lied: lies.filter(|_| struck) }
    }

    /// Whether a write that fails may show later.
    pub(crate) fn is_haunted(&self) -> bool {
        self.ailing.lock().as_ref().is_some_and(|ailing| ailing.haunts)
    }

    /// Whether an operation may fail because of what the disk has done.
    pub(crate) fn is_struck(&self) -> bool {
        self.ailing.lock().as_ref().is_some_and(|ailing| failures(ailing.disk.stats().faults) > ailing.before)
    }

    /// Whether the disk may say what is not so.
    pub(crate) fn is_lied_to(&self) -> bool {
        self.ailing.lock().as_ref().is_some_and(|ailing| ailing.lies.is_some())
    }

    /// Whether this error may follow from a fault. Damage never does, unless the disk lies.
    pub(crate) fn may_fail(&self, error: &Error) -> bool {
        (self.is_lied_to() || error.kind() != ErrorKind::Corrupt) && self.is_struck()
    }

    /// What to make of an operation that failed.
    pub(crate) fn trouble(&self, what: &str, error: &Error) -> Failure {
        if self.may_fail(error) {
            return Failure::given_up();
        }
        Failure::new(format!("{what} failed: {error:?}"))
    }
}
