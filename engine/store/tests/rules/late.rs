//! Design, section 4, h: writes that failed and land late, each kind of them. Whoever was told of the failure may go on;
//! what lands touches nothing acknowledged since, and names nothing that is gone.

use crate::rig::*;
use parallax_block::{BlockDevice, ByteRange, ErrorKind};
use parallax_sim::{Asks, Content, Fault};
use parallax_store::{Name, Source, TakeSnapshot, Timestamp, Vdi};
use std::{
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    time::Duration,
};

/// A block of the registry's log.
const RECORD: u8 = 7;
/// A root slot.
const ROOT: u8 = 9;

impl Rig {
    /// The `n`th write of sealed blocks of this kind fails, and lands half a minute later.
    fn late(&self, kind: u8, n: u64) {
        let seen = AtomicU64::new(0);
        let meant = move |bytes: &[u8]| is_sealed(bytes, kind) && seen.fetch_add(1, SeqCst) + 1 == n;
        let fault = Fault::Ghost(Duration::from_secs(30));
        self.once_where(Some(Content::new(meant)), Asks::Changes, self.everywhere(), fault);
    }

    /// What was late has landed; then the daemon is killed.
    fn land_and_kill(&mut self) {
        self.world.run(self.a_minute());
        self.kill();
        self.assert_undamaged();
    }
}

/// Writes to a volume as long as it finds room, so that whatever is free is used.
async fn use_what_is_free(vdi: &Vdi) {
    let mut block = 64;
    while try_put(vdi, block * BLOCK, BLOCK, 7).await.is_ok() {
        block += 1;
    }
    vdi.flush().await.unwrap();
}

/// In SPDK (issue 3593) a write was tried again on another path, and then the first one landed on what had been written since.
/// The protocol's model found the same here. A write in place failed, but the device still had it; the next write to the same
/// block was acknowledged and flushed, and then the first one landed on top of it.
#[test]
fn rule_4h_a_write_that_failed_and_lands_late_touches_nothing_acknowledged_since() {
    let rig = Rig::new(1);
    let (pool, vdi) = rig.with_volume(MIB);
    rig.world.run(async {
        for block in 0..4 {
            put(&*vdi, block, 1).await;
        }
        vdi.flush().await.unwrap();
    });
    // One write in place, and one that needs a new block; the device answers both with an error and does them later.
    for block in [0, 9] {
        rig.once(Asks::Changes, rig.everywhere(), Fault::Ghost(Duration::from_secs(1)));
        let failed = rig.world.run(try_put(&*vdi, block * BLOCK, BLOCK, 2)).unwrap_err();
        assert!(failed.to_string().contains("volume"), "{failed}");
    }
    rig.world.run(async {
        assert!([1, 2].contains(&get(&*vdi, 0).await));
        put(&*vdi, 0, 3).await;
        pool.collect_garbage(&|_| {}).await.unwrap();
        // Whatever was put aside would be used by one of these.
        for block in 10..200 {
            put(&*vdi, block, 4).await;
        }
        vdi.flush().await.unwrap();
    });
    rig.world.run(rig.a_minute());
    rig.world.run(async {
        assert_eq!(get(&*vdi, 0).await, 3);
        for block in 10..200 {
            assert_eq!(get(&*vdi, block).await, 4, "block {block}");
        }
    });
    rig.close(&pool);
}

/// The drill found this. A discard of freed blocks failed, but the device still had it; the blocks were used again, and then
/// it took effect, on top of what had been flushed.
#[test]
fn rule_4h_a_discard_that_failed_and_takes_effect_late_touches_nothing_acknowledged_since() {
    // What a small extent has in one run.
    const LENGTH: u64 = 15 * BLOCK;
    // What a discard leaves is undefined: some keep the bytes, some do not.
    for seed in 0..8 {
        let rig = Rig::sized(seed, 16 * MIB);
        let (pool, vdi) = rig.with_volume(64 * MIB);
        let changes = rig.record();
        rig.world.run(async {
            try_put(&*vdi, 0, LENGTH, 1).await.unwrap();
            vdi.flush().await.unwrap();
        });
        let range = changes.lock().iter().find(|change| change.head.first() == Some(&1)).unwrap().range;
        assert_eq!(range.length(), LENGTH);
        rig.once(Asks::Changes, range, Fault::Ghost(Duration::from_secs(1)));
        rig.world.run(async {
            vdi.discard(ByteRange::new(0, LENGTH).unwrap()).await.unwrap();
            vdi.flush().await.unwrap();
            // The blocks are given back after the flush.
            rig.disk.quiesce().await;
            // As much as there is room for, so that every block that may be used again is.
            let mut end = 20;
            while try_put(&*vdi, end * BLOCK, BLOCK, 4).await.is_ok() {
                end += 1;
            }
            vdi.flush().await.unwrap();
            rig.a_minute().await;
            for block in 20..end {
                assert_eq!(get(&*vdi, block).await, 4, "block {block}");
            }
        });
        rig.close(&pool);
    }
}

/// The drill found this, after 40,000 seeds. The second root of a volume that was being closed failed. The first one said
/// that it had ended in order, so the next opening let its slots go, and the second landed on what they had become.
#[test]
fn rule_4h_a_last_root_that_failed_lands_on_nobodys_block() {
    let mut rig = Rig::new(1);
    let (pool, vdi) = rig.with_volume(MIB);
    rig.world.run(put(&*vdi, 0, 1));
    rig.late(ROOT, 2);
    let id = vdi.id();
    rig.world.run(vdi.detach()).unwrap_err();
    rig.world.run(async {
        let vdi = pool.attach(id).await.unwrap();
        assert_eq!(get(&*vdi, 0).await, 1);
        // Nodes, over all that is free.
        let large = pool.create_vdi(request("large", Some(512 * 4096 * BLOCK), Source::Empty)).await.unwrap();
        let large = pool.attach(large.id).await.unwrap();
        for leaf in 0..400 {
            put(&*large, leaf * 512, 3).await;
            if leaf % 10 == 0 {
                pool.sync().await.unwrap();
            }
        }
        snapshot(&pool, &[large.id()]).await.unwrap();
        pool.sync().await.unwrap();
    });
    rig.land_and_kill();
}

