//! A bounded pool of threads for system calls that block.
//!
//! Threads are started on demand, up to a bound, and end after some seconds without work. The queue is bounded
//! too: whoever finds it full waits, asynchronously.

use crate::reactor::join;
use parallax_block::Result;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, OnceLock},
    task::{Context, Poll, Waker},
    time::Duration,
};

/// Something to do on a thread of the pool.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

const IDLE: Duration = Duration::from_secs(10);

/// Handle of a pool; cheap to clone. Threads end when the last handle is dropped and the queue is empty.
#[derive(Clone)]
pub(crate) struct Workers(Arc<Pool>);

struct Pool {
    name: String,
    threads_max: usize,
    queue_max: usize,
    state: Mutex<PoolState>,
    work: Condvar,
    rest: Condvar,
}

#[derive(Default)]
struct PoolState {
    queue: VecDeque<Job>,
    waiting: Vec<Waker>,
    threads: usize,
    idle: usize,
}

impl Workers {
    pub(crate) fn new(name: &str, threads_max: usize, queue_max: usize) -> Self {
        Self(Arc::new(Pool {
            name: name.to_owned(),
            threads_max: threads_max.max(1),
            queue_max: queue_max.max(1),
            state: Mutex::default(),
            work: Condvar::new(),
            rest: Condvar::new(),
        }))
    }

    /// The pool for rare calls that have no asynchronous form.
    pub(crate) fn helpers() -> &'static Self {
        static HELPERS: OnceLock<Workers> = OnceLock::new();
        HELPERS.get_or_init(|| Self::new("io-helper", 4, 256))
    }

    /// Takes the job out of `job` once there is room for it.
    pub(crate) fn poll_submit(&self, cx: &Context<'_>, job: &mut Option<Job>) -> Poll<()> {
        let mut state = self.0.state.lock();
        if state.queue.len() >= self.0.queue_max {
            state.waiting.push(cx.waker().clone());
            return Poll::Pending;
        }
        if let Some(job) = job.take() {
            self.enqueue(state, job);
        }
        Poll::Ready(())
    }

    /// Queues a job whatever the length of the queue, for callers that bound their requests themselves.
    pub(crate) fn push(&self, job: Job) {
        self.enqueue(self.0.state.lock(), job);
    }

    fn enqueue(&self, mut state: MutexGuard<'_, PoolState>, job: Job) {
        state.queue.push_back(job);
        if state.idle > 0 {
            self.0.work.notify_one();
        } else if state.threads < self.0.threads_max {
            state.threads += 1;
            let pool = Arc::clone(&self.0);
            let started = std::thread::Builder::new().name(self.0.name.clone()).spawn(move || pool.serve());
            if let Err(error) = started {
                state.threads -= 1;
                if state.threads == 0 {
                    // Nobody would ever run it: do it here rather than hang.
                    let orphans = std::mem::take(&mut state.queue);
                    drop(state);
                    tracing::error!(%error, "cannot start a thread for I/O; running it on the caller's");
                    orphans.into_iter().for_each(|orphan| orphan());
                }
            }
        }
    }

    /// Blocks until the queue is empty and every thread idle.
    pub(crate) fn quiesce(&self) {
        let mut state = self.0.state.lock();
        while !state.queue.is_empty() || state.idle < state.threads {
            self.0.rest.wait(&mut state);
        }
    }

    /// Runs `call` on a thread of the pool.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, join) = join::pair();
        let mut job: Option<Job> = Some(Box::new(move || answer.send(call())));
        poll_fn(|cx| self.poll_submit(cx, &mut job)).await;
        join.await?
    }
}

impl Pool {
    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                let waiting = std::mem::take(&mut state.waiting);
                drop(state);
                waiting.into_iter().for_each(Waker::wake);
                job();
                state = self.state.lock();
                continue;
            }
            state.idle += 1;
            self.rest.notify_all();
            let timed_out = self.work.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if timed_out && state.queue.is_empty() {
                state.threads -= 1;
                self.rest.notify_all();
                return;
            }
        }
    }
}
