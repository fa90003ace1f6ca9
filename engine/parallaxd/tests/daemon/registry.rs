//! Volumes and snapshots: idempotency, codes, pages.

use crate::world::*;
use parallax_api::v1;
use tonic::Code;

#[tokio::test]
async fn creating_is_idempotent_and_refuses_rivals() {
    let mut world = World::new();
    let client = world.start().await;
    let first = create(&client, "db", 16 << 20).await;
    assert_eq!(create(&client, "db", 16 << 20).await.id, first.id);
    assert_eq!(create(&client, "db", 0).await.id, first.id);
    let mut manager = client.manager();
    let code = |outcome: Result<tonic::Response<v1::Volume>, tonic::Status>| outcome.unwrap_err().code();
    let other = client.request(new_volume("db", 32 << 20));
    assert_eq!(code(manager.create_volume(other).await), Code::AlreadyExists);
    for (request, expected) in [
        (new_volume("", 4096), Code::InvalidArgument),
        (new_volume("x", 0), Code::InvalidArgument),
        (new_volume("x", 4095), Code::InvalidArgument),
        (new_volume("x", 1 << 62), Code::OutOfRange),
    ] {
        assert_eq!(
            code(manager.create_volume(client.request(request.clone())).await),
            expected,
            "{request:?}"
        );
    }
}

#[tokio::test]
async fn twenty_twins_make_one_volume() {
    let mut world = World::new();
    let client = world.start().await;
    let twins: Vec<_> = (0..20)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { create(&client, "db", 16 << 20).await.id })
        })
        .collect();
    let mut ids = std::collections::HashSet::new();
    for twin in twins {
        ids.insert(twin.await.unwrap());
    }
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn snapshots_clones_and_their_content() {
    let mut world = World::new();
    let client = world.start().await;
    let mut manager = client.manager();
    create(&client, "db", 16 << 20).await;
    write(&client, "db", &[(0, &[1; 8192])]).await.unwrap();
    let one = snapshot(&client, "db", "one").await;
    write(&client, "db", &[(4096, &[2; 4096]), (1 << 20, &[3; 4096])]).await.unwrap();
    let two = snapshot(&client, "db", "two").await;

    // From a snapshot, larger than its source; and from the volume as it is.
    let source = Some(v1::create_volume_request::Source::SnapshotId(one.id.clone()));
    let request = v1::CreateVolumeRequest { source, ..new_volume("old", 32 << 20) };
    let old = manager.create_volume(client.request(request)).await.unwrap().into_inner();
    assert_eq!((old.size_bytes, old.source_snapshot_id.as_str()), (32 << 20, one.id.as_str()));
    let id = manager
        .get_volume(client.request(v1::GetVolumeRequest { volume: named("db"), with_usage: false }))
        .await
        .unwrap()
        .into_inner()
        .id;
    let source = Some(v1::create_volume_request::Source::VolumeId(id.clone()));
    let request = v1::CreateVolumeRequest { source, ..new_volume("copy", 0) };
    let copy = manager.create_volume(client.request(request.clone())).await.unwrap().into_inner();
    assert_eq!((copy.size_bytes, copy.source_volume_id), (16 << 20, id));
    let again = manager.create_volume(client.request(request)).await.unwrap().into_inner();
    assert_eq!(again.id, copy.id);
    assert_eq!(read(&client, Ok("old")).await[..8192], [1; 8192]);
    assert_eq!(read(&client, Ok("copy")).await[4096..8192], [2; 4096]);

    let request =
        v1::DiffSnapshotsRequest { base_id: one.id.clone(), target_id: two.id.clone(), starting_offset: 0 };
    let mut stream = manager.diff_snapshots(client.unbounded(request)).await.unwrap().into_inner();
    let mut extents = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        extents.extend(part.extents.into_iter().map(|extent| (extent.offset, extent.length, extent.data)));
    }
    assert_eq!(extents, [(4096, 4096, true), (1 << 20, 4096, true)]);

    let request = v1::RevertVolumeRequest { volume: named("db"), snapshot_id: one.id.clone() };
    manager.revert_volume(client.request(request)).await.unwrap();
    assert_eq!(read(&client, Ok("db")).await[..8192], [1; 8192]);
    let label = v1::LabelSnapshotRequest { id: one.id.clone(), label: "kept".into() };
    assert_eq!(manager.label_snapshot(client.request(label)).await.unwrap().into_inner().label, "kept");
    assert!(world.stop().success());
}

