//! Content in and out, NBD and block devices.

use crate::world::*;
use parallax_api::v1;
use std::{os::unix::fs::PermissionsExt, time::Duration};
use tonic::Code;

#[tokio::test]
async fn writing_marks_a_volume_as_holding_something() {
    let mut world = World::new();
    let client = world.start().await;
    let volume = create(&client, "db", 16 << 20).await;
    assert_eq!(volume.filesystem_state(), v1::FilesystemState::Blank);
    write(&client, "db", &[(0, &[1; 512])]).await.unwrap();
    let request = v1::GetVolumeRequest { volume: named("db"), with_usage: false };
    let volume = client.manager().get_volume(client.request(request)).await.unwrap().into_inner();
    assert_eq!(volume.filesystem_state(), v1::FilesystemState::Formatted);
    assert!(!volume.attached);
}

/// Only a blank volume was marked. One whose first mkfs had been interrupted kept its record, and whoever staged it
/// after an import formatted it again.
#[tokio::test]
async fn whoever_writes_to_a_half_formatted_volume_ends_its_formatting() {
    let mut world = World::new();
    let client = world.start().await;
    for name in ["imported", "over-nbd", "looked-at"] {
        create(&client, name, 16 << 20).await;
        let request = v1::SetFilesystemStateRequest {
            volume: named(name),
            expected: v1::FilesystemState::Blank.into(),
            next: v1::FilesystemState::Formatting.into(),
        };
        client.manager().set_filesystem_state(client.request(request)).await.unwrap();
    }
    write(&client, "imported", &[(0, &[1; 512])]).await.unwrap();
    for (name, read_only) in [("over-nbd", false), ("looked-at", true)] {
        let target = Some(v1::serve_nbd_request::Target::VolumeName(name.into()));
        let request = v1::ServeNbdRequest { target, socket: String::new(), read_only };
        let mut stream = client.node().serve_nbd(client.unbounded(request)).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
    }
    for (name, state) in [
        ("imported", v1::FilesystemState::Formatted),
        ("over-nbd", v1::FilesystemState::Formatted),
        ("looked-at", v1::FilesystemState::Formatting),
    ] {
        let request = v1::GetVolumeRequest { volume: named(name), with_usage: false };
        let volume = client.manager().get_volume(client.request(request)).await.unwrap().into_inner();
        assert_eq!(volume.filesystem_state(), state, "{name}");
    }
}

#[tokio::test]
async fn writes_that_do_not_fit_are_refused_and_leave_the_volume_free() {
    let mut world = World::new();
    let client = world.start().await;
    create(&client, "db", 1 << 20).await;
    for (offset, length) in [(1 << 20, 512), (0, 511), (100, 512), (u64::MAX - 511, 512)] {
        let refused = write(&client, "db", &[(offset, &vec![1; length])]).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{offset} {length}");
    }
    write(&client, "db", &[((1 << 20) - 512, &[1; 512])]).await.unwrap();
    let missing = write(&client, "nobody", &[]).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}

