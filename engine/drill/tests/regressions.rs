//! Seeds that have found something, with their stories. Another version of the generators may lead them elsewhere; the
//! tests of the store's rules keep the bugs themselves.

use parallax_drill::{run, store::Store};
use std::sync::Arc;

const FOUND: [(u64, u64, &str); 8] = [
    (1096, 1000, "a write that took blocks from a run older than a collection lost them to the sweep"),
    (78, 800, "a delete in a full pool was refused because a collection was under way"),
    (56, 700, "an opening that failed halfway gave back the journal that its root slot named"),
    (262, 700, "the same, freed twice"),
    (279, 700, "the same, freed twice by a release"),
    (1363, 700, "root slots were read while another task was writing them, and taken for damaged"),
    (40163, 1000, "a record that failed and landed late named slots that garbage collection had freed"),
    (484, 600, "a detach beside another user of the volume answered before anything was durable"),
];

#[test]
fn what_was_found_once_is_not_found_again() {
    for (seed, ops, story) in FOUND {
        let report = run(seed, ops, Arc::new(Store));
        assert_eq!(report.failure, None, "{story}\n{report}");
    }
}
