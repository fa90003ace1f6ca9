//! Design, section 4: a to d: the journal, replay, the tail, and crashes before the first checkpoint.

use crate::rig::*;
use parallax_block::{BLOCK_SIZE, BlockDevice, ByteRange, ErrorKind};
use parallax_sim::{Asks, Either, Fault, FaultPlan, Unflushed, either};
use parallax_store::{Kept, Source};
use std::{collections::BTreeSet, sync::atomic::Ordering};

/// Places of journal blocks among recorded changes, in order of their writing.
fn journal_blocks(changes: &[Change]) -> Vec<u64> {
    changes
        .iter()
        .filter(|change| change.is_write())
        .flat_map(|change| {
            change.head.chunks(BLOCK_SIZE).enumerate().filter_map(|(index, block)| {
                let piece = Change { head: block.to_vec(), ..change.clone() };
                piece.is_journal().then(|| change.range.offset() / BLOCK + index as u64)
            })
        })
        .collect()
}

#[test]
fn rule_4a_a_journal_block_is_never_rewritten_within_an_epoch() {
    let rig = Rig::new(1);
    let (pool, vdi) = rig.with_volume(4 * MIB);
    let changes = rig.record();
    rig.world.run(async {
        for block in 0..300 {
            put(&*vdi, block, 1).await;
            vdi.flush().await.unwrap();
        }
    });
    let blocks = journal_blocks(&changes.lock());
    let different: BTreeSet<u64> = blocks.iter().copied().collect();
    assert!(blocks.len() >= 300, "{} journal blocks for 300 groups", blocks.len());
    assert_eq!(blocks.len(), different.len(), "a journal block was written twice");
    rig.close(&pool);
}

#[test]
fn rule_4b_a_record_is_written_only_after_a_flush_that_covers_its_data() {
    // Every boundary of first touches with flushes, with every way of losing the cache: whatever is mapped then
    // holds what was written, never what the device held before.
    for boundary in 1..60 {
        for unflushed in [Unflushed::Lost, Unflushed::Some, Unflushed::Torn] {
            let mut rig = Rig::new(boundary);
            let (_pool, vdi) = rig.with_volume(MIB);
            rig.disk.crash_after(boundary);
            let writer = vdi.clone();
            let work = rig.start("writer", async move {
                for block in 0..12 {
                    put(&*writer, block, 1).await;
                    if block % 3 == 2 {
                        writer.flush().await.unwrap();
                    }
                }
            });
            rig.world.run(either(rig.disk.power_lost(), rig.a_minute()));
            drop(work);
            rig.power_cut(unflushed);
            let (pool, vdi) = rig.reopen();
            for block in 0..12 {
                let bytes = rig.world.run(read(&*vdi, block * BLOCK, BLOCK));
                let strange = bytes.iter().any(|byte| ![0, 1].contains(byte));
                assert!(
                    !strange,
                    "boundary {boundary}, {unflushed:?}: block {block} shows a stranger's bytes"
                );
            }
            rig.close(&pool);
        }
    }
}

#[test]
fn rule_4b_a_write_in_place_needs_no_metadata_at_all() {
    let rig = Rig::new(2);
    let (pool, vdi) = rig.with_volume(MIB);
    rig.world.run(async {
        put(&*vdi, 0, 1).await;
        vdi.flush().await.unwrap();
        rig.disk.quiesce().await;
    });
    let changes = rig.record();
    rig.world.run(async {
        put(&*vdi, 0, 2).await;
        vdi.flush().await.unwrap();
    });
    assert_eq!(changes.lock().len(), 2, "one write and one flush: {:?}", changes.lock());
    rig.close(&pool);
}

/// A volume with five durable groups and the places of their journal blocks, after a power cut.
fn five_groups() -> (Rig, Vec<u64>) {
    let mut rig = Rig::new(3);
    let (_pool, vdi) = rig.with_volume(MIB);
    let changes = rig.record();
    rig.world.run(async {
        for block in 0..5 {
            put(&*vdi, block, 1 + block as u8).await;
            vdi.flush().await.unwrap();
        }
    });
    let blocks = journal_blocks(&changes.lock());
    assert_eq!(blocks.len(), 5);
    rig.power_cut(Unflushed::Lost);
    (rig, blocks)
}

fn spoil(rig: &Rig, block: u64) {
    rig.disk.damage(ByteRange::new(block * BLOCK, BLOCK).unwrap(), |bytes| bytes[100] ^= 1);
}

