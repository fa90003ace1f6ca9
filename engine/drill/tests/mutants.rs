//! Bugs of the store that are switched on one by one: each must be found, or the drill is deaf to its kind.

use parallax_drill::mutants::{Budget, Mutant, hunt};
use std::{sync::mpsc, thread, time::Duration};

/// For one mutant. Most are found by the first few seeds.
const BUDGET: Budget = Budget { seeds: 400, ops: 600, time: Duration::from_secs(60) };

#[test]
fn every_mutant_of_the_store_is_found() {
    let (sender, missed) = mpsc::channel();
    thread::scope(|scope| {
        for half in 0..2 {
            let sender = sender.clone();
            scope.spawn(move || {
                for mutant in Mutant::ALL.into_iter().skip(half).step_by(2) {
                    let catch = hunt(mutant, BUDGET);
                    if catch.found.is_none() {
                        sender.send((mutant, catch.runs, catch.met)).ok();
                    }
                }
            });
        }
    });
    drop(sender);
    let missed: Vec<_> = missed.into_iter().collect();
    assert_eq!(missed, [], "these were not found in so many runs, though the store came past them so often");
}
