//! Every pair of operations: one is kept back at each of its requests to the disk while the other runs.
//!
//! Blocks 0 to 3 are mapped and durable, 4 to 7 are shared with a snapshot, 8 and up were never touched. The two
//! operations work on the same blocks. Whatever the order, each block ends as one of them left it, the snapshot
//! holds what it held, and the pool is undamaged.

use crate::rig::*;
use parallax_block::{BlockDevice, ByteRange, ZeroOptions};
use parallax_sim::{HoldAt, Unflushed};
use parallax_store::{Pool, SnapshotId, Source, Vdi};
use std::{sync::Arc, time::Duration};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Write,
    WritePart,
    Discard,
    Zero,
    Read,
    Flush,
    Snapshot,
    Clone,
    DeleteSnapshot,
    Materialise,
    Diff,
    Resize,
    Collect,
    Checkpoint,
}

use Operation::*;

const ALL: [Operation; 14] = [
    Write,
    WritePart,
    Discard,
    Zero,
    Read,
    Flush,
    Snapshot,
    Clone,
    DeleteSnapshot,
    Materialise,
    Diff,
    Resize,
    Collect,
    Checkpoint,
];

/// Blocks that both operations work on: in place, shared, and holes.
const BLOCKS: [u64; 3] = [1, 5, 9];

struct Stage {
    pool: Pool,
    vdi: Arc<Vdi>,
    /// Kept, and verified at the end.
    kept: SnapshotId,
    /// One for each operation to delete.
    doomed: [SnapshotId; 2],
}

fn stage(rig: &Rig) -> Arc<Stage> {
    let (pool, vdi) = rig.with_volume(MIB);
    let (kept, doomed) = rig.world.run(async {
        let mut taken = Vec::new();
        for block in 0..8 {
            put(&*vdi, block, 1).await;
        }
        for _ in 0..3 {
            taken.push(snapshot(&pool, &[vdi.id()]).await.unwrap().remove(0).id);
        }
        for block in 0..4 {
            put(&*vdi, block, 2).await;
        }
        vdi.flush().await.unwrap();
        pool.materialise(taken[2]).await.unwrap();
        rig.disk.quiesce().await;
        (taken[0], [taken[1], taken[2]])
    });
    Arc::new(Stage { pool, vdi, kept, doomed })
}

/// Does one operation; `who` is 0 or 1 and decides the bytes that it writes.
async fn act(stage: Arc<Stage>, operation: Operation, who: usize) {
    let Stage { pool, vdi, kept, doomed } = &*stage;
    let byte = 10 + who as u8;
    let whole = |block: u64| ByteRange::new(block * BLOCK, BLOCK).unwrap();
    match operation {
        Write => {
            for block in BLOCKS {
                put(&**vdi, block, byte).await;
            }
        }
        WritePart => {
            for block in BLOCKS {
                try_put(&**vdi, block * BLOCK + who as u64 * 512, 512, byte).await.unwrap();
            }
        }
        Discard => {
            for block in BLOCKS {
                vdi.discard(whole(block)).await.unwrap();
            }
        }
        Zero => {
            for block in BLOCKS {
                vdi.write_zeroes(whole(block), ZeroOptions { unmap: who == 0, fua: false }).await.unwrap();
            }
        }
        Read => {
            for block in BLOCKS {
                let bytes = read(&**vdi, block * BLOCK, BLOCK).await;
                let known = [0, 1, 2, 10, 11];
                assert!(sectors(&bytes).iter().all(|byte| known.contains(byte)), "{:?}", sectors(&bytes));
            }
        }
        Flush => vdi.flush().await.unwrap(),
        Snapshot => drop(snapshot(pool, &[vdi.id()]).await.unwrap()),
        Clone => {
            let name = format!("clone {who}");
            drop(pool.create_vdi(request(&name, None, Source::Vdi(vdi.id()))).await.unwrap());
        }
        DeleteSnapshot => pool.delete_snapshot(doomed[who]).await.unwrap(),
        Materialise => drop(pool.materialise(*kept).await.unwrap()),
        Diff => {
            pool.materialise(*kept).await.unwrap();
            drop(pool.diff(None, *kept, 0, 100).await.unwrap());
        }
        Resize => drop(pool.resize_vdi(vdi.id(), 2 * MIB).await.unwrap()),
        Collect => {
            // Two at once: the second is told so.
            let _ = pool.collect_garbage(&|_| {}).await;
        }
        Checkpoint => vdi.checkpoint().await.unwrap(),
    }
}

