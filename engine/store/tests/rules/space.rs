//! Design, section 5: d to g: marks before data, garbage collection, pins, running out of space.

use crate::rig::*;
use parallax_block::{BLOCK_SIZE, BlockDevice, ByteRange, ErrorKind};
use parallax_sim::{FaultPlan, HoldAt, Unflushed, either};
use parallax_store::{Name, Source};
use std::time::Duration;

#[test]
fn rule_5f_an_open_snapshot_is_not_deleted() {
    let rig = Rig::new(1);
    let (pool, vdi) = rig.with_volume(MIB);
    rig.world.run(async {
        put(&*vdi, 0, 1).await;
        let info = snapshot(&pool, &[vdi.id()]).await.unwrap().remove(0);
        pool.materialise(info.id).await.unwrap();
        let view = pool.open_snapshot(info.id).await.unwrap();
        assert_eq!(pool.delete_snapshot(info.id).await.unwrap_err().kind(), ErrorKind::Busy);
        put(&*vdi, 0, 2).await;
        pool.collect_garbage(&|_| {}).await.unwrap();
        assert_eq!(get(&*view, 0).await, 1);
        view.close().await.unwrap();
        pool.delete_snapshot(info.id).await.unwrap();
    });
    rig.close(&pool);
}

#[test]
fn rule_5g_only_the_write_that_does_not_fit_fails_and_the_pool_stays_usable() {
    let rig = Rig::sized(2, 16 * MIB);
    let (pool, vdi) = rig.with_volume(64 * MIB);
    rig.world.run(async {
        put(&*vdi, 0, 1).await;
        vdi.flush().await.unwrap();
        let mut block = 1;
        let error = loop {
            match try_put(&*vdi, block * BLOCK, 16 * BLOCK, 2).await {
                Ok(()) => block += 16,
                Err(error) => break error,
            }
            assert!(block < 16 * MIB / BLOCK, "a pool of 16 MiB took {block} blocks");
        };
        assert_eq!(error.kind(), ErrorKind::OutOfSpace);
        // In place still works, and so does everything that needs a little metadata.
        put(&*vdi, 0, 3).await;
        vdi.flush().await.unwrap();
        assert_eq!(get(&*vdi, block - 1).await, 2);
        vdi.discard(ByteRange::new(BLOCK, (block - 1) * BLOCK).unwrap()).await.unwrap();
        vdi.flush().await.unwrap();
        pool.collect_garbage(&|_| {}).await.unwrap();
        try_put(&*vdi, 20 * MIB, MIB, 4).await.unwrap();
        vdi.flush().await.unwrap();
        assert_eq!((get(&*vdi, 0).await, get(&*vdi, 20 * MIB / BLOCK).await), (3, 4));
    });
    rig.close(&pool);
}

/// `nbdcopy` with four connections filled 200 MB of an empty pool of 1 GiB and was told that there is no space. With small
/// extents each claimed one was taken whole, as the run of one of many writers, and the others asked 64 times in vain.
#[test]
fn rule_5g_many_who_write_at_once_are_not_refused_while_there_is_room() {
    for length in [1, 16, 40] {
        let rig = Rig::new(4);
        let (pool, vdi) = rig.with_volume(64 * MIB);
        let writers: Vec<_> = (0..200u64)
            .map(|number| {
                let vdi = vdi.clone();
                rig.start("write", async move {
                    try_put(&*vdi, number * 50 * BLOCK, length * BLOCK, number as u8 + 1).await
                })
            })
            .collect();
        for (number, writer) in writers.iter().enumerate() {
            writer.wait().unwrap_or_else(|error| panic!("{length} blocks, writer {number}: {error}"));
        }
        rig.world.run(async {
            for number in 0..200u64 {
                assert_eq!(get(&*vdi, number * 50 + length - 1).await, number as u8 + 1);
            }
        });
        rig.close(&pool);
    }
}

