//! Makes a failing plan smaller, as long as it goes on failing in the same way.
//!
//! One step leaves something out: half of the operations, a lane, a manager, a life, a feature. A seed takes another
//! course when something is left out and may lose the failure by chance, so each step is tried with some courses
//! before it is taken back. What remains is small, not the smallest.

use crate::{
    Failure, Report,
    options::Options,
    plan::{Feature, Plan},
};

/// Smallest number of operations that is tried.
const OPS_MIN: u64 = 8;
/// Courses that are tried for each step: few at first, and more when nothing gets smaller with few. What needs a rare
/// order of events fails in one course of many, and would look as if it needed everything.
const COURSES: [u64; 3] = [4, 12, 40];

/// What kind of failure it is: its words, without numbers and identities.
fn kind(failure: &Failure) -> String {
    let plain = |word: &&str| !word.is_empty() && word.chars().all(char::is_alphabetic);
    failure.message.split([' ', ':', ',', '(', ')']).filter(plain).take(6).collect::<Vec<_>>().join(" ")
}

/// A smaller plan that fails like `report`, and how many runs it took to find it; at most `runs_max`.
pub fn shrink(report: &Report, run: impl Fn(&Plan) -> Report, runs_max: usize) -> (Plan, usize) {
    let mut plan = report.options.plan.clone();
    let Some(wanted) = report.failure.as_ref().map(kind) else { return (plan, 0) };
    let mut runs = 0;
    let mut patience = 0;
    while let Some(courses) = COURSES.get(patience) {
        let last = plan.clone();
        for step in 0.. {
            let Some(smaller) = steps(&plan).into_iter().nth(step) else { break };
            for course in 0..*courses {
                if runs == runs_max {
                    return (plan, runs);
                }
                runs += 1;
                let candidate = Plan { course: plan.course.wrapping_add(course) % 1000, ..smaller.clone() };
                if run(&candidate).failure.as_ref().map(kind).as_ref() == Some(&wanted) {
                    plan = candidate;
                    break;
                }
            }
        }
        // After a success, few courses may do again.
        patience = if plan == last { patience + 1 } else { 0 };
    }
    (plan, runs)
}

/// Plans that do a little less each, the boldest first.
fn steps(plan: &Plan) -> Vec<Plan> {
    let present = Options::derive(plan);
    let mut steps = Vec::new();
    for bound in [1, present.lives.saturating_sub(1)] {
        steps.push(Plan { lives: Some(bound.clamp(1, present.lives)), ..plan.clone() });
    }
    for (numerator, denominator) in [(1, 8), (1, 2), (3, 4)] {
        let ops = (plan.ops * numerator / denominator).max(OPS_MIN).min(plan.ops);
        steps.push(Plan { ops, ..plan.clone() });
    }
    for bound in [1, present.lanes / 2, present.lanes.saturating_sub(1)] {
        steps.push(Plan { lanes: Some(bound.clamp(1, present.lanes)), ..plan.clone() });
    }
    for bound in [1, present.volumes_max.saturating_sub(1)] {
        steps.push(Plan { volumes: Some(bound.clamp(1, present.volumes_max)), ..plan.clone() });
    }
    for bound in [1, present.managers.saturating_sub(1)] {
        steps.push(Plan { managers: Some(bound.clamp(1, present.managers)), ..plan.clone() });
    }
    for feature in Feature::ALL {
        let mut without = plan.without.clone();
        without.insert(feature);
        steps.push(Plan { without, ..plan.clone() });
    }
    // Only what makes a difference.
    let text = present.to_string();
    steps.retain(|step| Options::derive(step).to_string() != text);
    steps
}