/// An import that was cut off used to be able to leave the volume open for ever: nobody was left to close it.
#[tokio::test]
async fn a_writer_that_goes_away_leaves_the_volume_free() {
    let mut world = World::new();
    let client = world.start().await;
    create(&client, "db", 16 << 20).await;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let first = v1::WriteContentRequest { volume: named("db"), offset: 0, data: vec![1; 4096] };
    sender.send(first).await.unwrap();
    let mut node = client.node();
    let request = client.unbounded(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let cut_off = tokio::time::timeout(Duration::from_millis(500), node.write_content(request)).await;
    assert!(cut_off.is_err(), "nobody ended the stream");
    drop(sender);
    free_again(&client).await;
}

#[tokio::test]
async fn nbd_lasts_as_long_as_the_call() {
    let mut world = World::new();
    let client = world.start().await;
    create(&client, "db", 16 << 20).await;
    let socket = world.path("nbd.sock");
    let target = Some(v1::serve_nbd_request::Target::VolumeName("db".into()));
    let serve = |socket: String| {
        client.unbounded(v1::ServeNbdRequest { target: target.clone(), socket, read_only: false })
    };
    let relative = client.node().serve_nbd(serve("nbd.sock".into())).await.unwrap_err();
    assert_eq!(relative.code(), Code::InvalidArgument);
    let mut stream = client.node().serve_nbd(serve(socket.display().to_string())).await.unwrap().into_inner();
    let export = stream.message().await.unwrap().unwrap();
    assert_eq!(export.uri, format!("nbd+unix:///?socket={}", socket.display()));
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    // It is in use, so it cannot be deleted, nor served twice.
    let delete = client.request(v1::DeleteVolumeRequest { volume: named("db") });
    assert_eq!(client.manager().delete_volume(delete).await.unwrap_err().code(), Code::FailedPrecondition);
    let twice = client.node().serve_nbd(serve(String::new())).await.unwrap_err();
    assert_eq!(twice.code(), Code::FailedPrecondition);
    drop(stream);
    free_again(&client).await;
    assert!(!socket.exists());
    assert!(world.stop().success());
}

#[tokio::test]
async fn a_daemon_that_stops_ends_what_it_serves() {
    let mut world = World::new();
    let client = world.start().await;
    create(&client, "db", 16 << 20).await;
    let target = Some(v1::serve_nbd_request::Target::VolumeName("db".into()));
    let request = v1::ServeNbdRequest { target, socket: String::new(), read_only: true };
    let mut stream = client.node().serve_nbd(client.unbounded(request)).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    let status = world.stop();
    assert!(status.success(), "{status}\n{}", world.log());
}

#[tokio::test]
async fn a_block_device_shows_the_volume_and_grows_with_it() {
    if !rustix::process::geteuid().is_root() || !std::path::Path::new("/dev/loop-control").exists() {
        eprintln!("skipped: block devices need root and the loop driver");
        return;
    }
    let mut world = World::new();
    let client = world.start().await;
    let volume = create(&client, "db", 16 << 20).await;
    write(&client, "db", &[(4096, &[6; 4096])]).await.unwrap();
    let attach = |read_only| {
        let target = Some(v1::attach_request::Target::VolumeName("db".into()));
        client.request(v1::AttachRequest { target, read_only })
    };
    let mut node = client.node();
    let attached = node.attach(attach(false)).await.unwrap().into_inner();
    assert_eq!((attached.volume_id.as_str(), attached.size_bytes), (volume.id.as_str(), 16 << 20));
    assert_eq!(node.attach(attach(false)).await.unwrap().into_inner().device, attached.device);
    assert_eq!(node.attach(attach(true)).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(std::fs::read(&attached.device).unwrap()[4096..8192], [6; 4096]);

    let resize = v1::ResizeVolumeRequest { volume: named("db"), size_bytes: 32 << 20 };
    client.manager().resize_volume(client.request(resize)).await.unwrap();
    assert_eq!(std::fs::read(&attached.device).unwrap().len(), 32 << 20);

    let held = std::fs::File::open(&attached.device).unwrap();
    let detach = || {
        let target = Some(v1::detach_request::Target::VolumeName("db".into()));
        client.request(v1::DetachRequest { target })
    };
    assert_eq!(node.detach(detach()).await.unwrap_err().code(), Code::FailedPrecondition);
    drop(held);
    node.detach(detach()).await.unwrap();
    node.detach(detach()).await.unwrap();
    let list = node.list_attachments(client.request(v1::ListAttachmentsRequest {})).await.unwrap();
    assert!(list.into_inner().attachments.is_empty());
    assert!(world.stop().success());
}

/// A device that somebody holds when the daemon stops is reported, not passed over.
#[tokio::test]
async fn stopping_under_a_held_device_is_not_called_clean() {
    if !rustix::process::geteuid().is_root() || !std::path::Path::new("/dev/loop-control").exists() {
        eprintln!("skipped: block devices need root and the loop driver");
        return;
    }
    let mut world = World::new();
    let client = world.start().await;
    create(&client, "db", 16 << 20).await;
    let target = Some(v1::attach_request::Target::VolumeName("db".into()));
    let request = client.request(v1::AttachRequest { target, read_only: false });
    let attached = client.node().attach(request).await.unwrap().into_inner();
    let held = std::fs::File::open(&attached.device).unwrap();
    let status = world.stop();
    assert_eq!(status.code(), Some(3), "{}", world.log());
    assert!(world.log().contains("still in use"), "{}", world.log());
    drop(held);
    world.start().await;
    assert!(world.stop().success());
}

/// Waits until the volume can be written again, which it can as soon as nobody has it open.
async fn free_again(client: &parallax_api::client::Client) {
    for _ in 0..200 {
        match write(client, "db", &[(0, &[3; 4096])]).await {
            Ok(_) => return,
            Err(status) => assert_eq!(status.code(), Code::FailedPrecondition, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the volume stays open");
}
