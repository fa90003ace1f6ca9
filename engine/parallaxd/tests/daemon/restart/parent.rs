//! Who starts the next daemon.

use super::bed::*;
use crate::world::World;
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

/// Children of a process.
fn children(parent: u32) -> Vec<i32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = std::fs::read_to_string(path).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// In a container nobody may restart the daemon for minutes: whoever is above it does it at once.
#[tokio::test]
async fn a_daemon_that_is_killed_is_started_again_by_its_parent() {
    if !machine_can() {
        return;
    }
    let (mut world, client, devices) = held_in(World::new().respawning(), &[("db", 16 * MIB)]).await;
    drop(client);
    let file = direct(&devices[0]);
    for round in 1..=5u8 {
        write_block(&file, 4096, round).unwrap();
        let [daemon] = children(world.pid())[..] else { panic!("one child was expected") };
        kill_process(Pid::from_raw(daemon).unwrap(), Signal::KILL).unwrap();
        let start = Instant::now();
        assert_eq!(read_block(&file, 4096).unwrap(), [round; 4096]);
        eprintln!("read {:?} after the kill", start.elapsed());
    }
    let client = world.reconnect().await;
    drop(file);
    detach(&client, "db").await;
    drop(client);
    // Told to stop, it tells the daemon, and ends as that one ends.
    assert!(world.stop().success(), "{}", world.log());
}

#[tokio::test]
async fn a_daemon_that_ends_by_itself_is_not_started_again() {
    let world = World::new().respawning();
    std::fs::create_dir(world.pool()).unwrap();
    let (status, said) = world.fail_to_start();
    assert_eq!(status.code(), Some(1), "{said}");
    assert_eq!(said.matches("pool lives on a block device or in a file").count(), 1, "{said}");
}

/// The first process of a container ignores what it does not handle. When a machine goes down, whoever waits for a daemon
/// that does not come back must not wait for the holder to be killed.
#[tokio::test]
async fn a_holder_that_is_told_to_end_ends_even_as_the_first_process_of_a_container() {
    if !machine_can() {
        return;
    }
    let mut world = World::new();
    world.start_holder(PATIENCE);
    let end = Instant::now() + Duration::from_secs(20);
    while !world.log().contains("holding block devices") {
        assert!(Instant::now() < end, "{}", world.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (around, _) = world.holder();
    let [holder] = children(around)[..] else { panic!("one child was expected") };
    kill_process(Pid::from_raw(holder).unwrap(), Signal::TERM).unwrap();
    while !world.holder().1 {
        assert!(Instant::now() < end, "the holder ignores SIGTERM");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
