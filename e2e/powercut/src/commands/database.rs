//! `database`: PostgreSQL on ext4 and xfs.

use super::rounds::{self, Rounds};
use crate::{bed::Under, disk::Kind, errand::Task};
use anyhow::Result;
use std::path::PathBuf;

/// Points of one round.
const ROUND: usize = 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Places at which the power goes.
    #[arg(long, default_value_t = 20)]
    points: usize,
    /// The first seed; each round has its own.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this filesystem, not each in turn.
    #[arg(long)]
    fs: Option<Kind>,
    /// Clients that commit.
    #[arg(long, default_value_t = 4)]
    clients: u32,
    /// Transactions of each.
    #[arg(long, default_value_t = 100)]
    transactions: u64,
    /// Places that are looked at side by side; as many as there are cores.
    #[arg(long)]
    jobs: Option<usize>,
    /// Where histories are kept in which something is wrong.
    #[arg(long, default_value = "/var/tmp/powercut")]
    keep: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    rounds::run(&Rounds {
        task: Task::Database,
        under: Under::Store(None),
        points: args.points,
        points_each: ROUND,
        seed: args.seed,
        kinds: args.fs.map_or(Kind::ALL.to_vec(), |kind| vec![kind]),
        workers: args.clients,
        operations: args.transactions,
        jobs: args.jobs,
        keep: args.keep.clone(),
    })
}