#[tokio::test]
async fn a_snapshot_name_belongs_to_its_volumes() {
    let mut world = World::new();
    let client = world.start().await;
    create(&client, "a", 16 << 20).await;
    create(&client, "b", 16 << 20).await;
    let take = |volumes: &[&str]| {
        let volumes = volumes.iter().filter_map(|name| named(name)).collect();
        client.request(v1::CreateSnapshotsRequest { volumes, label: String::new(), name: "nightly".into() })
    };
    let mut manager = client.manager();
    let first = manager.create_snapshots(take(&["a", "b"])).await.unwrap().into_inner().snapshots;
    assert_eq!(first.len(), 2);
    assert!(!first[0].set_id.is_empty() && first[0].set_id == first[1].set_id);
    let mut again = manager.create_snapshots(take(&["a", "b"])).await.unwrap().into_inner().snapshots;
    again.sort_by(|one, other| one.id.cmp(&other.id));
    let mut ids: Vec<_> = first.iter().map(|snapshot| snapshot.id.clone()).collect();
    ids.sort();
    assert_eq!(again.iter().map(|snapshot| snapshot.id.clone()).collect::<Vec<_>>(), ids);
    let rival = manager.create_snapshots(take(&["a"])).await.unwrap_err();
    assert_eq!(rival.code(), Code::AlreadyExists);
}

#[tokio::test]
async fn lists_go_on_where_the_last_page_ended() {
    let mut world = World::new();
    let client = world.start().await;
    let mut manager = client.manager();
    for volume in ["a", "b", "c"] {
        create(&client, volume, 1 << 20).await;
        for _ in 0..3 {
            snapshot(&client, volume, "").await;
        }
    }
    let mut seen = Vec::new();
    loop {
        let after = seen.last().cloned().unwrap_or_default();
        let request = v1::ListSnapshotsRequest { volume: None, limit: 2, after, with_usage: true };
        let page = manager.list_snapshots(client.request(request)).await.unwrap().into_inner();
        assert!(page.snapshots.len() == 2 || !page.more);
        seen.extend(page.snapshots.into_iter().map(|snapshot| snapshot.id));
        if !page.more {
            break;
        }
    }
    assert_eq!(seen.len(), 9);
    assert!(seen.is_sorted() && seen.windows(2).all(|pair| pair[0] != pair[1]));

    let request = v1::ListVolumesRequest { limit: 2, ..Default::default() };
    let page = manager.list_volumes(client.request(request)).await.unwrap().into_inner();
    assert!(page.more && page.volumes.len() == 2);
    let after = page.volumes[1].id.clone();
    let request = v1::ListVolumesRequest { limit: 2, after, ..Default::default() };
    let page = manager.list_volumes(client.request(request)).await.unwrap().into_inner();
    assert!(!page.more && page.volumes.len() == 1);
}

#[tokio::test]
async fn publishing_delete_and_their_refusals() {
    let mut world = World::new();
    let client = world.start().await;
    let mut manager = client.manager();
    create(&client, "db", 16 << 20).await;
    let publish = |node: &str| {
        let publication = Some(v1::Publication { node: node.into(), read_only: false });
        client.request(v1::PublishVolumeRequest { volume: named("db"), publication })
    };
    // One node has joined this pool, and its name is the daemon's.
    assert_eq!(manager.publish_volume(publish("b")).await.unwrap_err().code(), Code::NotFound);
    manager.publish_volume(publish("test")).await.unwrap();
    manager.publish_volume(publish("test")).await.unwrap();
    let refused = manager.publish_volume(publish("b")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("published to test"), "{refused}");
    let delete = || client.request(v1::DeleteVolumeRequest { volume: named("db") });
    assert_eq!(manager.delete_volume(delete()).await.unwrap_err().code(), Code::FailedPrecondition);
    let unpublish =
        || client.request(v1::UnpublishVolumeRequest { volume: named("db"), node: "test".into() });
    manager.unpublish_volume(unpublish()).await.unwrap();
    manager.unpublish_volume(unpublish()).await.unwrap();
    manager.delete_volume(delete()).await.unwrap();
    manager.delete_volume(delete()).await.unwrap();
}

#[tokio::test]
async fn a_volume_deleted_before_its_snapshot_leaves_it_usable() {
    let mut world = World::new();
    let client = world.start().await;
    let mut manager = client.manager();
    create(&client, "db", 16 << 20).await;
    write(&client, "db", &[(0, &[9; 4096])]).await.unwrap();
    let taken = snapshot(&client, "db", "").await;
    manager.delete_volume(client.request(v1::DeleteVolumeRequest { volume: named("db") })).await.unwrap();
    let missing = v1::GetVolumeRequest { volume: named("db"), with_usage: false };
    assert_eq!(manager.get_volume(client.request(missing)).await.unwrap_err().code(), Code::NotFound);
    // The name is free again while the snapshot lives.
    create(&client, "db", 4 << 20).await;
    assert_eq!(read(&client, Err(&taken.id)).await[..4096], [9; 4096]);
    let source = Some(v1::create_volume_request::Source::SnapshotId(taken.id.clone()));
    let request = v1::CreateVolumeRequest { source, ..new_volume("back", 0) };
    manager.create_volume(client.request(request)).await.unwrap();
    assert_eq!(read(&client, Ok("back")).await[..4096], [9; 4096]);
    let delete = || client.request(v1::DeleteSnapshotRequest { id: taken.id.clone() });
    manager.delete_snapshot(delete()).await.unwrap();
    manager.delete_snapshot(delete()).await.unwrap();
    assert!(world.stop().success());
}

