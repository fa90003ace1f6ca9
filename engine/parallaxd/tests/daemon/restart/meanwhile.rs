//! Something has changed between two daemons: tails, volumes, sizes.

use super::bed::*;
use crate::world::{named, write};
use parallax_api::{client::Client, v1};
use std::time::Duration;

/// Writes that were acknowledged live in the tail until they are flushed. Without it those who wrote them must not go on
/// as if they were there, neither now nor after yet another restart; other volumes are not concerned.
#[tokio::test]
async fn a_volume_whose_tail_is_gone_fails_for_good_and_others_go_on() {
    if !machine_can() {
        return;
    }
    let (mut world, client, devices) = held(&[("poor", 16 * MIB), ("rich", 16 * MIB)]).await;
    let poor_id = {
        let request = v1::GetVolumeRequest { volume: named("poor"), ..Default::default() };
        client.manager().get_volume(client.request(request)).await.unwrap().into_inner().id
    };
    let (poor, rich) = (direct(&devices[0]), direct(&devices[1]));
    write_block(&poor, 4096, 1).unwrap();
    write_block(&rich, 4096, 2).unwrap();
    world.kill();
    let of_poor = poor_id.replace('-', "");
    let mut removed = 0;
    for tail in std::fs::read_dir(world.tails()).unwrap() {
        let path = tail.unwrap().path();
        if path.to_str().unwrap().contains(&of_poor) {
            std::fs::remove_file(path).unwrap();
            removed += 1;
        }
    }
    assert_eq!(removed, 1);
    for restart in 0..2 {
        let client = world.start().await;
        fails(&poor);
        assert_eq!(read_block(&rich, 4096).unwrap(), [2; 4096], "restart {restart}");
        let request = v1::GetVolumeRequest { volume: named("poor"), ..Default::default() };
        let volume = client.manager().get_volume(client.request(request)).await.unwrap().into_inner();
        assert!(!volume.fault.is_empty(), "restart {restart}: nobody is told");
        drop(client);
        world.kill();
    }
    let client = world.start().await;
    drop(poor);
    detach(&client, "poor").await;
    let device = attach(&client, "poor").await;
    write_block(&direct(&device), 4096, 3).unwrap();
    drop(rich);
    for volume in ["poor", "rich"] {
        detach(&client, volume).await;
    }
}

/// Whoever has a device mounted remembers what was on it. If somebody else wrote to the volume meanwhile, going on
/// would mix two histories. (In Longhorn, issue 5709, an address was used again and a call reached the engine of another volume.)
#[tokio::test]
async fn a_volume_that_somebody_else_opened_meanwhile_is_not_resumed() {
    if !machine_can() {
        return;
    }
    let (mut world, _, devices) = held(&[("db", 16 * MIB), ("other", 16 * MIB)]).await;
    let (db, other) = (direct(&devices[0]), direct(&devices[1]));
    write_block(&db, 0, 1).unwrap();
    write_block(&other, 0, 2).unwrap();
    world.kill();
    {
        let (_stranger, client) = world.stranger().await;
        write(&client, "db", &[(0, &[9; 4096])]).await.unwrap();
    }
    let client = world.start().await;
    fails(&db);
    assert_eq!(read_block(&other, 0).unwrap(), [2; 4096]);
    drop((db, other));
    for volume in ["db", "other"] {
        detach(&client, volume).await;
    }
}

