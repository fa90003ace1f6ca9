//! Design, section 4: e, f, g, i: locks, partial blocks, reuse of freed blocks, flush and FUA.

use crate::rig::*;
use parallax_block::{BlockDevice, Buffer, ByteRange, ErrorKind, WriteOptions, ZeroOptions};
use parallax_sim::{FaultPlan, HoldAt, Kind, Unflushed};
use parallax_store::Source;
use std::time::Duration;

#[test]
fn rule_4a_a_flush_makes_acknowledged_writes_durable_and_nothing_less_does() {
    let mut lost = false;
    for seed in 0..8 {
        let mut rig = Rig::new(seed);
        let (_pool, vdi) = rig.with_volume(MIB);
        rig.world.run(async {
            put(&*vdi, 0, 1).await;
            vdi.flush().await.unwrap();
            put(&*vdi, 1, 2).await;
        });
        rig.power_cut(Unflushed::Lost);
        let (pool, vdi) = rig.reopen();
        rig.world.run(async {
            assert_eq!(get(&*vdi, 0).await, 1);
            lost |= get(&*vdi, 1).await == 0;
        });
        rig.close(&pool);
    }
    assert!(lost, "a volatile cache that never loses anything is a write-through one");
}

#[test]
fn rule_4e_two_writes_to_parts_of_one_block_both_stay() {
    // The second write finds the block unmapped while the first one is still on its way to the disk.
    for seed in 0..20 {
        let rig = Rig::new(seed);
        let (pool, vdi) = rig.with_volume(MIB);
        let (a, b) = (vdi.clone(), vdi.clone());
        let first = rig.start("first half", async move { try_put(&*a, 0, 2048, 1).await });
        let second = rig.start("second half", async move { try_put(&*b, 2048, 2048, 2).await });
        first.wait().unwrap();
        second.wait().unwrap();
        assert_eq!(sectors(&rig.world.run(read(&*vdi, 0, BLOCK))), [1, 1, 1, 1, 2, 2, 2, 2]);
        rig.close(&pool);
    }
}

#[test]
fn rule_4e_a_reader_sees_a_block_only_once_its_data_is_written() {
    let rig = Rig::new(1);
    let (pool, vdi) = rig.with_volume(MIB);
    let hold = rig.disk.hold(HoldAt::Submission, is_change);
    let writer = vdi.clone();
    let write = rig.start("writer", async move { put(&*writer, 7, 1).await });
    rig.world.run(async {
        hold.caught(1).await;
        assert_eq!(get(&*vdi, 7).await, 0, "what the new block held before shines through");
    });
    assert!(!write.is_done());
    hold.release();
    write.wait();
    assert_eq!(rig.world.run(get(&*vdi, 7)), 1);
    rig.close(&pool);
}

/// In Longhorn (issue 4354) a replica that was being rebuilt was written to in part of a block, and the rest of that block became
/// zeroes in place of what a snapshot below held.
#[test]
fn rule_4e_missing_bytes_come_from_the_old_block_or_are_zeroes() {
    let rig = Rig::new(2);
    let (pool, vdi) = rig.with_volume(MIB);
    rig.world.run(async {
        try_put(&*vdi, 512, 512, 1).await.unwrap();
        assert_eq!(sectors(&read(&*vdi, 0, BLOCK).await), [0, 1, 0, 0, 0, 0, 0, 0]);
        snapshot(&pool, &[vdi.id()]).await.unwrap();
        try_put(&*vdi, 1024, 512, 2).await.unwrap();
        assert_eq!(sectors(&read(&*vdi, 0, BLOCK).await), [0, 1, 2, 0, 0, 0, 0, 0]);
        // Across the border of two blocks, one of them a hole.
        try_put(&*vdi, BLOCK - 512, 1024, 3).await.unwrap();
        assert_eq!(
            sectors(&read(&*vdi, 0, 2 * BLOCK).await),
            [0, 1, 2, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0]
        );
    });
    rig.close(&pool);
}