/// In Stratis (issue 914) a pool ran out of space for its metadata, and then not even what gives space back worked.
#[test]
fn rule_5g_a_full_pool_can_be_emptied_and_used_again_and_again() {
    let rig = Rig::sized(3, 16 * MIB);
    let pool = rig.open();
    rig.world.run(async {
        let empty = pool.info().data_used;
        for round in 0..3 {
            let info = pool.create_vdi(request("big", Some(64 * MIB), Source::Empty)).await.unwrap();
            let vdi = pool.attach(info.id).await.unwrap();
            let mut written = 0;
            while try_put(&*vdi, written, MIB / 4, 1).await.is_ok() {
                written += MIB / 4;
                if written.is_multiple_of(4 * MIB) {
                    // Shared with a snapshot, so that deleting has something to untangle.
                    let _ = snapshot(&pool, &[vdi.id()]).await;
                }
            }
            assert!(written >= 4 * MIB, "round {round}: only {written} bytes fitted");
            vdi.detach().await.unwrap();
            for info in pool.snapshots(info.id, 0, 100).await.unwrap() {
                pool.delete_snapshot(info.id).await.unwrap();
            }
            pool.delete_vdi(info.id).await.unwrap();
            pool.collect_garbage(&|_| {}).await.unwrap();
            assert_eq!(pool.info().data_used, empty, "round {round}: space did not come back");
        }
    });
    rig.close(&pool);
}

/// In DRBD (issue 145) a handshake cleared a bitmap that was still needed. Bitmaps here only tell what is free, and are made
/// anew from what is in use.
#[test]
fn rule_5d_space_that_a_crash_left_behind_comes_back() {
    for unflushed in Unflushed::ALL {
        let mut rig = Rig::sized(4, 16 * MIB);
        let (_pool, vdi) = rig.with_volume(8 * MIB);
        rig.world.run(async {
            for block in 0..500 {
                put(&*vdi, block, 1).await;
                if block == 100 {
                    vdi.flush().await.unwrap();
                }
            }
        });
        rig.power_cut(unflushed);
        let pool = rig.open();
        rig.world.run(async {
            pool.delete_vdi(volume(&pool).id).await.unwrap();
            pool.collect_garbage(&|_| {}).await.unwrap();
            assert_eq!(pool.info().data_used, 0);
        });
        rig.close(&pool);
    }
}

/// Every bitmap block on the disk.
fn bitmaps(rig: &Rig) -> Vec<(u64, Vec<u8>)> {
    let durable = rig.disk.durable();
    let mut block = vec![0; BLOCK_SIZE];
    (0..64 * MIB / BLOCK)
        .filter_map(|at| {
            durable.read(at * BLOCK, &mut block);
            is_sealed(&block, BITMAP).then(|| (at * BLOCK, block.clone()))
        })
        .collect()
}

/// The drill found this. A disk had lost a write of a bitmap, which then called the journal of the last epoch free: the
/// next one put its own journal and nodes there, while the old ones still counted.
#[test]
fn rule_5d_an_opening_marks_what_the_epoch_before_still_needs() {
    let mut rig = Rig::new(7);
    let (_pool, vdi) = rig.with_volume(4 * MIB);
    rig.world.run(async {
        put(&*vdi, 0, 1).await;
        vdi.detach().await.unwrap();
        rig.disk.quiesce().await;
    });
    let before = bitmaps(&rig);
    assert!(before.len() >= 4, "two copies for data, two for metadata: {}", before.len());
    rig.power_cut(Unflushed::Lost);
    let (_pool, vdi) = rig.reopen();
    rig.world.run(async {
        for block in 0..40 {
            put(&*vdi, block, 2).await;
            vdi.flush().await.unwrap();
        }
    });
    rig.power_cut(Unflushed::Lost);
    for (offset, old) in before {
        rig.disk.damage(ByteRange::new(offset, BLOCK).unwrap(), |bytes| bytes.copy_from_slice(&old));
    }
    for round in 3..6 {
        let (pool, vdi) = rig.reopen();
        rig.world.run(async {
            for block in 0..40 {
                let byte = get(&*vdi, block).await;
                assert_eq!(
                    byte,
                    if block < 20 && round > 3 { round - 1 } else { 2 },
                    "round {round}, block {block}"
                );
            }
            for block in 0..20 {
                put(&*vdi, block, round).await;
            }
            vdi.flush().await.unwrap();
        });
        if round == 5 {
            rig.close(&pool);
        } else {
            rig.power_cut(Unflushed::Lost);
        }
    }
}

