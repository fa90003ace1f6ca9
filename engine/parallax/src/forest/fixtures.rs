//! Forests for tests.

use super::Forest;
use crate::output::{SnapshotView, VolumeView};

/// Minutes after the start of the story.
const START_MS: i64 = 1_795_200_000_000;

pub(crate) fn volume(name: &str, minute: i64, source: Option<&str>) -> VolumeView {
    VolumeView {
        id: format!("id-{name}"),
        name: name.into(),
        size_bytes: 10 << 30,
        logical_block_bytes: 512,
        created_at: crate::time::iso(START_MS + minute * 60_000),
        created_at_ms: START_MS + minute * 60_000,
        source_snapshot: source.filter(|source| source.contains('@')).map(|source| format!("id-{source}")),
        source_volume: source.filter(|source| !source.contains('@')).map(|source| format!("id-{source}")),
        filesystem: "formatted",
        attached: false,
        deleted: false,
        fault: None,
        snapshots: 0,
        published_to: vec![],
        attributes: Default::default(),
        usage: None,
    }
}

pub(crate) fn snapshot(volume: &str, number: u64, minute: i64, label: &str) -> SnapshotView {
    SnapshotView {
        id: format!("id-{volume}@{number}"),
        volume: volume.into(),
        volume_id: format!("id-{volume}"),
        number,
        name: None,
        label: label.into(),
        created_at: crate::time::iso(START_MS + minute * 60_000),
        created_at_ms: START_MS + minute * 60_000,
        size_bytes: 10 << 30,
        ready: true,
        filesystem: "formatted",
        set: None,
        exclusive_bytes: 0,
    }
}

/// A database, a test server cloned from it, and a clone of that clone.
pub(crate) fn small() -> Forest {
    let mut db = volume("db", 0, None);
    db.attached = true;
    Forest::grow(
        vec![volume("db-test", 30, Some("db@1")), db, volume("db-fix", 80, Some("db-test@1"))],
        vec![
            snapshot("db", 1, 20, "before upgrade"),
            snapshot("db", 2, 60, "after upgrade"),
            snapshot("db-test", 1, 70, "seeded & <ready>"),
        ],
    )
}

/// Sixty snapshots over several lanes, a deleted volume among them, and a second tree.
pub(crate) fn large() -> Forest {
    let mut volumes = vec![
        volume("postgres", 0, None),
        volume("staging", 205, Some("postgres@10")),
        volume("analytics", 410, Some("postgres@20")),
        volume("staging-hotfix", 480, Some("staging@8")),
        volume("golden-image", 5, None),
        volume("vm-01", 300, Some("golden-image@1")),
        volume("vm-02", 310, Some("golden-image@1")),
        volume("vm-03", 320, Some("golden-image@2")),
        volume("scratch", 500, Some("analytics")),
    ];
    volumes[0].attached = true;
    volumes[5].attached = true;
    volumes[1].deleted = true;
    volumes[6].fault = Some("flush failed".into());
    let mut snapshots = Vec::new();
    for number in 1..=30 {
        let label = match number {
            1 => "installed",
            10 => "release 1.0",
            20 => "before migration",
            30 => "release 2.0",
            _ => "",
        };
        snapshots.push(snapshot("postgres", number, number as i64 * 20, label));
    }
    for number in 1..=14 {
        let label = if number == 8 { "bug reproduced" } else { "" };
        snapshots.push(snapshot("staging", number, 210 + number as i64 * 30, label));
    }
    for number in 1..=6 {
        snapshots.push(snapshot("analytics", number, 415 + number as i64 * 12, "nightly"));
    }
    snapshots.push(snapshot("golden-image", 1, 100, "debian 12"));
    snapshots.push(snapshot("golden-image", 2, 280, "debian 12.1"));
    for number in 1..=6 {
        snapshots.push(snapshot("vm-01", number, 330 + number as i64 * 25, ""));
    }
    for number in 1..=2 {
        snapshots.push(snapshot("staging-hotfix", number, 490 + number as i64 * 40, "patched"));
    }
    Forest::grow(volumes, snapshots)
}
