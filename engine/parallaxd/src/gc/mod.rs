//! Garbage collection in the background.
//!
//! Lifecycle: a delete calls [`Collector::deleted`]; the worker asks [`policy::choose`] what to do and sleeps or
//! collects. A collection that a person asks for runs through the same lock, so there is one at a time.

pub mod policy;

use crate::{config::GcConfig, engine::Engine, metrics::Metrics};
use parallax_block::{ErrorKind, Result};
use parallax_store::GcProgress;
use policy::{Choice, Pressure, State};
use std::sync::Arc;
use tokio::{
    sync::{Mutex, Notify, mpsc},
    time::Instant,
};

/// Collects garbage, when asked and by itself.
pub struct Collector {
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
    config: GcConfig,
    running: Mutex<()>,
    state: std::sync::Mutex<State>,
    start: Instant,
    woken: Notify,
}

impl Collector {
    /// Without a worker yet: [`Collector::work`] is it.
    pub fn new(engine: Arc<Engine>, metrics: Arc<Metrics>, config: GcConfig) -> Self {
        Self {
            engine,
            metrics,
            config,
            running: Mutex::new(()),
            state: std::sync::Mutex::new(State::default()),
            start: Instant::now(),
            woken: Notify::new(),
        }
    }

    /// Something was deleted: its space can be brought back.
    pub fn deleted(&self) {
        let now = self.start.elapsed();
        self.with_state(|state| state.deleted(now));
        self.woken.notify_one();
    }

    /// Collects now. Progress is sent as far as there is room for it; the last step is the answer.
    pub async fn collect(&self, progress: mpsc::Sender<GcProgress>) -> Result<GcProgress> {
        let _alone = self.running.lock().await;
        let begun = self.start.elapsed();
        self.with_state(|state| state.begun(begun));
        let outcome = self
            .engine
            .run(move |pool| async move {
                let report = move |step: GcProgress| {
                    // A reader that is slow misses steps in between; collecting never waits for it.
                    let _ = progress.try_send(step);
                };
                pool.collect_garbage(&report).await
            })
            .await;
        let ended = self.start.elapsed();
        self.with_state(|state| state.ended(ended, outcome.is_ok()));
        self.metrics.collected(ended.saturating_sub(begun), outcome.as_ref().ok());
        outcome
    }

    /// Collects by itself until it is dropped, or the pool has stopped recording changes. Sleeps while nothing was deleted.
    pub async fn work(self: Arc<Self>) {
        if !self.config.automatic {
            return;
        }
        loop {
            let choice = policy::choose(
                &self.config,
                &self.with_state(|state| *state),
                Pressure::of(&self.engine.pool().info()),
                self.start.elapsed(),
            );
            match choice {
                Choice::Sleep => self.woken.notified().await,
                Choice::Wait(time) => {
                    // A delete in between may only move the moment later, but pressure may move it closer.
                    let _ = tokio::time::timeout(time, self.woken.notified()).await;
                }
                Choice::Collect => {
                    let (sender, _) = mpsc::channel(1);
                    match self.collect(sender).await {
                        Ok(done) => tracing::info!(
                            freed_data_bytes = done.freed_data,
                            freed_metadata_bytes = done.freed_metadata,
                            nodes = done.nodes,
                            "garbage collected"
                        ),
                        Err(error) if error.kind() == ErrorKind::Fenced => {
                            tracing::error!(%error, "no garbage is collected any more by itself");
                            return;
                        }
                        Err(error) => {
                            tracing::warn!(%error, "garbage collection failed; it will be tried again")
                        }
                    }
                }
            }
        }
    }

    fn with_state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        // The state is plain numbers: a panic elsewhere cannot leave it half changed.
        change(&mut self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}