#[test]
fn rule_4e_zeroes_across_the_border_of_two_blocks_reach_both() {
    // The drill found that a range without any whole block in it was zeroed up to the border only.
    let rig = Rig::new(2);
    let (pool, vdi) = rig.with_volume(MIB);
    rig.world.run(async {
        try_put(&*vdi, 0, 2 * BLOCK, 1).await.unwrap();
        let range = ByteRange::new(BLOCK - 512, 1024).unwrap();
        vdi.write_zeroes(range, ZeroOptions { unmap: true, fua: false }).await.unwrap();
        assert_eq!(
            sectors(&read(&*vdi, 0, 2 * BLOCK).await),
            [1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1]
        );
    });
    rig.close(&pool);
}

#[test]
fn rule_4e_dropping_a_write_does_not_let_a_newer_one_be_overtaken() {
    for seed in 0..20 {
        let rig = Rig::new(seed);
        let (pool, vdi) = rig.with_volume(MIB);
        rig.world.run(async {
            put(&*vdi, 3, 1).await;
            {
                let write = vdi.write(3 * BLOCK, Buffer::copy_of(&[2; 4096]), WriteOptions::default());
                // Polled once, so that it is under way, then given up.
                let _ = parallax_sim::either(write, async {}).await;
            }
            put(&*vdi, 3, 3).await;
            rig.disk.quiesce().await;
            assert_eq!(get(&*vdi, 3).await, 3);
        });
        rig.close(&pool);
    }
}

#[test]
fn rule_4f_a_freed_block_is_not_reused_under_a_reader() {
    let rig = Rig::sized(3, 16 * MIB);
    let (pool, vdi) = rig.with_volume(MIB);
    rig.world.run(async {
        put(&*vdi, 0, 1).await;
        vdi.flush().await.unwrap();
    });
    let hold = rig.disk.hold(HoldAt::Submission, |request| request.kind == Kind::Read);
    let reader = vdi.clone();
    let reading = rig.start("reader", async move { get(&*reader, 0).await });
    rig.world.run(hold.caught(1));
    let place = hold.held()[0].range;
    let changes = rig.record();
    rig.world.run(async {
        vdi.discard(ByteRange::new(0, BLOCK).unwrap()).await.unwrap();
        vdi.flush().await.unwrap();
        for round in 0..3 {
            for block in 1..200 {
                put(&*vdi, block, 2 + round).await;
            }
            vdi.flush().await.unwrap();
            vdi.discard(ByteRange::new(BLOCK, 199 * BLOCK).unwrap()).await.unwrap();
        }
    });
    let touched =
        |change: &Change| change.range.offset() < place.end() && place.offset() < change.range.end();
    assert!(!changes.lock().iter().any(touched), "the block that is being read was written or discarded");
    hold.release();
    assert_eq!(reading.wait(), 1);
    rig.close(&pool);
}

#[test]
fn rule_4f_a_freed_block_is_not_reused_before_its_unmapping_is_durable() {
    // Discard, write elsewhere, lose everything that was not flushed: the discarded block may come back, and if it
    // does, it comes back with its own bytes.
    for seed in 0..30 {
        let mut rig = Rig::sized(seed, 16 * MIB);
        let (_pool, vdi) = rig.with_volume(MIB);
        rig.world.run(async {
            put(&*vdi, 0, 1).await;
            vdi.flush().await.unwrap();
            vdi.discard(ByteRange::new(0, BLOCK).unwrap()).await.unwrap();
            for block in 1..100 {
                put(&*vdi, block, 2).await;
            }
        });
        rig.power_cut(Unflushed::ALL[seed as usize % 4]);
        let (pool, vdi) = rig.reopen();
        let byte = rig.world.run(get(&*vdi, 0));
        assert!([0, 1].contains(&byte), "block 0 holds {byte}");
        rig.close(&pool);
    }
}

