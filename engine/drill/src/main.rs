//! Runs seeds of the drill against the store, and says what came of them.

#![forbid(unsafe_code)]

use clap::Parser;
use parallax_drill::{
    Report, Summary,
    fake::{Bug, Fake},
    run,
    store::Store,
    subject::System,
};
use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// Tortures the store in a simulated world. A seed always gives the same run.
#[derive(Parser)]
struct Arguments {
    /// First seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Requests to volumes in each run, about.
    #[arg(long, default_value_t = 1000)]
    ops: u64,
    /// Threads, each with a world of its own.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Stop after this many failures.
    #[arg(long, default_value_t = 1)]
    failures: usize,
    /// Begin no new seed after this many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Run every seed twice and compare the histories.
    #[arg(long)]
    twice: bool,
    /// Drill the stand-in with this bug (by number) instead of the store, to see that it is found.
    #[arg(long)]
    canary: Option<usize>,
    /// One line for every seed.
    #[arg(long)]
    verbose: bool,
}

impl Arguments {
    fn system(&self) -> Arc<dyn System> {
        match self.canary {
            None => Arc::new(Store),
            Some(number) => Arc::new(Fake::new(Bug::ALL.get(number).copied())),
        }
    }

    fn one(&self, seed: u64) -> Report {
        let mut report = run(seed, self.ops, self.system());
        if self.twice && report.failure.is_none() {
            let again = run(seed, self.ops, self.system());
            if again.history != report.history {
                let message = format!("the same seed gave history {:016x} the second time", again.history);
                report.failure = Some(parallax_drill::Failure::new(message));
            }
        }
        report
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let begun = Instant::now();
    let deadline = arguments.seconds.map(|seconds| begun + Duration::from_secs(seconds));
    let next = AtomicU64::new(0);
    let (sender, reports) = mpsc::channel();
    let (mut total, mut seeds, mut failed) = (Summary::default(), 0u64, Vec::new());
    thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            let (sender, next, arguments) = (sender.clone(), &next, &arguments);
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let late = deadline.is_some_and(|deadline| Instant::now() > deadline);
                    if number >= arguments.seeds
                        || late
                        || sender.send(arguments.one(arguments.seed + number)).is_err()
                    {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for report in reports {
            seeds += 1;
            total.add(&report.summary);
            if report.failure.is_some() || arguments.seeds == 1 {
                println!("{report}");
            } else if arguments.verbose {
                println!("seed {}: {}, history {:016x}", report.options.seed, report.summary, report.history);
            }
            if report.failure.is_some() {
                failed.push(report.options.seed);
                if failed.len() >= arguments.failures {
                    next.store(arguments.seeds, Ordering::Relaxed);
                    break;
                }
            }
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds in {seconds:.1} s ({:.1} seeds and {:.0} operations a second): {total}",
        seeds as f64 / seconds,
        (total.requests + total.operations) as f64 / seconds,
    );
    if failed.is_empty() {
        println!("nothing was lost.");
        ExitCode::SUCCESS
    } else {
        println!("FAILED: seeds {failed:?}");
        ExitCode::FAILURE
    }
}
