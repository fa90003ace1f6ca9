//! The disk: live against durable, crashes, tearing, faults, holds.

use parallax_block::{
    BlockDevice, Buffer, ByteRange, ErrorKind, Runtime, WriteOptions, ZeroOptions, join_all,
};
use parallax_sim::{
    AfterCut, DiskOptions, Either, FailedFlush, FaultPlan, HoldAt, Kind, Phase, Prng, SimDisk, Unflushed,
    World, either,
};
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};

const CAPACITY: u64 = 1 << 20;

fn disk(world: &World) -> SimDisk {
    SimDisk::new(world, DiskOptions::new(CAPACITY))
}

async fn put(disk: &SimDisk, offset: u64, length: usize, byte: u8) {
    let (_, result) = disk.write(offset, Buffer::copy_of(&vec![byte; length]), WriteOptions::default()).await;
    result.unwrap();
}

async fn get(disk: &SimDisk, offset: u64, length: usize) -> Vec<u8> {
    let (buffer, result) = disk.read(offset, Buffer::zeroed(length)).await;
    result.unwrap();
    buffer.to_vec()
}

fn range(offset: u64, length: u64) -> ByteRange {
    ByteRange::new(offset, length).unwrap()
}

/// A random load of everything; answers with the history.
fn random_load(seed: u64) -> u64 {
    let world = World::new(seed);
    let disk = disk(&world);
    world.run(async {
        let mut prng = Prng::new(17);
        for _ in 0..20 {
            let mut requests: Vec<parallax_block::BoxFuture<'_, ()>> = Vec::new();
            for _ in 0..8 {
                let offset = prng.range(0..200) * 512;
                let length = (prng.range(1..20) * 512) as usize;
                match prng.range(0..4) {
                    0 => requests.push(Box::pin(async { disk.flush().await.unwrap() })),
                    2 => {
                        let disk = &disk;
                        requests.push(Box::pin(async move { drop(get(disk, offset, length).await) }));
                    }
                    _ => {
                        let (disk, byte) = (&disk, prng.next_u64() as u8);
                        requests.push(Box::pin(async move { put(disk, offset, length, byte).await }));
                    }
                }
            }
            join_all(requests).await;
        }
    });
    world.history()
}

#[test]
fn a_load_replays_exactly_from_its_seed() {
    assert_eq!(random_load(1), random_load(1));
    assert_ne!(random_load(1), random_load(2));
}

#[test]
fn without_a_flush_nothing_is_promised() {
    let world = World::new(1);
    let disk = disk(&world);
    world.run(async {
        put(&disk, 0, 4096, 1).await;
        assert_eq!(get(&disk, 0, 4096).await, [1; 4096]);
        let kept = SimDisk::with_image(&world, DiskOptions::new(CAPACITY), disk.crash_image(Unflushed::Kept));
        assert_eq!(get(&kept, 0, 4096).await, [1; 4096]);
        let lost = disk.crash(Unflushed::Lost);
        assert_eq!(get(&lost, 0, 4096).await, [0; 4096]);
    });
}

#[test]
fn a_flush_covers_what_completed_before_it_was_sent_and_nothing_else() {
    // Over many seeds, a write that is in flight with the flush must be both found and missed afterwards.
    let mut found = [false; 2];
    for seed in 0..50 {
        let world = World::new(seed);
        let disk = disk(&world);
        world.run(async {
            put(&disk, 0, 4096, 1).await;
            let (flush, late) =
                (disk.flush(), disk.write(8192, Buffer::copy_of(&[2; 4096]), WriteOptions::default()));
            let (flushed, late) = (std::pin::pin!(flush), std::pin::pin!(late));
            late.await.1.unwrap();
            flushed.await.unwrap();
            let after = disk.crash(Unflushed::Some);
            assert_eq!(get(&after, 0, 4096).await, [1; 4096]);
            found[usize::from(get(&after, 8192, 1 << 9).await[0] == 2)] = true;
        });
    }
    assert_eq!(found, [true, true]);
}

