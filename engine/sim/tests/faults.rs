//! Faults by place and chance: each happens where its zone is, and nowhere else.

use parallax_block::{BlockDevice, Buffer, ByteRange, ErrorKind, Runtime, WriteOptions};
use parallax_sim::{Asks, Content, DiskOptions, Fate, Fault, FaultPlan, SimDisk, Unflushed, World, Zone};
use std::time::Duration;

const CAPACITY: u64 = 1 << 20;

fn disk(world: &World) -> SimDisk {
    SimDisk::new(world, DiskOptions::new(CAPACITY))
}

fn zone(asks: Asks, fault: Fault, times_max: u64) -> FaultPlan {
    let range = ByteRange::new(0, 65536).unwrap();
    let zone = Zone { range, content: None, asks, fault, per_mille: 1000, times_max };
    FaultPlan { zones: vec![zone], ..FaultPlan::default() }
}

async fn put(disk: &SimDisk, offset: u64, length: usize, byte: u8) -> Result<(), ErrorKind> {
    let mut buffer = Buffer::zeroed(length);
    buffer.fill(byte);
    disk.write(offset, buffer, WriteOptions::default()).await.1.map_err(|error| error.kind())
}

async fn get(disk: &SimDisk, offset: u64) -> Result<u8, ErrorKind> {
    let (bytes, result) = disk.read(offset, Buffer::zeroed(512)).await;
    result.map(|()| bytes[0]).map_err(|error| error.kind())
}

#[test]
fn a_lost_write_is_answered_and_never_seen_and_a_zone_strikes_as_often_as_it_may() {
    let world = World::new(1);
    let disk = disk(&world);
    world.run(async {
        put(&disk, 0, 512, 1).await.unwrap();
        disk.set_faults(zone(Asks::Changes, Fault::Lost, 1));
        put(&disk, 0, 512, 2).await.unwrap();
        assert_eq!(get(&disk, 0).await, Ok(1));
        put(&disk, 0, 512, 3).await.unwrap();
        assert_eq!(get(&disk, 0).await, Ok(3));
        assert_eq!((disk.stats().faults.lost, disk.stats().faults.total()), (1, 1));
    });
}

#[test]
fn a_misdirected_write_lands_elsewhere() {
    let world = World::new(1);
    let disk = disk(&world);
    world.run(async {
        disk.set_faults(zone(Asks::Changes, Fault::Misdirected(131_072), 1));
        put(&disk, 4096, 1024, 7).await.unwrap();
        assert_eq!(get(&disk, 4096).await, Ok(0));
        assert_eq!(get(&disk, 4096 + 131_072).await, Ok(7));
        disk.flush().await.unwrap();
        let disk = disk.crash(Unflushed::Lost);
        assert_eq!(get(&disk, 4096 + 131_072).await, Ok(7));
    });
}

#[test]
fn a_flush_that_lies_makes_nothing_durable() {
    let world = World::new(1);
    let disk = disk(&world);
    world.run(async {
        put(&disk, 0, 512, 7).await.unwrap();
        disk.set_faults(zone(Asks::Flushes, Fault::Lost, 1));
        disk.flush().await.unwrap();
        assert_eq!(get(&disk.crash(Unflushed::Lost), 0).await, Ok(0));
    });
}

#[test]
fn a_ghost_is_an_error_now_and_a_write_long_after_even_when_its_process_is_gone() {
    let world = World::new(1);
    let disk = disk(&world);
    world.run(async {
        disk.set_faults(zone(Asks::Changes, Fault::Ghost(Duration::from_secs(30)), 1));
        assert_eq!(put(&disk, 0, 512, 1).await, Err(ErrorKind::Io));
        put(&disk, 0, 512, 2).await.unwrap();
        disk.flush().await.unwrap();
        let disk = disk.handover();
        assert_eq!(get(&disk, 0).await, Ok(2));
        world.sleep(Duration::from_secs(60)).await;
        assert_eq!(get(&disk, 0).await, Ok(1));
        // Durable only by a flush of its own.
        assert_eq!(get(&disk.crash(Unflushed::Lost), 0).await, Ok(2));
    });
}

