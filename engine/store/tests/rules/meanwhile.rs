//! What happens to one thing while another takes its time. Each test begins with the story of a bug.

use crate::rig::*;
use parallax_block::{BlockDevice, ByteRange};
use parallax_sim::{Asks, Fault, HoldAt, Kind};
use parallax_store::{Pool, Source};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

/// Keeps back the first request of a kind from now on.
fn hold_first(rig: &Rig, which: fn(Kind) -> bool) -> parallax_sim::Hold {
    let caught = AtomicBool::new(false);
    rig.disk.hold(HoldAt::Submission, move |request| which(request.kind) && !caught.swap(true, SeqCst))
}

/// A large discard cut a subtree off. While it was being taken apart, a garbage collection freed all of it, and a
/// checkpoint began a new list of superseded nodes. The rest of the subtree was put on that list, and freed again when
/// somebody else had it.
#[test]
fn a_discard_that_a_collection_overtakes_frees_nothing_twice() {
    let rig = Rig::new(1);
    let (pool, vdi) = rig.with_volume(512 * MIB);
    let id = vdi.id();
    rig.world.run(async {
        for leaf in [0, 10, 100, 101, 102] {
            put(&*vdi, leaf * 512, 1).await;
        }
        vdi.detach().await.unwrap();
        pool.close().await.unwrap();
    });
    drop((pool, vdi));
    // Opened anew, so that nodes have to be read.
    let pool = rig.open();
    let vdi = rig.world.run(pool.attach(id)).unwrap();
    rig.world.run(vdi.discard(ByteRange::new(MIB * 4, MIB * 480).unwrap())).unwrap();
    let hold = hold_first(&rig, |kind| kind == Kind::Read);
    rig.world.run(vdi.flush()).unwrap();
    rig.world.run(hold.caught(1));
    rig.world.run(async {
        pool.collect_garbage(&|_| {}).await.unwrap();
        put(&*vdi, 1, 2).await;
        vdi.checkpoint().await.unwrap();
    });
    hold.release();
    rig.world.run_for(Duration::from_secs(1));
    rig.world.run(async {
        // What was freed is another volume's now.
        let other = pool.create_vdi(request("other", Some(MIB), Source::Empty)).await.unwrap();
        let other = pool.attach(other.id).await.unwrap();
        for block in 0..200 {
            put(&*other, block, 3).await;
            other.checkpoint().await.unwrap();
        }
        for byte in 4..8 {
            put(&*vdi, u64::from(byte), byte).await;
            vdi.checkpoint().await.unwrap();
        }
    });
    rig.close(&pool);
}

/// Whoever needed a node that was not in memory read it without saying so. If the read was slow, the node could be
/// superseded, freed and written over meanwhile, and the request failed: "does not match its link".
#[test]
fn a_slow_read_of_a_node_outlives_its_replacement() {
    let rig = Rig::new(2);
    let (pool, vdi) = rig.with_volume(8 * MIB);
    let id = vdi.id();
    rig.world.run(async {
        put(&*vdi, 0, 1).await;
        put(&*vdi, 600, 1).await;
        vdi.detach().await.unwrap();
        pool.close().await.unwrap();
    });
    drop((pool, vdi));
    let pool = rig.open();
    let vdi = rig.world.run(pool.attach(id)).unwrap();
    // Now the root is in memory, and the leaf of block 0 is not.
    assert_eq!(rig.world.run(get(&*vdi, 600)), 1);
    let hold = hold_first(&rig, |kind| kind == Kind::Read);
    let reader = vdi.clone();
    let slow = rig.start("reader", async move { read(&*reader, 0, BLOCK).await });
    rig.world.run(hold.caught(1));
    rig.world.run(async {
        for round in 0..100 {
            put(&*vdi, 1 + round, 2).await;
            vdi.checkpoint().await.unwrap();
        }
    });
    hold.release();
    assert_eq!(slow.wait()[0], 1);
    rig.close(&pool);
}

async fn attach_meanwhile(pool: Pool, id: parallax_store::VdiId) -> bool {
    pool.attach(id).await.is_ok()
}

