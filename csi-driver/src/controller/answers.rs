//! The manager's messages as CSI's.

use crate::TOPOLOGY_KEY;
use crate::ids::{GroupName, SnapshotId};
use crate::proto::csi::{self, volume_content_source};
use parallax_api::v1;
use prost_types::Timestamp;

/// A volume of the pool `pool`.
pub(crate) fn volume(volume: &v1::Volume, pool: &str) -> csi::Volume {
    csi::Volume {
        capacity_bytes: bytes(volume.size_bytes),
        volume_id: volume.id.clone(),
        volume_context: Default::default(),
        content_source: content_source(volume),
        accessible_topology: vec![topology(pool)],
    }
}

/// A clone of a volume also has a snapshot as its source: the one that was taken for it. What was asked for counts.
pub(crate) fn content_source(volume: &v1::Volume) -> Option<csi::VolumeContentSource> {
    use volume_content_source::{SnapshotSource, Type, VolumeSource};
    let kind = if !volume.source_volume_id.is_empty() {
        Type::Volume(VolumeSource { volume_id: volume.source_volume_id.clone() })
    } else if !volume.source_snapshot_id.is_empty() {
        Type::Snapshot(SnapshotSource { snapshot_id: volume.source_snapshot_id.clone() })
    } else {
        return None;
    };
    Some(csi::VolumeContentSource { r#type: Some(kind) })
}

/// Where the pool can be reached.
pub(crate) fn topology(pool: &str) -> csi::Topology {
    csi::Topology { segments: [(TOPOLOGY_KEY.to_owned(), pool.to_owned())].into() }
}

/// Nodes that may use the volume.
pub(crate) fn published_nodes(volume: &v1::Volume) -> Vec<String> {
    volume.publications.iter().map(|publication| publication.node.clone()).collect()
}

/// A snapshot.
pub(crate) fn snapshot(snapshot: &v1::Snapshot) -> csi::Snapshot {
    csi::Snapshot {
        size_bytes: bytes(snapshot.size_bytes),
        snapshot_id: snapshot.id.clone(),
        source_volume_id: source_of(snapshot),
        creation_time: Some(timestamp(snapshot.created_at_ms)),
        ready_to_use: snapshot.ready,
        group_snapshot_id: group_of(snapshot).to_owned(),
        accessible_topology: Vec::new(),
    }
}

/// The volume that a snapshot was taken of.
pub(crate) fn source_of(snapshot: &v1::Snapshot) -> String {
    match SnapshotId::parse(&snapshot.id) {
        Some(id) if snapshot.volume_id.is_empty() => id.volume().to_string(),
        _ => snapshot.volume_id.clone(),
    }
}

/// The group that a snapshot belongs to; empty for one that was taken alone, whatever set the manager keeps it in.
pub(crate) fn group_of(snapshot: &v1::Snapshot) -> &str {
    if GroupName::marks(&snapshot.name) { &snapshot.set_id } else { "" }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn timestamp(millis: i64) -> Timestamp {
    let nanos = i32::try_from(millis.rem_euclid(1000) * 1_000_000).unwrap_or(0);
    Timestamp { seconds: millis.div_euclid(1000), nanos }
}

/// Sizes are at most 256 TiB, so this never saturates.
pub(crate) fn bytes(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_names_what_it_was_asked_to_be_cloned_from() {
        let mut clone = v1::Volume { source_snapshot_id: "s".into(), ..Default::default() };
        let source = |volume: &v1::Volume| content_source(volume).unwrap().r#type.unwrap();
        assert!(matches!(source(&clone), volume_content_source::Type::Snapshot(s) if s.snapshot_id == "s"));
        clone.source_volume_id = "v".into();
        assert!(matches!(source(&clone), volume_content_source::Type::Volume(v) if v.volume_id == "v"));
        assert_eq!(content_source(&v1::Volume::default()), None);
    }

    #[test]
    fn moments_before_the_epoch_are_moments_too() {
        assert_eq!(timestamp(1_500), Timestamp { seconds: 1, nanos: 500_000_000 });
        assert_eq!(timestamp(-500), Timestamp { seconds: -1, nanos: 500_000_000 });
    }
}
