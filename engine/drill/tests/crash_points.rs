//! Crash points of every workload of one operation; `parallax-drill enumerate --ops 2` is the long one.

use parallax_drill::{
    enumerate::{Closeness, Tally, enumerate, rot, scripts},
    store::Store,
};
use std::sync::Arc;

#[test]
fn every_crash_point_of_one_operation_opens_and_holds_what_it_may() {
    let mut total = Tally::default();
    for script in scripts(1) {
        let (tally, failure) = enumerate(&script, Closeness { images_max: 6, seed: 0 }, Arc::new(Store));
        assert_eq!(failure, None, "{script}");
        total.add(&tally);
    }
    assert!(total.points > 800, "{total:?}");
}

#[test]
fn every_damaged_block_of_metadata_is_noticed_or_does_no_harm() {
    let (tally, failure) = rot(0, Arc::new(Store));
    assert_eq!(failure, None);
    assert!(tally.points > 20, "{tally:?}");
}
