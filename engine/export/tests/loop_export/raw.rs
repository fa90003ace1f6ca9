//! The block device itself.

use crate::world::{Hang, MemoryDevice, Shape, World, key, run, text, try_run};
use parallax_block::ErrorKind;
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

fn fio(path: &Path, extra: &[&str]) -> String {
    let file = format!("--filename={}", text(path));
    let mut arguments = vec!["--name=job", &file, "--ioengine=libaio", "--direct=1", "--verify_state_save=0"];
    arguments.extend(extra);
    run("fio", &arguments)
}

fn queue_setting(path: &Path, name: &str) -> String {
    let device = path.file_name().unwrap().to_str().unwrap();
    fs::read_to_string(format!("/sys/block/{device}/queue/{name}")).unwrap().trim().to_owned()
}

#[test]
fn verified_random_io_at_depth_16() {
    let Some(world) = World::start() else { return };
    for logical_block in [512, 4096] {
        let device = MemoryDevice::new(Shape { logical_block, ..Shape::of(128 << 20) });
        let name = format!("verify-{logical_block}");
        let attachment = world.exports.attach(key(&name), device, false).unwrap();
        assert_eq!(queue_setting(&attachment.path, "logical_block_size"), logical_block.to_string());
        let block = format!("--bsrange={logical_block}-256k");
        let align = format!("--blockalign={logical_block}");
        fio(
            &attachment.path,
            &["--rw=randwrite", &block, &align, "--iodepth=16", "--verify=crc32c", "--verify_fatal=1"],
        );
        world.exports.detach(&key(&name)).unwrap();
    }
}

#[test]
fn a_discarded_range_reaches_the_device_and_reads_as_zeroes() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape::of(64 << 20));
    let attachment = world.exports.attach(key("discard"), device.clone(), false).unwrap();
    let path = text(&attachment.path);
    fio(&attachment.path, &["--rw=write", "--bs=1m", "--size=64m"]);
    assert_eq!(device.used(), 64 << 20);
    run("blkdiscard", &["-o", "8388608", "-l", "16777216", path]);
    assert_eq!(device.unmapped.load(SeqCst), 16 << 20);
    assert_eq!(device.used(), 48 << 20);
    let mut bytes = vec![1; 16 << 20];
    File::open(path).unwrap().read_exact_at(&mut bytes, 8 << 20).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0), "a discarded range has content");
    File::open(path).unwrap().read_exact_at(&mut bytes[..4096], 24 << 20).unwrap();
    assert!(bytes[..4096].iter().any(|byte| *byte != 0), "content next to a discarded range is lost");
    assert_eq!(queue_setting(&attachment.path, "discard_granularity"), "4096");
}

#[test]
fn written_zeroes_reach_the_device_as_one_request() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape::of(64 << 20));
    let attachment = world.exports.attach(key("zeroes"), device.clone(), false).unwrap();
    fio(&attachment.path, &["--rw=write", "--bs=1m", "--size=64m"]);
    let writes = device.writes.load(SeqCst);
    run("blkdiscard", &["--zeroout", "-o", "4096", "-l", "33554432", text(&attachment.path)]);
    assert_eq!(device.zeroed.load(SeqCst) + device.unmapped.load(SeqCst), 32 << 20);
    assert_eq!(device.writes.load(SeqCst), writes, "zeroes were sent as data");
    let mut bytes = vec![1; 32 << 20];
    File::open(&attachment.path).unwrap().read_exact_at(&mut bytes, 4096).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}

#[test]
fn a_device_without_discard_keeps_its_content_and_is_asked_only_once() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape { discard_granularity: 0, ..Shape::of(64 << 20) });
    let attachment = world.exports.attach(key("no-discard"), device.clone(), false).unwrap();
    let path = text(&attachment.path);
    fio(&attachment.path, &["--rw=write", "--bs=1m", "--size=1m"]);
    // The block layer calls a discard that a driver cannot do a success.
    run("blkdiscard", &[path]);
    assert_eq!(device.unmapped.load(SeqCst) + device.zeroed.load(SeqCst), 0);
    assert_eq!(device.used(), 1 << 20, "content was thrown away");
    assert!(!try_run("blkdiscard", &[path]).status.success(), "discard is still offered");
    // Zeroes can be written all the same, by other means.
    run("blkdiscard", &["--zeroout", "-l", "1048576", path]);
    let mut bytes = vec![1; 1 << 20];
    File::open(path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}

#[test]
fn every_fsync_is_a_flush_of_the_device() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape::of(64 << 20));
    let attachment = world.exports.attach(key("flush"), device.clone(), false).unwrap();
    assert_eq!(queue_setting(&attachment.path, "write_cache"), "write back");
    let file = OpenOptions::new().write(true).open(&attachment.path).unwrap();
    for round in 1..=10 {
        file.write_all_at(&[round; 4096], u64::from(round) * 4096).unwrap();
        let before = device.flushes.load(SeqCst);
        if round % 2 == 0 {
            file.sync_data().unwrap()
        } else {
            file.sync_all().unwrap()
        }
        assert_eq!(device.flushes.load(SeqCst), before + 1);
        assert_eq!(device.writes.load(SeqCst), u64::from(round), "the write was not there before the flush");
    }
}

