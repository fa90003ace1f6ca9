//! Futures that finish even when their caller gives up.
//!
//! A caller may drop an I/O future (a client went away, a timeout fired). The request must still hold its locks
//! until its writes have landed, or an old write could overtake a newer one. So dropping hands the rest of
//! the work to the runtime.

use parallax_block::{BoxFuture, Runtime};
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

pub(crate) struct Detached<T: Send + 'static> {
    inner: Option<BoxFuture<'static, T>>,
    runtime: Arc<dyn Runtime>,
}

impl<T: Send + 'static> Detached<T> {
    pub(crate) fn new(runtime: &Arc<dyn Runtime>, future: impl Future<Output = T> + Send + 'static) -> Self {
        Self { inner: Some(Box::pin(future)), runtime: runtime.clone() }
    }
}

impl<T: Send + 'static> Future for Detached<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Some(inner) = &mut self.inner else { return Poll::Pending };
        match inner.as_mut().poll(cx) {
            Poll::Ready(output) => {
                self.inner = None;
                Poll::Ready(output)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<T: Send + 'static> Drop for Detached<T> {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            self.runtime.spawn(Box::pin(async move {
                inner.await;
            }));
        }
    }
}
