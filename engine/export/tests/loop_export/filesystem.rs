//! Filesystems on loop exports.

use crate::world::{MemoryDevice, Shape, World, key, run, text, try_run, unmount};
use parallax_block::ErrorKind;
use std::{fs, sync::atomic::Ordering::SeqCst};

#[test]
fn ext4_survives_writing_unmounting_and_fsck() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape::of(256 << 20));
    let attachment = world.exports.attach(key("ext4"), device.clone(), false).unwrap();
    let mount = world.mount_point("mnt");
    run("mkfs.ext4", &["-q", text(&attachment.path)]);
    run("mount", &["-o", "discard", text(&attachment.path), text(&mount)]);
    let content: Vec<u8> = (0..8 << 20u32).map(|at: u32| (at.wrapping_mul(2654435761) >> 24) as u8).collect();
    fs::write(mount.join("file"), &content).unwrap();
    run("sync", &["-f", text(&mount)]);
    let flushes = device.flushes.load(SeqCst);
    assert!(flushes > 0, "no flush reached the device");
    unmount(&mount, &attachment.path);
    run("fsck.ext4", &["-f", "-n", text(&attachment.path)]);
    run("mount", &["-o", "ro", text(&attachment.path), text(&mount)]);
    assert!(fs::read(mount.join("file")).unwrap() == content, "the file has changed");
    unmount(&mount, &attachment.path);
    world.exports.detach(&key("ext4")).unwrap();
}

#[test]
fn deleting_a_file_gives_its_space_back() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape::of(256 << 20));
    let attachment = world.exports.attach(key("trim"), device.clone(), false).unwrap();
    let mount = world.mount_point("mnt");
    run("mkfs.ext4", &["-q", text(&attachment.path)]);
    run("mount", &[text(&attachment.path), text(&mount)]);
    fs::write(mount.join("file"), vec![7; 64 << 20]).unwrap();
    run("sync", &["-f", text(&mount)]);
    let full = device.used();
    fs::remove_file(mount.join("file")).unwrap();
    run("sync", &["-f", text(&mount)]);
    run("fstrim", &[text(&mount)]);
    let trimmed = device.used();
    assert!(full - trimmed >= 60 << 20, "{full} bytes in use before fstrim, {trimmed} after");
    unmount(&mount, &attachment.path);
}

#[test]
fn a_mounted_device_is_not_detached_and_the_refusal_says_why() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape::of(64 << 20));
    let attachment = world.exports.attach(key("busy"), device, false).unwrap();
    let mount = world.mount_point("mnt");
    run("mkfs.ext4", &["-q", text(&attachment.path)]);
    run("mount", &[text(&attachment.path), text(&mount)]);
    let error = world.exports.detach(&key("busy")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.to_string().contains(text(&mount)), "{error}");
    // The refusal has no after-effect: closing the device must not detach it later.
    fs::write(mount.join("still"), b"here").unwrap();
    unmount(&mount, &attachment.path);
    run("mount", &[text(&attachment.path), text(&mount)]);
    assert_eq!(fs::read(mount.join("still")).unwrap(), b"here");
    unmount(&mount, &attachment.path);
    world.exports.detach(&key("busy")).unwrap();
    assert_eq!(world.exports.detach(&key("busy")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_filesystem_grows_while_it_is_written_to() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape { capacity_max: 1 << 30, ..Shape::of(512 << 20) });
    let attachment = world.exports.attach(key("grow"), device.clone(), false).unwrap();
    let mount = world.mount_point("mnt");
    // xfs, because growing a mounted ext4 needs CAP_SYS_RESOURCE, which not every machine gives its tests.
    run("mkfs.xfs", &["-q", text(&attachment.path)]);
    run("mount", &[text(&attachment.path), text(&mount)]);
    let directory = format!("--directory={}", text(&mount));
    let writer = std::thread::spawn(move || {
        run(
            "fio",
            &[
                "--name=grow",
                &directory,
                "--rw=randrw",
                "--bs=4k",
                "--size=64m",
                "--direct=1",
                "--ioengine=libaio",
                "--iodepth=16",
                "--time_based",
                "--runtime=6",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_state_save=0",
            ],
        )
    });
    for step in 1..=8u64 {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let capacity = (512 << 20) + step * (64 << 20);
        device.grow(capacity);
        let grown = world.exports.resize(&key("grow")).unwrap();
        assert_eq!(grown.capacity, capacity);
        assert_eq!(grown.path, attachment.path);
        assert_eq!(run("blockdev", &["--getsize64", text(&attachment.path)]).trim(), capacity.to_string());
        run("xfs_growfs", &["-d", text(&mount)]);
    }
    writer.join().unwrap();
    fs::write(mount.join("large"), vec![3; 700 << 20]).unwrap();
    unmount(&mount, &attachment.path);
    run("xfs_repair", &["-n", text(&attachment.path)]);
}

#[test]
fn a_full_pool_is_out_of_space_to_the_writer_and_the_rest_goes_on() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape::of(64 << 20));
    let attachment = world.exports.attach(key("full"), device.clone(), false).unwrap();
    let target = format!("of={}", text(&attachment.path));
    let write = ["if=/dev/zero", &target, "bs=4k", "count=1", "oflag=direct", "conv=notrunc"];
    run("dd", &write);
    device.full.store(true, SeqCst);
    let refused = try_run("dd", &write);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && message.contains("No space left on device"), "{message}");
    let source = format!("if={}", text(&attachment.path));
    run("dd", &[&source, "of=/dev/null", "bs=4k", "count=1", "iflag=direct"]);
    device.full.store(false, SeqCst);
    run("dd", &write);
}
