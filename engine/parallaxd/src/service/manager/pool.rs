//! The pool as a whole: figures, garbage collection, verification.

use super::{
    super::{Core, convert, to_status},
    Stream,
};
use parallax_api::v1;
use parallax_store::Finding;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Steps that wait for a slow reader; further ones are left out.
pub(super) const QUEUE: usize = 16;

/// Findings, in messages that are not too large.
pub(super) fn in_messages(findings: Vec<Finding>) -> impl Iterator<Item = Vec<v1::Finding>> {
    const FINDINGS: usize = 256;
    let mut left = findings.into_iter().map(convert::finding).peekable();
    std::iter::from_fn(move || left.peek().is_some().then(|| left.by_ref().take(FINDINGS).collect()))
}

pub(super) fn get(core: &Core) -> v1::Pool {
    let pool = core.engine.pool();
    convert::pool(pool.info(), core.engine.path(), &pool.vdis())
}

pub(super) fn collect_garbage(core: &Core) -> Stream<v1::GcProgress> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let (steps, mut progress) = mpsc::channel(QUEUE);
    let collector = Arc::clone(&core.collector);
    let forward = sender.clone();
    tokio::spawn(async move {
        while let Some(step) = progress.recv().await {
            if forward.send(Ok(convert::gc(step))).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        let outcome = collector.collect(steps).await;
        let last = outcome.map(|step| v1::GcProgress { phase: "done".into(), ..convert::gc(step) });
        // Whoever asked may have gone; the space is back all the same.
        let _ = sender.send(last.map_err(to_status)).await;
    });
    ReceiverStream::new(receiver)
}

pub(super) fn check(core: &Core) -> Stream<v1::CheckProgress> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let device = Arc::clone(core.engine.device());
    let engine = Arc::clone(&core.engine);
    tokio::spawn(async move {
        let totals = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let (steps, seen) = (sender.clone(), Arc::clone(&totals));
        let outcome = engine
            .run(move |_| async move {
                let report = move |done: u64, total: u64| {
                    seen.0.store(done, Ordering::Relaxed);
                    seen.1.store(total, Ordering::Relaxed);
                    let _ = steps.try_send(Ok(v1::CheckProgress { done, total, ..Default::default() }));
                };
                parallax_store::check(device, &report).await
            })
            .await;
        let (done, total) = (totals.0.load(Ordering::Relaxed), totals.1.load(Ordering::Relaxed));
        match outcome {
            Ok(findings) => {
                for findings in in_messages(findings) {
                    let step = v1::CheckProgress { done, total, findings, finished: false };
                    if sender.send(Ok(step)).await.is_err() {
                        return;
                    }
                }
                let end = v1::CheckProgress { done, total, findings: vec![], finished: true };
                let _ = sender.send(Ok(end)).await;
            }
            Err(error) => {
                let _ = sender.send(Err(to_status(error))).await;
            }
        }
    });
    ReceiverStream::new(receiver)
}