/// Found by reading, beside the one before. The record of a clone failed and landed late; meanwhile the source had gone on,
/// and garbage collection, which knew of no clone, had freed what the clone was to share.
#[test]
fn rule_4h_a_clone_that_failed_and_is_there_later_is_whole() {
    let mut rig = Rig::new(1);
    let (pool, vdi) = rig.with_volume(64 * MIB);
    let fill = async |byte| {
        for block in 0..64 {
            put(&*vdi, block, byte).await;
        }
        vdi.flush().await.unwrap();
    };
    rig.world.run(fill(1));
    rig.late(RECORD, 1);
    let failed = rig.world.run(pool.create_vdi(request("clone", None, Source::Vdi(vdi.id())))).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Io, "{failed}");
    rig.world.run(async {
        use_what_is_free(&vdi).await;
        vdi.discard(ByteRange::new(0, 64 * BLOCK).unwrap()).await.unwrap();
        vdi.flush().await.unwrap();
        let refused = pool.collect_garbage(&|_| {}).await;
        use_what_is_free(&vdi).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Fenced);
    });
    rig.land_and_kill();
    let pool = rig.open();
    rig.world.run(async {
        let clone = pool.vdi_named("clone").expect("its record has landed");
        let clone = pool.attach(clone.id).await.unwrap();
        for block in 0..64 {
            assert_eq!(get(&*clone, block).await, 1, "block {block}");
        }
        pool.collect_garbage(&|_| {}).await.unwrap();
    });
    rig.close(&pool);
}

/// Found by reading. A deletion failed; the volume was attached again and written to; then the deletion landed, and all of it
/// was gone with the next opening of the pool.
#[test]
fn rule_4h_a_volume_whose_deletion_failed_takes_no_more_writes() {
    for with_snapshot in [false, true] {
        let mut rig = Rig::new(1);
        let (pool, vdi) = rig.with_volume(MIB);
        let id = vdi.id();
        rig.world.run(async {
            put(&*vdi, 0, 1).await;
            if with_snapshot {
                snapshot(&pool, &[id]).await.unwrap();
            }
            vdi.detach().await.unwrap();
        });
        rig.late(RECORD, 1);
        rig.world.run(pool.delete_vdi(id)).unwrap_err();
        let refused = rig.world.run(pool.attach(id)).err().expect("nobody may use it");
        assert_eq!(refused.kind(), ErrorKind::Fenced, "{refused}");
        assert!(refused.to_string().contains("restart"), "{refused}");
        rig.land_and_kill();
        let pool = rig.open();
        assert!(pool.vdis().iter().all(|info| info.headless), "its deletion has landed");
        rig.close(&pool);
    }
}

/// Found by reading. The name of a snapshot failed to be recorded; the next opening of the volume took the snapshot away, since
/// nobody had been promised it; then the name landed, and named nothing for ever.
#[test]
fn rule_4h_a_snapshot_whose_name_lands_late_is_there() {
    let mut rig = Rig::new(1);
    let (pool, vdi) = rig.with_volume(MIB);
    let id = vdi.id();
    rig.world.run(put(&*vdi, 0, 1));
    rig.late(RECORD, 1);
    let name = Name::new("name").unwrap();
    let named = TakeSnapshot { vdis: vec![id], label: String::new(), name: Some(name), at: Timestamp(2) };
    rig.world.run(pool.snapshot(named.clone())).unwrap_err();
    rig.world.run(async {
        vdi.detach().await.unwrap_err();
        let vdi = pool.attach(id).await.unwrap();
        put(&*vdi, 0, 2).await;
        vdi.flush().await.unwrap();
    });
    rig.land_and_kill();
    let pool = rig.open();
    rig.world.run(async {
        assert_eq!(pool.snapshots_named("name").len(), 1, "its record has landed");
        let found = pool.snapshot(named).await.unwrap();
        assert_eq!(in_snapshot(&pool, &found[0], 0).await, 1);
    });
    rig.close(&pool);
}

/// Found by reading. A bitmap of an extent that was being claimed failed. Nobody had been told of the extent, so the registry
/// took its place when it grew, and then the bitmap landed on it.
#[test]
fn rule_4h_a_bitmap_of_a_failed_claim_lands_on_nobodys_block() {
    // The area of the registry moves as it grows; what the bitmap hits is a matter of when it lands.
    for created in (20..200).step_by(20) {
        let mut rig = Rig::new(1);
        let (pool, vdi) = rig.with_volume(MIB);
        rig.late(BITMAP, 1);
        rig.world.run(try_put(&*vdi, 0, BLOCK, 1)).unwrap_err();
        rig.world.run(async {
            for number in 0..created {
                let mut large = request(&format!("volume-{number}"), Some(MIB), Source::Empty);
                large.attributes.insert("text".to_owned(), "x".repeat(2000));
                pool.create_vdi(large).await.unwrap();
            }
        });
        rig.land_and_kill();
        let pool = rig.open();
        assert_eq!(pool.vdis().len(), 1 + created);
        rig.close(&pool);
    }
}