/// A volume was deleted while no daemon was there. Detaching it was answered with success, as there was no such volume any
/// more, and its block device stayed until the machine was started again.
#[tokio::test]
async fn a_volume_that_was_deleted_meanwhile_can_be_detached() {
    if !machine_can() {
        return;
    }
    let (mut world, client, devices) = held(&[("db", 16 * MIB)]).await;
    let list = |client: &Client| {
        let (client, request) = (client.clone(), client.request(v1::ListAttachmentsRequest {}));
        async move { client.node().list_attachments(request).await.unwrap().into_inner().attachments }
    };
    let id = list(&client).await.remove(0).volume_id;
    world.kill();
    {
        let (_stranger, client) = world.stranger().await;
        let request = client.request(v1::DeleteVolumeRequest { volume: named("db") });
        client.manager().delete_volume(request).await.unwrap();
    }
    let client = world.start().await;
    fails(&direct(&devices[0]));
    for _ in 0..2 {
        let target = Some(v1::detach_request::Target::VolumeId(id.clone()));
        client.node().detach(client.request(v1::DetachRequest { target })).await.unwrap();
        assert!(list(&client).await.is_empty());
    }
}

/// The volume was larger and the device was not: the daemon died between the two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_killed_while_it_grows_a_volume_shows_its_size_afterwards() {
    if !machine_can() {
        return;
    }
    let (mut world, mut client, devices) = held(&[("db", 16 * MIB)]).await;
    let file = direct(&devices[0]);
    let mut sizes = std::collections::BTreeSet::new();
    for round in 1..=10u64 {
        let size_bytes = (16 + 4 * round) * MIB;
        let growing = client.clone();
        let request = v1::ResizeVolumeRequest { volume: named("db"), size_bytes };
        let growth =
            tokio::spawn(
                async move { growing.manager().resize_volume(growing.request(request)).await.is_ok() },
            );
        tokio::time::sleep(Duration::from_millis(round * 4 - 3)).await;
        world.kill();
        let told = growth.await.unwrap();
        client = world.start().await;
        let request = v1::GetVolumeRequest { volume: named("db"), ..Default::default() };
        let volume = client.manager().get_volume(client.request(request)).await.unwrap().into_inner();
        assert!(!told || volume.size_bytes == size_bytes, "round {round}: a growth was forgotten");
        let shown = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).unwrap();
        assert_eq!(shown, volume.size_bytes, "round {round}");
        write_block(&file, shown - 4096, 1).unwrap();
        sizes.insert(shown);
    }
    eprintln!("{} different sizes were seen", sizes.len());
    drop(file);
    detach(&client, "db").await;
    assert_clean(&client).await;
}

/// Whatever the daemon is doing with its devices when it is killed, it dies, the next one serves, nothing hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_killed_in_the_middle_of_changes_is_followed_by_one_that_serves() {
    if !machine_can() {
        return;
    }
    let (mut world, mut client, devices) = held(&[("steady", 16 * MIB), ("restless", 16 * MIB)]).await;
    let steady = direct(&devices[0]);
    detach(&client, "restless").await;
    for round in 0..12u8 {
        let changing = client.clone();
        let changes = tokio::spawn(async move {
            loop {
                let target = Some(v1::attach_request::Target::VolumeName("restless".into()));
                let request = changing.request(v1::AttachRequest { target, read_only: false });
                if changing.node().attach(request).await.is_err() {
                    return;
                }
                let target = Some(v1::detach_request::Target::VolumeName("restless".into()));
                let request = changing.request(v1::DetachRequest { target });
                if changing.node().detach(request).await.is_err() {
                    return;
                }
            }
        });
        tokio::time::sleep(Duration::from_millis(120 + u64::from(round) * 13)).await;
        world.kill();
        tokio::time::timeout(BOUND, changes).await.unwrap().unwrap();
        client = world.start().await;
        write_block(&steady, 4096, round).unwrap();
        assert_eq!(read_block(&steady, 4096).unwrap(), [round; 4096]);
        let device = attach(&client, "restless").await;
        let file = direct(&device);
        write_block(&file, 0, round).unwrap();
        assert_eq!(read_block(&file, 0).unwrap(), [round; 4096]);
        drop(file);
        detach(&client, "restless").await;
    }
    eprintln!("{} daemons waited for their successors", world.bury());
    drop(steady);
    detach(&client, "steady").await;
    assert_clean(&client).await;
}