#[test]
fn rule_4g_a_flush_does_not_join_a_commit_that_is_already_sealed() {
    let mut rig = Rig::new(4);
    let (_pool, vdi) = rig.with_volume(MIB);
    // Whatever has to be claimed first is claimed, so that the flushes below are the volume's own.
    rig.world.run(async {
        put(&*vdi, 7, 1).await;
        vdi.flush().await.unwrap();
        rig.disk.quiesce().await;
    });
    let hold = rig.disk.hold(HoldAt::Submission, |request| request.kind == Kind::Flush);
    rig.world.run(put(&*vdi, 0, 1));
    let first = vdi.clone();
    let first = rig.start("first flush", async move { first.flush().await });
    rig.world.run(hold.caught(1));
    // The first group is sealed; this write is not in it.
    rig.world.run(put(&*vdi, 1, 2));
    let second = vdi.clone();
    let second = rig.start("second flush", async move { second.flush().await });
    hold.release();
    first.wait().unwrap();
    second.wait().unwrap();
    rig.power_cut(Unflushed::Lost);
    let (pool, vdi) = rig.reopen();
    rig.world.run(async { assert_eq!((get(&*vdi, 0).await, get(&*vdi, 1).await), (1, 2)) });
    rig.close(&pool);
}

#[test]
fn rule_4g_a_flush_covers_what_was_written_while_another_was_under_way() {
    let mut rig = Rig::new(9);
    let (_pool, vdi) = rig.with_volume(MIB);
    rig.world.run(async {
        put(&*vdi, 0, 1).await;
        put(&*vdi, 1, 1).await;
        vdi.flush().await.unwrap();
        rig.disk.quiesce().await;
        put(&*vdi, 0, 2).await;
    });
    let hold = rig.disk.hold(HoldAt::Answer, |request| request.kind == Kind::Flush);
    let first = vdi.clone();
    let first = rig.start("first flush", async move { first.flush().await });
    rig.world.run(hold.caught(1));
    // The device has flushed and not said so yet: what it takes now is not in that flush.
    rig.world.run(put(&*vdi, 1, 2));
    hold.release();
    first.wait().unwrap();
    rig.world.run(async {
        vdi.flush().await.unwrap();
        let flushes = rig.disk.stats().flushes;
        vdi.flush().await.unwrap();
        assert_eq!(
            rig.disk.stats().flushes,
            flushes,
            "nothing was written since: the device need not be asked"
        );
    });
    rig.power_cut(Unflushed::Lost);
    let (pool, vdi) = rig.reopen();
    rig.world.run(async { assert_eq!((get(&*vdi, 0).await, get(&*vdi, 1).await), (2, 2)) });
    rig.close(&pool);
}

#[test]
fn rule_4g_fua_is_durable_and_passes_through_where_the_mapping_is() {
    let mut rig = Rig::new(5);
    let (_pool, vdi) = rig.with_volume(MIB);
    let fua = |byte| vdi.write(0, Buffer::copy_of(&[byte; 4096]), WriteOptions { fua: true });
    rig.world.run(async {
        fua(1).await.1.unwrap();
        rig.disk.quiesce().await;
    });
    let changes = rig.record();
    rig.world.run(async { fua(2).await.1.unwrap() });
    let kinds: Vec<Kind> = changes.lock().iter().map(|change| change.kind).collect();
    assert_eq!(kinds, [Kind::Write { fua: true }], "one request, no metadata, no flush");
    rig.power_cut(Unflushed::Lost);
    let (pool, vdi) = rig.reopen();
    assert_eq!(rig.world.run(get(&*vdi, 0)), 2);
    rig.close(&pool);
}

#[test]
fn rule_4g_fua_on_an_unmapped_block_survives_a_power_cut() {
    for unflushed in Unflushed::ALL {
        let mut rig = Rig::new(6);
        let (_pool, vdi) = rig.with_volume(MIB);
        rig.world.run(async {
            let buffer = Buffer::copy_of(&[9; 1024]);
            vdi.write(BLOCK - 512, buffer, WriteOptions { fua: true }).await.1.unwrap();
        });
        rig.power_cut(unflushed);
        let (pool, vdi) = rig.reopen();
        let bytes = rig.world.run(read(&*vdi, 0, 2 * BLOCK));
        assert_eq!(sectors(&bytes), [0, 0, 0, 0, 0, 0, 0, 9, 9, 0, 0, 0, 0, 0, 0, 0]);
        rig.close(&pool);
    }
}