#[test]
fn rule_5e_collection_amid_everything_frees_nothing_that_lives() {
    for seed in 0..12 {
        let rig = Rig::sized(seed, 16 * MIB);
        let (pool, vdi) = rig.with_volume(4 * MIB);
        rig.world.run(async {
            for block in 0..256 {
                put(&*vdi, block, 1).await;
            }
        });
        let (collector, writer, taker) = (pool.clone(), vdi.clone(), pool.clone());
        let collecting = rig.start("collector", async move {
            for _ in 0..4 {
                collector.collect_garbage(&|_| {}).await.unwrap();
            }
        });
        let writing = rig.start("writer", async move {
            for block in 0..256 {
                if block % 3 == 0 {
                    writer.discard(ByteRange::new(block * BLOCK, BLOCK).unwrap()).await.unwrap();
                }
                put(&*writer, block, 2).await;
            }
        });
        let id = vdi.id();
        let taking = rig.start("snapshots and clones", async move {
            for round in 0..4 {
                let info = snapshot(&taker, &[id]).await.unwrap().remove(0);
                taker.materialise(info.id).await.unwrap();
                let name = format!("clone {round}");
                taker.create_vdi(request(&name, None, Source::Snapshot(info.id))).await.unwrap();
                taker.delete_snapshot(info.id).await.unwrap();
            }
        });
        collecting.wait();
        writing.wait();
        taking.wait();
        rig.world.run(async {
            for block in 0..256 {
                assert_eq!(get(&*vdi, block).await, 2, "seed {seed}, block {block}");
            }
            for info in pool.vdis() {
                if info.id != id {
                    let clone = pool.attach(info.id).await.unwrap();
                    for block in 0..256 {
                        let byte = get(&*clone, block).await;
                        assert!(
                            [0, 1, 2].contains(&byte),
                            "seed {seed}: {} block {block}: {byte}",
                            info.name
                        );
                    }
                }
            }
        });
        rig.close(&pool);
    }
}

/// The drill found this. A write reserved a run just before a collection began and entered it only afterwards, so it
/// was a candidate. A second write, younger than the I/O that the collection waited for, took blocks from it and
/// was still under way while the checkpoints were written: no root named its blocks, and the sweep freed them.
#[test]
fn rule_5e_a_write_that_took_blocks_from_an_older_run_is_waited_for() {
    // The last two writes of a first touch are the mark of its run and its data.
    let writes = {
        let rig = Rig::new(1);
        let (_pool, vdi) = rig.with_volume(MIB);
        let log = rig.record();
        rig.world.run(put(&*vdi, 0, 1));
        let log = log.lock();
        log.iter().filter(|change| change.is_write()).count()
    };
    let rig = Rig::new(1);
    let (pool, vdi) = rig.with_volume(MIB);
    let hold = rig.disk.hold(HoldAt::Submission, is_change);
    let first = vdi.clone();
    let first = rig.start("first write", async move { put(&*first, 0, 1).await });
    for _ in 2..writes {
        rig.world.run(hold.caught(1));
        hold.let_go();
    }
    // The mark.
    rig.world.run(hold.caught(1));
    let collector = pool.clone();
    let collecting = rig.start("collector", async move { collector.collect_garbage(&|_| {}).await.unwrap() });
    rig.world.run_for(Duration::from_millis(1));
    hold.let_go();
    // The data.
    rig.world.run(hold.caught(1));
    let second = vdi.clone();
    let second = rig.start("second write", async move { put(&*second, 1, 2).await });
    rig.world.run(hold.caught(2));
    let number = hold.held()[1].number;
    let keep = rig.disk.hold(HoldAt::Answer, move |request| request.number == number);
    hold.release();
    first.wait();
    rig.world.run_for(Duration::from_secs(1));
    assert!(!collecting.is_done(), "blocks of a write that is under way were judged");
    keep.release();
    second.wait();
    collecting.wait();
    rig.world.run(async {
        // What was freed would be taken again by these.
        for block in 2..200 {
            put(&*vdi, block, 3).await;
        }
        assert_eq!((get(&*vdi, 0).await, get(&*vdi, 1).await), (1, 2));
    });
    rig.close(&pool);
}

