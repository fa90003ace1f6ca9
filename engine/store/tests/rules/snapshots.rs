//! Design, section 3: c, e, f: snapshots, sets, clones, reverts, deletion in any order.

use crate::rig::*;
use parallax_block::{BlockDevice, ErrorKind};
use parallax_sim::{Asks, Content, Either, Fault, HoldAt, Unflushed, either};
use parallax_store::{Source, Vdi, VdiId};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

#[test]
fn rule_3e_a_snapshot_waits_for_older_writes_and_newer_writes_wait_for_nothing() {
    let rig = Rig::new(1);
    let (pool, vdi) = rig.with_volume(MIB);
    rig.world.run(async {
        put(&*vdi, 0, 1).await;
        put(&*vdi, 1, 1).await;
        vdi.flush().await.unwrap();
    });
    let hold = rig.disk.hold(HoldAt::Submission, is_change);
    let older = vdi.clone();
    let older = rig.start("older write, in place", async move { put(&*older, 0, 2).await });
    rig.world.run(hold.caught(1));
    let held = hold.held()[0].number;
    // From here on only that one write is kept back.
    let keep = rig.disk.hold(HoldAt::Answer, move |request| request.number == held);
    hold.release();
    let (taker, id) = (pool.clone(), vdi.id());
    let taking = rig.start("snapshot", async move { snapshot(&taker, &[id]).await });
    rig.world.run_for(std::time::Duration::from_millis(5));
    rig.world.run(async {
        put(&*vdi, 1, 3).await;
        put(&*vdi, 2, 3).await;
        assert_eq!((get(&*vdi, 1).await, get(&*vdi, 2).await), (3, 3));
    });
    assert!(!taking.is_done(), "the snapshot is complete while an older write is under way");
    keep.release();
    older.wait();
    let info = taking.wait().unwrap().remove(0);
    rig.world.run(async {
        let found = [0, 1, 2].map(|block| in_snapshot(&pool, &info, block));
        let [a, b, c] = found;
        assert_eq!((a.await, b.await, c.await), (2, 1, 0));
    });
    rig.close(&pool);
}

#[test]
fn rule_3e_a_set_of_snapshots_exists_wholly_or_not_at_all() {
    let mut found = [false; 2];
    for boundary in 1..25 {
        let mut rig = Rig::new(boundary);
        let (pool, first) = rig.with_volume(MIB);
        let second = rig.world.run(async {
            let info = pool.create_vdi(request("second", Some(MIB), Source::Empty)).await.unwrap();
            pool.attach(info.id).await.unwrap()
        });
        rig.world.run(async {
            put(&*first, 0, 1).await;
            put(&*second, 0, 2).await;
        });
        rig.disk.crash_after(boundary);
        let (taker, ids) = (pool.clone(), [first.id(), second.id()]);
        let taking = rig.start("set", async move { snapshot(&taker, &ids).await });
        rig.world.run(either(rig.disk.power_lost(), rig.a_minute()));
        let acknowledged = taking.is_done();
        rig.power_cut(Unflushed::ALL[boundary as usize % 4]);
        let pool = rig.open();
        rig.world.run(async {
            let mut members = Vec::new();
            for id in ids {
                members.extend(pool.snapshots(id, 0, 10).await.unwrap());
            }
            assert!([0, 2].contains(&members.len()), "boundary {boundary}: {} members of two", members.len());
            assert!(!acknowledged || members.len() == 2, "boundary {boundary}: an acknowledged set is gone");
            found[members.len() / 2] = true;
            for (member, byte) in members.iter().zip([1, 2]) {
                assert_eq!(in_snapshot(&pool, member, 0).await, byte);
            }
        });
        rig.close(&pool);
    }
    assert_eq!(found, [true, true], "the boundaries do not cover both outcomes");
}

#[test]
fn rule_3e_an_acknowledged_snapshot_survives_every_death() {
    for unflushed in Unflushed::ALL {
        for power in [false, true] {
            let mut rig = Rig::new(3);
            let (pool, vdi) = rig.with_volume(MIB);
            rig.world.run(async {
                put(&*vdi, 0, 1).await;
                snapshot(&pool, &[vdi.id()]).await.unwrap();
                put(&*vdi, 0, 2).await;
            });
            if power {
                rig.power_cut(unflushed);
            } else {
                rig.kill();
            }
            let pool = rig.open();
            rig.world.run(async {
                let infos = pool.snapshots(volume(&pool).id, 0, 10).await.unwrap();
                assert_eq!(infos.len(), 1);
                assert_eq!(in_snapshot(&pool, &infos[0], 0).await, 1);
            });
            rig.close(&pool);
        }
    }
}

