//! Nobody comes back, or the holder goes: users get errors, and nothing hangs.

use super::bed::*;
use crate::world::{World, create};
use std::time::{Duration, Instant};

#[tokio::test]
async fn users_of_a_daemon_that_never_comes_back_get_errors_in_the_end() {
    if !machine_can() {
        return;
    }
    let mut world = World::new();
    world.start_holder(3);
    let client = world.start().await;
    create(&client, "db", 16 * MIB).await;
    let device = attach(&client, "db").await;
    let file = direct(&device);
    world.kill();
    let start = Instant::now();
    fails(&file);
    let waited = start.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(20)).contains(&waited), "{waited:?}");
    // The next daemon begins anew, beside what is still open.
    let client = world.start().await;
    let next = attach(&client, "db").await;
    assert_ne!(next, device);
    let again = direct(&next);
    write_block(&again, 0, 2).unwrap();
    drop((file, again));
    detach(&client, "db").await;
}

#[tokio::test]
async fn an_operator_ends_the_wait() {
    if !machine_can() {
        return;
    }
    let (mut world, _, devices) = held(&[("db", 16 * MIB)]).await;
    let file = direct(&devices[0]);
    assert!(!world.release().status.success(), "a daemon that serves was cut off");
    write_block(&file, 0, 1).unwrap();
    world.kill();
    assert!(world.release().status.success());
    let start = Instant::now();
    fails(&file);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_holder_that_is_killed_is_replaced_and_nobody_notices() {
    if !machine_can() {
        return;
    }
    let (mut world, _, devices) = held(&[("db", 16 * MIB)]).await;
    let file = direct(&devices[0]);
    write_block(&file, 0, 1).unwrap();
    world.kill_holder();
    write_block(&file, 4096, 2).unwrap();
    world.start_holder(PATIENCE);
    let end = Instant::now() + BOUND;
    while !world.log().contains("the block devices are held again") {
        assert!(Instant::now() < end, "{}", world.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.kill();
    let client = world.start().await;
    assert_eq!(read_block(&file, 4096).unwrap(), [2; 4096]);
    drop(file);
    detach(&client, "db").await;
}

#[tokio::test]
async fn with_holder_and_daemon_both_killed_users_get_errors_at_once() {
    if !machine_can() {
        return;
    }
    let (mut world, _, devices) = held(&[("db", 16 * MIB)]).await;
    let file = direct(&devices[0]);
    world.kill_holder();
    world.kill();
    let start = Instant::now();
    fails(&file);
    assert!(start.elapsed() < Duration::from_secs(10));
    drop(file);
    world.start_holder(PATIENCE);
    let client = world.start().await;
    let device = attach(&client, "db").await;
    write_block(&direct(&device), 0, 1).unwrap();
    detach(&client, "db").await;
}