/// The drill found that only the volumes that had joined a failed flush ended their epochs. What the device drops may be
/// anybody's: the others went on, and acknowledged bytes that were not there.
#[test]
fn rule_4h_a_failed_flush_ends_the_epochs_of_all_volumes_until_the_pool_is_opened_again() {
    let mut rig = Rig::new(7);
    let (pool, vdi) = rig.with_volume(MIB);
    rig.world.run(async {
        let info = pool.create_vdi(request("other", Some(MIB), Source::Empty)).await.unwrap();
        let other = pool.attach(info.id).await.unwrap();
        put(&*other, 0, 5).await;
        put(&*vdi, 0, 1).await;
        vdi.flush().await.unwrap();
        put(&*vdi, 1, 2).await;
        let next = rig.disk.stats().flushes + 1;
        rig.disk.set_faults(FaultPlan { flush_errors: [next].into(), ..FaultPlan::default() });
        vdi.flush().await.unwrap_err();
        // The disk is well again, but what the failed flush left behind is not known.
        assert_eq!(vdi.flush().await.unwrap_err().kind(), ErrorKind::Fenced);
        assert_eq!(try_put(&*vdi, 0, 512, 3).await.unwrap_err().kind(), ErrorKind::Fenced);
        assert_eq!(other.flush().await.unwrap_err().kind(), ErrorKind::Fenced);
        let id = vdi.id();
        let _ = vdi.detach().await;
        pool.attach(id).await.err().expect("nothing can be promised before the pool is opened again");
    });
    rig.kill();
    let pool = rig.open();
    rig.world.run(async {
        let volume = pool.vdis().into_iter().find(|info| info.name.as_str() == "volume").unwrap();
        let vdi = pool.attach(volume.id).await.unwrap();
        assert_eq!(get(&*vdi, 0).await, 1);
        put(&*vdi, 2, 4).await;
        vdi.flush().await.unwrap();
    });
    rig.close(&pool);
}

#[test]
fn rule_4i_a_detach_finishes_what_is_under_way() {
    // The drill found writes that waited for a lock when the detach began, and failed.
    let rig = Rig::new(8);
    let (pool, vdi) = rig.with_volume(MIB);
    let hold = rig.disk.hold(HoldAt::Submission, is_change);
    let (a, b, c) = (vdi.clone(), vdi.clone(), vdi.clone());
    let first = rig.start("first", async move { try_put(&*a, 0, 512, 1).await });
    rig.world.run(hold.caught(1));
    let second = rig.start("waits for the lock", async move { try_put(&*b, 512, 512, 2).await });
    rig.world.run_for(Duration::from_millis(1));
    let detach = rig.start("detach", async move { c.detach().await });
    rig.world.run_for(Duration::from_millis(1));
    hold.release();
    first.wait().unwrap();
    second.wait().unwrap();
    detach.wait().unwrap();
    assert_eq!(rig.world.run(try_put(&*vdi, 0, 512, 3)).unwrap_err().kind(), ErrorKind::Fenced);
    let vdi = rig.world.run(pool.attach(vdi.id())).unwrap();
    assert_eq!(sectors(&rig.world.run(read(&*vdi, 0, 1024))), [1, 2]);
    rig.close(&pool);
}

/// Found by reading. The records of a very long write did not fit the tail together: it was published in parts.
#[test]
fn a_write_that_cannot_be_published_at_once_is_refused_whole() {
    let rig = Rig::sized(1, 256 * MIB);
    let (pool, vdi) = rig.with_volume(128 * MIB);
    let refused = rig.world.run(try_put(&*vdi, 0, 64 * MIB + 512, 1)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    assert_eq!(rig.world.run(get(&*vdi, 0)), 0);
    // The longest, over one block more than it has.
    rig.world.run(try_put(&*vdi, 512, 64 * MIB, 2)).unwrap();
    assert_eq!(rig.world.run(get(&*vdi, 1)), 2);
    rig.close(&pool);
}
