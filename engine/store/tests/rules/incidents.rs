//! What has gone wrong elsewhere, told as tests of this store. Each begins with the story, as it is publicly known;
//! docs/testing.md has the whole table, with those that other tests cover and those that cannot happen here.

use crate::rig::*;
use parallax_block::{BlockDevice, ByteRange, ErrorKind};
use parallax_sim::{
    Asks, DiskOptions, Fault, FaultPlan, HoldAt, Image, Kind, Phase, SimDisk, Unflushed, Zone,
};
use parallax_store::{CreatePool, Pool, Source, TakeSnapshot, Timestamp};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

/// In Longhorn (issue 7714) a salvage chose among replicas by the time of their last change, which it had read in the
/// place of a size. Here no choice depends on a time: times that callers bring may run backwards.
#[test]
fn what_is_newest_is_told_by_epochs_and_numbers_whatever_the_clock_says() {
    let mut rig = Rig::new(1);
    let (pool, vdi) = rig.with_volume(MIB);
    for (turn, when) in [5_000_000, 4_000, 0, -1].into_iter().enumerate() {
        rig.world.run(async {
            put(&*vdi, 0, turn as u8 + 1).await;
            let (vdis, label) = (vec![vdi.id()], format!("turn {turn}"));
            let request = TakeSnapshot { vdis, label, name: None, at: Timestamp(when) };
            pool.materialise(pool.snapshot(request).await.unwrap()[0].id).await.unwrap();
        });
    }
    rig.world.run(async {
        put(&*vdi, 0, 9).await;
        vdi.flush().await.unwrap();
    });
    rig.power_cut(Unflushed::Lost);
    let (pool, vdi) = rig.reopen();
    rig.world.run(async {
        assert_eq!(get(&*vdi, 0).await, 9);
        let taken = pool.snapshots(vdi.id(), 0, 10).await.unwrap();
        let numbers: Vec<u64> = taken.iter().map(|snapshot| snapshot.id.number).collect();
        assert!(numbers.is_sorted() && numbers.len() == 4, "{numbers:?}");
        for (turn, snapshot) in taken.iter().enumerate() {
            assert_eq!(in_snapshot(&pool, snapshot, 0).await, turn as u8 + 1);
        }
    });
    rig.close(&pool);
}

/// Several CSI drivers (and Kubernetes' own mount library: issues 95183 and 142243) took a device that could not be
/// read for one that was blank, and formatted over data. A device that cannot be read is not known to be blank.
#[test]
fn a_device_that_cannot_be_read_is_not_formatted() {
    let rig = Rig::new(2);
    let disk = SimDisk::with_image(&rig.world, DiskOptions::new(64 * MIB), Image::filled(STRANGER));
    let written = Arc::new(AtomicU64::new(0));
    let counter = written.clone();
    disk.observe(move |event| {
        if event.phase == Phase::Begun && event.request.kind.is_boundary() {
            counter.fetch_add(1, SeqCst);
        }
    });
    for at in [0, 64 * MIB - BLOCK] {
        disk.spoil(ByteRange::new(at, BLOCK).unwrap());
        let options = CreatePool { extent_bytes: Some(256 << 10), force: false };
        let refused = rig.world.run(Pool::create(Arc::new(disk.clone()), options, &rig.environment()));
        assert!(refused.is_err(), "a device whose block at {at} cannot be read was formatted");
        assert_eq!(written.load(SeqCst), 0, "and it was written to");
    }
}

/// In DRBD (issue 118) a slot that was used again kept the bitmap of whoever had it before. An extent that comes back
/// to the pool and is claimed again, for the other kind too, begins with a bitmap of its own, wherever the power goes.
#[test]
fn an_extent_that_is_used_again_does_not_inherit_its_bitmap() {
    for seed in 0..12 {
        let mut rig = Rig::sized(seed, 8 * MIB);
        let pool = rig.open();
        for turn in 0..3 {
            rig.world.run(async {
                let info = pool.create_vdi(request("volume", Some(16 * MIB), Source::Empty)).await.unwrap();
                let vdi = pool.attach(info.id).await.unwrap();
                let mut written = 0;
                while try_put(&*vdi, written, MIB / 8, turn + 1).await.is_ok() {
                    written += MIB / 8;
                    // More metadata in some turns, so that extents change their kind.
                    if turn == 1 {
                        let _ = snapshot(&pool, &[vdi.id()]).await;
                    }
                }
                vdi.detach().await.unwrap();
                for info in pool.snapshots(info.id, 0, 1000).await.unwrap() {
                    pool.delete_snapshot(info.id).await.unwrap();
                }
                pool.delete_vdi(info.id).await.unwrap();
                pool.collect_garbage(&|_| {}).await.unwrap();
            });
        }
        rig.world.run(async {
            let info = pool.create_vdi(request("last", Some(16 * MIB), Source::Empty)).await.unwrap();
            let vdi = pool.attach(info.id).await.unwrap();
            for block in 0..100 {
                put(&*vdi, block, 7).await;
            }
            vdi.flush().await.unwrap();
            for block in 100..200 {
                put(&*vdi, block, 8).await;
            }
        });
        rig.power_cut(Unflushed::ALL[seed as usize % 4]);
        rig.assert_undamaged();
        let (pool, vdi) = rig.reopen();
        rig.world.run(async {
            for block in 0..100 {
                assert_eq!(get(&*vdi, block).await, 7);
            }
            // Nothing that is in use is given out: what was flushed stays.
            for block in 200..700 {
                put(&*vdi, block, 9).await;
            }
            for block in 0..100 {
                assert_eq!(get(&*vdi, block).await, 7);
            }
        });
        rig.close(&pool);
    }
}