#[test]
fn rule_3f_snapshots_go_in_any_order_and_the_others_keep_their_moment() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let rig = Rig::new(4);
        let (pool, vdi) = rig.with_volume(MIB);
        rig.world.run(async {
            let mut taken = Vec::new();
            for moment in 0..3 {
                put(&*vdi, 0, 1 + moment).await;
                put(&*vdi, 1 + u64::from(moment), 1 + moment).await;
                taken.push(snapshot(&pool, &[vdi.id()]).await.unwrap().remove(0));
            }
            put(&*vdi, 0, 9).await;
            for (done, which) in order.into_iter().enumerate() {
                pool.delete_snapshot(taken[which].id).await.unwrap();
                pool.collect_garbage(&|_| {}).await.unwrap();
                for left in &order[done + 1..] {
                    let byte = 1 + *left as u8;
                    assert_eq!(in_snapshot(&pool, &taken[*left], 0).await, byte);
                    assert_eq!(in_snapshot(&pool, &taken[*left], u64::from(byte)).await, byte);
                }
                assert_eq!(get(&*vdi, 0).await, 9);
            }
        });
        rig.close(&pool);
    }
}

#[test]
fn rule_3f_numbers_are_never_used_again() {
    let mut rig = Rig::new(5);
    let (pool, vdi) = rig.with_volume(MIB);
    let highest = rig.world.run(async {
        let mut highest = 0;
        for _ in 0..3 {
            let info = snapshot(&pool, &[vdi.id()]).await.unwrap().remove(0);
            assert!(info.id.number > highest);
            highest = info.id.number;
            pool.delete_snapshot(info.id).await.unwrap();
        }
        highest
    });
    rig.power_cut(Unflushed::Lost);
    let pool = rig.open();
    let info = rig.world.run(snapshot(&pool, &[volume(&pool).id])).unwrap().remove(0);
    assert!(info.id.number > highest, "{} after {highest}", info.id.number);
    rig.close(&pool);
}

#[test]
fn rule_3f_a_deleted_volume_lives_on_in_its_snapshots_and_clones() {
    let rig = Rig::new(6);
    let (pool, vdi) = rig.with_volume(MIB);
    rig.world.run(async {
        put(&*vdi, 0, 1).await;
        let info = snapshot(&pool, &[vdi.id()]).await.unwrap().remove(0);
        vdi.detach().await.unwrap();
        pool.delete_vdi(vdi.id()).await.unwrap();
        assert!(pool.vdi(vdi.id()).unwrap().headless);
        assert_eq!(in_snapshot(&pool, &info, 0).await, 1);
        pool.materialise(info.id).await.unwrap();
        let clone = pool.create_vdi(request("clone", None, Source::Snapshot(info.id))).await.unwrap();
        pool.delete_snapshot(info.id).await.unwrap();
        assert_eq!(pool.vdi(vdi.id()).unwrap_err().kind(), ErrorKind::NotFound);
        pool.collect_garbage(&|_| {}).await.unwrap();
        let clone = pool.attach(clone.id).await.unwrap();
        assert_eq!(get(&*clone, 0).await, 1);
    });
    rig.close(&pool);
}

#[test]
fn rule_3f_two_requests_delete_the_last_two_snapshots_of_a_deleted_volume() {
    // The drill found that the second one failed with "there is no volume": the first had removed it.
    for seed in 0..20 {
        let rig = Rig::new(seed);
        let (pool, vdi) = rig.with_volume(MIB);
        let ids = rig.world.run(async {
            let mut ids = Vec::new();
            for byte in 0..2 {
                put(&*vdi, 0, byte).await;
                ids.push(snapshot(&pool, &[vdi.id()]).await.unwrap().remove(0).id);
            }
            vdi.detach().await.unwrap();
            pool.delete_vdi(vdi.id()).await.unwrap();
            ids
        });
        let deletions: Vec<_> = ids
            .into_iter()
            .map(|id| {
                let pool = pool.clone();
                rig.start("delete", async move { pool.delete_snapshot(id).await })
            })
            .collect();
        for deletion in deletions {
            deletion.wait().unwrap();
        }
        assert_eq!(pool.vdis(), []);
        rig.close(&pool);
    }
}

