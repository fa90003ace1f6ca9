//! Rules of idempotency and of publication, without a pool.

use super::*;
use parallax_store::{SnapshotId, Timestamp};
use uuid::Uuid;

fn vdi(number: u128) -> VdiId {
    VdiId(Uuid::from_u128(number))
}

fn present() -> VdiInfo {
    VdiInfo {
        id: vdi(1),
        name: Name::new("db").unwrap(),
        size: 1 << 30,
        logical_block: 512,
        created: Timestamp(0),
        source_snapshot: None,
        source_vdi: None,
        filesystem: Default::default(),
        attributes: Default::default(),
        publications: vec![],
        attached: false,
        headless: false,
        snapshots: 0,
    }
}

#[test]
fn the_same_request_again_differs_in_nothing() {
    assert_eq!(difference(&present(), 1 << 30, 0, Source::Empty), None);
    assert_eq!(difference(&present(), 0, 512, Source::Empty), None);
}

#[test]
fn another_size_block_or_source_is_named() {
    let size = difference(&present(), 2 << 30, 0, Source::Empty).unwrap();
    assert_eq!(size, "with 1G instead of 2G");
    assert!(difference(&present(), 0, 4096, Source::Empty).unwrap().contains("blocks of 512"));
    assert!(difference(&present(), 0, 0, Source::Vdi(vdi(2))).unwrap().contains("another source"));
}

#[test]
fn a_clone_of_a_volume_is_not_a_clone_of_its_snapshot() {
    let snapshot = SnapshotId { vdi: vdi(2), number: 3 };
    // A store may keep the snapshot that it took for the clone.
    let clone = VdiInfo { source_snapshot: Some(snapshot), source_vdi: Some(vdi(2)), ..present() };
    assert_eq!(difference(&clone, 0, 0, Source::Vdi(vdi(2))), None);
    assert!(difference(&clone, 0, 0, Source::Snapshot(snapshot)).is_some());
    assert!(difference(&clone, 0, 0, Source::Empty).is_some());
}

#[test]
fn sizes_out_of_range_have_their_code() {
    assert_eq!(check_size(VOLUME_BYTES_MAX + 4096).unwrap_err().code(), tonic::Code::OutOfRange);
    assert_eq!(check_size(4095).unwrap_err().code(), tonic::Code::InvalidArgument);
    assert_eq!(check_covers(Some(4096), 8192).unwrap_err().code(), tonic::Code::OutOfRange);
    assert!(check_covers(None, 8192).is_ok());
}

#[test]
fn a_second_node_is_told_who_is_first() {
    let publication = |node: &str, read_only| Publication { node: Name::new(node).unwrap(), read_only };
    let mut volume = present();
    let first = publish_in(&volume, &publication("a", false)).unwrap();
    assert_eq!(first, Some(vec![publication("a", false)]));
    volume.publications = first.unwrap();
    assert_eq!(publish_in(&volume, &publication("a", false)).unwrap(), None);
    let other_access = publish_in(&volume, &publication("a", true)).unwrap_err();
    assert_eq!(other_access.kind(), ErrorKind::AlreadyExists);
    let other_node = publish_in(&volume, &publication("b", false)).unwrap_err();
    assert_eq!(other_node.kind(), ErrorKind::FailedPrecondition);
    assert!(other_node.to_string().contains("published to a"), "{other_node}");
}
