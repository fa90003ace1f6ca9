//! The node plugin on this machine's kernel: real loop devices, real filesystems, real mounts.

mod support;

use parallax_api::v1::{self, FilesystemState};
use parallax_csi::proto::csi::volume_capability::access_mode::Mode;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use support::can_mount;
use support::world::{
    CANARY, MIB, Volume, World, block, ext4, from_snapshot, from_volume, mounted, text, xfs,
};
use tonic::{Code, Status};

fn mountinfo() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}

fn is_mounted(path: &Path) -> bool {
    mountinfo().lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

fn bytes_total(usage: &[parallax_csi::proto::csi::VolumeUsage]) -> i64 {
    usage.iter().find(|usage| usage.unit == 1).unwrap().total
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_formatted_once_and_keeps_its_files() {
    if !can_mount() {
        return;
    }
    let world = World::new().await;
    for (name, capability) in [("e", ext4()), ("x", xfs())] {
        let volume = world.volume(name, 400, None).await.with(capability);
        volume.stage().await.unwrap();
        volume.stage().await.unwrap();
        assert_eq!(volume.state().await, FilesystemState::Formatted);
        let one = volume.publish("one", false).await.unwrap();
        volume.publish("one", false).await.unwrap();
        let two = volume.publish("two", true).await.unwrap();
        fs::write(one.join("file"), "kept").unwrap();
        assert_eq!(fs::read_to_string(two.join("file")).unwrap(), "kept");
        assert!(fs::write(two.join("file"), "no").is_err(), "the second pod may only read");
        assert_eq!(volume.publish("two", false).await.unwrap_err().code(), Code::AlreadyExists);

        let usage = volume.stats("one").await.unwrap();
        assert!(bytes_total(&usage) > 300 * MIB && usage.len() == 2, "{usage:?}");

        for pod in ["one", "two", "two"] {
            volume.unpublish(pod).await.unwrap();
        }
        assert!(!one.exists());
        volume.unstage().await.unwrap();
        volume.unstage().await.unwrap();
        assert!(volume.attached().await.is_none() && !is_mounted(&volume.staging()));

        volume.stage().await.unwrap();
        let one = volume.publish("one", false).await.unwrap();
        assert_eq!(fs::read_to_string(one.join("file")).unwrap(), "kept");
        volume.unpublish("one").await.unwrap();
        volume.unstage().await.unwrap();
    }
    assert!(!world.logs().contains(CANARY), "a secret is in a log");
    assert!(
        world.logs().contains("<1 redacted>"),
        "requests are logged at debug, so the line above looked at something"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_volume_is_a_device_at_the_pods_path() {
    if !can_mount() {
        return;
    }
    let world = World::new().await;
    let volume = world.volume("raw", 64, None).await.with(block());
    volume.stage().await.unwrap();
    // Its owner writes what he likes from now on.
    assert_eq!(volume.state().await, FilesystemState::Formatted);
    let one = volume.publish("one", false).await.unwrap();
    let two = volume.publish("two", false).await.unwrap();
    volume.publish("two", false).await.unwrap();
    let device = fs::OpenOptions::new().read(true).write(true).open(&one).unwrap();
    device.write_all_at(b"raw bytes", 4096).unwrap();
    device.sync_all().unwrap();
    drop(device);
    let mut read = [0; 9];
    fs::File::open(&two).unwrap().read_exact_at(&mut read, 4096).unwrap();
    assert_eq!(&read, b"raw bytes");
    assert_eq!(bytes_total(&volume.stats("one").await.unwrap()), 64 * MIB);

    volume.grow("one", 96).await.unwrap();
    assert_eq!(bytes_total(&volume.stats("one").await.unwrap()), 96 * MIB);

    volume.unpublish("one").await.unwrap();
    let refused = volume.unstage().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("pods/two"), "{refused}");
    volume.unpublish("two").await.unwrap();
    volume.unstage().await.unwrap();
    assert!(volume.attached().await.is_none());
}

/// kubernetes#142243, #95183, #140376: data was formatted over, because a volume that held something else than a
/// known filesystem, or that could not be read for a moment, was taken for a blank one.
#[tokio::test(flavor = "multi_thread")]
async fn what_holds_something_is_never_formatted_over() {
    if !can_mount() {
        return;
    }
    let world = World::new().await;

    let raw = world.volume("was-raw", 64, None).await.with(block());
    raw.stage().await.unwrap();
    raw.unstage().await.unwrap();
    let raw = raw.with(ext4());
    let refused = raw.stage().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");

    let written = world.volume("written", 64, None).await;
    written.write_at(32 << 20, b"somebody's data, far from both ends").await;
    let refused = written.stage().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert_eq!(written.state().await, FilesystemState::Blank);
    assert!(written.attached().await.is_none(), "a final failure leaves nothing attached");

    let other = world.volume("other", 400, None).await.with(xfs());
    other.stage().await.unwrap();
    other.unstage().await.unwrap();
    let other = other.with(ext4());
    let refused = other.stage().await.unwrap_err();
    assert!(refused.message().contains("holds xfs, but ext4"), "{refused}");
    other.with(xfs()).stage().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_interrupted_format_is_finished() {
    if !can_mount() {
        return;
    }
    let world = World::new().await;
    let volume = world.volume("half", 64, None).await;
    volume.set_state(FilesystemState::Formatting).await;
    volume.write_at(0, &[0xaa; 8192]).await;
    volume.stage().await.unwrap();
    assert_eq!(volume.state().await, FilesystemState::Formatted);
    volume.unstage().await.unwrap();
}

/// A volume's first mkfs was refused or interrupted, so its owner attached it by hand, made a filesystem and copied his
/// files. The record still said `formatting`: the next pod that used the volume had it formatted again.
#[tokio::test(flavor = "multi_thread")]
async fn a_filesystem_made_by_hand_after_an_interrupted_format_is_kept() {
    if !can_mount() {
        return;
    }
    let world = World::new().await;
    for (name, capability, mkfs) in [("e", ext4(), "mkfs.ext4"), ("x", xfs(), "mkfs.xfs")] {
        let volume = world.volume(name, 400, None).await.with(capability);
        volume.set_state(FilesystemState::Formatting).await;
        let by_hand = world.path("by-hand");
        fs::create_dir_all(&by_hand).unwrap();
        let fill = |device: &Path| {
            support::shop::run(mkfs, &["-q", &text(device)]);
            support::shop::run("mount", &[&text(device), &text(&by_hand)]);
            fs::write(by_hand.join("file"), "by hand").unwrap();
            support::shop::run("umount", &[&text(&by_hand)]);
        };
        volume.with_device(fill).await;
        volume.stage().await.unwrap();
        assert_eq!(volume.state().await, FilesystemState::Formatted);
        let path = volume.publish("pod", false).await.unwrap();
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "by hand");
        volume.unpublish("pod").await.unwrap();
        volume.unstage().await.unwrap();
    }
}

/// A mkfs that a killed plugin left behind holds the lock of the device until it has ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_another_process_prepares_is_left_alone() {
    if !can_mount() {
        return;
    }
    let world = World::new().await;
    let volume = world.volume("busy", 64, None).await;
    volume.set_state(FilesystemState::Formatting).await;
    let refused = {
        let client = world.daemon.client();
        let target = Some(v1::attach_request::Target::VolumeId(volume.id.clone()));
        let attachment = client.node().attach(v1::AttachRequest { target, read_only: false }).await.unwrap();
        let held = fs::File::open(attachment.into_inner().device).unwrap();
        rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
        volume.stage().await.unwrap_err()
    };
    assert_eq!(refused.code(), Code::Aborted, "{refused}");
    assert_eq!(volume.state().await, FilesystemState::Formatting);
    volume.stage().await.unwrap();
    assert_eq!(volume.state().await, FilesystemState::Formatted);
    volume.unstage().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_larger_clone_has_a_larger_filesystem_beside_its_source() {
    if !can_mount() {
        return;
    }
    let world = World::new().await;
    for (name, capability) in [("e", ext4()), ("x", xfs())] {
        let source = world.volume(name, 400, None).await.with(capability.clone());
        source.stage().await.unwrap();
        let path = source.publish("pod", false).await.unwrap();
        fs::write(path.join("file"), "before").unwrap();
        rustix::fs::syncfs(fs::File::open(&path).unwrap()).unwrap();
        let snapshot = world.snapshot(&source.id, &format!("snap-{name}")).await;
        fs::write(path.join("file"), "after").unwrap();

        // The source stays mounted: both have one UUID.
        let clone = world.volume(&format!("{name}-clone"), 600, from_snapshot(&snapshot.snapshot_id)).await;
        let clone = clone.with(capability.clone());
        clone.stage().await.unwrap();
        let cloned = clone.publish("pod", false).await.unwrap();
        assert_eq!(fs::read_to_string(cloned.join("file")).unwrap(), "before");
        assert!(bytes_total(&clone.stats("pod").await.unwrap()) > 500 * MIB);

        // Without a size it is as large as its source.
        let second = world.volume(&format!("{name}-second"), 0, from_volume(&clone.id)).await;
        assert_eq!(second.record().await.size_bytes, 600 << 20);
    }
}

/// Whether the kernel lets us grow a mounted ext4.
fn has_sys_resource() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim().to_owned();
    u64::from_str_radix(&set, 16).unwrap() >> CAP_SYS_RESOURCE & 1 == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_filesystem_grows() {
    if !can_mount() {
        return;
    }
    let world = World::new().await;
    for (name, capability) in [("e", ext4()), ("x", xfs())] {
        let volume = world.volume(name, 400, None).await.with(capability);
        volume.stage().await.unwrap();
        let path = volume.publish("pod", false).await.unwrap();
        fs::write(path.join("file"), "kept").unwrap();
        let grown = volume.grow("pod", 800).await;
        if name == "e" && !has_sys_resource() {
            // It is told why, and the next start of a pod makes up for it.
            let refused = grown.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition);
            assert!(refused.message().contains("CAP_SYS_RESOURCE"), "{refused}");
            volume.unpublish("pod").await.unwrap();
            volume.unstage().await.unwrap();
            volume.stage().await.unwrap();
            volume.publish("pod", false).await.unwrap();
        } else {
            grown.unwrap();
        }
        volume.grow("pod", 800).await.unwrap();
        let usage = volume.stats("pod").await.unwrap();
        assert!(bytes_total(&usage) > 700 * MIB, "{usage:?}");
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept");
    }
    let small = world.volume("small", 64, None).await;
    small.stage().await.unwrap();
    small.publish("pod", false).await.unwrap();
    small.unpublish("pod").await.unwrap();
    assert_eq!(
        small.grow("pod", 128).await.unwrap_err().code(),
        Code::NotFound,
        "nothing is published there"
    );
}

/// A snapshot of a running volume has an unclean journal, and a device without writing cannot replay it: the first
/// readers of a restored volume saw it without its latest files.
#[tokio::test(flavor = "multi_thread")]
async fn readers_see_the_latest_files_of_an_unclean_snapshot() {
    if !can_mount() {
        return;
    }
    let world = World::new().await;
    for fs_type in ["ext4", "xfs"] {
        let source = world.volume(fs_type, 400, None).await;
        let source = source.with(mounted(fs_type, &[], Mode::SingleNodeWriter));
        source.stage().await.unwrap();
        let path = source.publish("pod", false).await.unwrap();
        fs::write(path.join("file"), "latest").unwrap();
        fs::File::open(path.join("file")).unwrap().sync_all().unwrap();
        let snapshot = world.snapshot(&source.id, &format!("snap-{fs_type}")).await;

        let readers =
            world.volume(&format!("{fs_type}-readers"), 400, from_snapshot(&snapshot.snapshot_id)).await;
        let readers = readers.with(mounted(fs_type, &[], Mode::MultiNodeReaderOnly));
        readers.stage().await.unwrap();
        readers.stage().await.unwrap();
        let path = readers.publish("pod", false).await.unwrap();
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "latest");
        assert!(fs::write(path.join("other"), "no").is_err());
        assert!(readers.attached().await.unwrap().read_only, "the device itself refuses writing");
        readers.unpublish("pod").await.unwrap();
        readers.unstage().await.unwrap();
    }
    let blank = world.volume("blank", 64, None).await.with(mounted("", &[], Mode::MultiNodeReaderOnly));
    let refused = blank.stage().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(blank.attached().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filesystem_that_was_torn_is_checked_before_it_is_mounted() {
    if !can_mount() {
        return;
    }
    let world = World::new().await;
    let volume = world.volume("torn", 64, None).await;
    volume.stage().await.unwrap();
    volume.unstage().await.unwrap();
    let state = |device: &Path| {
        let mut state = [0; 2];
        fs::File::open(device).unwrap().read_exact_at(&mut state, 1024 + 0x3a).unwrap();
        state
    };
    let torn = volume.with_device(|device| {
        support::shop::run("tune2fs", &["-E", "force_fsck", &text(device)]);
        state(device)
    });
    assert_ne!(torn.await, [1, 0], "it says that errors were found");
    volume.stage().await.unwrap();
    volume.unstage().await.unwrap();
    assert_eq!(volume.with_device(state).await, [1, 0], "the check made it clean");
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_flags_of_the_class_arrive_and_survive_a_read_only_publish() {
    if !can_mount() {
        return;
    }
    let world = World::new().await;
    let volume = world.volume("flags", 64, None).await;
    let volume = volume.with(mounted("ext4", &["noatime", "nodev,commit=17"], Mode::SingleNodeWriter));
    volume.stage().await.unwrap();
    let target = volume.publish("pod", true).await.unwrap();
    let info = mountinfo();
    let line = info.lines().find(|line| line.contains(&text(&target))).unwrap();
    for option in ["noatime", "nodev", "commit=17", "ro"] {
        assert!(line.split([' ', ',']).any(|part| part == option), "{option} in {line}");
    }
    volume.unpublish("pod").await.unwrap();
    volume.unstage().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_for_one_pod_is_not_shown_to_a_second() {
    if !can_mount() {
        return;
    }
    let world = World::new().await;
    for capability in [mounted("", &[], Mode::SingleNodeSingleWriter), {
        let mut raw = block();
        raw.access_mode = mounted("", &[], Mode::SingleNodeSingleWriter).access_mode;
        raw
    }] {
        let name = if capability.access_type == block().access_type { "raw" } else { "mounted" };
        let volume = world.volume(name, 64, None).await.with(capability);
        volume.stage().await.unwrap();
        volume.publish("one", false).await.unwrap();
        volume.publish("one", false).await.unwrap();
        let refused = volume.publish("two", false).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        volume.unpublish("one").await.unwrap();
        volume.publish("two", false).await.unwrap();
    }
}

/// Two PersistentVolumes may name one volume. Its second staging path shows the same files, and no check or format
/// touches the device that is in use.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_staged_at_two_paths_shows_the_same_files() {
    if !can_mount() {
        return;
    }
    let world = World::new().await;
    let one = world.volume("one", 64, None).await;
    let two = Volume { world: &world, id: one.id.clone(), name: "two".to_owned(), capability: ext4() };
    one.stage().await.unwrap();
    let path = one.publish("pod", false).await.unwrap();
    two.stage().await.unwrap();
    let other = two.publish("pod", false).await.unwrap();
    fs::write(path.join("file"), "shared").unwrap();
    assert_eq!(fs::read_to_string(other.join("file")).unwrap(), "shared");
    two.unpublish("pod").await.unwrap();
    let refused = two.unstage().await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted, "the other one still holds the device: {refused}");
    one.unpublish("pod").await.unwrap();
    one.unstage().await.unwrap();
    two.unstage().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_what_is_not_staged_is_refused() {
    if !can_mount() {
        return;
    }
    let world = World::new().await;
    let volume = world.volume("early", 64, None).await;
    assert_eq!(volume.publish("pod", false).await.unwrap_err().code(), Code::FailedPrecondition);
    let mut outside = volume.stage_request();
    outside.staging_target_path = "/etc/cron.d/x".into();
    assert_eq!(world.n().node_stage_volume(outside).await.unwrap_err().code(), Code::InvalidArgument);
}

/// The daemon died and the device with it: what is mounted at the staging path is dead. Staging again must replace
/// it and not take it for done.
#[tokio::test(flavor = "multi_thread")]
async fn a_mount_of_a_lost_device_is_replaced() {
    if !can_mount() {
        return;
    }
    let mut world = World::new().await;
    let volume = world.volume("lost", 64, None).await;
    volume.stage().await.unwrap();
    let first = volume.attached().await.unwrap().device;
    let id = volume.id;
    world.daemon.lose_devices().await;
    let volume = Volume { world: &world, id, name: "lost".to_owned(), capability: ext4() };
    volume.stage().await.unwrap();
    let second = volume.attached().await.unwrap().device;
    let target = volume.publish("pod", false).await.unwrap();
    fs::write(target.join("file"), "alive").unwrap();
    assert!(
        mountinfo().lines().filter(|line| line.contains(&text(&volume.staging()))).count() == 1,
        "{first} {second}"
    );
}

/// A raw volume was attached and lost when the daemon was started again, before it was staged. The daemon wanted it detached
/// first, kubelet had nothing to unstage, and no pod could use it any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_raw_volume_with_a_useless_device_is_detached_unless_a_pod_has_it() {
    if !can_mount() {
        return;
    }
    let world = World::new().await;
    let volume = world.volume("raw", 64, None).await.with(block());
    volume.stage().await.unwrap();
    volume.publish("pod", false).await.unwrap();
    let lost = Status::failed_precondition("it was lost; detach it first");
    let Some(()) = world.daemon.shop().map(|mut shop| shop.failing = [("attach", lost)].into()) else {
        return;
    };
    assert_eq!(volume.stage().await.unwrap_err().code(), Code::FailedPrecondition);
    assert!(volume.attached().await.is_some(), "a pod has it");
    volume.unpublish("pod").await.unwrap();
    let refused = volume.stage().await.unwrap_err();
    assert!(refused.message().contains("was lost"), "{refused}");
    assert!(volume.attached().await.is_none());
    world.daemon.shop().into_iter().for_each(|mut shop| shop.failing.clear());
    volume.stage().await.unwrap();
    volume.unstage().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_may_have_happened_is_not_reported_as_failed() {
    if !can_mount() {
        return;
    }
    let world = World::new().await;
    let volume = world.volume("v", 64, None).await;
    let fail = |method: &'static str, code| {
        let shop = world.daemon.shop();
        shop.map(|mut shop| shop.failing = [(method, Status::new(code, "broken"))].into()).is_some()
    };
    let mend = || world.daemon.shop().into_iter().for_each(|mut shop| shop.failing.clear());
    for method in ["attach", "set_filesystem_state", "get_volume", "list_attachments"] {
        for code in [Code::Internal, Code::Unknown, Code::Unavailable, Code::DataLoss] {
            if !fail(method, code) {
                return;
            }
            let error = volume.stage().await.unwrap_err();
            assert!(matches!(error.code(), Code::Unavailable | Code::Aborted), "{method} {code:?}: {error}");
        }
        mend();
    }
    volume.stage().await.unwrap();
    fail("detach", Code::Internal);
    assert_eq!(volume.unstage().await.unwrap_err().code(), Code::Unavailable);
    mend();
    volume.unstage().await.unwrap();
}
