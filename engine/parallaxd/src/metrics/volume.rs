//! Counters of one open volume, and the device that counts.
//!
//! Invariants:
//! * Counting takes no lock and allocates nothing: every thread adds to a shard of its own, a scrape sums them.
//! * Counters live as long as the volume is open; a volume opened again starts from zero, as Prometheus expects of
//!   a restart.

use parallax_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Completion, ErrorKind, Geometry, Result, StatusExtent,
    WriteOptions, ZeroOptions,
};
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Discards and zeroing.
    Unmap,
}

/// All of them, in the order of the counters.
pub const OPERATIONS: [(Operation, &str); 4] = [
    (Operation::Read, "read"),
    (Operation::Write, "write"),
    (Operation::Flush, "flush"),
    (Operation::Unmap, "unmap"),
];

/// Upper bounds of the latency buckets in microseconds; one more bucket has none.
pub const LATENCY_BOUNDS_US: [u64; 9] = [16, 64, 256, 1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000];

const BUCKETS: usize = LATENCY_BOUNDS_US.len() + 1;
const SHARDS: usize = 4;

#[derive(Debug, Default)]
struct Cell {
    operations: AtomicU64,
    errors: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// A shard fills cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard([Cell; OPERATIONS.len()]);

/// Sums over all shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Completed, failed ones included.
    pub operations: u64,
    /// Failed.
    pub errors: u64,
    /// Bytes asked for.
    pub bytes: u64,
    /// Time from request to completion.
    pub nanoseconds: u64,
    /// By upper bound: see [`LATENCY_BOUNDS_US`].
    pub buckets: [u64; BUCKETS],
}

/// Counters of one open volume.
#[derive(Debug, Default)]
pub struct VolumeCounters {
    shards: [Shard; SHARDS],
    fault: OnceLock<String>,
}

impl VolumeCounters {
    /// Sums of one operation.
    pub fn totals(&self, operation: Operation) -> Totals {
        let mut totals = Totals::default();
        for Shard(cells) in &self.shards {
            let cell = &cells[operation as usize];
            totals.operations += cell.operations.load(Ordering::Relaxed);
            totals.errors += cell.errors.load(Ordering::Relaxed);
            totals.bytes += cell.bytes.load(Ordering::Relaxed);
            totals.nanoseconds += cell.nanoseconds.load(Ordering::Relaxed);
            for (total, bucket) in totals.buckets.iter_mut().zip(&cell.buckets) {
                *total += bucket.load(Ordering::Relaxed);
            }
        }
        totals
    }

    /// Why I/O fails until the volume is opened again, if its epoch has ended.
    pub fn fault(&self) -> Option<&str> {
        self.fault.get().map(String::as_str)
    }

    fn count(&self, operation: Operation, bytes: u64, took: Duration, outcome: &Result<()>) {
        let cell = &self.shards[shard()].0[operation as usize];
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < micros);
        cell.operations.fetch_add(1, Ordering::Relaxed);
        cell.bytes.fetch_add(bytes, Ordering::Relaxed);
        cell.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        cell.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        if let Err(error) = outcome {
            cell.errors.fetch_add(1, Ordering::Relaxed);
            if error.kind() == ErrorKind::Fenced {
                self.fault.get_or_init(|| error.to_string());
            }
        }
    }
}

/// The shard of the calling thread.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    MINE.with(|shard| *shard)
}

/// A device that counts what passes.
pub struct Metered {
    inner: Arc<dyn BlockDevice>,
    counters: Arc<VolumeCounters>,
}

impl Metered {
    /// Counts what passes to `inner`.
    pub fn new(inner: Arc<dyn BlockDevice>, counters: Arc<VolumeCounters>) -> Self {
        Self { inner, counters }
    }

    fn plain<'a>(
        &'a self,
        operation: Operation,
        bytes: u64,
        request: BoxFuture<'a, Result<()>>,
    ) -> BoxFuture<'a, Result<()>> {
        let begun = Instant::now();
        Box::pin(async move {
            let outcome = request.await;
            self.counters.count(operation, bytes, begun.elapsed(), &outcome);
            outcome
        })
    }

    fn transfer<'a>(
        &'a self,
        operation: Operation,
        bytes: usize,
        request: BoxFuture<'a, Completion>,
    ) -> BoxFuture<'a, Completion> {
        let begun = Instant::now();
        Box::pin(async move {
            let (buffer, outcome) = request.await;
            self.counters.count(operation, bytes as u64, begun.elapsed(), &outcome);
            (buffer, outcome)
        })
    }
}

impl BlockDevice for Metered {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Completion> {
        let bytes = buffer.len();
        self.transfer(Operation::Read, bytes, self.inner.read(offset, buffer))
    }

    fn write(&self, offset: u64, buffer: Buffer, options: WriteOptions) -> BoxFuture<'_, Completion> {
        let bytes = buffer.len();
        self.transfer(Operation::Write, bytes, self.inner.write(offset, buffer, options))
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        self.plain(Operation::Flush, 0, self.inner.flush())
    }

    fn discard(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        self.plain(Operation::Unmap, range.length(), self.inner.discard(range))
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> BoxFuture<'_, Result<()>> {
        self.plain(Operation::Unmap, range.length(), self.inner.write_zeroes(range, options))
    }

    fn status(&self, range: ByteRange, extents_max: usize) -> BoxFuture<'_, Result<Vec<StatusExtent>>> {
        self.inner.status(range, extents_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parallax_block::Error;

    #[test]
    fn shards_are_summed_and_latency_falls_into_its_bucket() {
        let counters = Arc::new(VolumeCounters::default());
        let threads: Vec<_> = (0..6)
            .map(|_| {
                let counters = Arc::clone(&counters);
                std::thread::spawn(move || {
                    for micros in [10, 16, 17, 2_000_000] {
                        counters.count(Operation::Read, 4096, Duration::from_micros(micros), &Ok(()));
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let totals = counters.totals(Operation::Read);
        assert_eq!((totals.operations, totals.bytes, totals.errors), (24, 24 * 4096, 0));
        assert_eq!((totals.buckets[0], totals.buckets[1], totals.buckets[BUCKETS - 1]), (12, 6, 6));
        assert_eq!(counters.totals(Operation::Write), Totals::default());
    }

    #[test]
    fn a_fenced_volume_remembers_why() {
        let counters = VolumeCounters::default();
        counters.count(Operation::Write, 0, Duration::ZERO, &Err(Error::new(ErrorKind::OutOfSpace, "full")));
        assert_eq!(counters.fault(), None);
        counters.count(
            Operation::Flush,
            0,
            Duration::ZERO,
            &Err(Error::new(ErrorKind::Fenced, "flush failed")),
        );
        assert_eq!(counters.fault(), Some("flush failed"));
    }
}