/// In Cloud Hypervisor's qcow2 code (issue 8624) a hole was punched late, into a cluster that had meanwhile become part
/// of the image's tables. A block is not given out while its discard is under way.
#[test]
fn a_block_is_not_used_again_while_its_discard_is_under_way() {
    let rig = Rig::sized(3, 16 * MIB);
    let (pool, vdi) = rig.with_volume(64 * MIB);
    rig.world.run(async {
        for block in 0..400 {
            put(&*vdi, block, 1).await;
        }
        vdi.flush().await.unwrap();
    });
    let hold = rig.disk.hold(HoldAt::Submission, |request| request.kind == Kind::Discard);
    rig.world.run(async {
        vdi.discard(ByteRange::new(0, 400 * BLOCK).unwrap()).await.unwrap();
        vdi.flush().await.unwrap();
    });
    rig.world.run(hold.caught(1));
    let changes = rig.record();
    rig.world.run(async {
        // Until nothing fits any more.
        let mut block = 1000;
        while try_put(&*vdi, block * BLOCK, BLOCK, 2).await.is_ok() {
            block += 1;
            if block.is_multiple_of(100) {
                vdi.flush().await.unwrap();
            }
        }
        assert!(block > 1500, "only {} blocks fitted", block - 1000);
    });
    let held = hold.held();
    let written: Vec<ByteRange> =
        changes.lock().iter().filter(|change| change.is_write()).map(|change| change.range).collect();
    for discard in &held {
        assert!(
            !written.iter().any(|range| discard.touches(*range)),
            "a block was written while its discard was under way"
        );
    }
    hold.release();
    rig.close(&pool);
}

/// In the same code (issues 8637 and 8748) a table was let go, or named, before what replaced it was secured; running
/// out of space in between left the image damaged. Here the device runs out of space in the middle of every operation.
#[test]
fn a_device_that_is_full_in_the_middle_of_anything_leaves_a_pool_that_is_whole() {
    for after in 1.. {
        let mut rig = Rig::sized(after, 16 * MIB);
        let (pool, vdi) = rig.with_volume(4 * MIB);
        rig.world.run(async {
            for block in 0..8 {
                put(&*vdi, block, 1).await;
            }
            snapshot(&pool, &[vdi.id()]).await.unwrap();
            put(&*vdi, 1, 2).await;
            vdi.flush().await.unwrap();
        });
        // The `after`th change from here on, and what follows it for a while, finds the device full.
        let disk = rig.disk.clone();
        let struck = Arc::new(AtomicBool::new(false));
        let (mut seen, strikes) = (0, struck.clone());
        rig.disk.observe(move |event| {
            if event.phase == Phase::Begun && event.request.kind.is_change() {
                seen += 1;
                if seen == after {
                    strikes.store(true, SeqCst);
                    let range = ByteRange::new(0, 16 * MIB).unwrap();
                    let (asks, fault) = (Asks::Changes, Fault::Fails(ErrorKind::OutOfSpace));
                    let zone = Zone { range, content: None, asks, fault, per_mille: 1000, times_max: 4 };
                    disk.set_faults(FaultPlan { zones: vec![zone], ..FaultPlan::default() });
                }
            }
        });
        rig.world.run(async {
            let _ = try_put(&*vdi, 2 * BLOCK, 3 * BLOCK, 3).await;
            let _ = snapshot(&pool, &[vdi.id()]).await;
            let _ = try_put(&*vdi, 600 * BLOCK, BLOCK, 4).await;
            let _ = vdi.discard(ByteRange::new(6 * BLOCK, BLOCK).unwrap()).await;
            let _ = pool.create_vdi(request("clone", None, Source::Vdi(vdi.id()))).await;
            let _ = vdi.flush().await;
            let _ = pool.collect_garbage(&|_| {}).await;
        });
        if !struck.load(SeqCst) {
            assert!(after > 20, "all of it takes {after} changes of the device");
            break;
        }
        rig.power_cut(Unflushed::ALL[after as usize % 4]);
        rig.assert_undamaged();
        let pool = rig.open();
        let id = pool.vdis().into_iter().find(|info| info.name.as_str() == "volume").unwrap().id;
        rig.world.run(async {
            let vdi = pool.attach(id).await.unwrap();
            assert_eq!((get(&*vdi, 0).await, get(&*vdi, 1).await), (1, 2));
            let first = pool.snapshots(id, 0, 1).await.unwrap().remove(0);
            assert_eq!((in_snapshot(&pool, &first, 0).await, in_snapshot(&pool, &first, 1).await), (1, 1));
            put(&*vdi, 700, 5).await;
            vdi.flush().await.unwrap();
        });
        rig.close(&pool);
    }
}