fn changes(operation: Operation) -> bool {
    matches!(operation, Write | WritePart | Discard | Zero)
}

/// Whether a block may look like this after both operations.
fn allowed(operations: [Operation; 2], block: u64, found: &[u8]) -> bool {
    let before = if block < 4 { 2 } else { u8::from(block < 8) };
    let mut candidates: Vec<Vec<u8>> = Vec::new();
    for order in [[0, 1], [1, 0]] {
        let mut content = vec![before; 8];
        for who in order {
            match operations[who] {
                Write => content.fill(10 + who as u8),
                WritePart => content[who] = 10 + who as u8,
                Discard | Zero => content.fill(0),
                _ => {}
            }
        }
        candidates.push(content);
    }
    candidates.iter().any(|candidate| candidate == found)
}

/// Keeps the first operation back at its `nth` request to the disk while the second one runs. Whether it had so many.
fn race(first: Operation, second: Operation, nth: u64, seed: u64) -> bool {
    let mut rig = Rig::sized(seed, 16 * MIB);
    let stage = stage(&rig);
    let at = rig.disk.stats().requests + nth;
    let place = if seed.is_multiple_of(2) { HoldAt::Submission } else { HoldAt::Answer };
    let hold = rig.disk.hold(place, move |request| request.number == at);
    let one = rig.start("first", act(stage.clone(), first, 0));
    rig.world.run_for(Duration::from_millis(20));
    if hold.held().is_empty() {
        one.wait();
        return false;
    }
    let two = rig.start("second", act(stage.clone(), second, 1));
    // It may have to wait for the first one, or not: both are right.
    rig.world.run_for(Duration::from_millis(50));
    hold.release();
    one.wait();
    two.wait();
    let blocks = rig.world.run(async {
        let mut blocks = Vec::new();
        for block in BLOCKS {
            let found = sectors(&read(&*stage.vdi, block * BLOCK, BLOCK).await);
            assert!(
                allowed([first, second], block, &found),
                "{first:?} held at request {nth} against {second:?} (seed {seed}): block {block} is {found:?}"
            );
            blocks.push(found);
        }
        stage.pool.materialise(stage.kept).await.unwrap();
        let view = stage.pool.open_snapshot(stage.kept).await.unwrap();
        for block in 0..8 {
            assert_eq!(
                get(&*view, block).await,
                1,
                "{first:?} at {nth} against {second:?}: the snapshot changed"
            );
        }
        view.close().await.unwrap();
        stage.vdi.flush().await.unwrap();
        blocks
    });
    // What was flushed is what was read, also on the other side of a power cut.
    rig.power_cut(Unflushed::Lost);
    let pool = rig.open();
    rig.world.run(async {
        let vdi = pool.attach(stage.vdi.id()).await.unwrap();
        for (block, expected) in BLOCKS.into_iter().zip(blocks) {
            let found = sectors(&read(&*vdi, block * BLOCK, BLOCK).await);
            assert_eq!(
                found, expected,
                "{first:?} at {nth} against {second:?}: block {block} after a power cut"
            );
        }
    });
    rig.close(&pool);
    true
}

#[test]
fn a_change_held_back_loses_no_race() {
    for first in ALL.into_iter().filter(|operation| changes(*operation)) {
        for second in ALL {
            for nth in 1..=4 {
                for seed in 0..2 {
                    race(first, second, nth, seed);
                }
            }
        }
    }
}

#[test]
fn an_operation_held_back_loses_no_race() {
    for first in ALL.into_iter().filter(|operation| !changes(*operation)) {
        for second in ALL {
            for nth in (1..=40).step_by(3) {
                if !race(first, second, nth, nth) {
                    break;
                }
            }
        }
    }
}
