//! Replays what is kept, and looks for more.

use crate::{
    Corpus, Input, Outcome, Target,
    corpus::UNKNOWN,
    guard::{self, Turn},
    harvest::Harvest,
    mutate,
};
use proptest::{
    prelude::ProptestConfig,
    test_runner::{RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    env,
    time::{Duration, Instant},
};

/// Every target keeps so many inputs at least.
const LEAST: usize = 5;

/// Inputs between two looks at the clock.
const ROUND: u32 = 256;

/// Whether `FUZZ` asks for this.
fn asked(what: &str) -> bool {
    env::var_os("FUZZ").is_some_and(|value| value == what)
}

/// Whether outcomes are written instead of compared.
fn writes() -> bool {
    asked("write")
}

/// Whether an input that fails is written to the corpus.
fn keeps() -> bool {
    asked("keep") || writes()
}

fn setting(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

impl Target<'_> {
    /// Makes the bytes of an input and gives them to the code under test.
    pub(crate) fn tried(&self, turn: &Turn, input: &Input) -> Result<Outcome, String> {
        let base = match &input.base {
            Some(name) => &self.seed(name)?.bytes[..],
            None => &[],
        };
        let mut bytes = input.apply(base)?;
        if input.sealed {
            let seal = self.seal.as_ref().ok_or_else(|| format!("{} knows no seal", self.name))?;
            seal(base, &mut bytes);
        }
        guard::run(turn, self.bound, format!("{}: {input}", self.name), &|| (self.run)(&bytes))
    }
}

/// Runs every kept input and compares what comes of it. Panics with all that differs, or if few are there: a
/// corpus that is not found must not pass.
pub fn replay(target: &Target<'_>) {
    let turn = guard::turn();
    let path = target.corpus();
    let mut corpus = Corpus::read(&path).unwrap_or_else(|error| panic!("{error}"));
    let mut wrong = Vec::new();
    for seed in &target.seeds {
        let outcome = target.tried(&turn, &Input { base: Some(seed.name.into()), ..Input::default() });
        if outcome != Ok(Outcome::Accepted) {
            wrong.push(format!("the valid seed {} came to: {outcome:?}", seed.name));
        }
    }
    let mut seen = BTreeSet::new();
    for entry in &mut corpus.entries {
        if !seen.insert(entry.input.to_string()) {
            wrong.push(format!("{}: another has the same input", entry.name));
        }
        match target.tried(&turn, &entry.input) {
            Err(broken) => wrong.push(format!("{}: {broken}", entry.name)),
            Ok(outcome) if outcome.to_string() == entry.outcome => {}
            Ok(outcome) if writes() => entry.outcome = outcome.to_string(),
            Ok(outcome) => wrong.push(format!("{}: {outcome}\n    not: {}", entry.name, entry.outcome)),
        }
    }
    if writes() {
        corpus.write(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    assert!(
        wrong.is_empty(),
        "{} of {} kept inputs of {} come to something else. If that is meant, `FUZZ=write cargo test -p PACKAGE --test \
         fuzz` writes {} anew.\n{}",
        wrong.len(),
        corpus.entries.len(),
        target.name,
        path.display(),
        wrong.join("\n")
    );
    let kept = corpus.entries.len();
    assert!(
        kept >= LEAST || env::var_os("FUZZ").is_some(),
        "{} keeps {kept} inputs in {}; {LEAST} is the least",
        target.name,
        path.display()
    );
}

/// Makes bad inputs from the seeds and from the kept ones. Panics with the smallest input that breaks a promise.
pub fn explore(target: &Target<'_>) {
    let turn = guard::turn();
    let path = target.corpus();
    let mut corpus = Corpus::read(&path).unwrap_or_else(|error| panic!("{error}"));
    let bases: Vec<Input> = target
        .seeds
        .iter()
        // Seeds weigh as much as everything that was made of them.
        .flat_map(|seed| {
            let weight = corpus.entries.len() / target.seeds.len().max(1) + 1;
            std::iter::repeat_n(Input { base: Some(seed.name.into()), ..Input::default() }, weight)
        })
        .chain(corpus.entries.iter().map(|entry| entry.input.clone()))
        .collect();
    let cases = setting("FUZZ_CASES").map_or(target.cases, |cases| cases as u32);
    let until = setting("FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&setting("FUZZ_SEED").unwrap_or(1).to_le_bytes());
    let config = ProptestConfig {
        cases: if until.is_some() { ROUND } else { cases },
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let harvest = asked("harvest").then(|| RefCell::new(Harvest::new(&corpus)));
    let made = Cell::new(0_u64);
    loop {
        let plans = mutate::plans(target.seal.is_some());
        let outcome = runner.run(&plans, |plan| {
            let input = input(target, &bases, &plan).map_err(TestCaseError::reject)?;
            made.set(made.get() + 1);
            let outcome = target.tried(&turn, &input).map_err(TestCaseError::fail)?;
            if let Some(harvest) = &harvest {
                harvest.borrow_mut().offer(target, &turn, &input, &outcome);
            }
            Ok(())
        });
        match outcome {
            Ok(()) => {}
            Err(TestError::Abort(reason)) => panic!("{}: {reason}", target.name),
            Err(TestError::Fail(reason, plan)) => {
                let input = input(target, &bases, &plan).expect("it was made before");
                let mut kept = String::new();
                if keeps() {
                    let name = corpus.keep(input.clone(), &reason.to_string());
                    corpus.write(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    kept = format!(", kept as {name}");
                }
                panic!(
                    "{}: {reason}\n  {input}\nTo replay it, put it into {} with a name and `=> {UNKNOWN}`{kept}, and \
                     run `cargo test -p PACKAGE --test fuzz`.",
                    target.name,
                    path.display()
                );
            }
        }
        if until.is_none_or(|until| Instant::now() >= until) {
            break;
        }
    }
    if let Some(harvest) = harvest {
        corpus.entries.extend(harvest.into_inner().new);
        corpus.write(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    println!("{}: {} inputs made of {}", target.name, made.get(), bases.len());
}

fn input(target: &Target<'_>, bases: &[Input], plan: &mutate::Plan) -> Result<Input, String> {
    let base = &bases[plan.base.index(bases.len())];
    let seed = base.base.as_ref().map(|name| target.seed(name)).transpose()?;
    plan.settle(base, seed, target.moves)
}