#[test]
fn fua_is_durable_when_it_completes_and_covers_only_itself() {
    let world = World::new(4);
    let disk = disk(&world);
    world.run(async {
        put(&disk, 0, 512, 1).await;
        let (_, result) = disk.write(512, Buffer::copy_of(&[2; 512]), WriteOptions { fua: true }).await;
        result.unwrap();
        disk.write_zeroes(range(1024, 512), ZeroOptions { fua: true, unmap: false }).await.unwrap();
        let after = disk.crash(Unflushed::Lost);
        let bytes = get(&after, 0, 1024).await;
        assert_eq!((bytes[0], bytes[512]), (0, 2));
    });
}

#[test]
fn torn_writes_tear_between_sectors_and_never_inside() {
    let (mut torn, mut prefix_only) = (0, 0);
    for seed in 0..200 {
        let world = World::new(seed);
        let disk = disk(&world);
        world.run(async {
            put(&disk, 0, 4096, 1).await;
            disk.flush().await.unwrap();
            put(&disk, 0, 4096, 2).await;
            let bytes = get(&disk.crash(Unflushed::Torn), 0, 4096).await;
            let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
            assert!(bytes.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            assert!(sectors.iter().all(|byte| [1, 2].contains(byte)));
            if sectors.iter().any(|byte| *byte != sectors[0]) {
                torn += 1;
                prefix_only += usize::from(sectors.is_sorted_by(|a, b| a >= b));
            }
        });
    }
    assert!(torn > 50 && prefix_only < torn, "{torn} torn, {prefix_only} of them prefixes");
}

#[test]
fn whole_writes_survive_or_do_not_when_tearing_is_not_allowed() {
    for seed in 0..100 {
        let world = World::new(seed);
        let disk = disk(&world);
        world.run(async {
            put(&disk, 0, 8192, 2).await;
            let bytes = get(&disk.crash(Unflushed::Some), 0, 8192).await;
            assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        });
    }
}

#[test]
fn a_read_may_see_half_of_a_write_that_is_in_flight() {
    let mut halves = 0;
    for seed in 0..300 {
        let world = World::new(seed);
        let disk = disk(&world);
        world.run(async {
            let write = disk.write(0, Buffer::copy_of(&[1; 4096]), WriteOptions::default());
            let bytes = get(&disk, 0, 4096).await;
            halves += usize::from(bytes[0] != bytes[4095]);
            write.await.1.unwrap();
            assert_eq!(get(&disk, 0, 4096).await, [1; 4096]);
        });
    }
    assert!(halves > 10, "{halves}");
}

#[test]
fn dropping_the_future_does_not_take_the_write_back() {
    let world = World::new(6);
    let disk = disk(&world);
    world.run(async {
        drop(disk.write(0, Buffer::copy_of(&[1; 512]), WriteOptions::default()));
        disk.quiesce().await;
        assert_eq!(get(&disk, 0, 512).await, [1; 512]);
    });
}

#[test]
fn the_power_goes_at_the_boundary_that_was_asked_for() {
    for boundary in 1..=6 {
        let world = World::new(boundary);
        let disk = disk(&world);
        let done = Arc::new(Mutex::new(0));
        let (writer, counter) = (disk.clone(), done.clone());
        disk.crash_after(boundary);
        world.spawn_named("writer", async move {
            for n in 0..3u64 {
                put(&writer, n * 4096, 4096, 1).await;
                *counter.lock() += 1;
                writer.flush().await.unwrap();
                *counter.lock() += 1;
            }
        });
        world.run(disk.power_lost());
        world.run_until_idle();
        assert_eq!(*done.lock(), boundary - 1);
        let after = disk.crash(Unflushed::Lost);
        let blocks = (0..3).map(|n| world.run(get(&after, n * 4096, 1 << 9))[0]).sum::<u8>();
        assert_eq!(u64::from(blocks), (boundary - 1) / 2);
    }
}

#[test]
fn a_disk_that_goes_while_the_machine_lives_fails_its_requests() {
    let world = World::new(1);
    let options = DiskOptions { after_cut: AfterCut::Failure, ..DiskOptions::new(CAPACITY) };
    let disk = SimDisk::new(&world, options);
    world.run(async {
        let write = disk.write(0, Buffer::copy_of(&[1; 512]), WriteOptions::default());
        disk.cut_power();
        let (buffer, result) = write.await;
        assert_eq!((buffer.len(), result.unwrap_err().kind()), (512, ErrorKind::Io));
        assert_eq!(disk.flush().await.unwrap_err().kind(), ErrorKind::Io);
    });
}

#[test]
fn a_process_dies_and_its_requests_are_carried_out_but_not_durable() {
    let world = World::new(8);
    let disk = disk(&world);
    world.run(async {
        put(&disk, 0, 512, 1).await;
        drop(disk.write(512, Buffer::copy_of(&[2; 512]), WriteOptions::default()));
        let next = disk.handover();
        let bytes = get(&next, 0, 1024).await;
        assert_eq!((bytes[0], bytes[512]), (1, 2));
        let lost = SimDisk::with_image(&world, DiskOptions::new(CAPACITY), next.crash_image(Unflushed::Lost));
        assert_eq!(get(&lost, 0, 1024).await, [0; 1024]);
        next.flush().await.unwrap();
        let kept = next.crash(Unflushed::Lost);
        assert_eq!(get(&kept, 0, 1024).await, bytes);
    });
}

#[test]
fn planned_faults_happen_and_no_others() {
    let world = World::new(2);
    let disk = disk(&world);
    world.run(async {
        put(&disk, 0, 4096, 1).await;
        disk.set_faults(FaultPlan {
            read_errors: vec![range(1024, 512)],
            write_errors: vec![range(8192, 4096)],
            ..FaultPlan::default()
        });
        let (_, result) = disk.read(0, Buffer::zeroed(4096)).await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(get(&disk, 1536, 512).await, [1; 512]);
        let (buffer, result) = disk.write(4096, Buffer::zeroed(8192), WriteOptions::default()).await;
        assert_eq!((buffer.len(), result.unwrap_err().kind()), (8192, ErrorKind::Io));
        put(&disk, 4096, 4096, 3).await;
        disk.set_faults(FaultPlan { no_space: true, ..FaultPlan::default() });
        let (_, result) = disk.write(0, Buffer::zeroed(512), WriteOptions::default()).await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::OutOfSpace);
        disk.flush().await.unwrap();
        disk.set_faults(FaultPlan::default());
        put(&disk, 0, 512, 1).await;
    });
    assert_eq!(disk.stats().faults.failed, 3);
}