#[test]
fn rule_3f_a_revert_brings_the_content_back_and_leaves_the_size() {
    let mut rig = Rig::new(7);
    let (pool, vdi) = rig.with_volume(MIB);
    rig.world.run(async {
        put(&*vdi, 0, 1).await;
        let info = snapshot(&pool, &[vdi.id()]).await.unwrap().remove(0);
        put(&*vdi, 0, 2).await;
        put(&*vdi, 5, 2).await;
        pool.resize_vdi(vdi.id(), 2 * MIB).await.unwrap();
        put(&*vdi, 300, 2).await;
        assert_eq!(pool.revert_vdi(vdi.id(), info.id).await.unwrap_err().kind(), ErrorKind::Busy);
        vdi.detach().await.unwrap();
        let reverted = pool.revert_vdi(vdi.id(), info.id).await.unwrap();
        assert_eq!(reverted.size, 2 * MIB);
    });
    rig.power_cut(Unflushed::Lost);
    let (pool, vdi) = rig.reopen();
    rig.world.run(async {
        assert_eq!(vdi.geometry().capacity, 2 * MIB);
        assert_eq!((get(&*vdi, 0).await, get(&*vdi, 5).await, get(&*vdi, 300).await), (1, 0, 0));
    });
    rig.close(&pool);
}

#[test]
fn rule_3f_a_revert_that_is_interrupted_has_happened_or_has_not() {
    for boundary in 1..30 {
        let mut rig = Rig::new(boundary);
        let (pool, vdi) = rig.with_volume(MIB);
        let to = rig.world.run(async {
            for block in 0..8 {
                put(&*vdi, block, 1).await;
            }
            let info = snapshot(&pool, &[vdi.id()]).await.unwrap().remove(0);
            for block in 4..12 {
                put(&*vdi, block, 2).await;
            }
            pool.materialise(info.id).await.unwrap();
            vdi.detach().await.unwrap();
            info.id
        });
        rig.disk.crash_after(boundary);
        let reverting = pool.clone();
        let work = rig.start("revert", async move { reverting.revert_vdi(to.vdi, to).await });
        rig.world.run(either(rig.disk.power_lost(), rig.a_minute()));
        let acknowledged = work.is_done();
        rig.power_cut(Unflushed::ALL[boundary as usize % 4]);
        let (pool, vdi) = rig.reopen();
        rig.world.run(async {
            let mut found = Vec::new();
            for block in 0..12 {
                found.push(get(&*vdi, block).await);
            }
            let (old, new) = ([1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]);
            assert!(found == new || (found == old && !acknowledged), "boundary {boundary}: {found:?}");
        });
        rig.close(&pool);
    }
}

/// Reverting met a full thin device: it failed, and had not happened. But the volume kept the snapshot's map in memory, and
/// wrote it when it was closed.
#[test]
fn rule_3f_a_revert_that_failed_never_comes_later() {
    let mut failed = 0;
    for wanted in 0..8 {
        let mut rig = Rig::new(9);
        let (pool, vdi) = rig.with_volume(MIB);
        let to = rig.world.run(async {
            put(&*vdi, 0, 1).await;
            let info = snapshot(&pool, &[vdi.id()]).await.unwrap().remove(0);
            pool.materialise(info.id).await.unwrap();
            put(&*vdi, 0, 2).await;
            // The snapshot's map needs another level now, and with it a node.
            pool.resize_vdi(vdi.id(), 8 * MIB).await.unwrap();
            vdi.detach().await.unwrap();
            info.id
        });
        let seen = AtomicU64::new(0);
        let is_wanted_bitmap =
            move |bytes: &[u8]| is_sealed(bytes, BITMAP) && seen.fetch_add(1, SeqCst) == wanted;
        let full = Fault::Fails(ErrorKind::OutOfSpace);
        rig.once_where(Some(Content::new(is_wanted_bitmap)), Asks::Changes, rig.everywhere(), full);
        let outcome = rig.world.run(pool.revert_vdi(to.vdi, to));
        let expected = if outcome.is_err() { 2 } else { 1 };
        failed += u64::from(outcome.is_err());
        let shown = |vdi: Arc<Vdi>| rig.world.run(get(&*vdi, 0));
        assert_eq!(
            shown(rig.world.run(pool.attach(to.vdi)).unwrap()),
            expected,
            "bitmap {wanted}: {outcome:?}"
        );
        rig.kill();
        let (pool, vdi) = rig.reopen();
        assert_eq!(rig.world.run(get(&*vdi, 0)), expected, "bitmap {wanted}: {outcome:?}");
        rig.close(&pool);
    }
    assert!(failed > 0, "no revert failed");
}

