//! Locks over ranges of a VDI's blocks.
//!
//! Every write, discard and fill holds its blocks from lookup to publish; reads take none. Granted in order of
//! arrival, so nobody starves: a request waits only for earlier ones that overlap it.

use crate::mutants::{self, Mutant};
use parking_lot::Mutex;
use std::{
    future::Future,
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

#[derive(Default)]
pub(crate) struct RangeLocks {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// In order of arrival.
    entries: Vec<Entry>,
}

struct Entry {
    id: u64,
    range: Range<u64>,
    granted: bool,
    waker: Option<Waker>,
}

/// Holds a range until dropped.
pub(crate) struct RangeGuard {
    locks: Arc<RangeLocks>,
    id: u64,
}

impl RangeLocks {
    /// Waits for every earlier holder that overlaps `range`.
    pub(crate) async fn lock(self: &Arc<Self>, range: Range<u64>) -> RangeGuard {
        let guard = {
            let mut state = self.state.lock();
            let id = state.next;
            state.next += 1;
            let granted = mutants::on(Mutant::BlocksUnlocked)
                || !state.entries.iter().any(|entry| overlap(&entry.range, &range));
            state.entries.push(Entry { id, range, granted, waker: None });
            let guard = RangeGuard { locks: self.clone(), id };
            if granted {
                return guard;
            }
            guard
        };
        Granted(&guard).await;
        guard
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

struct Granted<'a>(&'a RangeGuard);

impl Future for Granted<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.locks.state.lock();
        match state.entries.iter_mut().find(|entry| entry.id == self.0.id) {
            Some(entry) if !entry.granted => {
                entry.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        let mut woken = Vec::new();
        {
            let mut state = self.locks.state.lock();
            state.entries.retain(|entry| entry.id != self.id);
            for index in 0..state.entries.len() {
                let (earlier, rest) = state.entries.split_at_mut(index);
                let entry = &mut rest[0];
                if !entry.granted && !earlier.iter().any(|other| overlap(&other.range, &entry.range)) {
                    entry.granted = true;
                    woken.extend(entry.waker.take());
                }
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        match Pin::new(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_late_small_request_does_not_overtake_a_waiting_large_one() {
        let locks = Arc::new(RangeLocks::default());
        let first = poll_once(&mut Box::pin(locks.lock(0..4))).unwrap();
        let mut large = Box::pin(locks.lock(2..10));
        assert!(poll_once(&mut large).is_none());
        let mut small = Box::pin(locks.lock(8..9));
        assert!(poll_once(&mut small).is_none());
        let _apart = poll_once(&mut Box::pin(locks.lock(20..21))).unwrap();
        drop(first);
        let large = poll_once(&mut large).unwrap();
        assert!(poll_once(&mut small).is_none());
        drop(large);
        assert!(poll_once(&mut small).is_some());
    }

    #[test]
    fn giving_up_waiting_lets_others_through() {
        let locks = Arc::new(RangeLocks::default());
        let first = poll_once(&mut Box::pin(locks.lock(0..4))).unwrap();
        let mut waiting = Box::pin(locks.lock(0..8));
        assert!(poll_once(&mut waiting).is_none());
        drop(waiting);
        assert!(poll_once(&mut Box::pin(locks.lock(5..6))).is_some());
        drop(first);
        assert!(locks.state.lock().entries.is_empty());
    }
}
