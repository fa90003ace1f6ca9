//! Every promise holds while all rules are kept, and every rule is missed when it is dropped.
#![forbid(unsafe_code)]

use parallax_model::cases::{Size, canaries, promises};

#[test]
fn the_promises_hold_in_every_state() {
    for case in promises(Size::Quick) {
        let outcome = case.explore();
        if let Some(trace) = outcome.counterexample {
            panic!("{}: the protocol has a hole\n{trace}", case.model);
        }
        assert!(outcome.complete, "{}: {} states are not all", case.model, outcome.states);
        assert_eq!(outcome.unseen, [""; 0], "{}: what never happens proves nothing", case.model);
        println!("{}: {} states, depth {}", case.model, outcome.states, outcome.depth);
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
