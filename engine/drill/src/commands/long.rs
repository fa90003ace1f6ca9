//! `long`: hours of everything, with a summary for a person.

use parallax_drill::{
    Report, Summary,
    enumerate::{Closeness, Tally, enumerate, scripts},
    plan::Plan,
    run_plan,
    shrink::shrink,
    store::Store,
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
    /// How long.
    #[arg(long, default_value_t = 2.0)]
    hours: f64,
    /// First seed; the next run should begin where this one ends.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Requests to volumes in each run, about.
    #[arg(long, default_value_t = 1000)]
    ops: u64,
    /// Operations of the workloads whose crash points are looked at.
    #[arg(long, default_value_t = 3)]
    script_ops: usize,
    /// Threads, each with a world of its own.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Minutes between two lines that say how it goes.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
}

/// What one turn of a thread has done.
enum Turn {
    Seed(Box<Report>),
    Script(Tally, Option<String>),
}

/// Of so many turns one is a workload, the others are seeds.
const TURNS: u64 = 8;

/// Whether nothing was found.
pub(crate) fn run(arguments: &Args) -> bool {
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs_f64(arguments.hours * 3600.0);
    let list = scripts(arguments.script_ops);
    let next = AtomicU64::new(0);
    let (sender, turns) = mpsc::channel::<Turn>();
    let (mut total, mut seeds, mut crashes) = (Summary::default(), 0u64, Tally::default());
    let mut findings: Vec<String> = Vec::new();
    thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            let (sender, next, list) = (sender.clone(), &next, &list);
            scope.spawn(move || {
                while Instant::now() < deadline {
                    let turn = one(arguments, next.fetch_add(1, Ordering::Relaxed), list);
                    if sender.send(turn).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut said = begun;
        for turn in turns {
            match turn {
                Turn::Seed(report) => {
                    seeds += 1;
                    total.add(&report.summary);
                    if report.failure.is_some() {
                        let (plan, _) = shrink(&report, |plan| run_plan(plan, Arc::new(Store)), 100);
                        let message = report.failure.as_ref().map_or("", |failure| failure.message.as_str());
                        findings.push(format!("{}: {message}", plan.arguments()));
                        println!("FOUND {}", findings[findings.len() - 1]);
                    }
                }
                Turn::Script(tally, failure) => {
                    crashes.add(&tally);
                    if let Some(message) = failure {
                        println!("FOUND {message}");
                        findings.push(message);
                    }
                }
            }
            if said.elapsed() >= Duration::from_secs(arguments.minutes * 60) {
                said = Instant::now();
                println!(
                    "{:>6.1} min: {seeds} seeds, {} crash points, {} findings",
                    begun.elapsed().as_secs_f64() / 60.0,
                    crashes.points,
                    findings.len()
                );
            }
        }
    });
    report(arguments, begun.elapsed(), seeds, &total, &crashes, &findings);
    findings.is_empty()
}

fn one(arguments: &Args, turn: u64, list: &[parallax_drill::enumerate::Script]) -> Turn {
    if turn % TURNS != TURNS - 1 {
        let seed = arguments.seed + turn - turn / TURNS;
        return Turn::Seed(Box::new(run_plan(&Plan::new(seed, arguments.ops), Arc::new(Store))));
    }
    // A prime stride visits the whole list, each time round with another course of events.
    let number = turn / TURNS;
    let script = &list[(number * 7919 % list.len() as u64) as usize];
    let seed = arguments.seed + number;
    let (tally, failure) = enumerate(script, Closeness { images_max: 8, seed }, Arc::new(Store));
    Turn::Script(tally, failure.map(|failure| format!("enumerate --seed {seed} {}", failure.message)))
}

fn report(args: &Args, took: Duration, seeds: u64, total: &Summary, crashes: &Tally, findings: &[String]) {
    let core_seconds = took.as_secs_f64() * args.threads.max(1) as f64;
    println!("\n{:.2} hours on {} threads", took.as_secs_f64() / 3600.0, args.threads);
    let rows: [(&str, u64); 25] = [
        ("seeds", seeds),
        ("next seed", args.seed + seeds),
        ("requests to volumes", total.requests),
        ("management operations", total.operations),
        ("snapshots", total.snapshots),
        ("garbage collections", total.collections),
        ("requests to the disk", total.disk_requests),
        ("pools closed", total.closes),
        ("processes killed", total.kills),
        ("power cuts", total.power_cuts),
        ("of both, while opening", total.deaths_while_opening),
        ("whole pools verified", total.checks),
        ("lives with a faulty disk", total.faulty_lives),
        ("disk requests failed", total.faults.failed),
        ("disk requests delayed for long", total.faults.slowed),
        ("ghosts", total.faults.ghosts),
        ("writes and flushes lost", total.faults.lost),
        ("writes gone astray", total.faults.misdirected),
        ("disks that lied", total.lies),
        ("of those, noticed", total.lies_noticed),
        ("times all space accounted for", total.accounts),
        ("metadata blocks damaged", total.probes),
        ("of those, refused", total.refusals),
        ("workloads", crashes.scripts),
        ("crash points", crashes.points),
    ];
    for (name, value) in rows {
        println!("  {name:<32} {value:>14}");
    }
    println!("  {:<32} {:>14.1}", "seeds a core-second, about", seeds as f64 / core_seconds);
    match findings {
        [] => println!("nothing was lost."),
        _ => {
            println!("{} FINDINGS", findings.len());
            findings.iter().for_each(|finding| println!("  {finding}"));
        }
    }
}