/// In HwameiStor (issue 1836) a crash between two records let the number of a thin volume be used again, and the new
/// volume showed what the old one had held. A new volume holds zeroes wherever nobody has written to it, also around
/// what is written in part, on space that was used before.
#[test]
fn a_new_volume_shows_nothing_of_one_that_was_deleted() {
    for seed in 0..8 {
        let mut rig = Rig::sized(seed, 8 * MIB);
        let (pool, vdi) = rig.with_volume(16 * MIB);
        rig.world.run(async {
            let mut written = 0;
            while try_put(&*vdi, written, MIB / 4, 0xaa).await.is_ok() {
                written += MIB / 4;
            }
            vdi.detach().await.unwrap();
            pool.delete_vdi(vdi.id()).await.unwrap();
            pool.collect_garbage(&|_| {}).await.unwrap();
        });
        rig.power_cut(Unflushed::ALL[seed as usize % 4]);
        let pool = rig.open();
        rig.world.run(async {
            for info in pool.vdis() {
                pool.delete_vdi(info.id).await.unwrap();
            }
            pool.collect_garbage(&|_| {}).await.unwrap();
            let info = pool.create_vdi(request("new", Some(4 * MIB), Source::Empty)).await.unwrap();
            let vdi = pool.attach(info.id).await.unwrap();
            for block in 0..900 {
                try_put(&*vdi, block * BLOCK + 1024, 512, 1).await.unwrap();
            }
            for block in 0..900 {
                let found = sectors(&read(&*vdi, block * BLOCK, BLOCK).await);
                assert_eq!(found, [0, 0, 1, 0, 0, 0, 0, 0], "block {block}");
            }
            assert!(read(&*vdi, 900 * BLOCK, 100 * BLOCK).await.iter().all(|byte| *byte == 0));
        });
        rig.close(&pool);
    }
}

/// In Ceph (issues 52109 and 61129 of its tracker and repository) the map of which objects exist was wrong in snapshots
/// that were taken under load, and whoever trusted it lost data. What a snapshot says it holds, and what it says has
/// changed since another, is what reading both shows.
#[test]
fn what_changed_between_snapshots_under_load_is_what_reading_them_shows() {
    for seed in 0..6 {
        let rig = Rig::new(seed);
        let (pool, vdi) = rig.with_volume(4 * MIB);
        let writers: Vec<_> = (0..4u64)
            .map(|writer| {
                let vdi = vdi.clone();
                rig.start("writer", async move {
                    for turn in 0..120u64 {
                        let block = (turn * 37 + writer * 211 + seed) % 1000;
                        if turn % 5 == 4 {
                            vdi.discard(ByteRange::new(block * BLOCK, 3 * BLOCK).unwrap()).await.unwrap();
                        } else {
                            put(&*vdi, block, (turn * 4 + writer) as u8 | 1).await;
                        }
                    }
                })
            })
            .collect();
        let mut taken = Vec::new();
        rig.world.run(async {
            for _ in 0..5 {
                taken.extend(snapshot(&pool, &[vdi.id()]).await.unwrap());
            }
        });
        writers.iter().for_each(Started::wait);
        rig.world.run(async {
            let mut contents = Vec::new();
            for info in &taken {
                pool.materialise(info.id).await.unwrap();
                let view = pool.open_snapshot(info.id).await.unwrap();
                contents.push(read(&*view, 0, 4 * MIB).await);
                view.close().await.unwrap();
            }
            for (old, new) in (0..taken.len()).flat_map(|old| (old..taken.len()).map(move |new| (old, new))) {
                let said = pool.diff(Some(taken[old].id), taken[new].id, 0, 10_000).await.unwrap();
                for block in 0..4 * MIB / BLOCK {
                    let bytes = (block * BLOCK) as usize..((block + 1) * BLOCK) as usize;
                    let differs = contents[old][bytes.clone()] != contents[new][bytes];
                    let named = said.iter().any(|extent| {
                        extent.range.offset() <= block * BLOCK && block * BLOCK < extent.range.end()
                    });
                    assert!(named || !differs, "{old} and {new} differ in block {block}, which is not said");
                }
            }
        });
        rig.close(&pool);
    }
}