#[test]
fn rule_4c_a_damaged_group_that_was_durable_refuses_to_open() {
    for damaged in 0..4 {
        let (rig, blocks) = five_groups();
        spoil(&rig, blocks[damaged]);
        let pool = rig.open();
        let outcome = rig.world.run(pool.attach(volume(&pool).id));
        let kind = outcome.err().map(|error| error.kind());
        assert_eq!(kind, Some(ErrorKind::Corrupt), "group {damaged} of five was damaged");
    }
}

/// The drill found this. A checkpoint had left replay to begin at the last block of a segment. That block rotted, and it alone
/// named the segment in which the next group proved that it had been durable: the volume opened without either.
#[test]
fn rule_4c_a_damaged_group_in_the_last_block_of_a_segment_refuses_to_open() {
    let mut rig = Rig::new(3);
    let (pool, vdi) = rig.with_volume(MIB);
    let changes = rig.record();
    rig.world.run(async {
        for block in 0..14 {
            put(&*vdi, block, 1).await;
            vdi.flush().await.unwrap();
        }
        // One group more, and a checkpoint behind it.
        let taken = snapshot(&pool, &[vdi.id()]).await.unwrap();
        pool.materialise(taken[0].id).await.unwrap();
        for block in 14..17 {
            put(&*vdi, block, 1).await;
            vdi.flush().await.unwrap();
        }
    });
    let blocks = journal_blocks(&changes.lock());
    let root = changes.lock().iter().rposition(Change::is_root).unwrap();
    let before_the_root = journal_blocks(&changes.lock()[..root]).len();
    assert_eq!(
        (before_the_root, blocks[14] - blocks[0]),
        (15, 14),
        "replay begins at the last block of a segment"
    );
    rig.power_cut(Unflushed::Lost);
    spoil(&rig, blocks[15]);
    let pool = rig.open();
    let outcome = rig.world.run(pool.attach(volume(&pool).id));
    assert_eq!(outcome.err().map(|error| error.kind()), Some(ErrorKind::Corrupt));
}

#[test]
fn rule_4c_an_invalid_block_at_the_end_is_the_end() {
    // Nothing later says that the last group was durable: it may have been torn by the power cut.
    let (rig, blocks) = five_groups();
    spoil(&rig, blocks[4]);
    let (pool, vdi) = rig.reopen();
    rig.world.run(async {
        for block in 0..4 {
            assert_eq!(get(&*vdi, block).await, 1 + block as u8);
        }
        assert_eq!(get(&*vdi, 4).await, 0);
    });
    rig.close(&pool);
}

#[test]
fn rule_4c_an_unreadable_block_is_damage_even_at_the_end() {
    let (rig, blocks) = five_groups();
    let read_errors = vec![ByteRange::new(blocks[4] * BLOCK, BLOCK).unwrap()];
    let pool = rig.open();
    rig.disk.set_faults(FaultPlan { read_errors, ..Default::default() });
    assert!(rig.world.run(pool.attach(volume(&pool).id)).is_err());
}

#[test]
fn rule_4d_a_killed_daemon_loses_nothing_that_was_acknowledged() {
    for seed in 0..30 {
        let mut rig = Rig::new(seed);
        let (_pool, vdi) = rig.with_volume(MIB);
        rig.disk.crash_after(1 + seed * 3);
        let writer = vdi.clone();
        let acknowledged = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counter = acknowledged.clone();
        let work = rig.start("writer", async move {
            for block in 0..40 {
                put(&*writer, block, 1 + block as u8).await;
                counter.fetch_add(1, Ordering::Relaxed);
                if block % 7 == 6 {
                    writer.flush().await.unwrap();
                }
            }
        });
        let outcome = rig.world.run(either(rig.disk.power_lost(), rig.a_minute()));
        assert!(matches!(outcome, Either::Left(())) || work.is_done());
        rig.kill();
        let (pool, vdi) = rig.reopen();
        rig.world.run(async {
            for block in 0..acknowledged.load(Ordering::Relaxed) {
                assert_eq!(get(&*vdi, block).await, 1 + block as u8, "seed {seed}, block {block}");
            }
        });
        rig.close(&pool);
    }
}

