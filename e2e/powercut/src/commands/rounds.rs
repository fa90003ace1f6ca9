//! Rounds of load and cuts, until so many points were looked at.

use crate::{
    bed::Under,
    disk::{Disk, Kind},
    errand::Task,
    media::{file, history::History},
    round::{Failure, Outcome, Recorded, Round},
};
use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// Failures after which a round ends.
const FAILURES_MAX: usize = 3;

/// What is wanted.
#[derive(Clone, Debug)]
pub(super) struct Rounds {
    pub(super) task: Task,
    pub(super) under: Under,
    pub(super) points: usize,
    /// Points of one round at most.
    pub(super) points_each: usize,
    /// The first; each round has its own.
    pub(super) seed: u64,
    /// Each in turn.
    pub(super) kinds: Vec<Kind>,
    pub(super) workers: u32,
    pub(super) operations: u64,
    /// Points that are looked at side by side; `None`: one for each core.
    pub(super) jobs: Option<usize>,
    /// Where histories are kept in which something is wrong.
    pub(super) keep: PathBuf,
}

pub(super) fn run(rounds: &Rounds) -> Result<()> {
    super::prepare()?;
    let jobs = jobs(rounds.jobs);
    let (mut left, mut seed, mut failed, mut looked) = (rounds.points, rounds.seed, 0, 0);
    let begun = Instant::now();
    for kind in rounds.kinds.iter().copied().cycle() {
        if left == 0 {
            break;
        }
        let round = Round {
            task: rounds.task,
            kind,
            seed,
            workers: rounds.workers,
            operations: rounds.operations,
            under: rounds.under,
        };
        let points = left.min(rounds.points_each);
        let (history, outcome) =
            one(&round, points, jobs).with_context(|| format!("{} with seed {seed}", kind.name()))?;
        tell(&round, &outcome);
        for failure in &outcome.failures {
            keep(&round, &history, failure, &rounds.keep)?;
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

/// As many as there are cores, unless somebody knows better.
pub(super) fn jobs(wanted: Option<usize>) -> usize {
    wanted.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// One round to its end.
pub(super) fn one(round: &Round, points: usize, jobs: usize) -> Result<(History, Outcome)> {
    let begun = Instant::now();
    let Recorded { history, snapshots } = round.record()?;
    let recorded_in = begun.elapsed();
    let cuts = round.cuts(&history, points);
    let outcome = round.look(&history, &cuts, jobs, FAILURES_MAX)?;
    Ok((history, Outcome { recorded_in, snapshots, ..outcome }))
}

fn tell(round: &Round, outcome: &Outcome) {
    println!(
        "{} seed {} ({}): {} flushes recorded in {:.1} s; {} points in {:.1} s ({} of them kills, {} \
         cut twice), {} snapshots, {:.1} unflushed writes \
         each, {} wrong",
        round.kind.name(),
        round.seed,
        Disk::new(round.kind, round.seed).describe(),
        outcome.flushes,
        outcome.recorded_in.as_secs_f64(),
        outcome.points,
        outcome.looked_in.as_secs_f64(),
        outcome.kills,
        outcome.twice,
        outcome.snapshots,
        outcome.unflushed as f64 / outcome.points.max(1) as f64,
        outcome.failures.len(),
    );
}

/// Writes down everything that is needed to see a failure again.
fn keep(round: &Round, history: &History, failure: &Failure, folder: &Path) -> Result<()> {
    let mut name = format!("{}-{}-{}", round.task.name(), round.kind.name(), round.seed);
    let history = match &failure.recovery {
        Some(recovery) => {
            name.push_str(&format!("-recovery-{}", failure.cut.seed));
            recovery
        }
        None => history,
    };
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let (path, image) = (
        folder.join(format!("{name}.history")),
        folder.join(format!("{name}-at-{}-{}.img", failure.cut.position, failure.cut.end)),
    );
    file::save(history, &path)?;
    file::save_image(&round.player(history).cut(failure.cut).image, &image)?;
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
        "  again: powercut point --history {} --task {} --fs {} --seed {} --workers {} --operations {} --position {} --end {} \
         --choice {}{under}",
        path.display(),
        round.task.name(),
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