#[tokio::test]
async fn space_comes_back_and_the_pool_checks_clean() {
    let mut world = World::new().with("gc: {automatic: false}\n");
    let client = world.start().await;
    let mut manager = client.manager();
    create(&client, "db", 64 << 20).await;
    let data = vec![5; 1 << 20];
    let pieces: Vec<(u64, &[u8])> = (0..32).map(|piece| (piece << 20, data.as_slice())).collect();
    assert_eq!(write(&client, "db", &pieces).await.unwrap(), 32 << 20);
    manager.delete_volume(client.request(v1::DeleteVolumeRequest { volume: named("db") })).await.unwrap();
    let mut stream =
        manager.collect_garbage(client.unbounded(v1::CollectGarbageRequest {})).await.unwrap().into_inner();
    let mut last = v1::GcProgress::default();
    while let Some(step) = stream.message().await.unwrap() {
        last = step;
    }
    assert_eq!(last.phase, "done");
    assert_eq!(last.freed_data_bytes, 32 << 20);
    let mut stream =
        manager.check_pool(client.unbounded(v1::CheckPoolRequest {})).await.unwrap().into_inner();
    let mut findings = Vec::new();
    let mut finished = false;
    while let Some(step) = stream.message().await.unwrap() {
        findings.extend(step.findings);
        finished = step.finished;
    }
    assert!(finished && findings.iter().all(|finding| finding.severity != "damage"), "{findings:?}");
}

#[tokio::test]
async fn volumes_grow_and_never_shrink() {
    let mut world = World::new();
    let client = world.start().await;
    let mut manager = client.manager();
    create(&client, "db", 16 << 20).await;
    let resize = |size_bytes| client.request(v1::ResizeVolumeRequest { volume: named("db"), size_bytes });
    let grown = manager.resize_volume(resize(32 << 20)).await.unwrap().into_inner();
    assert_eq!(grown.size_bytes, 32 << 20);
    manager.resize_volume(resize(32 << 20)).await.unwrap();
    assert_eq!(manager.resize_volume(resize(16 << 20)).await.unwrap_err().code(), Code::OutOfRange);
    write(&client, "db", &[((32 << 20) - 4096, &[1; 4096])]).await.unwrap();
}

/// The snapshot table was addressed by leaf where its tree expects words: the 33rd snapshot of a volume took the
/// place of the first, and what came later was not found.
#[tokio::test]
async fn a_hundred_snapshots_are_a_hundred_snapshots() {
    let mut world = World::new();
    let client = world.start().await;
    create(&client, "db", 16 << 20).await;
    for number in 0..100u8 {
        write(&client, "db", &[(u64::from(number) * 4096, &[number + 1; 4096])]).await.unwrap();
        snapshot(&client, "db", &format!("number {number}")).await;
    }
    let list = async |client: &parallax_api::client::Client| {
        let request = v1::ListSnapshotsRequest { volume: named("db"), ..Default::default() };
        let page = client.manager().list_snapshots(client.request(request)).await.unwrap().into_inner();
        page.snapshots.into_iter().map(|snapshot| (snapshot.id, snapshot.label)).collect::<Vec<_>>()
    };
    let all = list(&client).await;
    assert_eq!(all.len(), 100);
    for (number, (_, label)) in all.iter().enumerate() {
        assert_eq!(*label, format!("number {number}"));
    }
    for (id, _) in [&all[0], &all[31], &all[32], &all[99]] {
        client
            .manager()
            .delete_snapshot(client.request(v1::DeleteSnapshotRequest { id: id.clone() }))
            .await
            .unwrap();
    }
    assert!(world.stop().success());
    let client = world.start().await;
    let left = list(&client).await;
    assert_eq!(left.len(), 96);
    assert_eq!((left[0].1.as_str(), left[95].1.as_str()), ("number 1", "number 98"));
    for number in [1usize, 40, 98] {
        let bytes = read(&client, Err(&all[number].0)).await;
        assert_eq!(bytes[number * 4096], number as u8 + 1);
        assert_eq!(bytes[(number + 1) * 4096], 0, "snapshot {number} sees the future");
    }
}
