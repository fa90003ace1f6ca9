//! A short drill of the real store; `cargo run -p parallax-drill -- --seeds N` is the long one.

use parallax_drill::{run, store::Store};
use std::sync::Arc;

const SEEDS: u64 = 150;
const OPS: u64 = 600;

#[test]
fn nothing_acknowledged_is_lost_in_any_of_these_worlds() {
    for seed in 0..SEEDS {
        let report = run(seed, OPS, Arc::new(Store));
        assert_eq!(report.failure, None, "{report}");
    }
}

#[test]
fn the_store_replays_exactly_from_a_seed() {
    for seed in [3, 20, 33] {
        let (first, again) = (run(seed, OPS, Arc::new(Store)), run(seed, OPS, Arc::new(Store)));
        assert_eq!((first.history, first.summary), (again.history, again.summary), "seed {seed}");
    }
}
