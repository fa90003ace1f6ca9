//! Watches the pool's device: a small read now and then, so that a device that has gone is noticed by the daemon
//! and not by the first application that needs it.

use crate::{engine::Engine, metrics::Metrics, openings::Openings};
use parallax_block::{Buffer, Error, ErrorKind, Result};
use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::watch;

/// Time between two reads.
const INTERVAL: Duration = Duration::from_secs(15);

/// Time that a read may take before the device counts as failing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Probes until it is dropped, and says when the state changes.
pub async fn watch(
    engine: Arc<Engine>,
    openings: Arc<Openings>,
    metrics: Arc<Metrics>,
    healthy: watch::Sender<bool>,
) {
    let mut reported = HashSet::new();
    loop {
        let outcome = probe(&engine).await;
        let failing = outcome.is_err();
        let before = metrics.device_failing.swap(failing, Ordering::Relaxed);
        match outcome {
            Err(error) if !before => tracing::error!(
                device = %engine.path().display(),
                %error,
                "the pool's device fails: volumes return I/O errors until it is back; check its path and cabling"
            ),
            Ok(()) if before => {
                tracing::warn!(device = %engine.path().display(), "the pool's device answers again");
            }
            _ => {}
        }
        let faults = openings.faults();
        reported.retain(|target| faults.iter().any(|(faulty, _)| faulty == target));
        for (target, reason) in &faults {
            if reported.insert(*target) {
                tracing::error!(%target, reason, "a volume's I/O fails until it is detached and attached again");
            }
        }
        healthy.send_replace(!failing);
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Reads the first block.
async fn probe(engine: &Engine) -> Result<()> {
    let device = Arc::clone(engine.device());
    let read = engine.run(move |_| async move {
        let (_, outcome) = device.read(0, Buffer::zeroed(parallax_block::BLOCK_SIZE)).await;
        outcome
    });
    match tokio::time::timeout(PATIENCE, read).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::new(
            ErrorKind::Io,
            format!("a read of one block has not been answered for {} s", PATIENCE.as_secs()),
        )),
    }
}
