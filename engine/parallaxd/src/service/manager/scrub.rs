//! A scrub, as a stream: it stops when nobody reads it any more.

use super::{
    super::{Core, convert, to_status},
    Stream,
    pool::{QUEUE, in_messages},
};
use parallax_api::v1;
use parallax_store::{ScrubOptions, ScrubProgress, ScrubReport};
use std::{
    num::NonZeroU64,
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Between two steps of the same phase that are sent.
const STEP: Duration = Duration::from_millis(100);

pub(super) fn run(core: &Core, request: v1::ScrubPoolRequest) -> Stream<v1::ScrubProgress> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let options = ScrubOptions { bytes_per_second: NonZeroU64::new(request.bytes_per_second) };
    let (engine, metrics) = (Arc::clone(&core.engine), Arc::clone(&core.metrics));
    tokio::spawn(async move {
        let steps = sender.clone();
        let last: Mutex<Option<(&'static str, Instant)>> = Mutex::new(None);
        let report = move |step: ScrubProgress| {
            let now = Instant::now();
            // A phase and a moment: a panic elsewhere cannot leave them half changed.
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_none_or(|(phase, at)| phase != step.phase || now - at >= STEP) {
                *last = Some((step.phase, now));
                let _ = steps.try_send(Ok(convert::scrub(step)));
            }
            if steps.is_closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let outcome = engine.run(move |pool| async move { pool.scrub(options, &report).await }).await;
        metrics.scrubbed(outcome.as_ref().ok());
        match outcome {
            Ok(report) => send(&sender, report).await,
            Err(error) => {
                let _ = sender.send(Err(to_status(error))).await;
            }
        }
    });
    ReceiverStream::new(receiver)
}

async fn send(sender: &mpsc::Sender<Result<v1::ScrubProgress, tonic::Status>>, report: ScrubReport) {
    let step = v1::ScrubProgress {
        phase: "done".to_owned(),
        bytes_read: report.bytes,
        nodes_verified: report.nodes,
        ..Default::default()
    };
    for findings in in_messages(report.findings) {
        if sender.send(Ok(v1::ScrubProgress { findings, ..step.clone() })).await.is_err() {
            return;
        }
    }
    let _ = sender.send(Ok(v1::ScrubProgress { finished: true, ..step })).await;
}