/// Between looking whether a volume was in use, or had snapshots, and recording that it was deleted, others could still
/// open it. Then it was attached and did not exist: the next collection gave its blocks away under its feet. Or a
/// snapshot that had been acknowledged was gone with it.
#[test]
fn a_volume_that_is_being_deleted_is_not_opened_and_one_that_is_open_is_not_deleted() {
    for what in ["attach", "snapshot", "clone"] {
        for nth in 1..80 {
            let rig = Rig::sized(nth, 16 * MIB);
            let (pool, vdi) = rig.with_volume(MIB);
            let id = vdi.id();
            rig.world.run(async {
                put(&*vdi, 0, 1).await;
                vdi.detach().await.unwrap();
                rig.disk.quiesce().await;
            });
            let at = rig.disk.stats().requests + nth;
            let hold = rig.disk.hold(HoldAt::Submission, move |request| request.number == at);
            let deleting = pool.clone();
            let deleted = rig.start("delete", async move { deleting.delete_vdi(id).await });
            rig.world.run_for(Duration::from_millis(20));
            if hold.held().is_empty() {
                deleted.wait().unwrap();
                assert!(nth > 5, "{nth}");
                break;
            }
            let (other, kind) = (pool.clone(), what);
            let second = rig.start("second", async move {
                match kind {
                    "attach" => attach_meanwhile(other, id).await.then_some(None),
                    "snapshot" => snapshot(&other, &[id]).await.ok().map(|taken| Some(taken[0].clone())),
                    _ => other.create_vdi(request("clone", None, Source::Vdi(id))).await.ok().map(|_| None),
                }
            });
            rig.world.run_for(Duration::from_millis(50));
            hold.release();
            let (deleted, second) = (deleted.wait().is_ok(), second.wait());
            assert!(deleted || second.is_some(), "{what} at {nth}: both have failed");
            rig.world.run(async {
                match (what, second) {
                    ("attach", Some(_)) => assert!(!deleted, "{what} at {nth}: attached, and deleted"),
                    ("snapshot", Some(taken)) => {
                        pool.collect_garbage(&|_| {}).await.unwrap();
                        assert_eq!(in_snapshot(&pool, &taken.unwrap(), 0).await, 1, "{what} at {nth}");
                    }
                    ("clone", Some(_)) => {
                        pool.collect_garbage(&|_| {}).await.unwrap();
                        let clone = pool.vdi_named("clone").unwrap();
                        let clone = pool.attach(clone.id).await.unwrap();
                        assert_eq!(get(&*clone, 0).await, 1, "{what} at {nth}");
                    }
                    _ => {}
                }
                // Nothing stays behind of a volume that nobody can see.
                if deleted && what != "snapshot" {
                    assert!(pool.vdis().iter().all(|info| info.id != id), "{what} at {nth}");
                }
            });
            rig.close(&pool);
        }
    }
}

/// A pool was closed while a volume was being cloned. The moment that the clone was to begin from was not written any
/// more, and the clone was recorded, empty, after the pool was closed.
#[test]
fn a_clone_that_the_end_of_its_pool_overtakes_is_whole_or_not_there() {
    let rig = Rig::new(6);
    let (pool, vdi) = rig.with_volume(MIB);
    let id = vdi.id();
    rig.world.run(async {
        put(&*vdi, 0, 1).await;
        vdi.flush().await.unwrap();
        vdi.checkpoint().await.unwrap();
        rig.disk.quiesce().await;
    });
    let of_the_moment = hold_first(&rig, |kind| matches!(kind, Kind::Write { .. }));
    let other = pool.clone();
    let cloned =
        rig.start("clone", async move { other.create_vdi(request("clone", None, Source::Vdi(id))).await });
    rig.world.run(of_the_moment.caught(1));
    let of_the_volume = hold_first(&rig, |kind| matches!(kind, Kind::Write { .. }));
    let writer = vdi.clone();
    let written = rig.start("write", async move { try_put(&*writer, 5 * BLOCK, BLOCK, 2).await });
    rig.world.run(of_the_volume.caught(1));
    let closing = pool.clone();
    let closed = rig.start("close", async move { closing.close().await });
    rig.world.run_for(Duration::from_millis(20));
    of_the_moment.release();
    rig.world.run_for(Duration::from_millis(50));
    of_the_volume.release();
    written.wait().unwrap();
    closed.wait().unwrap();
    let last = rig.disk.stats().requests;
    let cloned = cloned.wait().is_ok();
    rig.world.run_for(Duration::from_secs(5));
    assert_eq!(rig.disk.stats().requests, last, "a closed pool goes on");
    drop((pool, vdi));
    let pool = rig.open();
    rig.world.run(async {
        let clone = pool.vdi_named("clone");
        assert!(!cloned || clone.is_ok(), "acknowledged, and not there");
        if let Ok(clone) = clone {
            let clone = pool.attach(clone.id).await.unwrap();
            assert_eq!(get(&*clone, 0).await, 1);
        }
    });
    rig.close(&pool);
}