#[test]
fn a_failed_flush_may_forget_what_it_was_to_write() {
    // The story of fsyncgate: the flush fails, reads show the data, a second flush succeeds, the data is gone.
    let mut forgotten = 0;
    for seed in 0..40 {
        let world = World::new(seed);
        let disk = disk(&world);
        let flush_errors = [1].into();
        disk.set_faults(FaultPlan {
            flush_errors,
            failed_flush: FailedFlush::Forgets,
            ..FaultPlan::default()
        });
        world.run(async {
            put(&disk, 0, 512, 1).await;
            assert_eq!(disk.flush().await.unwrap_err().kind(), ErrorKind::Io);
            assert_eq!(get(&disk, 0, 512).await, [1; 512]);
            disk.flush().await.unwrap();
            forgotten += usize::from(get(&disk.crash(Unflushed::Kept), 0, 512).await[0] == 0);
        });
    }
    assert!((1..40).contains(&forgotten), "{forgotten}");
}

#[test]
fn a_held_write_has_no_effect_until_it_is_released() {
    let world = World::new(3);
    let disk = disk(&world);
    let hold = disk.hold(HoldAt::Submission, |request| request.touches(ByteRange::new(0, 512).unwrap()));
    let writer = disk.clone();
    world.spawn_named("held", async move { put(&writer, 0, 512, 7).await });
    world.run(async {
        hold.caught(1).await;
        put(&disk, 4096, 512, 8).await;
        world.sleep(Duration::from_secs(60)).await;
        let mut bytes = [9; 512];
        disk.peek(0, &mut bytes);
        assert_eq!(bytes, [0; 512]);
        hold.release();
        disk.quiesce().await;
        assert_eq!(get(&disk, 0, 512).await, [7; 512]);
    });
    assert!(world.pending_tasks().is_empty());
}

