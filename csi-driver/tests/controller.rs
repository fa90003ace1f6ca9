//! The controller over the test daemon: what csi-sanity does not ask.

mod support;

use parallax_api::v1;
use parallax_csi::proto::csi::{
    self, group_controller_client::GroupControllerClient, snapshot_metadata_client::SnapshotMetadataClient,
};
use support::world::{CreateRequest, MIB, World, block, ext4, from_snapshot, from_volume, mounted};
use tokio_stream::StreamExt as _;
use tonic::{Code, Status};

const UNKNOWN: &str = "6f1d9a52-0b6e-4d0e-9a6e-0c7a8f3b1c2d";

fn parameters(pairs: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn publish(volume: &str, node: &str, readonly: bool) -> csi::ControllerPublishVolumeRequest {
    csi::ControllerPublishVolumeRequest {
        volume_id: volume.into(),
        node_id: node.into(),
        volume_capability: Some(ext4()),
        readonly,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_many_times_at_once_makes_one_volume() {
    let world = World::new().await;
    let attempts = (0..16).map(|_| {
        let mut client = world.c();
        tokio::spawn(async move { client.create_volume(CreateRequest::new("pvc-1", 8).0).await })
    });
    let mut ids = std::collections::BTreeSet::new();
    for attempt in attempts.collect::<Vec<_>>() {
        match attempt.await.unwrap() {
            Ok(answer) => drop(ids.insert(answer.into_inner().volume.unwrap().volume_id)),
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status}"),
        }
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(world.volumes().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_finds_its_volume_after_it_was_grown_or_its_source_deleted() {
    let world = World::new().await;
    let source = world.create(CreateRequest::new("source", 8).0).await.unwrap().volume_id;
    let snapshot = world.snapshot(&source, "snap").await.snapshot_id;
    let request = || CreateRequest::new("clone", 8).from(from_snapshot(&snapshot)).0;
    let clone = world.create(request()).await.unwrap();
    let expand = csi::ControllerExpandVolumeRequest {
        volume_id: clone.volume_id.clone(),
        capacity_range: Some(csi::CapacityRange { required_bytes: 16 * MIB, limit_bytes: 0 }),
        ..Default::default()
    };
    let grown = world.c().controller_expand_volume(expand).await.unwrap().into_inner();
    assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (16 * MIB, true));
    let delete = csi::DeleteSnapshotRequest { snapshot_id: snapshot.clone(), ..Default::default() };
    world.c().delete_snapshot(delete).await.unwrap();

    let again = world.create(request()).await.unwrap();
    assert_eq!((again.volume_id, again.capacity_bytes), (clone.volume_id, 16 * MIB));
    assert_eq!(again.content_source, from_snapshot(&snapshot));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_means_something_else_is_refused_with_the_difference() {
    let world = World::new().await;
    let source = world.create(CreateRequest::new("source", 8).0).await.unwrap().volume_id;
    world.create(CreateRequest::new("a", 8).0).await.unwrap();

    let refused = world.create(CreateRequest::new("a", 9).0).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message().contains("bytes")),
        (Code::AlreadyExists, true),
        "{refused}"
    );
    let refused = world.create(CreateRequest::new("a", 8).from(from_volume(&source)).0).await.unwrap_err();
    assert_eq!((refused.code(), refused.message().contains("another source")), (Code::AlreadyExists, true));
    let mut other = CreateRequest::new("a", 8).0;
    other.parameters = parameters(&[("logicalBlockSize", "4096")]);
    let refused = world.create(other).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message().contains("sectors")),
        (Code::AlreadyExists, true),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_made_is_refused_before_anything_is_made() {
    let world = World::new().await;
    type Change = fn(&mut csi::CreateVolumeRequest);
    let cases: [(Code, &str, Change); 8] = [
        (Code::InvalidArgument, "logicalBlockSize", |r| r.parameters = parameters(&[("blockSize", "512")])),
        (Code::InvalidArgument, "mutable", |r| r.mutable_parameters = parameters(&[("iops", "5")])),
        (Code::InvalidArgument, "volumeMode: Block", |r| {
            use csi::volume_capability::access_mode::Mode;
            r.volume_capabilities = vec![mounted("", &[], Mode::MultiNodeMultiWriter)];
        }),
        (Code::OutOfRange, "whole pool", |r| r.capacity_range.as_mut().unwrap().required_bytes = 65 << 30),
        (Code::OutOfRange, "256 TiB", |r| r.capacity_range.as_mut().unwrap().required_bytes = 257 << 40),
        (Code::NotFound, UNKNOWN, |r| r.volume_content_source = from_volume(UNKNOWN)),
        (Code::NotFound, "no-such", |r| r.volume_content_source = from_snapshot("no-such")),
        (Code::ResourceExhausted, "topology.parallax.dev/pool", |r| {
            let segments = parameters(&[("topology.parallax.dev/pool", "another")]);
            let requisite = vec![csi::Topology { segments }];
            r.accessibility_requirements = Some(csi::TopologyRequirement { requisite, preferred: vec![] });
        }),
    ];
    for (code, word, change) in cases {
        let mut request = CreateRequest::new("x", 8).0;
        change(&mut request);
        let refused = world.create(request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(word), "{word} in {refused}");
    }
    assert!(world.volumes().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_manager_may_have_done_is_not_reported_as_failed() {
    let world = World::new().await;
    let id = world.create(CreateRequest::new("v", 8).0).await.unwrap().volume_id;
    let broken = |method: &'static str| {
        let shop = world.daemon.shop();
        shop.map(|mut shop| shop.failing = [(method, Status::internal("half way"))].into()).is_some()
    };
    if !broken("create_volume") {
        return;
    }
    assert_eq!(world.create(CreateRequest::new("w", 8).0).await.unwrap_err().code(), Code::Unavailable);
    broken("delete_volume");
    let delete = csi::DeleteVolumeRequest { volume_id: id.clone(), ..Default::default() };
    assert_eq!(world.c().delete_volume(delete).await.unwrap_err().code(), Code::Unavailable);
    broken("publish_volume");
    let refused = world.c().controller_publish_volume(publish(&id, "node-1", false)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    broken("create_snapshots");
    let take = csi::CreateSnapshotRequest { source_volume_id: id, name: "s".into(), ..Default::default() };
    assert_eq!(world.c().create_snapshot(take).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn publications_are_listed_and_contradictions_refused() {
    let world = World::new().await;
    let id = world.create(CreateRequest::new("v", 8).0).await.unwrap().volume_id;
    let answer =
        world.c().controller_publish_volume(publish(&id, "node-1", true)).await.unwrap().into_inner();
    assert_eq!(answer.publish_context, parameters(&[("readOnly", "true")]));
    for (node, readonly, code) in
        [("node-1", false, Code::AlreadyExists), ("node-2", true, Code::FailedPrecondition)]
    {
        let refused = world.c().controller_publish_volume(publish(&id, node, readonly)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains("node-1"), "{refused}");
    }
    let list = world.c().list_volumes(csi::ListVolumesRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.entries[0].status.as_ref().unwrap().published_node_ids, ["node-1"]);
    let get = csi::ControllerGetVolumeRequest { volume_id: id.clone() };
    let found = world.c().controller_get_volume(get).await.unwrap().into_inner();
    assert_eq!(found.status.unwrap().published_node_ids, ["node-1"]);

    // An empty node means all of them.
    let unpublish = csi::ControllerUnpublishVolumeRequest { volume_id: id, ..Default::default() };
    world.c().controller_unpublish_volume(unpublish.clone()).await.unwrap();
    world.c().controller_unpublish_volume(unpublish).await.unwrap();
    let list = world.c().list_volumes(csi::ListVolumesRequest::default()).await.unwrap().into_inner();
    assert!(list.entries[0].status.as_ref().unwrap().published_node_ids.is_empty());
}

/// Every named snapshot is in a set of the manager, and its set was answered as its group. The cluster's snapshot
/// controller looks groups up when it meets one; where that feature is off it panics, so one imported snapshot stopped
/// all snapshots of the cluster.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_taken_alone_belongs_to_no_group() {
    let world = World::new().await;
    let volume = world.create(CreateRequest::new("data", 8).0).await.unwrap().volume_id;
    let alone = world.snapshot(&volume, "alone").await;
    assert_eq!(alone.group_snapshot_id, "");

    let one = csi::ListSnapshotsRequest { snapshot_id: alone.snapshot_id.clone(), ..Default::default() };
    for request in [csi::ListSnapshotsRequest::default(), one] {
        let listed = world.c().list_snapshots(request).await.unwrap().into_inner().entries;
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].snapshot.as_ref().unwrap().group_snapshot_id, "");
    }

    let mut client = GroupControllerClient::new(world.controller.channel());
    let request = csi::CreateVolumeGroupSnapshotRequest {
        name: "only-one".into(),
        source_volume_ids: vec![volume],
        ..Default::default()
    };
    let group =
        client.create_volume_group_snapshot(request).await.unwrap().into_inner().group_snapshot.unwrap();
    assert!(!group.group_snapshot_id.is_empty());
    assert_eq!(group.snapshots[0].group_snapshot_id, group.group_snapshot_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_a_group_are_snapshotted_under_one_name() {
    let world = World::new().await;
    let mut client = GroupControllerClient::new(world.controller.channel());
    let mut ids = Vec::new();
    for name in ["data", "log"] {
        ids.push(world.create(CreateRequest::new(name, 8).0).await.unwrap().volume_id);
    }
    let request = csi::CreateVolumeGroupSnapshotRequest {
        name: "group-1".into(),
        source_volume_ids: ids.clone(),
        parameters: parameters(&[
            ("csi.storage.k8s.io/volumegroupsnapshot/name", "nightly"),
            ("csi.storage.k8s.io/volumegroupsnapshot/namespace", "prod"),
        ]),
        ..Default::default()
    };
    let first = client
        .create_volume_group_snapshot(request.clone())
        .await
        .unwrap()
        .into_inner()
        .group_snapshot
        .unwrap();
    let again = client
        .create_volume_group_snapshot(request.clone())
        .await
        .unwrap()
        .into_inner()
        .group_snapshot
        .unwrap();
    assert_eq!(first, again);
    assert!(first.ready_to_use && first.snapshots.len() == 2);
    assert!(first.snapshots.iter().all(|snapshot| snapshot.group_snapshot_id == first.group_snapshot_id));
    let named = v1::get_snapshot_request::By::Id(first.snapshots[0].snapshot_id.clone());
    let asked = v1::GetSnapshotRequest { by: Some(named), with_usage: false };
    let member = world.daemon.client().manager().get_snapshot(asked).await.unwrap().into_inner();
    assert_eq!(member.label, "prod/nightly");

    let fewer = csi::CreateVolumeGroupSnapshotRequest { source_volume_ids: ids[..1].to_vec(), ..request };
    assert_eq!(client.create_volume_group_snapshot(fewer).await.unwrap_err().code(), Code::AlreadyExists);

    let members = first.snapshots.iter().map(|snapshot| snapshot.snapshot_id.clone()).collect::<Vec<_>>();
    let get = csi::GetVolumeGroupSnapshotRequest {
        group_snapshot_id: first.group_snapshot_id.clone(),
        snapshot_ids: members.clone(),
        ..Default::default()
    };
    assert_eq!(
        client.get_volume_group_snapshot(get.clone()).await.unwrap().into_inner().group_snapshot,
        Some(first.clone())
    );

    let stranger = world.snapshot(&ids[0], "alone").await.snapshot_id;
    let delete = |ids: &[String]| csi::DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: first.group_snapshot_id.clone(),
        snapshot_ids: ids.to_vec(),
        ..Default::default()
    };
    let wrong = delete(&[members[0].clone(), stranger]);
    assert_eq!(client.delete_volume_group_snapshot(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    client.delete_volume_group_snapshot(delete(&members)).await.unwrap();
    client.delete_volume_group_snapshot(delete(&members)).await.unwrap();
    assert_eq!(client.get_volume_group_snapshot(get).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_learns_what_exists_and_what_changed() {
    if !support::can_mount() {
        return;
    }
    let world = World::new().await;
    let volume = world.volume("v", 1, None).await.with(block());
    let write = async |at: u64, byte: u8| volume.write_at(at * 4096, &[byte; 4096]).await;
    for at in [0, 2, 3, 9] {
        write(at, 1).await;
    }
    let base = world.snapshot(&volume.id, "base").await.snapshot_id;
    write(2, 2).await;
    write(8, 2).await;
    write(200, 3).await;
    let target = world.snapshot(&volume.id, "target").await.snapshot_id;

    let mut client = SnapshotMetadataClient::new(world.controller.channel());
    let request =
        csi::GetMetadataAllocatedRequest { snapshot_id: base.clone(), max_results: 1, ..Default::default() };
    let answers = client.get_metadata_allocated(request).await.unwrap().into_inner();
    let answers = answers.collect::<Result<Vec<_>, _>>().await.unwrap();
    assert!(
        answers.iter().all(|answer| answer.block_metadata.len() == 1 && answer.volume_capacity_bytes == MIB)
    );
    // Neighbours may come as one tuple.
    let blocks = |tuples: &[csi::BlockMetadata]| {
        let of = |t: &csi::BlockMetadata| t.byte_offset / 4096..(t.byte_offset + t.size_bytes) / 4096;
        tuples.iter().flat_map(of).collect::<Vec<_>>()
    };
    let allocated = answers.iter().flat_map(|answer| blocks(&answer.block_metadata)).collect::<Vec<_>>();
    assert_eq!(allocated, [0, 2, 3, 9]);

    let delta = |starting_offset| csi::GetMetadataDeltaRequest {
        base_snapshot_id: base.clone(),
        target_snapshot_id: target.clone(),
        starting_offset,
        ..Default::default()
    };
    for (from, expected) in [(0, vec![2, 8, 200]), (3 * 4096, vec![8, 200])] {
        let answers = client.get_metadata_delta(delta(from)).await.unwrap().into_inner();
        let answers = answers.collect::<Result<Vec<_>, _>>().await.unwrap();
        let changed = answers.iter().flat_map(|answer| blocks(&answer.block_metadata)).collect::<Vec<_>>();
        assert_eq!(changed, expected);
    }
    assert_eq!(client.get_metadata_delta(delta(MIB)).await.unwrap_err().code(), Code::OutOfRange);
    let mut unknown = delta(0);
    unknown.base_snapshot_id = format!("{UNKNOWN}@1");
    assert_eq!(client.get_metadata_delta(unknown).await.unwrap_err().code(), Code::NotFound);
}