#[test]
fn clones_share_and_do_not_see_each_other() {
    let rig = Rig::new(8);
    let (pool, vdi) = rig.with_volume(MIB);
    rig.world.run(async {
        put(&*vdi, 0, 1).await;
        let mut clones: Vec<VdiId> = Vec::new();
        for name in ["a", "b", "c"] {
            let source = clones.last().copied().unwrap_or(vdi.id());
            clones.push(pool.create_vdi(request(name, None, Source::Vdi(source))).await.unwrap().id);
        }
        put(&*vdi, 0, 2).await;
        for (index, id) in clones.iter().enumerate() {
            let clone = pool.attach(*id).await.unwrap();
            assert_eq!(get(&*clone, 0).await, 1);
            put(&*clone, 0, 10 + index as u8).await;
            clone.detach().await.unwrap();
        }
        for (index, id) in clones.iter().enumerate() {
            let clone = pool.attach(*id).await.unwrap();
            assert_eq!(get(&*clone, 0).await, 10 + index as u8);
        }
        assert_eq!(get(&*vdi, 0).await, 2);
        for id in clones {
            assert_eq!(pool.snapshots(id, 0, 10).await.unwrap(), [], "a snapshot for cloning stayed behind");
        }
    });
    rig.close(&pool);
}

/// A deleted volume kept everything that was written after its last snapshot for as long as that snapshot lived.
#[test]
fn a_deleted_volume_keeps_only_what_its_snapshots_hold() {
    for crash in 0..40 {
        let mut rig = Rig::new(90 + crash);
        let (pool, vdi) = rig.with_volume(8 * MIB);
        let (kept, id) = rig.world.run(async {
            put(&*vdi, 0, 1).await;
            let shot = snapshot(&pool, &[vdi.id()]).await.unwrap().remove(0);
            pool.materialise(shot.id).await.unwrap();
            try_put(&*vdi, MIB, 4 * MIB, 2).await.unwrap();
            put(&*vdi, 0, 3).await;
            vdi.detach().await.unwrap();
            (shot, vdi.id())
        });
        // The first one is not cut off.
        if crash > 0 {
            rig.disk.crash_after(crash);
        }
        let deleted = rig.world.run(either(pool.delete_vdi(id), rig.disk.power_lost()));
        let is_done = matches!(deleted, Either::Left(Ok(())));
        rig.disk.crash_never();
        rig.power_cut(Unflushed::Some);
        let pool = rig.open();
        rig.world.run(async {
            if !is_done {
                // It may have been deleted, and it may not.
                let _ = pool.delete_vdi(id).await;
            }
            pool.collect_garbage(&|_| {}).await.unwrap();
            assert_eq!(in_snapshot(&pool, &kept, 0).await, 1);
            let used = pool.info().data_used;
            assert!(used < MIB, "crash {crash}: {used} bytes of data are in use");
            pool.delete_snapshot(kept.id).await.unwrap();
            assert!(pool.vdis().is_empty());
        });
        rig.close(&pool);
    }
}

/// A volume was grown while somebody else let go of it: the size that the registry had been told was written over with the
/// one before, and after a power cut the volume looked as if it had never grown.
#[test]
fn a_volume_that_grows_while_it_is_released_stays_grown() {
    for seed in 0..60 {
        let mut rig = Rig::new(200 + seed);
        let (pool, vdi) = rig.with_volume(MIB);
        let (id, grown) = (vdi.id(), pool.clone());
        let growing = rig.start("grow", async move { grown.resize_vdi(id, 4 * MIB).await });
        rig.world.run_for(std::time::Duration::from_micros(seed * 5));
        let detaching = rig.start("detach", async move { vdi.detach().await });
        growing.wait().unwrap();
        detaching.wait().unwrap();
        assert_eq!(pool.vdi(id).unwrap().size, 4 * MIB, "seed {seed}");
        rig.power_cut(Unflushed::Lost);
        let pool = rig.open();
        assert_eq!(pool.vdi(id).unwrap().size, 4 * MIB, "seed {seed}");
        rig.close(&pool);
    }
}
