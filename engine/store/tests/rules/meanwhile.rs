//! What happens to one thing while another takes its time. Each test begins with the story of a bug.

use crate::rig::*;
use parallax_block::{BlockDevice, ByteRange};
use parallax_sim::{Asks, Fault, FaultPlan, HoldAt, Kind, Zone};
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
