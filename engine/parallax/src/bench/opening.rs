//! How long opening takes when a volume has many snapshots.

use super::{
    Plan,
    bed::Bed,
    load::Until,
    report::{Latencies, Report},
    say,
    snapshots::together,
};
use crate::failure::Outcome;
use std::time::Instant;

/// Bytes of the volume that has the snapshots.
const SIZE: u64 = 64 << 20;
/// How often each opening is timed.
const TIMES: u32 = 5;

pub(super) async fn run(mut bed: Bed, plan: Plan, report: &mut Report) -> Outcome {
    let volume = bed.volume("old", SIZE).await?;
    let mut there = 0;
    for count in [0, 1000, plan.snapshots] {
        if count < there {
            continue;
        }
        say(&format!("opening with {count} snapshots"));
        // Attached meanwhile: otherwise each snapshot would open the volume for itself.
        let vdi = bed.attach(volume).await?;
        together(&bed, volume, Until::Requests(u64::from(count - there))).await?;
        bed.detach(vdi).await?;
        there = count;
        let (mut pools, mut volumes) = (Vec::new(), Vec::new());
        for _ in 0..TIMES {
            pools.push(bed.reopen().await?);
            let begun = Instant::now();
            let vdi = bed.attach(volume).await?;
            volumes.push(begun.elapsed());
            bed.detach(vdi).await?;
        }
        let add = |what: &str, times| {
            let title = format!("open the {what}, {count} snapshots");
            Latencies::new(&format!("open-{what}-{count}"), &title, times)
        };
        report.latencies.push(add("pool", pools));
        report.latencies.push(add("volume", volumes));
    }
    bed.end().await
}
