//! One workload on one device: so many requests in flight until the time is over.

use parallax_block::{BlockDevice, Buffer, Error, Result, WriteOptions};
use parallax_device::ReactorHandle;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Which requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// One after the other.
    SequentialRead,
    /// One after the other.
    SequentialWrite,
    /// Anywhere.
    RandomRead,
    /// Anywhere.
    RandomWrite,
}

/// A workload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Which requests.
    pub(super) shape: Shape,
    /// Bytes of a request.
    pub(super) bytes: u64,
    /// Requests in flight.
    pub(super) depth: u64,
    /// A flush after each.
    pub(super) flush: bool,
}

/// When it is over.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    /// After a time.
    Time(Duration),
    /// After so many requests.
    Requests(u64),
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// Requests a second.
    pub(super) iops: f64,
    /// Bytes a second.
    pub(super) bandwidth: f64,
}

/// Runs it on the reactor and waits.
pub(super) async fn run(
    home: &ReactorHandle,
    device: &Arc<dyn BlockDevice>,
    load: Load,
    span: u64,
    until: Until,
) -> Result<Sample> {
    let places = span / load.bytes;
    if places == 0 {
        return Err(Error::invalid("the span is smaller than one request"));
    }
    let next = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let workers: Vec<_> = (0..load.depth)
        .map(|worker| {
            let (device, next) = (Arc::clone(device), Arc::clone(&next));
            home.run(async move { work(device.as_ref(), load, places, until, worker, &next, begun).await })
        })
        .collect();
    let mut requests = 0;
    for worker in workers {
        requests += worker.await??;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let iops = requests as f64 / seconds;
    Ok(Sample { iops, bandwidth: iops * load.bytes as f64 })
}

/// One request after the other; how many.
async fn work(
    device: &dyn BlockDevice,
    load: Load,
    places: u64,
    until: Until,
    worker: u64,
    next: &AtomicU64,
    begun: Instant,
) -> Result<u64> {
    // Bytes that no layer can take for zero or for a repetition.
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ (worker + 1);
    let mut buffer = Buffer::zeroed(load.bytes as usize);
    for byte in buffer.iter_mut() {
        *byte = random(&mut state) as u8;
    }
    let mut done = 0;
    loop {
        let turn = next.fetch_add(1, Ordering::Relaxed);
        let over = match until {
            Until::Time(time) => begun.elapsed() >= time,
            Until::Requests(count) => turn >= count,
        };
        if over {
            return Ok(done);
        }
        let place = match load.shape {
            Shape::SequentialRead | Shape::SequentialWrite => turn % places,
            Shape::RandomRead | Shape::RandomWrite => random(&mut state) % places,
        };
        let offset = place * load.bytes;
        let (back, outcome) = match load.shape {
            Shape::SequentialRead | Shape::RandomRead => device.read(offset, buffer).await,
            Shape::SequentialWrite | Shape::RandomWrite => {
                device.write(offset, buffer, WriteOptions::default()).await
            }
        };
        outcome?;
        buffer = back;
        if load.flush {
            device.flush().await?;
        }
        done += 1;
    }
}

/// xorshift64*: fast, and the same every time.
fn random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
}
