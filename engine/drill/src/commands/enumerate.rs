//! `enumerate`: every crash point of small workloads.

use parallax_drill::{
    Failure,
    enumerate::{Closeness, Op, Script, Tally, enumerate, rot, scripts},
    store::Store,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Operations of a workload at most.
    #[arg(long, default_value_t = 2)]
    ops: usize,
    /// Only this workload.
    #[arg(long, value_delimiter = ',')]
    script: Vec<Op>,
    /// Its last two operations at the same time.
    #[arg(long)]
    together: bool,
    /// Instead, damage every block of metadata that a killed process has left.
    #[arg(long)]
    rot: bool,
    /// Images of one crash point at most, besides torn ones.
    #[arg(long, default_value_t = 8)]
    images: usize,
    /// Decides what is sampled, and the course of events.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads, each with a workload of its own.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Begin no new workload after this many seconds; says how much is left.
    #[arg(long)]
    seconds: Option<u64>,
    /// Only the K-th of N parts of the workloads: `K/N`.
    #[arg(long, value_parser = part)]
    part: Option<(usize, usize)>,
    /// Begin with this workload of the list, or of the part.
    #[arg(long, default_value_t = 0)]
    from: usize,
    /// Stop after this many failures.
    #[arg(long, default_value_t = 1)]
    failures: usize,
}

/// `K/N`, with K from 1 to N.
fn part(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    match numbers {
        Some((k, n)) if 1 <= k && k <= n => Ok((k, n)),
        _ => Err(format!("{text:?} is not like 3/8")),
    }
}

/// Whether nothing was found.
pub(crate) fn run(arguments: &Args) -> bool {
    let begun = Instant::now();
    if arguments.rot {
        let (tally, failure) = rot(arguments.seed, Arc::new(Store));
        println!("{} blocks damaged in {:.1} s", tally.points, begun.elapsed().as_secs_f64());
        failure.iter().for_each(|failure| println!("FAILED: {}", failure.message));
        return failure.is_none();
    }
    let deadline = arguments.seconds.map(|seconds| begun + Duration::from_secs(seconds));
    let mut list = match &arguments.script[..] {
        [] => scripts(arguments.ops),
        ops => vec![Script { ops: ops.to_vec(), together: arguments.together }],
    };
    if let Some((k, n)) = arguments.part {
        list = list.into_iter().skip(k - 1).step_by(n).collect();
    }
    let closeness = Closeness { images_max: arguments.images, seed: arguments.seed };
    let next = AtomicUsize::new(arguments.from);
    let (sender, outcomes) = mpsc::channel::<(Tally, Option<Failure>)>();
    let (mut total, mut failed) = (Tally::default(), 0);
    thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            let (sender, next, list) = (sender.clone(), &next, &list);
            scope.spawn(move || {
                let late = || deadline.is_some_and(|deadline| Instant::now() > deadline);
                while !late() {
                    let Some(script) = list.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    if sender.send(enumerate(script, closeness, Arc::new(Store))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (tally, failure) in outcomes {
            total.add(&tally);
            if let Some(failure) = failure {
                failed += 1;
                println!("FAILED: {}", failure.message);
                failure.story.iter().for_each(|line| println!("    {line}"));
                if failed >= arguments.failures {
                    next.store(list.len(), Ordering::Relaxed);
                    break;
                }
            }
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} of {} workloads, {} boundaries, {} crash points in {seconds:.1} s ({:.0} a second and thread)",
        total.scripts,
        list.len(),
        total.boundaries,
        total.points,
        total.points as f64 / seconds / arguments.threads.max(1) as f64,
    );
    let reached = arguments.from + total.scripts as usize;
    if reached < list.len() {
        println!("go on with --from {reached}");
    }
    failed == 0
}
