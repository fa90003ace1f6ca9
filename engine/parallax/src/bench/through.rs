//! Snapshots of a volume of an open pool, through the daemon, as the CSI driver asks for them.

use super::report::Latencies;
use crate::{
    args::Place,
    failure::{Failure, Outcome},
    output::Output,
    session::{Session, by_id},
};
use parallax_api::v1;
use serde::Serialize;
use std::time::Instant;

#[derive(Serialize)]
struct Taken {
    seconds: f64,
    #[serde(flatten)]
    latencies: Latencies,
}

/// Takes `count` snapshots, one after the other.
pub(super) async fn snapshots(place: &Place, output: Output, volume: &str, count: u32) -> Outcome {
    if count == 0 {
        return Err(Failure::new("no snapshot was asked for"));
    }
    let session = Session::open(place).await?;
    let outcome = take(&session, volume, count).await;
    let closed = session.close().await;
    let taken = outcome?;
    closed?;
    output.show(&taken, |taken| {
        let times = &taken.latencies;
        format!(
            "{} snapshots in {:.1} s: median {:.0} us, p99 {:.0} us, longest {:.0} us",
            times.count, taken.seconds, times.median_us, times.p99_us, times.max_us
        )
    })
}

async fn take(session: &Session, volume: &str, count: u32) -> Outcome<Taken> {
    let id = session.volume(volume).await?.id;
    let client = session.client();
    let mut manager = client.manager();
    let mut times = Vec::with_capacity(count as usize);
    let begun = Instant::now();
    for _ in 0..count {
        let request = v1::CreateSnapshotsRequest {
            volumes: by_id(&id).into_iter().collect(),
            label: String::new(),
            name: String::new(),
        };
        let asked = Instant::now();
        manager.create_snapshots(client.request(request)).await?;
        times.push(asked.elapsed());
    }
    let latencies = Latencies::new("through-daemon", "snapshot, through the daemon", times);
    Ok(Taken { seconds: begun.elapsed().as_secs_f64(), latencies })
}
