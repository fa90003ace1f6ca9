//! `mutants`: bugs of the store that a power cut brings to light. Each must be found, or nothing here means anything.

use super::rounds::{jobs, one};
use crate::{bed::Under, disk::Kind, errand::Task, round::Round};
use anyhow::{Result, bail};
use parallax_store::mutants::Mutant;
use std::time::Instant;

/// Bugs that show themselves to a filesystem after few power cuts or kills.
const FINDABLE: [Mutant; 12] = [
    Mutant::JournalBeforeData,
    Mutant::JournalNotFlushed,
    Mutant::JournalRetiredEarly,
    Mutant::QuietFlushSkipped,
    Mutant::ReplayDropsLast,
    Mutant::RootBeforeNodes,
    Mutant::NodesReusedEarly,
    Mutant::FillForgotten,
    Mutant::FillStopsEarly,
    Mutant::SnapshotKeepsWritable,
    Mutant::CopyKeepsWritable,
    Mutant::GcForgetsSnapshots,
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these.
    #[arg(long, value_delimiter = ',', value_parser = super::mutant)]
    only: Vec<Mutant>,
    /// Points for each seed.
    #[arg(long, default_value_t = 100)]
    points: usize,
    /// Seeds for each bug.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Places that are looked at side by side.
    #[arg(long)]
    jobs: Option<usize>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    super::prepare()?;
    let jobs = jobs(args.jobs);
    let wanted = if args.only.is_empty() { FINDABLE.to_vec() } else { args.only.clone() };
    let mut survivors = Vec::new();
    for mutant in wanted {
        let begun = Instant::now();
        match hunt(mutant, args, jobs) {
            Some(found) => println!("{mutant:?}: {found} ({:.1} s)", begun.elapsed().as_secs_f64()),
            None => {
                println!("{mutant:?}: NOT FOUND ({:.1} s)", begun.elapsed().as_secs_f64());
                survivors.push(mutant);
            }
        }
    }
    if !survivors.is_empty() {
        bail!("not found: {survivors:?}");
    }
    Ok(())
}

/// How it was found.
fn hunt(mutant: Mutant, args: &Args, jobs: usize) -> Option<String> {
    (1..=args.seeds).find_map(|seed| {
        let round = Round {
            task: Task::Files,
            kind: Kind::Ext4,
            seed,
            workers: 3,
            operations: 300,
            under: Under::Store(Some(mutant)),
        };
        match one(&round, args.points, jobs) {
            // The load itself has noticed.
            Err(error) => Some(format!("{error:#}")),
            Ok((_, outcome)) => {
                let failure = outcome.failures.first()?;
                let what = failure.wrong.first().map_or("", String::as_str);
                Some(format!("seed {seed}, end {}: {what}", failure.cut.end))
            }
        }
    })
}
