//! The drill itself: quiet when nothing is wrong, loud for every kind of bug, and the same twice.

use parallax_drill::{
    Report,
    fake::{Bug, Fake},
    run,
};
use std::sync::Arc;

const OPS: u64 = 1200;

fn drill(seed: u64, bug: Option<Bug>) -> Report {
    run(seed, OPS, Arc::new(Fake::new(bug)))
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    for seed in 0..30 {
        let report = drill(seed, None);
        assert_eq!(report.failure, None, "{report}");
    }
}

#[test]
fn every_bug_is_found() {
    // Each canary sings within this many seeds, or the oracle has gone deaf to its kind of bug.
    const SEEDS_MAX: u64 = 60;
    let deaf: Vec<Bug> = Bug::ALL
        .into_iter()
        .filter(|bug| (0..SEEDS_MAX).all(|seed| drill(seed, Some(*bug)).failure.is_none()))
        .collect();
    assert_eq!(deaf, [], "these bugs were not found in {SEEDS_MAX} seeds");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..5 {
        let (first, again) = (drill(seed, None), drill(seed, None));
        assert_eq!((first.history, first.summary), (again.history, again.summary), "seed {seed}");
    }
    let broken = || drill(3, Some(Bug::FlushDoesNothing));
    assert_eq!(broken().failure, broken().failure);
    assert_ne!(drill(1, None).history, drill(2, None).history);
}

#[test]
fn a_report_says_how_to_run_it_again() {
    let report = (0..60)
        .map(|seed| drill(seed, Some(Bug::PartialWriteClearsBlock)))
        .find(|report| report.failure.is_some())
        .expect("found by some seed");
    let text = report.to_string();
    assert!(text.contains(&format!("--seed {} --ops {OPS}", report.options.plan.seed)), "{text}");
    assert!(text.contains("may hold"), "{text}");
}