/// A commit failed while a checkpoint of the same volume was writing its nodes. A collection looked at the volume on
/// disk, where no root named them yet, and gave them away. Then the checkpoint wrote its root.
#[test]
fn a_collection_waits_for_the_last_checkpoint_of_a_volume_that_has_failed() {
    let rig = Rig::new(3);
    let (pool, vdi) = rig.with_volume(4 * MIB);
    let id = vdi.id();
    let log = rig.record();
    rig.world.run(async {
        for block in [0, 600] {
            put(&*vdi, block, 1).await;
        }
        vdi.flush().await.unwrap();
    });
    let journal = log.lock().iter().rev().find(|change| change.is_journal()).unwrap().range;
    let hold = hold_first(&rig, |kind| matches!(kind, Kind::Write { .. }));
    let its = vdi.clone();
    let checkpoint = rig.start("checkpoint", async move { its.checkpoint().await });
    rig.world.run(hold.caught(1));
    // The next journal block cannot be written.
    let range = ByteRange::new(journal.end(), BLOCK).unwrap();
    rig.once(Asks::Changes, range, Fault::Fails(parallax_block::ErrorKind::Io));
    rig.world.run(async {
        put(&*vdi, 1, 2).await;
        vdi.flush().await.unwrap_err();
    });
    let collecting = pool.clone();
    let collected = rig.start("collect", async move { collecting.collect_garbage(&|_| {}).await });
    rig.world.run_for(Duration::from_secs(1));
    hold.release();
    let _ = checkpoint.wait();
    collected.wait().unwrap();
    rig.world.run(async {
        let _ = vdi.detach().await;
        let vdi = pool.attach(id).await.unwrap();
        for (block, byte) in [(0, 1), (600, 1), (1, 2)] {
            assert_eq!(get(&*vdi, block).await, byte);
        }
    });
    rig.close(&pool);
}

/// Both root slots of the present epoch could not be read, and those of the epoch before could: the volume opened as it
/// had been then, and everything written since was gone without a word.
#[test]
fn a_volume_that_has_lost_its_root_slots_does_not_go_back_to_the_epoch_before() {
    for (epochs, unreadable) in [(1, true), (2, true), (2, false)] {
        let rig = Rig::new(4);
        let (pool, vdi) = rig.with_volume(MIB);
        let id = vdi.id();
        rig.world.run(async {
            put(&*vdi, 0, 1).await;
            vdi.detach().await.unwrap();
            for _ in 1..epochs {
                pool.attach(id).await.unwrap().detach().await.unwrap();
            }
        });
        let log = rig.record();
        rig.world.run(async {
            let vdi = pool.attach(id).await.unwrap();
            put(&*vdi, 1, 2).await;
            vdi.flush().await.unwrap();
            vdi.detach().await.unwrap();
            pool.close().await.unwrap();
        });
        let mut slots: Vec<ByteRange> =
            log.lock().iter().filter(|change| change.is_root()).map(|change| change.range).collect();
        slots.sort_by_key(|slot| slot.offset());
        slots.dedup();
        assert_eq!(slots.len(), 2);
        for slot in slots {
            match unreadable {
                true => rig.disk.spoil(slot),
                false => rig.disk.damage(slot, |bytes| bytes.fill(0x5a)),
            }
        }
        let pool = rig.open();
        assert!(rig.world.run(pool.attach(id)).is_err(), "unreadable: {unreadable}");
        assert!(rig.findings().iter().any(|finding| finding.kind == "root-slot") || unreadable);
    }
}

/// A snapshot could be closed, deleted and collected while a read of it was on its way to the device, which then read
/// what somebody else had written there.
#[test]
fn a_snapshot_is_not_deleted_while_it_is_read() {
    let rig = Rig::new(5);
    let (pool, vdi) = rig.with_volume(MIB);
    let view = rig.world.run(async {
        put(&*vdi, 0, 1).await;
        let shot = snapshot(&pool, &[vdi.id()]).await.unwrap().remove(0);
        pool.materialise(shot.id).await.unwrap();
        put(&*vdi, 0, 2).await;
        let view = pool.open_snapshot(shot.id).await.unwrap();
        assert_eq!(get(&*view, 0).await, 1);
        view
    });
    let hold = hold_first(&rig, |kind| kind == Kind::Read);
    let reader: Arc<_> = view.clone();
    let slow = rig.start("reader", async move { read(&*reader, 0, BLOCK).await });
    rig.world.run(hold.caught(1));
    rig.world.run(async {
        view.close().await.unwrap();
        pool.delete_snapshot(view.id()).await.unwrap_err();
        pool.collect_garbage(&|_| {}).await.unwrap();
        for block in 1..200 {
            put(&*vdi, block, 3).await;
        }
    });
    hold.release();
    assert_eq!(slow.wait()[0], 1);
    rig.world.run(async {
        pool.delete_snapshot(view.id()).await.unwrap();
    });
    rig.close(&pool);
}
