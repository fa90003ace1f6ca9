//! Seeds: many, or one again.

use parallax_drill::{
    Failure, Report, Summary,
    fake::{Bug, Fake},
    plan::{Feature, Plan},
    run_plan,
    shrink::shrink,
    store::Store,
    subject::System,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// First seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Requests to volumes in each run, about.
    #[arg(long, default_value_t = 1000)]
    ops: u64,
    /// Another course of events with the options of the seed.
    #[arg(long, default_value_t = 0)]
    course: u64,
    /// Lanes at most.
    #[arg(long)]
    lanes: Option<usize>,
    /// Managers at most.
    #[arg(long)]
    managers: Option<usize>,
    /// Lives of the pool at most.
    #[arg(long)]
    lives: Option<usize>,
    /// Volumes at most.
    #[arg(long)]
    volumes: Option<usize>,
    /// Leave these out.
    #[arg(long, value_delimiter = ',')]
    without: Vec<Feature>,
    /// Flushes that fail may lose what they were to write.
    #[arg(long)]
    forgetful: bool,
    /// Writes that fail land late, those of metadata above all, whatever the seeds say.
    #[arg(long)]
    haunted: bool,
    /// Small pools, whatever the seeds say.
    #[arg(long)]
    tight: bool,
    /// Slow reads, whatever the seeds say.
    #[arg(long)]
    slow: bool,
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
    /// Make failing seeds smaller and print the smallest command line.
    #[arg(long)]
    shrink: bool,
    /// Runs that shrinking one seed may take.
    #[arg(long, default_value_t = 200)]
    shrink_runs: usize,
    /// Drill the stand-in with this bug (by number) instead of the store, to see that it is found.
    #[arg(long)]
    canary: Option<usize>,
    /// Switch this bug of the store on.
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutant: Option<String>,
    /// One line for every seed.
    #[arg(long)]
    verbose: bool,
}

impl Args {
    fn system(&self) -> Arc<dyn System> {
        match self.canary {
            None => Arc::new(Store),
            Some(number) => Arc::new(Fake::new(Bug::ALL.get(number).copied())),
        }
    }

    fn plan(&self, seed: u64) -> Plan {
        Plan {
            seed,
            course: self.course,
            ops: self.ops,
            lanes: self.lanes,
            managers: self.managers,
            lives: self.lives,
            volumes: self.volumes,
            without: self.without.iter().copied().collect(),
            forgetful: self.forgetful,
            haunted: self.haunted,
            tight: self.tight,
            slow: self.slow,
        }
    }

    #[cfg(not(feature = "mutants"))]
    fn run_plan(&self, plan: &Plan) -> Report {
        run_plan(plan, self.system())
    }

    /// With the bug that was asked for, if one was.
    #[cfg(feature = "mutants")]
    fn run_plan(&self, plan: &Plan) -> Report {
        use parallax_drill::mutants::{Mutant, set};
        let is_wanted = |mutant: &Mutant| self.mutant.as_ref() == Some(&format!("{mutant:?}"));
        set(Mutant::ALL.into_iter().find(is_wanted));
        let report = run_plan(plan, self.system());
        set(None);
        report
    }

    fn one(&self, seed: u64) -> Report {
        let mut report = self.run_plan(&self.plan(seed));
        if self.twice && report.failure.is_none() {
            let again = self.run_plan(&self.plan(seed));
            if again.history != report.history {
                let message = format!("the same seed gave history {:016x} the second time", again.history);
                report.failure = Some(Failure::new(message));
            }
        }
        report
    }

    fn shrink(&self, report: &Report) {
        let begun = Instant::now();
        let (plan, runs) = shrink(report, |plan| self.run_plan(plan), self.shrink_runs);
        println!("smaller, after {runs} runs in {:.1} s:", begun.elapsed().as_secs_f64());
        println!("{}", self.run_plan(&plan));
    }
}

/// Whether nothing was found.
pub(crate) fn run(arguments: &Args) -> bool {
    let begun = Instant::now();
    let deadline = arguments.seconds.map(|seconds| begun + Duration::from_secs(seconds));
    let next = AtomicU64::new(0);
    let (sender, reports) = mpsc::channel();
    let (mut total, mut seeds, mut failed) = (Summary::default(), 0u64, Vec::new());
    thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            let (sender, next) = (sender.clone(), &next);
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
            let seed = report.options.plan.seed;
            if report.failure.is_some() || arguments.seeds == 1 {
                println!("{report}");
            } else if arguments.verbose {
                println!("seed {seed}: {}, history {:016x}", report.summary, report.history);
            }
            if report.failure.is_some() {
                if arguments.shrink {
                    arguments.shrink(&report);
                }
                failed.push(seed);
                if failed.len() >= arguments.failures {
                    next.store(arguments.seeds, Ordering::Relaxed);
                    break;
                }
            }
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    let cores = arguments.threads.max(1) as f64;
    println!(
        "{seeds} seeds in {seconds:.1} s on {cores} threads ({:.1} seeds and {:.0} operations a second and thread)",
        seeds as f64 / seconds / cores,
        (total.requests + total.operations) as f64 / seconds / cores,
    );
    println!("{total}");
    if failed.is_empty() {
        println!("nothing was lost.");
    } else {
        println!("FAILED: seeds {failed:?}");
    }
    failed.is_empty()
}
