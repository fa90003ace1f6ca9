//! What snapshots and clones cost: time, throughput, bytes.

use super::{
    PAGE, Plan,
    bed::{self, Bed},
    load::{self, Load, Shape, Until},
    report::{Latencies, Report},
    say,
};
use crate::failure::{Failure, Outcome};
use parallax_block::BlockDevice;
use parallax_store::{PoolInfo, SnapshotId, Source, VdiId};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Clones that are timed.
const CLONES: u32 = 50;
/// Snapshots whose bytes are counted.
const COUNTED: u32 = 1000;
/// Callers that ask for snapshots at once.
const CALLERS: u32 = 16;

pub(super) async fn run(
    bed: &Bed,
    plan: Plan,
    volume: VdiId,
    vdi: &Arc<dyn BlockDevice>,
    report: &mut Report,
) -> Outcome {
    say("snapshots, idle");
    let idle = timed(bed, volume, plan.each).await?;
    report.latencies.push(Latencies::new("snapshot-idle", "snapshot, durable; nothing else happens", idle));

    for (name, what, depth) in [
        ("snapshot-loaded-q4", "snapshot, durable; under 4 KiB random writes, depth 4", 4),
        ("snapshot-loaded-q32", "snapshot, durable; under 4 KiB random writes, depth 32", 32),
    ] {
        say(what);
        let load = Load { shape: Shape::RandomWrite, bytes: PAGE, depth, flush: false };
        let until = Until::Time(plan.each + Duration::from_millis(200));
        let busy = {
            let (home, vdi, size) = (bed.home().clone(), Arc::clone(vdi), plan.size);
            tokio::spawn(async move { load::run(&home, &vdi, load, size, until).await })
        };
        let taken = timed(bed, volume, plan.each).await;
        busy.await.map_err(|error| Failure::new(format!("the load panicked: {error}")))??;
        report.latencies.push(Latencies::new(name, what, taken?));
        forget(bed, volume).await?;
    }

    say("snapshots a second");
    let (taken, seconds) = together(bed, volume, Until::Time(plan.each)).await?;
    let title = format!("durable snapshots a second of one volume, {CALLERS} callers");
    report.figure("snapshots-per-second", &title, "1/s", taken as f64 / seconds);
    forget(bed, volume).await?;

    bytes(bed, volume, vdi, plan.size, report).await?;
    clones(bed, volume, report).await
}

/// Snapshots, one after the other, for a time.
async fn timed(bed: &Bed, volume: VdiId, time: Duration) -> Outcome<Vec<Duration>> {
    // The timing runs where the pool lives: a call from another thread would add its own way.
    let times = bed
        .run(move |pool| async move {
            let mut times = Vec::new();
            let end = Instant::now() + time;
            while Instant::now() < end {
                let begun = Instant::now();
                bed::snapshot(&pool, volume).await?;
                times.push(begun.elapsed());
            }
            Ok(times)
        })
        .await?;
    Ok(times)
}

/// Snapshots from several callers at once; how many, and in how many seconds.
pub(super) async fn together(bed: &Bed, volume: VdiId, until: Until) -> Outcome<(u64, f64)> {
    let begun = Instant::now();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let pool = bed.pool().clone();
            bed.home().run(async move {
                let mut taken = 0;
                loop {
                    let over = match until {
                        Until::Time(time) => begun.elapsed() >= time,
                        Until::Requests(all) => {
                            taken
                                >= all / u64::from(CALLERS)
                                    + u64::from(u64::from(caller) < all % u64::from(CALLERS))
                        }
                    };
                    if over {
                        return parallax_block::Result::Ok(taken);
                    }
                    bed::snapshot(&pool, volume).await?;
                    taken += 1;
                }
            })
        })
        .collect();
    let mut taken = 0;
    for caller in callers {
        taken += caller.await??;
    }
    Ok((taken, begun.elapsed().as_secs_f64()))
}

/// Space that snapshots take, all of them materialised and nothing left to reuse.
async fn bytes(
    bed: &Bed,
    volume: VdiId,
    vdi: &Arc<dyn BlockDevice>,
    size: u64,
    report: &mut Report,
) -> Outcome {
    say("bytes of a snapshot");
    let before = settled(bed, volume).await?;
    together(bed, volume, Until::Requests(u64::from(COUNTED))).await?;
    let unchanged = settled(bed, volume).await?;
    let load = Load { shape: Shape::RandomWrite, bytes: PAGE, depth: 1, flush: false };
    for _ in 0..COUNTED {
        load::run(bed.home(), vdi, load, size, Until::Requests(1)).await?;
        bed.snapshot(volume).await?;
    }
    let touched = settled(bed, volume).await?;
    let each = |from: &PoolInfo, to: &PoolInfo| {
        let used = |info: &PoolInfo| (info.metadata_used + info.data_used) as f64;
        (used(to) - used(from)) / f64::from(COUNTED)
    };
    let title = format!("bytes of an unchanged snapshot, mean of {COUNTED}");
    report.figure("bytes-unchanged", &title, "B", each(&before, &unchanged));
    let title = format!("bytes of a snapshot after one block was written, mean of {COUNTED}");
    report.figure("bytes-one-block", &title, "B", each(&unchanged, &touched));
    Ok(())
}

/// The pool's fill once every snapshot is materialised and nothing waits to be freed.
async fn settled(bed: &Bed, volume: VdiId) -> Outcome<PoolInfo> {
    ready(bed, volume).await?;
    bed.run(|pool| async move { pool.collect_garbage(&|_| ()).await }).await?;
    Ok(bed.pool().info())
}

/// A snapshot that can be cloned.
async fn ready(bed: &Bed, volume: VdiId) -> Outcome<SnapshotId> {
    let last = bed.snapshot(volume).await?;
    bed.run(move |pool| async move { pool.materialise(last).await }).await?;
    Ok(last)
}

async fn clones(bed: &Bed, volume: VdiId, report: &mut Report) -> Outcome {
    say("clones");
    let source = ready(bed, volume).await?;
    let mut times = Vec::new();
    for number in 0..CLONES {
        let begun = Instant::now();
        bed.create(&format!("clone-{number}"), None, Source::Snapshot(source)).await?;
        times.push(begun.elapsed());
    }
    report.latencies.push(Latencies::new("clone", "clone of a snapshot, durable", times));
    Ok(())
}

/// Deletes the volume's snapshots and frees what they kept, so that the next row begins with room.
async fn forget(bed: &Bed, volume: VdiId) -> Outcome {
    bed.run(move |pool| async move {
        for snapshot in pool.snapshots(volume, 0, usize::MAX).await? {
            pool.delete_snapshot(snapshot.id).await?;
        }
        pool.collect_garbage(&|_| ()).await.map(drop)
    })
    .await?;
    Ok(())
}