/// The drill found this. Every commit takes a block of journal, and flushes of a full pool were refused when there was no
/// room for one more segment.
#[test]
fn rule_5g_a_volume_in_a_full_pool_can_be_flushed_for_ever() {
    let mut rig = Rig::sized(8, 16 * MIB);
    let (pool, vdi) = rig.with_volume(64 * MIB);
    let end = rig.world.run(async {
        let mut end = 0;
        while try_put(&*vdi, end * BLOCK, BLOCK, 1).await.is_ok() {
            end += 1;
        }
        vdi.flush().await.unwrap();
        assert!(end > 1500, "only {end} blocks fitted");
        for block in 0..1200 {
            vdi.discard(ByteRange::new(block * BLOCK, BLOCK).unwrap()).await.unwrap();
            vdi.flush().await.unwrap_or_else(|error| panic!("flush {block}: {error}"));
        }
        end
    });
    rig.power_cut(Unflushed::Lost);
    drop(pool);
    let (pool, vdi) = rig.reopen();
    rig.world.run(async {
        for block in (0..end).step_by(7) {
            assert_eq!(get(&*vdi, block).await, u8::from(block >= 1200), "block {block}");
        }
    });
    rig.close(&pool);
}

/// The registry grew past what its extents hold when data had taken all others. Nothing could be recorded any more, and the
/// pool could not even be opened, for opening compacts the registry.
#[test]
fn rule_5g_a_registry_that_grows_in_a_full_pool_leaves_room_for_all_that_is_known() {
    let mut rig = Rig::sized(6, 16 * MIB);
    let (pool, big) = rig.with_volume(64 * MIB);
    let name = |number: usize| format!("a volume with quite a long name, number {number}");
    let created = rig.world.run(async {
        // What they leave behind covers the reserve of metadata, so that data may take the last extent.
        let mut attached = Vec::new();
        for number in 0..20 {
            let used = request(&format!("used {number}"), Some(MIB / 2), Source::Empty);
            let id = pool.create_vdi(used).await.unwrap().id;
            attached.push(pool.attach(id).await.unwrap());
        }
        for vdi in attached {
            vdi.detach().await.unwrap();
        }
        let mut at = 0;
        while try_put(&*big, at, BLOCK, 1).await.is_ok() {
            at += BLOCK;
        }
        let mut created = 0;
        while created < 5000 {
            let mut asked = request(&name(created), Some(MIB), Source::Empty);
            asked.attributes = [("purpose".to_owned(), "x".repeat(400))].into();
            match pool.create_vdi(asked).await {
                Ok(_) => created += 1,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::OutOfSpace, "{error}");
                    break;
                }
            }
        }
        created
    });
    assert!((20..5000).contains(&created), "{created} volumes fitted");
    for round in 0..3 {
        if round == 1 {
            rig.power_cut(Unflushed::Lost);
        } else {
            rig.kill();
        }
        let pool = rig.open();
        assert_eq!(pool.vdis().len(), created + 21);
        rig.world.run(async {
            // What is known may change, and change again.
            let ids: Vec<_> =
                pool.vdis().iter().filter(|info| info.size == MIB).map(|info| info.id).collect();
            for (number, id) in ids.into_iter().enumerate() {
                let other = Name::new(format!("round {round}, volume {number}")).unwrap();
                let renamed = pool.rename_vdi(id, other).await;
                renamed.unwrap_or_else(|error| panic!("renaming volume {number} of {created}: {error}"));
            }
        });
    }
    rig.kill();
    let pool = rig.open();
    rig.world.run(async {
        for info in pool.vdis() {
            pool.delete_vdi(info.id).await.unwrap();
        }
        pool.collect_garbage(&|_| {}).await.unwrap();
        pool.create_vdi(request("the next", Some(MIB), Source::Empty)).await.unwrap();
    });
    rig.close(&pool);
}

