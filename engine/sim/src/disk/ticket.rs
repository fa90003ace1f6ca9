//! The answer to a request, for whoever still waits for it.

use parallax_block::Completion;
use parking_lot::Mutex;
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

/// Resolves once with the answer. Dropping it gives up the answer only.
#[derive(Clone, Default)]
pub(crate) struct Ticket {
    slot: Arc<Mutex<Slot>>,
}

#[derive(Default)]
struct Slot {
    answer: Option<Completion>,
    waker: Option<Waker>,
}

impl Ticket {
    pub(crate) fn answer(&self, completion: Completion) {
        let waker = {
            let mut slot = self.slot.lock();
            slot.answer = Some(completion);
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Future for Ticket {
    type Output = Completion;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completion> {
        let mut slot = self.slot.lock();
        match slot.answer.take() {
            Some(completion) => Poll::Ready(completion),
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
