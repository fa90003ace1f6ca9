//! The store against the bare file that it lies on, in one run on one disk; and what snapshots, clones and opening
//! cost.
//!
//! `bed` is a pool in a scratch file with the threads to drive it, `load` one workload on one device. `loads`,
//! `snapshots` and `opening` measure, `report` shows. `through` measures a pool that a daemon holds.
//!
//! Invariants:
//! * Files are written with zeroes before anything is measured, so that the filesystem has nothing to allocate
//!   below either side.
//! * Bare file and volume take turns, so that their ratio survives a machine that is slow for a while.
//! * Scratch files are gone afterwards, whatever happens.

mod bed;
mod load;
mod loads;
mod opening;
mod report;
mod snapshots;
mod through;

use crate::{
    args::{BenchArguments, BenchPart, Place},
    failure::{Failure, Outcome},
    output::Output,
};
use bed::{Bed, Scratch};
use parallax_block::BlockDevice;
use report::Report;
use std::{sync::Arc, time::Duration};

const PAGE: u64 = 4096;
const LARGE: u64 = 1 << 20;

/// Room of the pool beyond its one volume: what snapshots keep, and metadata.
const SPARE: u64 = 3;
/// Size of the pool whose opening is timed.
const OPENING_POOL: u64 = 1 << 30;

pub(crate) async fn run(place: &Place, arguments: &BenchArguments, output: Output) -> Outcome {
    if let Some(BenchPart::Snapshots { volume, count }) = &arguments.part {
        return through::snapshots(place, output, volume, *count).await;
    }
    let size = arguments.size.0 / LARGE * LARGE;
    if size < 16 << 20 {
        return Err(Failure::new("less than 16M says nothing about a disk"));
    }
    let plan = Plan {
        size,
        each: arguments.seconds,
        repeats: arguments.repeats.max(1),
        snapshots: arguments.snapshots.max(1),
    };
    let mut report = Report::default();
    {
        let files = Scratch::new(&arguments.directory)?;
        let bed = Bed::make(&files, size * (1 + SPARE) + (256 << 20)).await?;
        let bare = bed.bare(&files, size)?;
        let volume = bed.volume("bench", size).await?;
        let vdi: Arc<dyn BlockDevice> = bed.attach(volume).await?;
        loads::run(&bed, plan, &bare, &vdi, &mut report).await?;
        snapshots::run(&bed, plan, volume, &vdi, &mut report).await?;
        drop(vdi);
        bed.end().await?;
    }
    let files = Scratch::new(&arguments.directory)?;
    let bed = Bed::make(&files, OPENING_POOL).await?;
    opening::run(bed, plan, &mut report).await?;
    output.show(&report, Report::text)
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// Bytes that workloads work on.
    size: u64,
    /// Time of one workload.
    each: Duration,
    /// How often each is run.
    repeats: u32,
    /// Snapshots in the largest pool that is opened.
    snapshots: u32,
}

/// Tells what is done now.
fn say(what: &str) {
    eprintln!("{what} …");
}