/// The drill found this. Two callers met a pool too full to open a volume; the first collected garbage, the second was
/// told that a collection was under way.
#[test]
fn rule_5g_everybody_who_finds_the_pool_too_full_to_open_a_volume_waits_for_the_same_collection() {
    let mut rig = Rig::sized(5, 16 * MIB);
    let (pool, big) = rig.with_volume(64 * MIB);
    let ids = rig.world.run(async {
        let mut ids = Vec::new();
        for number in 0..6 {
            let name = format!("small {number}");
            ids.push(pool.create_vdi(request(&name, Some(MIB), Source::Empty)).await.unwrap().id);
        }
        let mut at = 0;
        while try_put(&*big, at, 16 * BLOCK, 1).await.is_ok() {
            at += 16 * BLOCK;
        }
        ids
    });
    for _ in 0..5 {
        rig.kill();
        let pool = rig.open();
        // Every opening leaves something behind that only a collection finds.
        let opening: Vec<_> = ids
            .iter()
            .map(|id| {
                let (pool, id) = (pool.clone(), *id);
                rig.start("attach", async move { pool.attach(id).await.map(drop) })
            })
            .collect();
        for opened in opening {
            if let Err(error) = opened.wait() {
                assert_eq!(error.kind(), ErrorKind::OutOfSpace, "{error}");
            }
        }
    }
}

/// The drill found this. A snapshot was deleted, and the power went between the two roots that say so. The older of them kept
/// all its blocks until somebody opened the volume, and of one that is deleted nobody has to.
#[test]
fn rule_5e_what_an_interrupted_deletion_let_go_comes_back() {
    const OWN: u64 = 40;
    let (mut deaths, mut gone) = (0, 0);
    for boundary in 1..40 {
        let mut rig = Rig::new(boundary);
        let (pool, vdi) = rig.with_volume(MIB);
        let id = vdi.id();
        let large = rig.world.run(async {
            for block in 0..OWN {
                put(&*vdi, block, 1).await;
            }
            let large = snapshot(&pool, &[id]).await.unwrap().remove(0);
            pool.materialise(large.id).await.unwrap();
            vdi.discard(ByteRange::new(0, OWN * BLOCK).unwrap()).await.unwrap();
            vdi.flush().await.unwrap();
            vdi.detach().await.unwrap();
            large.id
        });
        rig.disk.crash_after(boundary);
        let deleting = pool.clone();
        let work = rig.start("delete", async move { deleting.delete_snapshot(large).await });
        rig.world.run(either(rig.disk.power_lost(), rig.a_minute()));
        deaths += u64::from(!work.is_done());
        rig.power_cut(Unflushed::ALL[boundary as usize % 4]);
        let pool = rig.open();
        rig.world.run(async {
            // Opens the volume only if its last epoch has not ended.
            let is_gone = pool.snapshots(id, 0, 10).await.unwrap().is_empty();
            pool.collect_garbage(&|_| {}).await.unwrap();
            let kept = pool.info().data_used;
            assert!(kept == 0 || !is_gone, "power cut at {boundary}: {kept}");
            gone += u64::from(is_gone);
        });
        rig.close(&pool);
    }
    assert!((5..39).contains(&deaths) && gone > 39 - deaths, "{deaths} {gone}");
}

/// The drill found this. A root slot could not be read at the moment at which garbage collection looked at it, so it went by
/// the other one, and freed the nodes that only the newer one names.
#[test]
fn rule_5e_a_root_slot_that_cannot_be_read_may_name_anything() {
    let mut rig = Rig::new(1);
    let (pool, vdi) = rig.with_volume(MIB);
    let id = vdi.id();
    let changes = rig.record();
    rig.world.run(async {
        for byte in 1..4 {
            for block in 0..20 {
                put(&*vdi, block, byte).await;
            }
            let info = snapshot(&pool, &[id]).await.unwrap().remove(0);
            pool.materialise(info.id).await.unwrap();
        }
    });
    let newest = changes.lock().iter().rfind(|change| change.is_root()).unwrap().range;
    rig.kill();
    let pool = rig.open();
    rig.disk.set_faults(FaultPlan { read_errors: vec![newest], ..FaultPlan::default() });
    let refused = rig.world.run(pool.collect_garbage(&|_| {})).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Io, "{refused}");
    assert!(refused.to_string().contains("volume 'volume'"), "{refused}");
    rig.disk.set_faults(FaultPlan::default());
    rig.world.run(async {
        let vdi = pool.attach(id).await.unwrap();
        assert_eq!(get(&*vdi, 7).await, 3);
        pool.collect_garbage(&|_| {}).await.unwrap();
    });
    rig.close(&pool);
}