#[test]
fn a_process_that_dies_may_leave_writes_that_land_late() {
    let world = World::new(1);
    let disk = disk(&world);
    world.run(async {
        let writer = disk.clone();
        world.spawn_named("writer", async move {
            put(&writer, 0, 512, 7).await.ok();
        });
        while disk.in_flight().is_empty() {
            world.yield_now().await;
        }
        let heir = disk.handover_late(Some(Duration::from_secs(1)..Duration::from_secs(2)));
        assert_eq!(get(&heir, 0).await, Ok(0));
        world.sleep(Duration::from_secs(3)).await;
        assert_eq!(get(&heir, 0).await, Ok(7));
    });
}

#[test]
fn a_spoiled_sector_fails_to_read_until_it_is_written() {
    let world = World::new(1);
    let disk = disk(&world);
    world.run(async {
        disk.spoil(ByteRange::new(512, 512).unwrap());
        assert_eq!((get(&disk, 0).await, get(&disk, 512).await), (Ok(0), Err(ErrorKind::Io)));
        put(&disk, 512, 512, 3).await.unwrap();
        assert_eq!(get(&disk, 512).await, Ok(3));
        assert_eq!(disk.stats().faults.unreadable, 1);
    });
}

#[test]
fn every_unflushed_write_can_be_given_its_own_fate() {
    let world = World::new(1);
    let disk = disk(&world);
    world.run(async {
        put(&disk, 0, 2048, 1).await.unwrap();
        disk.flush().await.unwrap();
        put(&disk, 0, 2048, 2).await.unwrap();
        put(&disk, 4096, 512, 3).await.unwrap();
    });
    let unflushed = disk.unflushed();
    assert_eq!(unflushed.len(), 2);
    let image = disk.crash_image_where(|request| match request == unflushed[0] {
        true => Fate::Sectors(0b0101),
        false => Fate::Lost,
    });
    let mut bytes = [9; 4608];
    image.read(0, &mut bytes);
    assert_eq!([bytes[0], bytes[512], bytes[1024], bytes[1536], bytes[4096]], [2, 1, 2, 1, 0]);
    let image = disk.crash_image_where(|_| Fate::Front(1));
    image.read(0, &mut bytes);
    assert_eq!([bytes[0], bytes[512], bytes[4096]], [2, 1, 3]);
}

#[test]
fn a_zone_may_ask_what_a_write_brings_and_keep_it_in_its_piece_of_the_disk() {
    let world = World::new(1);
    let disk = disk(&world);
    world.run(async {
        let mut plan = zone(Asks::Changes, Fault::Displaced { by: 8192, origin: 4096, piece: 16384 }, 2);
        plan.zones[0].content = Some(Content::new(|bytes| bytes[0] == 7));
        disk.set_faults(plan);
        put(&disk, 4096, 512, 1).await.unwrap();
        put(&disk, 8192, 512, 7).await.unwrap();
        assert_eq!(
            (get(&disk, 4096).await, get(&disk, 8192).await, get(&disk, 16384).await),
            (Ok(1), Ok(0), Ok(7))
        );
        // The end of the piece is at 20480: further goes round to its beginning.
        put(&disk, 16384, 4096, 7).await.unwrap();
        assert_eq!((get(&disk, 12288).await, get(&disk, 20480).await), (Ok(7), Ok(0)));
    });
}

#[test]
fn a_flush_may_lie_of_one_zone_only() {
    let world = World::new(1);
    let disk = disk(&world);
    world.run(async {
        put(&disk, 0, 512, 7).await.unwrap();
        put(&disk, 131_072, 512, 7).await.unwrap();
        disk.set_faults(zone(Asks::Flushes, Fault::Lost, 1));
        disk.flush().await.unwrap();
        let after = disk.crash(Unflushed::Lost);
        assert_eq!((get(&after, 0).await, get(&after, 131_072).await), (Ok(0), Ok(7)));
    });
}

#[test]
fn ghosts_are_laid_before_the_device_is_opened_again() {
    let world = World::new(1);
    let disk = disk(&world);
    world.run(async {
        disk.set_faults(zone(Asks::Changes, Fault::Ghost(Duration::from_secs(30)), 1));
        assert_eq!(put(&disk, 0, 512, 1).await, Err(ErrorKind::Io));
        let disk = disk.handover();
        assert_eq!(get(&disk, 0).await, Ok(0));
        disk.lay_ghosts();
        assert_eq!(get(&disk, 0).await, Ok(1));
        put(&disk, 0, 512, 2).await.unwrap();
        world.sleep(Duration::from_secs(60)).await;
        assert_eq!(get(&disk, 0).await, Ok(2));
    });
}
