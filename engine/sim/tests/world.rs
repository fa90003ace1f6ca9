//! The executor: seeded, virtual, replayable, and honest about being stuck.

use parallax_block::Runtime;
use parallax_sim::{Either, World, either};
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};

/// Starts ten tasks that yield and sleep; answers with the order in which they took their steps.
fn order_of_steps(world: &World) -> Vec<u32> {
    let steps: Arc<Mutex<Vec<u32>>> = Arc::default();
    for task in 0..10 {
        let (world, steps) = (world.clone(), steps.clone());
        world.clone().spawn_named("stepper", async move {
            for round in 0..5 {
                steps.lock().push(task);
                world.yield_now().await;
                world.sleep(Duration::from_micros(round)).await;
            }
        });
    }
    world.run_until_idle();
    Arc::try_unwrap(steps).unwrap().into_inner()
}

#[test]
fn a_seed_is_a_history() {
    let (first, again, other) = (World::new(1), World::new(1), World::new(2));
    assert_eq!(order_of_steps(&first), order_of_steps(&again));
    assert_eq!(first.history(), again.history());
    let steps = order_of_steps(&other);
    assert_ne!(steps, order_of_steps(&World::new(1)));
    assert_ne!(first.history(), other.history());
    assert_eq!(steps.len(), 50);
}

#[test]
fn time_moves_only_when_nothing_else_can() {
    let world = World::new(5);
    let started = world.now();
    let slept = world.run(async {
        for _ in 0..1000 {
            world.yield_now().await;
        }
        assert_eq!(world.now(), started);
        world.sleep(Duration::from_secs(3600)).await;
        world.now()
    });
    assert_eq!(slept, Duration::from_secs(3600));
}

#[test]
fn the_end_of_a_run_leaves_other_tasks_where_they_are() {
    let world = World::new(5);
    let done = Arc::new(Mutex::new(false));
    let (clock, flag) = (world.clone(), done.clone());
    world.spawn_named("slow", async move {
        clock.sleep(Duration::from_secs(10)).await;
        *flag.lock() = true;
    });
    world.run_for(Duration::from_secs(9));
    assert!(!*done.lock());
    world.run_for(Duration::from_secs(2));
    assert!(*done.lock());
    assert_eq!(world.now(), Duration::from_secs(11));
}

#[test]
fn a_deadlock_names_who_waits() {
    let world = World::new(9);
    let process = world.process("store");
    process.spawn_named("committer", std::future::pending());
    let deadlock = world.try_run(std::future::pending::<()>()).unwrap_err();
    let text = deadlock.to_string();
    assert!(text.contains("seed 9") && text.contains("'committer' of store"), "{text}");
}

#[test]
fn a_killed_process_takes_no_further_step() {
    struct Bomb(Arc<Mutex<bool>>);
    impl Drop for Bomb {
        fn drop(&mut self) {
            *self.0.lock() = true;
        }
    }
    let world = World::new(3);
    let process = world.process("daemon");
    let (steps, dropped) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(false)));
    let (clock, counter, bomb) = (world.clone(), steps.clone(), Bomb(dropped.clone()));
    process.spawn_named("ticker", async move {
        let _bomb = bomb;
        loop {
            clock.sleep(Duration::from_millis(1)).await;
            *counter.lock() += 1;
        }
    });
    world.run_for(Duration::from_millis(10));
    process.kill();
    assert!(*dropped.lock() && !process.is_alive());
    let before = *steps.lock();
    assert!(before >= 9);
    world.run_for(Duration::from_millis(10));
    assert_eq!(*steps.lock(), before);
    process.spawn(Box::pin(async { panic!("the dead do not start tasks") }));
    world.run_until_idle();
}

#[test]
fn the_loser_of_a_race_is_dropped_with_its_timer() {
    let world = World::new(3);
    let outcome = world.run(async {
        either(world.sleep(Duration::from_secs(1)), world.sleep(Duration::from_secs(1_000_000))).await
    });
    assert_eq!(outcome, Either::Left(()));
    world.run_until_idle();
    assert_eq!(world.now(), Duration::from_secs(1));
}

#[test]
fn a_world_that_ends_lets_go_of_everything() {
    let held = Arc::new(());
    let world = World::new(1);
    for process in [None, Some(world.process("daemon"))] {
        let (of_task, of_world) = (held.clone(), world.clone());
        let task = async move {
            of_world.sleep(Duration::from_secs(3600)).await;
            drop(of_task);
        };
        match process {
            None => world.spawn_named("waits", task),
            Some(process) => process.spawn_named("waits", task),
        }
    }
    world.run_for(Duration::from_secs(1));
    assert_eq!(Arc::strong_count(&held), 3);
    world.end();
    assert_eq!(Arc::strong_count(&held), 1);
    world.spawn_named("too late", async { panic!("a world that has ended runs nothing") });
    world.run_until_idle();
}
