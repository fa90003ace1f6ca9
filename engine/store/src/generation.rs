//! Which I/O was begun before which event.
//!
//! Every read and write takes a ticket of the current generation while it looks up its mapping. Closing the
//! generation (under the lock that excludes look-ups) and waiting for it and all older ones to drain proves that
//! no I/O begun before is still under way: a snapshot may be complete, a freed block may be reused.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};
use tokio::sync::Notify;

#[derive(Default)]
struct Generation {
    tickets: AtomicU64,
    closed: AtomicBool,
    drained: Notify,
}

/// One I/O of a generation.
pub(crate) struct Ticket(Arc<Generation>);

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.0.tickets.fetch_sub(1, SeqCst) == 1 && self.0.closed.load(SeqCst) {
            self.0.drained.notify_waiters();
        }
    }
}

#[derive(Default)]
pub(crate) struct Generations {
    current: Arc<Generation>,
    older: VecDeque<Arc<Generation>>,
}

/// Generations that were closed together with all before them.
pub(crate) struct Closed(Vec<Arc<Generation>>);

impl Generations {
    /// Enters the current generation. Call while look-ups are not excluded.
    pub(crate) fn enter(&self) -> Ticket {
        self.current.tickets.fetch_add(1, SeqCst);
        Ticket(self.current.clone())
    }

    /// Closes the current generation. Call while look-ups are excluded.
    pub(crate) fn close(&mut self) -> Closed {
        let closed = std::mem::take(&mut self.current);
        closed.closed.store(true, SeqCst);
        self.older.push_back(closed);
        self.older.retain(|generation| generation.tickets.load(SeqCst) > 0);
        Closed(self.older.iter().cloned().collect())
    }
}

impl Closed {
    /// Waits until no I/O of these generations is under way.
    pub(crate) async fn drained(&self) {
        for generation in &self.0 {
            loop {
                let notified = generation.drained.notified();
                if generation.tickets.load(SeqCst) == 0 {
                    break;
                }
                notified.await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::Future,
        task::{Context, Waker},
    };

    #[test]
    fn closing_waits_for_older_tickets_and_not_for_newer_ones() {
        let mut generations = Generations::default();
        let old = generations.enter();
        drop(generations.close());
        let middle = generations.enter();
        let closed = generations.close();
        let _new = generations.enter();
        let mut drained = Box::pin(closed.drained());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(drained.as_mut().poll(&mut cx).is_pending());
        drop(middle);
        assert!(drained.as_mut().poll(&mut cx).is_pending());
        drop(old);
        assert!(drained.as_mut().poll(&mut cx).is_ready());
    }
}
