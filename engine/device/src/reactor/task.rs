//! A task: a future that belongs to one reactor and is polled on its thread alone.

use super::{Message, Shared, with_current};
use parallax_block::BoxFuture;
use parking_lot::Mutex;
use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Wake, Waker},
};

pub(crate) struct Task {
    /// `None` once it is done. Locked by the reactor's thread only.
    future: Mutex<Option<BoxFuture<'static, ()>>>,
    /// In the ready queue, or on its way there.
    queued: AtomicBool,
    home: Arc<Shared>,
    /// Index in the reactor's table of tasks.
    pub(crate) key: AtomicUsize,
}

impl Task {
    pub(crate) fn new(future: BoxFuture<'static, ()>, home: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            future: Mutex::new(Some(future)),
            queued: AtomicBool::new(true),
            home,
            key: AtomicUsize::new(0),
        })
    }

    /// Polls once. Returns whether the task is done.
    pub(crate) fn run(self: &Arc<Self>) -> bool {
        self.queued.store(false, Ordering::Release);
        let waker = Waker::from(Arc::clone(self));
        let mut cx = Context::from_waker(&waker);
        let mut future = self.future.lock();
        let Some(running) = future.as_mut() else { return false };
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(&mut cx)));
        match polled {
            Ok(poll) if poll.is_pending() => return false,
            Ok(_) => {}
            // The panic hook has printed where; the other tasks of this thread go on.
            Err(_) => tracing::error!("a task of the I/O thread panicked and was dropped"),
        }
        let finished = future.take();
        drop(future);
        drop(finished);
        true
    }

    /// Drops the future, done or not.
    pub(crate) fn abandon(&self) {
        let future = self.future.lock().take();
        drop(future);
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let elsewhere = with_current(|local| match local {
            Some(local) if Arc::ptr_eq(&local.shared, &self.home) => {
                local.ready.borrow_mut().push_back(Arc::clone(&self));
                false
            }
            _ => true,
        });
        if elsewhere {
            let home = Arc::clone(&self.home);
            home.send(Message::Wake(self));
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.load(Ordering::Acquire) {
            Arc::clone(self).wake();
        }
    }
}
