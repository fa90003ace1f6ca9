//! Work that many wait for and one round does for all: device flushes, commits, checkpoints.
//!
//! Invariant: a waiter is answered by a round that began after it joined, never by one already under way.

use crate::mutants::{self, Mutant};
use parallax_block::{BoxFuture, Error, ErrorKind, Result, Runtime};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::oneshot;

#[derive(Default)]
pub(crate) struct Rounds {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: bool,
    waiting: Vec<oneshot::Sender<Result<()>>>,
}

impl Rounds {
    /// Waits for a round that begins after this call; starts one if none is under way.
    ///
    /// `round` makes the work of one round. It runs as a task of its own, so a caller that gives up does not
    /// stop it.
    pub(crate) async fn join(
        self: &Arc<Self>,
        runtime: &Arc<dyn Runtime>,
        round: impl Fn() -> BoxFuture<'static, Result<()>> + Send + 'static,
    ) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        let start = {
            let mut state = self.state.lock();
            state.waiting.push(sender);
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            let rounds = self.clone();
            runtime.spawn_near(Box::pin(async move { rounds.run(round).await }));
        }
        receiver.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled, "the store was shut down")))
    }

    async fn run(&self, round: impl Fn() -> BoxFuture<'static, Result<()>>) {
        loop {
            let mut waiting = {
                let mut state = self.state.lock();
                if state.waiting.is_empty() {
                    state.running = false;
                    return;
                }
                std::mem::take(&mut state.waiting)
            };
            let result = round().await;
            if mutants::on(Mutant::FlushJoinsSealed) {
                waiting.append(&mut self.state.lock().waiting);
            }
            for waiter in waiting {
                let _ = waiter.send(result.clone());
            }
        }
    }
}
