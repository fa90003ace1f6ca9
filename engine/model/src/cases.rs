//! Every run by name: each model with all rules kept, and once with each rule dropped.
//!
//! Invariants:
//! * With all rules kept no promise is broken, every state is looked at, and every sight comes up.
//! * With any one rule dropped a counterexample is found. So every rule that is listed is both modelled and needed.

use crate::{
    explore::{Model, Outcome, explore},
    gc::{self, GcModel},
    lease::{self, LeaseModel},
    manager::{self, ManagerModel},
    takeover::{self, TakeoverModel},
};
use std::fmt::Display;

/// More states than this do not fit into the memory of a small machine.
const STATES_MAX: usize = 40_000_000;

/// How much may happen in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// All runs together take less than a minute.
    Quick,
    /// Minutes.
    Full,
}

/// One run.
pub struct Case {
    /// Which model.
    pub model: &'static str,
    /// The rule that nobody keeps, if any.
    pub dropped: Option<String>,
    /// What may happen, for a person to read.
    pub budget: String,
    explore: Box<dyn Fn() -> Outcome + Send>,
}

impl Case {
    fn new<M: Model + Send + 'static>(
        name: &'static str,
        dropped: Option<impl Display>,
        budget: String,
        model: M,
    ) -> Self {
        Self {
            model: name,
            dropped: dropped.map(|rule| rule.to_string()),
            budget,
            explore: Box::new(move || explore(&model, STATES_MAX)),
        }
    }

    /// Runs it.
    pub fn explore(&self) -> Outcome {
        (self.explore)()
    }
}

/// Runs in which all rules are kept.
pub fn promises(size: Size) -> Vec<Case> {
    let mut cases = Vec::new();
    for budget in manager::Budget::of(size) {
        let model = ManagerModel { budget, dropped: None };
        cases.push(Case::new("manager", None::<String>, format!("{budget:?}"), model));
    }
    for budget in takeover::Budget::of(size) {
        let model = TakeoverModel { budget, dropped: None };
        cases.push(Case::new("takeover", None::<String>, format!("{budget:?}"), model));
    }
    for budget in gc::Budget::of(size) {
        let model = GcModel { budget, dropped: None };
        cases.push(Case::new("gc", None::<String>, format!("{budget:?}"), model));
    }
    cases.push(Case::new("lease", None::<String>, "no bounds".to_owned(), LeaseModel { dropped: None }));
    cases
}

/// Runs in which one rule is dropped, all of them.
pub fn canaries() -> Vec<Case> {
    let mut cases = Vec::new();
    for rule in manager::Rule::ALL {
        let budget = rule.budget();
        let model = ManagerModel { budget, dropped: Some(rule) };
        cases.push(Case::new("manager", Some(rule), format!("{budget:?}"), model));
    }
    for rule in takeover::Rule::ALL {
        let budget = rule.budget();
        let model = TakeoverModel { budget, dropped: Some(rule) };
        cases.push(Case::new("takeover", Some(rule), format!("{budget:?}"), model));
    }
    for rule in gc::Rule::ALL {
        let budget = rule.budget();
        let model = GcModel { budget, dropped: Some(rule) };
        cases.push(Case::new("gc", Some(rule), format!("{budget:?}"), model));
    }
    for rule in lease::Rule::ALL {
        let model = LeaseModel { dropped: Some(rule) };
        cases.push(Case::new("lease", Some(rule), "no bounds".to_owned(), model));
    }
    cases
}