#[test]
fn a_read_only_export_refuses_writing() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape::of(64 << 20));
    let attachment = world.exports.attach(key("ro"), device.clone(), true).unwrap();
    assert!(attachment.read_only);
    let path = text(&attachment.path);
    assert_eq!(run("blockdev", &["--getro", path]).trim(), "1");
    assert!(!try_run("blkdiscard", &[path]).status.success());
    // Making the node writable again is in the hands of root; the export refuses all the same.
    run("blockdev", &["--setrw", path]);
    let target = format!("of={path}");
    assert!(!try_run("dd", &["if=/dev/zero", &target, "bs=4k", "count=1", "oflag=direct"]).status.success());
    assert_eq!(device.writes.load(SeqCst) + device.unmapped.load(SeqCst), 0);
    let other = world.exports.attach(key("ro"), device, false).unwrap_err();
    assert_eq!(other.kind(), ErrorKind::AlreadyExists);
}

#[test]
fn an_error_of_the_device_is_an_error_to_the_caller_and_soon() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape::of(64 << 20));
    let attachment = world.exports.attach(key("error"), device.clone(), false).unwrap();
    device.fail.store(true, SeqCst);
    let file = OpenOptions::new().read(true).write(true).open(&attachment.path).unwrap();
    let start = Instant::now();
    let read = file.read_exact_at(&mut [0; 4096], 0).unwrap_err();
    assert_eq!(read.raw_os_error(), Some(libc::EIO));
    file.write_all_at(&[1; 4096], 1 << 20).unwrap();
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
    device.fail.store(false, SeqCst);
    file.read_exact_at(&mut [0; 4096], 0).unwrap();
}

#[test]
fn the_queue_is_as_deep_as_the_kernel_is_told() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape::of(64 << 20));
    let attachment = world.exports.attach(key("depth"), device, false).unwrap();
    assert_eq!(queue_setting(&attachment.path, "nr_requests"), "128");
    assert_eq!(queue_setting(&attachment.path, "max_sectors_kb"), "512");
    assert_eq!(queue_setting(&attachment.path, "rotational"), "0");
}

#[test]
fn several_exports_serve_at_once() {
    let Some(world) = World::start() else { return };
    let attachments: Vec<_> = (0..6)
        .map(|number| {
            let device = MemoryDevice::new(Shape::of(32 << 20));
            world.exports.attach(key(&format!("several-{number}")), device, false).unwrap()
        })
        .collect();
    assert_eq!(world.exports.list(), attachments);
    std::thread::scope(|scope| {
        for attachment in &attachments {
            scope.spawn(|| {
                fio(
                    &attachment.path,
                    &["--rw=randwrite", "--bs=4k", "--size=8m", "--iodepth=8", "--verify=crc32c"],
                )
            });
        }
    });
    // Each has its own bytes.
    for (number, attachment) in attachments.iter().enumerate() {
        let file = OpenOptions::new().write(true).open(&attachment.path).unwrap();
        file.write_all_at(&[number as u8 + 1; 4096], 0).unwrap();
        file.sync_all().unwrap();
    }
    for (number, attachment) in attachments.iter().enumerate() {
        let mut bytes = [0; 4096];
        File::open(&attachment.path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [number as u8 + 1; 4096]);
    }
}

#[test]
fn attaching_again_answers_with_the_same_device() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape::of(16 << 20));
    let first = world.exports.attach(key("again"), device.clone(), false).unwrap();
    let second = world.exports.attach(key("again"), device, false).unwrap();
    assert_eq!(first, second);
    let node = run("stat", &["-c", "%Hr:%Lr", text(&first.path)]);
    assert_eq!(node.trim(), format!("{}:{}", first.major, first.minor));
}

#[test]
fn a_device_that_someone_has_open_is_not_detached() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape::of(16 << 20));
    let attachment = world.exports.attach(key("open"), device, false).unwrap();
    let file = File::open(&attachment.path).unwrap();
    let error = world.exports.detach(&key("open")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(file);
    assert_eq!(world.exports.list().len(), 1);
    File::open(&attachment.path).unwrap().read_exact_at(&mut [0; 512], 0).unwrap();
    world.exports.detach(&key("open")).unwrap();
    assert!(world.exports.list().is_empty());
}

#[test]
fn a_device_still_held_at_shutdown_fails_and_goes_when_it_is_closed() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape::of(16 << 20));
    let attachment = world.exports.attach(key("held"), device.clone(), false).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&attachment.path).unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(world.exports.shutdown().unwrap(), [key("held")]);
    let writes = device.writes.load(SeqCst);
    file.write_all_at(&[2; 4096], 0).unwrap();
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(device.writes.load(SeqCst), writes, "an export that was given up still writes");
    assert_eq!(
        world.exports.detach(&key("held")).unwrap_err().kind(),
        ErrorKind::FailedPrecondition,
        "an export that was shut down must say so"
    );
    drop(file);
    let name = attachment.path.file_name().unwrap().to_str().unwrap();
    assert!(!Path::new(&format!("/sys/block/{name}/loop/backing_file")).exists());
}