#[test]
fn a_held_answer_is_an_effect_that_nobody_has_heard_of() {
    let world = World::new(3);
    let disk = disk(&world);
    let hold = disk.hold(HoldAt::Answer, |request| request.kind.is_change());
    let writer = disk.clone();
    world.spawn_named("held", async move { put(&writer, 0, 512, 7).await });
    world.run(async {
        hold.caught(1).await;
        assert_eq!(get(&disk, 0, 512).await, [7; 512]);
        assert_eq!(world.pending_tasks().len(), 1);
        // Not answered, so the flush does not cover it.
        disk.flush().await.unwrap();
        let lost = SimDisk::with_image(&world, DiskOptions::new(CAPACITY), disk.crash_image(Unflushed::Lost));
        assert_eq!(get(&lost, 0, 512).await, [0; 512]);
        hold.release();
        disk.quiesce().await;
    });
    world.run_until_idle();
    assert!(world.pending_tasks().is_empty());
}

#[test]
fn a_deadlock_names_what_is_held() {
    let world = World::new(3);
    let disk = disk(&world);
    let _hold = disk.hold(HoldAt::Submission, |request| request.kind == Kind::Flush);
    let deadlock = world.try_run(disk.flush()).unwrap_err();
    assert_eq!(deadlock.held.len(), 1, "{deadlock}");
    assert!(deadlock.to_string().contains("Flush"), "{deadlock}");
}

#[test]
fn observers_see_who_wrote_what() {
    let world = World::new(3);
    let disk = disk(&world);
    let seen: Arc<Mutex<Vec<(String, Phase, u8)>>> = Arc::default();
    let log = seen.clone();
    disk.observe(move |event| {
        let byte = event.bytes.first().copied().unwrap_or(0);
        log.lock().push((event.request.process.to_string(), event.phase, byte));
    });
    let (writer, process) = (disk.clone(), world.process("host-a"));
    process.spawn_named("writer", async move { put(&writer, 0, 512, 7).await });
    world.run_until_idle();
    let expected =
        [("host-a", Phase::Begun, 7), ("host-a", Phase::Effect, 7), ("host-a", Phase::Completed, 0)];
    assert_eq!(*seen.lock(), expected.map(|(process, phase, byte)| (process.to_owned(), phase, byte)));
}

#[test]
fn requests_that_overlap_in_flight_take_effect_in_either_order() {
    let mut last = [false; 2];
    for seed in 0..50 {
        let world = World::new(seed);
        let disk = disk(&world);
        world.run(async {
            let first = disk.write(0, Buffer::copy_of(&[1; 512]), WriteOptions::default());
            let second = disk.write(0, Buffer::copy_of(&[2; 512]), WriteOptions::default());
            first.await.1.unwrap();
            second.await.1.unwrap();
            last[usize::from(get(&disk, 0, 512).await[0] == 2)] = true;
        });
    }
    assert_eq!(last, [true, true]);
}

#[test]
fn damage_is_seen_by_reads_and_survives_crashes() {
    let world = World::new(3);
    let disk = disk(&world);
    world.run(async {
        put(&disk, 0, 512, 0).await;
        disk.flush().await.unwrap();
        disk.damage(range(0, 512), |bytes| bytes[17] ^= 4);
        assert_eq!(get(&disk, 0, 512).await[17], 4);
        assert_eq!(get(&disk.crash(Unflushed::Lost), 0, 512).await[17], 4);
    });
}

#[test]
fn a_race_against_the_power_switch_ends() {
    let world = World::new(11);
    let disk = disk(&world);
    disk.crash_after(1);
    let outcome = world.run(async { either(put(&disk, 0, 512, 1), disk.power_lost()).await });
    assert_eq!(outcome, Either::Right(()));
}