#[test]
fn rule_4d_a_full_tail_forces_a_commit() {
    let rig = Rig::new(5);
    let (pool, vdi) = rig.with_volume(MIB);
    let before = pool.counters().commits.load(Ordering::Relaxed);
    rig.world.run(async {
        // Each round maps a block and unmaps it: two records that no flush ever asks to be written.
        for round in 0..20_000u64 {
            let range = ByteRange::new(round % 64 * BLOCK, BLOCK).unwrap();
            try_put(&*vdi, range.offset(), 512, 1).await.unwrap();
            vdi.discard(range).await.unwrap();
        }
    });
    let tails: usize = {
        use parallax_block::TailStore;
        rig.tails.keys().iter().map(|key| rig.tails.load(key).unwrap().unwrap().len()).sum()
    };
    assert!(tails < 2 << 20, "the tail has grown to {tails} bytes");
    assert!(pool.counters().commits.load(Ordering::Relaxed) > before, "40000 records in a bounded tail");
    rig.close(&pool);
}

#[test]
fn rule_4d_a_damaged_tail_gives_back_a_prefix_or_nothing_but_never_a_wrong_byte() {
    for at in [0usize, 70, 130, 200, 260] {
        let mut rig = Rig::new(6);
        let (_pool, vdi) = rig.with_volume(MIB);
        rig.world.run(async {
            put(&*vdi, 0, 1).await;
            vdi.flush().await.unwrap();
            for block in 1..8 {
                put(&*vdi, block, 1 + block as u8).await;
            }
        });
        rig.kill();
        for key in rig.tails.keys() {
            rig.tails.damage(&key, |bytes| {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 0x40;
                }
            });
        }
        let (pool, vdi) = rig.reopen();
        rig.world.run(async {
            assert_eq!(get(&*vdi, 0).await, 1, "what was flushed does not depend on the tail");
            for block in 1..8 {
                let byte = get(&*vdi, block).await;
                assert!([0, 1 + block as u8].contains(&byte), "block {block} holds {byte}");
            }
        });
        rig.close(&pool);
    }
}

#[test]
fn rule_4d_a_tail_of_another_boot_is_not_used() {
    let mut rig = Rig::new(7);
    let (_pool, vdi) = rig.with_volume(MIB);
    rig.world.run(put(&*vdi, 0, 1));
    let saved: Vec<(String, Vec<u8>)> = {
        use parallax_block::TailStore;
        rig.tails
            .keys()
            .into_iter()
            .map(|key| (key.clone(), rig.tails.load(&key).unwrap().unwrap()))
            .collect()
    };
    rig.power_cut(Unflushed::Lost);
    for (key, bytes) in saved {
        use parallax_block::TailStore;
        rig.tails.create(&key).unwrap().write_at(0, &bytes).unwrap();
    }
    let (pool, vdi) = rig.reopen();
    assert_eq!(
        rig.world.run(get(&*vdi, 0)),
        0,
        "its data went with the power; the record must not come back"
    );
    rig.close(&pool);
}

#[test]
fn three_crashes_before_the_first_checkpoint_lose_nothing() {
    for first in 1..14 {
        let mut rig = Rig::new(first);
        let (_pool, vdi) = rig.with_volume(MIB);
        rig.world.run(async {
            for block in 0..6 {
                put(&*vdi, block, 1 + block as u8).await;
            }
            vdi.flush().await.unwrap();
        });
        for crash in 0..3u64 {
            rig.power_cut(Unflushed::ALL[((first + crash) % 4) as usize]);
            rig.disk.crash_after(first + crash * 2);
            let opening = rig.opening();
            let attach = rig.start("opener", async move {
                let pool = opening.await.unwrap();
                let id = volume(&pool).id;
                pool.attach(id).await.unwrap();
            });
            rig.world.run(either(rig.disk.power_lost(), rig.a_minute()));
            drop(attach);
        }
        rig.power_cut(Unflushed::Lost);
        let (pool, vdi) = rig.reopen();
        rig.world.run(async {
            for block in 0..6 {
                assert_eq!(get(&*vdi, block).await, 1 + block as u8, "first crash at boundary {first}");
            }
        });
        rig.close(&pool);
    }
}

#[test]
fn rule_3d_a_root_is_written_only_after_a_flush_of_what_it_names() {
    let rig = Rig::new(9);
    let (pool, vdi) = rig.with_volume(4 * MIB);
    rig.world.run(async {
        for block in 0..50 {
            put(&*vdi, block * 17, 1).await;
        }
    });
    let changes = rig.record();
    rig.world.run(vdi.checkpoint()).unwrap();
    let changes = changes.lock();
    let root = changes.iter().position(Change::is_root).expect("a checkpoint writes a root");
    let before = &changes[..root];
    let last_write = before.iter().rposition(Change::is_write).expect("it writes nodes first");
    let flushed = before[last_write..].iter().any(|change| change.kind == parallax_sim::Kind::Flush);
    assert!(flushed, "no flush between the last node and the root");
    assert!(changes[root].kind == parallax_sim::Kind::Write { fua: true }, "the root itself is FUA");
    drop(changes);
    rig.close(&pool);
}

