//! `filesystems`: many operations on files and names, on ext4 and xfs.

use super::rounds::{self, Rounds};
use crate::{bed::Under, disk::Kind, errand::Task};
use anyhow::Result;
use parallax_store::mutants::Mutant;
use std::path::PathBuf;

/// Points of one round.
const ROUND: usize = 100;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Places at which the power goes.
    #[arg(long, default_value_t = 200)]
    points: usize,
    /// The first seed; each round has its own.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this filesystem, not each in turn.
    #[arg(long)]
    fs: Option<Kind>,
    /// Workers on the filesystem: each second one is fond of names, the others of bytes.
    #[arg(long, default_value_t = 3)]
    workers: u32,
    /// Operations of each worker.
    #[arg(long, default_value_t = 300)]
    operations: u64,
    /// Places that are looked at side by side; as many as there are cores.
    #[arg(long)]
    jobs: Option<usize>,
    /// Where histories are kept in which something is wrong.
    #[arg(long, default_value = "/var/tmp/powercut")]
    keep: PathBuf,
    /// A bug of the store, switched on.
    #[arg(long, value_parser = super::mutant)]
    mutant: Option<Mutant>,
    /// The filesystem right on the recorded disk, without the store: what is wrong there too is not ours.
    #[arg(long, conflicts_with = "mutant")]
    without_store: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    rounds::run(&Rounds {
        task: Task::Files,
        under: if args.without_store { Under::Nothing } else { Under::Store(args.mutant) },
        points: args.points,
        points_each: ROUND,
        seed: args.seed,
        kinds: args.fs.map_or(Kind::ALL.to_vec(), |kind| vec![kind]),
        workers: args.workers,
        operations: args.operations,
        jobs: args.jobs,
        keep: args.keep.clone(),
    })
}