/// An export that was attached when its daemon was killed gets the number back that its users know.
#[test]
fn a_remembered_number_is_given_again_and_forgotten_with_a_proper_detach() {
    let Some(world) = World::start() else { return };
    let note = world.directory.path().join("numbers/remembered");
    // High enough that nobody else takes it.
    fs::write(&note, "217").unwrap();
    let device = MemoryDevice::new(Shape::of(16 << 20));
    let attachment = world.exports.attach(key("remembered"), device.clone(), false).unwrap();
    assert_eq!(attachment.path, Path::new("/dev/loop217"));
    assert_eq!(attachment.major, 7);
    world.exports.detach(&key("remembered")).unwrap();
    assert!(!note.exists());
    // What is taken, or makes no sense, is no reason to fail.
    for note_of in ["7777777777", "", "loop"] {
        fs::write(&note, note_of).unwrap();
        world.exports.attach(key("remembered"), device.clone(), false).unwrap();
        assert_ne!(fs::read_to_string(&note).unwrap(), note_of);
        world.exports.detach(&key("remembered")).unwrap();
    }
}

/// Refusing to detach once waited for the I/O of the device, with every other change of the daemon behind it. This
/// also shows that the whole queue of a device arrives, not one request after another.
#[test]
fn a_device_that_hangs_leaves_the_others_alone() {
    let Some(world) = World::start() else { return };
    let hanging = MemoryDevice::new(Shape::of(64 << 20));
    let stuck = world.exports.attach(key("hanging"), hanging.clone(), false).unwrap();
    std::thread::scope(|scope| {
        let hang = Hang::of(&hanging);
        let user = scope.spawn(|| {
            let many = ["--rw=randwrite", "--bs=64k", "--iodepth=200", "--size=64m", "--verify=crc32c"];
            fio(&stuck.path, &many)
        });
        let start = Instant::now();
        while hanging.waiting.load(SeqCst) < 100 {
            let waiting = hanging.waiting.load(SeqCst);
            assert!(start.elapsed() < Duration::from_secs(20), "only {waiting} requests arrive at a time");
            std::thread::sleep(Duration::from_millis(10));
        }
        let device = MemoryDevice::new(Shape::of(64 << 20));
        let other = world.exports.attach(key("other"), device.clone(), false).unwrap();
        fio(&other.path, &["--rw=randwrite", "--bs=4k", "--size=4m", "--iodepth=16", "--verify=crc32c"]);
        let error = world.exports.detach(&key("hanging")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        world.exports.detach(&key("other")).unwrap();
        assert!(hanging.waiting.load(SeqCst) >= 100, "the device hangs no more");
        drop(hang);
        user.join().unwrap();
    });
}

#[test]
fn shutting_down_does_not_wait_forever_for_a_device_that_hangs() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape::of(16 << 20));
    let attachment = world.exports.attach(key("hung"), device.clone(), false).unwrap();
    std::thread::scope(|scope| {
        let hang = Hang::of(&device);
        let user = scope.spawn(|| {
            let target = format!("of={}", text(&attachment.path));
            try_run("dd", &["if=/dev/zero", &target, "bs=64k", "count=8", "oflag=direct"])
        });
        while device.waiting.load(SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        let start = Instant::now();
        assert_eq!(world.exports.shutdown().unwrap(), [key("hung")]);
        assert!(start.elapsed() < Duration::from_secs(30), "took {:?}", start.elapsed());
        drop(hang);
        assert!(!user.join().unwrap().status.success(), "an export that was given up still serves");
    });
}

/// The story: two programs on one machine attached and detached without rest. A loop device that one had just taken off
/// its file was the first free one for the other, and the first took it away from him, for it still went by the number.
#[test]
fn a_loop_device_that_somebody_else_has_by_now_is_left_to_him() {
    let Some(world) = World::start() else { return };
    let device = MemoryDevice::new(Shape::of(16 << 20));
    let attachment = world.exports.attach(key("lost"), device, false).unwrap();
    let theirs = world.directory.path().join("theirs");
    File::create(&theirs).unwrap().set_len(1 << 20).unwrap();
    run("losetup", &["--detach", text(&attachment.path)]);
    // Another test may be faster; then it is his, and must be left to him all the same.
    let taken = try_run("losetup", &[text(&attachment.path), text(&theirs)]).status.success();
    world.exports.detach(&key("lost")).unwrap();
    if taken {
        let name = attachment.path.file_name().unwrap().to_str().unwrap();
        let file = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).unwrap();
        assert_eq!(file.trim(), text(&theirs));
        run("losetup", &["--detach", text(&attachment.path)]);
    }
}
