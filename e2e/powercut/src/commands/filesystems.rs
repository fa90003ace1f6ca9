//! `filesystems`: rounds of load and cuts, until so many points were looked at.

use crate::{
    bed::Under,
    disk::{Disk, Kind},
    media::{file, history::History, player::Player},
    round::{Failure, Outcome, Round},
};
use anyhow::{Context, Result, bail};
use parallax_store::mutants::Mutant;
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// Points of one round.
const ROUND: usize = 100;
/// Failures after which a round ends.
const FAILURES_MAX: usize = 3;

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
    super::prepare()?;
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let (mut left, mut seed, mut failed, mut looked) = (args.points, args.seed, 0, 0);
    let under = if args.without_store { Under::Nothing } else { Under::Store(args.mutant) };
    let begun = Instant::now();
    while left > 0 {
        let kind = args.fs.unwrap_or(Kind::ALL[(seed - args.seed) as usize % Kind::ALL.len()]);
        let round = Round { kind, seed, workers: args.workers, operations: args.operations, under };
        let points = left.min(ROUND);
        let (history, outcome) =
            one(&round, points, jobs).with_context(|| format!("{} with seed {seed}", kind.name()))?;
        tell(&round, &outcome);
        for failure in &outcome.failures {
            keep(&round, &history, failure, &args.keep)?;
        }
        failed += outcome.failures.len();
        looked += outcome.points;
        left -= points;
        seed += 1;
    }
    println!("{looked} points in {:.0} s, {failed} of them wrong", begun.elapsed().as_secs_f64());
    if failed > 0 {
        bail!("something promised was lost");
    }
    Ok(())
}

/// One round to its end.
pub(super) fn one(round: &Round, points: usize, jobs: usize) -> Result<(History, Outcome)> {
    let begun = Instant::now();
    let history = round.record()?;
    let recorded_in = begun.elapsed();
    let cuts = round.cuts(&history, points);
    let outcome = round.look(&history, &cuts, jobs, FAILURES_MAX)?;
    Ok((history, Outcome { recorded_in, ..outcome }))
}

fn tell(round: &Round, outcome: &Outcome) {
    println!(
        "{} seed {} ({}): {} flushes recorded in {:.1} s; {} points in {:.1} s ({} of them kills), {:.1} unflushed writes \
         each, {} wrong",
        round.kind.name(),
        round.seed,
        Disk::new(round.kind, round.seed).describe(),
        outcome.flushes,
        outcome.recorded_in.as_secs_f64(),
        outcome.points,
        outcome.looked_in.as_secs_f64(),
        outcome.kills,
        outcome.unflushed as f64 / outcome.points.max(1) as f64,
        outcome.failures.len(),
    );
}

/// Writes down everything that is needed to see a failure again.
fn keep(round: &Round, history: &History, failure: &Failure, folder: &Path) -> Result<()> {
    let name = format!("{}-{}", round.kind.name(), round.seed);
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let (path, image) = (folder.join(format!("{name}.history")), folder.join(format!("{name}.img")));
    file::save(history, &path)?;
    file::save_image(&Player::new(history).cut(failure.cut).image, &image)?;
    println!("wrong after event {}, end {}:", failure.cut.position, failure.cut.end);
    for wrong in &failure.wrong {
        println!("  {wrong}");
    }
    let under = match round.under {
        Under::Store(None) => String::new(),
        Under::Store(Some(mutant)) => format!(" --mutant {mutant:?}"),
        Under::Nothing => " --without-store".into(),
    };
    println!("  the pool as it was left: {}", image.display());
    println!(
        "  again: powercut point --history {} --fs {} --seed {} --workers {} --operations {} --position {} --end {} \
         --choice {}{under}",
        path.display(),
        round.kind.name(),
        round.seed,
        round.workers,
        round.operations,
        failure.cut.position,
        failure.cut.end,
        failure.cut.seed,
    );
    Ok(())
}
