//! Every promise holds while all rules are kept, and every rule is missed when it is dropped.
#![forbid(unsafe_code)]

use parallax_model::cases::{Size, canaries, promises};
use std::collections::BTreeMap;

#[test]
fn the_promises_hold_in_every_state() {
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    let mut unseen = BTreeMap::new();
    for case in promises(Size::Quick) {
        let outcome = case.explore();
        if let Some(trace) = outcome.counterexample {
            panic!("{}: the protocol has a hole\n{trace}", case.model);
        }
        assert!(outcome.complete, "{}: {} states are not all", case.model, outcome.states);
        let all = seen.entry(case.model).or_insert(0);
        *all |= outcome.seen;
        unseen.insert(case.model, outcome.unseen(*all));
        println!("{}: {} states, depth {}", case.model, outcome.states, outcome.depth);
    }
    for (model, unseen) in unseen {
        assert_eq!(unseen, [""; 0], "{model}: what never happens proves nothing");
    }
}

#[test]
fn every_rule_is_missed_when_it_is_dropped() {
    let mut not_missed = Vec::new();
    for case in canaries() {
        let rule = case.dropped.clone().expect("a canary drops a rule");
        match case.explore().counterexample {
            Some(trace) => println!("{} without {rule}:\n{trace}\n", case.model),
            None => not_missed.push(format!("{}: {rule}", case.model)),
        }
    }
    assert_eq!(not_missed, [""; 0], "either not modelled or not needed");
}