#[test]
fn rule_3d_either_root_slot_opens() {
    let mut rig = Rig::new(10);
    let (_pool, vdi) = rig.with_volume(MIB);
    let changes = rig.record();
    rig.world.run(async {
        for round in 0..3 {
            put(&*vdi, round, 1 + round as u8).await;
            vdi.checkpoint().await.unwrap();
        }
    });
    let newest = changes.lock().iter().rev().find(|change| change.is_root()).unwrap().range;
    rig.power_cut(Unflushed::Lost);
    rig.disk.damage(newest, |bytes| bytes.fill(0x5a));
    let (pool, vdi) = rig.reopen();
    rig.world.run(async {
        for round in 0..3 {
            assert_eq!(
                get(&*vdi, round).await,
                1 + round as u8,
                "the older slot and its journal say the same"
            );
        }
    });
    rig.close(&pool);
}

/// A flush that fails may have dropped what any volume wrote. Once, only the volume that had asked for it was told: a
/// daemon that was started anew went on serving the others as if nothing had happened.
#[test]
fn rule_4i_after_a_failed_flush_the_next_opening_doubts_what_no_volume_had_flushed() {
    for fails in [false, true] {
        let mut rig = Rig::new(77);
        let (pool, first) = rig.with_volume(MIB);
        let second = rig.world.run(async {
            let info = pool.create_vdi(request("second", Some(MIB), Source::Empty)).await.unwrap();
            pool.attach(info.id).await.unwrap()
        });
        rig.world.run(async {
            put(&*first, 0, 1).await;
            put(&*second, 0, 2).await;
            if fails {
                rig.once(Asks::Flushes, rig.everywhere(), Fault::Fails(ErrorKind::Io));
            }
            assert_eq!(first.flush().await.is_err(), fails);
        });
        let ids = [first.id(), second.id()];
        rig.kill();
        let pool = rig.open();
        rig.world.run(async {
            for id in ids {
                let vdi = pool.attach(id).await.unwrap();
                let expected = if fails { Kept::Doubtful } else { Kept::Everything };
                assert_eq!(vdi.continuity().kept, expected);
                // The disk of this test keeps what a failed flush leaves: nothing is thrown away for the doubt.
                assert_eq!(get(&*vdi, 0).await, if id == ids[0] { 1 } else { 2 });
                vdi.flush().await.unwrap();
            }
        });
        // It is the epoch that is in doubt, not the volume for ever.
        rig.kill();
        let pool = rig.open();
        let vdi = rig.world.run(pool.attach(ids[1])).unwrap();
        assert_eq!(vdi.continuity().kept, Kept::Everything);
        rig.close(&pool);
    }
}

/// The same for volumes that nobody had opened when the flush failed: a daemon was killed, its successor's first flush
/// failed, and the successor of that took all devices over.
#[test]
fn rule_4i_a_failed_flush_puts_volumes_in_doubt_that_wait_to_be_opened() {
    let mut rig = Rig::new(78);
    let (pool, first) = rig.with_volume(MIB);
    let second = rig.world.run(async {
        let info = pool.create_vdi(request("second", Some(MIB), Source::Empty)).await.unwrap();
        pool.attach(info.id).await.unwrap()
    });
    rig.world.run(async {
        put(&*first, 0, 1).await;
        put(&*second, 0, 2).await;
    });
    let ids = [first.id(), second.id()];
    rig.kill();
    let pool = rig.open();
    rig.once(Asks::Flushes, rig.everywhere(), Fault::Fails(ErrorKind::Io));
    assert!(rig.world.run(pool.attach(ids[0])).is_err());
    rig.kill();
    let pool = rig.open();
    for id in ids {
        let vdi = rig.world.run(pool.attach(id)).unwrap();
        assert_eq!(vdi.continuity().kept, Kept::Doubtful);
        rig.world.run(vdi.flush()).unwrap();
    }
    rig.close(&pool);
    // All has been told, and nothing is remembered.
    for _ in 0..2 {
        let pool = rig.open();
        for id in ids {
            let vdi = rig.world.run(pool.attach(id)).unwrap();
            assert_eq!(vdi.continuity().kept, Kept::Everything);
        }
        rig.kill();
    }
}
