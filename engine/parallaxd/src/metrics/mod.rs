//! Figures for Prometheus.
//!
//! Counters of the data path are per volume and per thread ([`volume`]); the rest is counted where it happens.
//! A scrape ([`scrape`]) sums and asks the pool for its fill; [`http`] serves it, on loopback by default.

pub mod http;
pub mod scrape;
pub mod volume;

use parallax_store::{GcProgress, ScrubReport, Severity};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Counts of the control plane.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Snapshots taken.
    pub snapshots_taken: AtomicU64,
    /// Snapshots deleted.
    pub snapshots_deleted: AtomicU64,
    /// Time that taking snapshots took, in nanoseconds.
    pub snapshot_nanoseconds: AtomicU64,
    /// Volumes created.
    pub volumes_created: AtomicU64,
    /// Volumes deleted.
    pub volumes_deleted: AtomicU64,
    /// Collections that ended well.
    pub collections: AtomicU64,
    /// Collections that failed.
    pub collections_failed: AtomicU64,
    /// Bytes that collections brought back.
    pub collected_bytes: AtomicU64,
    /// Time that collections took, in milliseconds.
    pub collection_milliseconds: AtomicU64,
    /// Bytes that scrubs have read.
    pub scrubbed_bytes: AtomicU64,
    /// When the last scrub came to its end, in seconds since 1970; 0 if none has since the daemon began.
    pub scrub_ended: AtomicU64,
    /// Findings of damage of the last scrub.
    pub scrub_damage: AtomicU64,
    /// Whether the pool's device did not answer the last probe.
    pub device_failing: AtomicBool,
}

impl Metrics {
    /// One more, for any of the counters.
    pub fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    /// Snapshots were taken in one request.
    pub fn snapshots(&self, count: usize, took: Duration) {
        Self::add(&self.snapshots_taken, count as u64);
        Self::add(&self.snapshot_nanoseconds, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// A scrub ended; one that was stopped or failed says nothing.
    pub fn scrubbed(&self, report: Option<&ScrubReport>) {
        let Some(report) = report else { return };
        let damage = report.findings.iter().filter(|finding| finding.severity == Severity::Damage).count();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::add(&self.scrubbed_bytes, report.bytes);
        self.scrub_damage.store(damage as u64, Ordering::Relaxed);
        self.scrub_ended.store(now.as_secs(), Ordering::Relaxed);
    }

    /// A collection ended.
    pub fn collected(&self, took: Duration, done: Option<&GcProgress>) {
        Self::add(&self.collection_milliseconds, u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        match done {
            Some(done) => {
                Self::add(&self.collections, 1);
                Self::add(&self.collected_bytes, done.freed_data + done.freed_metadata);
            }
            None => Self::add(&self.collections_failed, 1),
        }
    }
}
