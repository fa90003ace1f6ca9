//! The device pauses and goes on.

use super::bed::*;
use std::{
    path::Path,
    thread::{self},
    time::Duration,
};

/// The main promise: a daemon killed again and again under verified load. Nothing fails, nothing is lost, and the device
/// stays the same. (In Linux, commit e4c4bfec, requests could slip in while a ublk server was being replaced.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_kills_under_verified_load_are_twenty_pauses() {
    if !machine_can() {
        return;
    }
    let (mut world, mut client, devices) = held(&[("files", 96 * MIB), ("raw", 16 * MIB)]).await;
    let mount = world.path("mnt");
    std::fs::create_dir(&mount).unwrap();
    run("mkfs.ext4", &["-q", text(&devices[0])]);
    run("mount", &["-o", "discard", text(&devices[0]), text(&mount)]);
    let jobs = [
        ("buffered", "--ioengine=psync --rw=randwrite --bs=4k --size=12m --fsync=32 --verify_backlog=256"),
        (
            "direct",
            "--ioengine=libaio --direct=1 --rw=randwrite --bs=16k --size=24m --iodepth=16 --fsync=64 --verify_backlog=256",
        ),
    ];
    let kills = std::env::var(KILLS_VARIABLE).map_or(KILLS, |kills| kills.parse().unwrap());
    // A kill and the next start take about two seconds.
    let runtime = kills * 9 / 4;
    let jobs: Vec<_> = jobs
        .iter()
        .map(|(name, words)| (*name, fio(&mount, name, &format!("{words} --runtime={runtime}"))))
        .collect();
    let mut pauses = Vec::new();
    for round in 0..kills {
        let reader = Reader::start(&devices[1]);
        tokio::time::sleep(Duration::from_millis(300 + u64::from(round % 20) * 37)).await;
        world.kill();
        client = world.start().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        pauses.push(reader.longest());
    }
    for (name, job) in jobs {
        finish(name, job);
    }
    eprintln!("{pauses:?}");
    pauses.sort();
    eprintln!("pauses: median {:?}, longest {:?}", pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    run("umount", &[text(&mount)]);
    run("e2fsck", &["-f", "-n", text(&devices[0])]);
    assert_eq!(attach(&client, "files").await, devices[0], "the device has changed");
    for volume in ["files", "raw"] {
        detach(&client, volume).await;
    }
    assert_clean(&client).await;
    assert!(world.stop().success(), "{}", world.log());
    assert!(!world.log().contains("requests of a loop device failed"), "{}", world.log());
}

/// The smallest case: what was written stays, what is asked meanwhile waits, and the device is the same afterwards.
#[tokio::test]
async fn a_killed_daemon_is_a_pause() {
    if !machine_can() {
        return;
    }
    let (mut world, _, devices) = held(&[("db", 16 * MIB)]).await;
    let file = direct(&devices[0]);
    write_block(&file, 4096, 7).unwrap();
    world.kill();
    let waiting = thread::spawn({
        let file = file.try_clone().unwrap();
        move || write_block(&file, 8192, 8).and_then(|()| read_block(&file, 4096))
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished(), "something answers although there is no daemon");
    let client = world.start().await;
    assert_eq!(waiting.join().unwrap().unwrap(), [7; 4096]);
    assert_eq!(read_block(&file, 8192).unwrap(), [8; 4096]);
    assert_eq!(attach(&client, "db").await, devices[0], "the device has changed");
    drop(file);
    detach(&client, "db").await;
    assert_clean(&client).await;
    assert!(world.stop().success(), "{}", world.log());
}

/// Ends the daemon as an upgrade does, under verified load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_under_load_is_a_pause_and_a_clean_stop() {
    if !machine_can() {
        return;
    }
    let (mut world, mut client, devices) = held(&[("files", 96 * MIB), ("idle", 16 * MIB)]).await;
    let mount = world.path("mnt");
    std::fs::create_dir(&mount).unwrap();
    run("mkfs.ext4", &["-q", text(&devices[0])]);
    run("mount", &[text(&devices[0]), text(&mount)]);
    let words =
        "--ioengine=libaio --direct=1 --rw=randwrite --bs=8k --size=24m --iodepth=32 --verify_backlog=256";
    let job = fio(&mount, "upgrade", &format!("{words} --runtime=12"));
    let idle = direct(&devices[1]);
    write_block(&idle, 0, 3).unwrap();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        // A client that stays connected is waited for; upgrades are not tested for patience here.
        drop(client);
        let status = world.stop();
        assert!(status.success(), "{status}\n{}", world.log());
        client = world.start().await;
        assert_eq!(read_block(&idle, 0).unwrap(), [3; 4096]);
    }
    finish("upgrade", job);
    run("umount", &[text(&mount)]);
    run("e2fsck", &["-f", "-n", text(&devices[0])]);
    drop(idle);
    for volume in ["files", "idle"] {
        detach(&client, volume).await;
    }
    assert_clean(&client).await;
    assert!(!world.log().contains("requests of a loop device failed"), "{}", world.log());
}

/// A device that nobody uses at the moment of an upgrade belongs to somebody all the same, a pod about to start.
#[tokio::test]
async fn nothing_is_left_behind_when_everything_was_detached() {
    if !machine_can() {
        return;
    }
    let (mut world, client, devices) = held(&[("db", 16 * MIB)]).await;
    drop(client);
    assert!(world.stop().success());
    let client = world.start().await;
    assert_eq!(attach(&client, "db").await, devices[0], "an unused device was taken away by an upgrade");
    detach(&client, "db").await;
    drop(client);
    assert!(world.stop().success());
    assert!(!world.log().contains("left to the next daemon\",\"exports\":0"), "{}", world.log());
    let backing = Path::new("/sys/block").join(devices[0].file_name().unwrap()).join("loop/backing_file");
    let name = std::fs::read_to_string(world.path("exports/instance")).unwrap();
    assert!(!std::fs::read_to_string(backing).unwrap_or_default().contains(&name));
}
