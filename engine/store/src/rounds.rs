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
    /// Why there are no more: what a round that broke off had done is not known.
    broken: Option<Error>,
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
            state.broken.clone().map_or(Ok(()), Err)?;
            state.waiting.push(sender);
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            let running = Running { rounds: self.clone(), is_over: false };
            runtime.spawn_near(Box::pin(async move { running.run(round).await }));
        }
        receiver.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled, "the store was shut down")))
    }
}

/// The task that does the rounds. If it ends before its work does (it has panicked, or its thread has ended), those who wait
/// are told, and so is everybody later: a round that sealed records and did not write them is not to be passed over.
struct Running {
    rounds: Arc<Rounds>,
    is_over: bool,
}

impl Running {
    async fn run(mut self, round: impl Fn() -> BoxFuture<'static, Result<()>>) {
        loop {
            let mut waiting = {
                let mut state = self.rounds.state.lock();
                if state.waiting.is_empty() {
                    state.running = false;
                    self.is_over = true;
                    return;
                }
                std::mem::take(&mut state.waiting)
            };
            let result = round().await;
            if mutants::on(Mutant::FlushJoinsSealed) {
                waiting.append(&mut self.rounds.state.lock().waiting);
            }
            for waiter in waiting {
                let _ = waiter.send(result.clone());
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            let mut state = self.rounds.state.lock();
            let text = "a flush or checkpoint was broken off; restart parallaxd unless it is being stopped";
            state.broken = Some(Error::new(ErrorKind::Fenced, text));
            state.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parallax_sim::World;

    /// Found by reading. The thread of a round ended; whoever waited for it, or came later, waited for ever. Nor may another
    /// round follow, as if this one had done its work.
    #[test]
    fn nobody_waits_for_a_round_that_has_ended() {
        let world = World::new(1);
        let (process, rounds) = (world.process("data thread"), Arc::new(Rounds::default()));
        let runtime: Arc<dyn Runtime> = Arc::new(process.clone());
        let (begun, waited) = (rounds.clone(), runtime.clone());
        world.run(async {
            let endless = || -> BoxFuture<'static, Result<()>> { Box::pin(std::future::pending()) };
            let first = parallax_sim::either(begun.join(&waited, endless), async {
                world.sleep(std::time::Duration::from_secs(1)).await;
                process.kill();
            });
            first.await;
            let other: Arc<dyn Runtime> = Arc::new(world.process("another data thread"));
            for runtime in [&runtime, &other] {
                let later = rounds.join(runtime, || Box::pin(async { Ok(()) })).await;
                assert_eq!(later.unwrap_err().kind(), ErrorKind::Fenced);
            }
        });
    }
}
