//! `parallax-model [quick|full] [MODEL] [RULE]`: explores, prints what was found, and fails if that was not expected.
#![forbid(unsafe_code)]

use parallax_model::{
    cases::{self, Case, Size},
    explore::Outcome,
};
use std::{collections::BTreeMap, process::ExitCode, time::Instant};

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).peekable();
    let size = match words.peek().map(String::as_str) {
        Some("full") => Size::Full,
        Some("quick") => Size::Quick,
        Some("-h" | "--help") => {
            println!(
                "parallax-model [quick|full] [MODEL] [RULE]\n\nExplores the protocol of many hosts, all rules kept, then \
                 each rule dropped.\nWith MODEL that model only. With RULE only without this rule, or without `nothing`, \
                 and prints the shortest way to a broken promise."
            );
            return ExitCode::SUCCESS;
        }
        _ => Size::Quick,
    };
    if matches!(words.peek().map(String::as_str), Some("full" | "quick")) {
        words.next();
    }
    let (model, rule) = (words.next(), words.next());
    let chosen = |case: &Case| {
        model.as_ref().is_none_or(|model| model == case.model)
            && rule.as_ref().is_none_or(|rule| rule == case.dropped.as_deref().unwrap_or("nothing"))
    };
    let mut failures = 0;
    let mut runs = 0;
    let mut seen: BTreeMap<&str, (u32, Outcome)> = BTreeMap::new();
    for case in cases::promises(size).into_iter().chain(cases::canaries()).filter(chosen) {
        runs += 1;
        let (outcome, expected) = run(&case, rule.is_some());
        failures += u32::from(!expected);
        if case.dropped.is_none() {
            let before = seen.get(case.model).map_or(0, |(before, _)| *before);
            seen.insert(case.model, (before | outcome.seen, outcome));
        }
    }
    for (model, (seen, outcome)) in seen {
        for sight in outcome.unseen(seen) {
            println!("NOT EXPECTED: {model}: never seen: {sight}");
            failures += 1;
        }
    }
    if runs == 0 {
        eprintln!("there is no such model or rule; `parallax-model quick` shows all");
        return ExitCode::FAILURE;
    }
    println!("{runs} runs, {failures} surprises");
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the outcome is the one that is expected.
fn run(case: &Case, tell: bool) -> (Outcome, bool) {
    let begun = Instant::now();
    let outcome = case.explore();
    let seconds = begun.elapsed().as_secs_f64();
    let rules = case.dropped.as_ref().map_or("all rules kept".to_owned(), |rule| format!("without {rule}"));
    println!(
        "{}, {rules}: {} states, {} steps, depth {}, {seconds:.1} s",
        case.model, outcome.states, outcome.steps, outcome.depth
    );
    if case.dropped.is_none() {
        println!("    {}", case.budget);
    }
    match (&outcome.counterexample, &case.dropped) {
        (Some(trace), Some(_)) if tell => println!("{trace}"),
        (Some(trace), Some(_)) => println!("    found in {} steps: {}", trace.steps.len(), trace.broken),
        (Some(trace), None) => println!("NOT EXPECTED:\n{trace}"),
        (None, Some(_)) => println!("NOT EXPECTED: nothing is broken"),
        (None, None) if !outcome.complete => println!("NOT EXPECTED: there are more states than fit"),
        (None, None) => {}
    }
    let expected = match case.dropped {
        Some(_) => outcome.counterexample.is_some(),
        None => outcome.counterexample.is_none() && outcome.complete,
    };
    (outcome, expected)
}
