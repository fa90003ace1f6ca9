//! Order, origins and both drawings.

use super::{fixtures::*, *};

#[test]
fn children_follow_their_parents_whatever_the_order_of_the_lists() {
    let forest = small();
    let names: Vec<_> = forest.lanes.iter().map(|lane| lane.volume.name.as_str()).collect();
    assert_eq!(names, ["db", "db-test", "db-fix"]);
    assert_eq!(forest.lanes[1].origin, Some(Origin { lane: 0, snapshot: Some(0) }));
    assert_eq!(forest.lanes[2].origin, Some(Origin { lane: 1, snapshot: Some(0) }));
}

#[test]
fn a_clone_whose_snapshot_is_gone_still_hangs_on_its_volume() {
    let forest = large();
    let scratch = forest.lanes.iter().find(|lane| lane.volume.name == "scratch").unwrap();
    let origin = scratch.origin.unwrap();
    assert_eq!(forest.lanes[origin.lane].volume.name, "analytics");
    assert_eq!(origin.snapshot, None);
}

#[test]
fn a_volume_brings_its_whole_tree_and_no_other() {
    let forest = large().around("id-staging-hotfix");
    let names: Vec<_> = forest.lanes.iter().map(|lane| lane.volume.name.as_str()).collect();
    assert_eq!(names, ["postgres", "staging", "staging-hotfix", "analytics", "scratch"]);
    assert_eq!(forest.lanes[2].origin, Some(Origin { lane: 1, snapshot: Some(7) }));
    assert!(large().around("nobody").lanes.is_empty());
}

#[test]
fn volumes_that_name_each_other_as_source_end_somewhere() {
    let forest = Forest::grow(vec![volume("a", 0, Some("b@1")), volume("b", 1, Some("a@1"))], vec![]);
    assert_eq!(forest.lanes.len(), 2);
    assert!(forest.lanes[0].origin.is_none());
}

#[test]
fn text_shows_snapshots_clones_and_clones_of_clones() {
    assert_eq!(
        terminal::draw(&small()),
        "db  10 GiB  attached
├─● @1  2026-11-20 19:00  before upgrade
│  └─ db-test  10 GiB
│     └─● @1  2026-11-20 19:50  seeded & <ready>
│        └─ db-fix  10 GiB
└─● @2  2026-11-20 19:40  after upgrade
"
    );
}
