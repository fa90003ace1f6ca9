//! The answer of a task, carried to whoever awaits it on any executor.

use parallax_block::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

enum State<T> {
    Waiting(Option<Waker>),
    Sent(T),
    Lost,
}

/// The end that answers. Dropping it unused tells the other end so.
pub(crate) struct Answer<T>(Arc<Mutex<State<T>>>);

/// Answer of a task that runs on a reactor. Fails with `Cancelled` if the reactor ended or the task panicked.
/// Dropping it does not stop the task.
pub struct Join<T>(Arc<Mutex<State<T>>>);

/// Both ends.
pub(crate) fn pair<T>() -> (Answer<T>, Join<T>) {
    let state = Arc::new(Mutex::new(State::Waiting(None)));
    (Answer(Arc::clone(&state)), Join(state))
}

impl<T> Answer<T> {
    pub(crate) fn send(self, value: T) {
        self.finish(State::Sent(value));
    }

    fn finish(&self, state: State<T>) {
        let mut shared = self.0.lock();
        if let State::Waiting(waker) = &mut *shared {
            let waker = waker.take();
            *shared = state;
            drop(shared);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        self.finish(State::Lost);
    }
}

impl<T> Future for Join<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::Lost) {
            State::Sent(value) => Poll::Ready(Ok(value)),
            State::Lost => Poll::Ready(Err(Error::new(
                ErrorKind::Cancelled,
                "the I/O thread ended before this was done; its log says why",
            ))),
            State::Waiting(_) => {
                *state = State::Waiting(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls a future on this thread until it is done; sleeps in between.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        std::thread::park();
    }
}
