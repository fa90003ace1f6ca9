//! Tasks and time, handed to the engine from outside.
//!
//! The node daemon gives real ones (`parallax-device`), the simulator seeded ones. Nothing that is generic
//! over [`Runtime`] may look at another clock or start another thread.

use crate::BoxFuture;
use std::{future::Future, pin::Pin, task::Poll, time::Duration};

/// An executor and a clock.
pub trait Runtime: Send + Sync {
    /// Starts a task that runs until it is done. Nobody waits for it.
    fn spawn(&self, task: BoxFuture<'static, ()>);

    /// Starts such a task where the caller runs, if the executor has several threads: for short work that the caller
    /// waits for, so that neither has to wake the other's thread.
    fn spawn_near(&self, task: BoxFuture<'static, ()>) {
        self.spawn(task);
    }

    /// Time since a fixed moment; never goes back and counts suspended time (boottime).
    fn now(&self) -> Duration;

    /// Completes `delay` from now.
    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()>;
}

/// Runs all futures together and returns their results in the order given.
pub async fn join_all<F: Future + Unpin>(futures: Vec<F>) -> Vec<F::Output>
where
    F::Output: Unpin,
{
    enum Slot<F: Future> {
        Running(F),
        Done(F::Output),
        Taken,
    }
    let mut slots: Vec<Slot<F>> = futures.into_iter().map(Slot::Running).collect();
    std::future::poll_fn(move |cx| {
        let mut pending = false;
        for slot in &mut slots {
            if let Slot::Running(future) = slot {
                match Pin::new(future).poll(cx) {
                    Poll::Ready(output) => *slot = Slot::Done(output),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            return Poll::Pending;
        }
        Poll::Ready(
            slots
                .iter_mut()
                .filter_map(|slot| match std::mem::replace(slot, Slot::Taken) {
                    Slot::Done(output) => Some(output),
                    _ => None,
                })
                .collect(),
        )
    })
    .await
}
