//! One life of a pool: lanes and managers at work until they are done, the power goes or the process dies.

use crate::{Failure, run::Drill, subject::Subject};
use parallax_block::Runtime;
use parallax_sim::{Either, Prng, Process, SimDisk, either};
use parking_lot::Mutex;
use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

/// Virtual time after which a life is taken to hang.
const HANGS_AFTER: Duration = Duration::from_secs(3600);

/// What lanes and managers share.
pub(crate) struct Life {
    pub(crate) drill: Arc<Drill>,
    pub(crate) pool: Arc<dyn Subject>,
    pub(crate) prng: Mutex<Prng>,
    pub(crate) collecting: AtomicBool,
    crew: Mutex<Crew>,
}

#[derive(Default)]
struct Crew {
    lanes: usize,
    managers: usize,
    failure: Option<Failure>,
    waiting: Option<Waker>,
}

/// How lanes and managers came to an end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// They did all they had to do.
    Work,
    /// The power went first.
    PowerLost,
}

impl Life {
    pub(crate) fn new(drill: &Arc<Drill>, pool: Arc<dyn Subject>) -> Arc<Self> {
        let prng = Mutex::new(drill.world.prng());
        let collecting = AtomicBool::new(false);
        Arc::new(Self { drill: drill.clone(), pool, prng, collecting, crew: Mutex::default() })
    }

    /// Lets lanes and managers work in `process`.
    pub(crate) async fn play(self: &Arc<Self>, process: &Process, disk: &SimDisk) -> Result<Done, Failure> {
        let options = &self.drill.options;
        {
            let mut crew = self.crew.lock();
            (crew.lanes, crew.managers) = (options.lanes, options.managers);
        }
        for lane in 0..options.lanes {
            let life = self.clone();
            process.spawn_named(&format!("lane {lane}"), async move { life.lane().await });
        }
        for manager in 0..options.managers {
            let life = self.clone();
            process.spawn_named(&format!("manager {manager}"), async move { life.manager().await });
        }
        let done = poll_fn(|cx| {
            let mut crew = self.crew.lock();
            if crew.failure.is_some() || (crew.lanes == 0 && crew.managers == 0) {
                return Poll::Ready(());
            }
            crew.waiting = Some(cx.waker().clone());
            Poll::Pending
        });
        let ended = either(done, either(disk.power_lost(), self.drill.world.sleep(HANGS_AFTER))).await;
        if let Some(failure) = self.crew.lock().failure.take() {
            return Err(failure);
        }
        match ended {
            Either::Left(()) => Ok(Done::Work),
            Either::Right(Either::Left(())) => Ok(Done::PowerLost),
            Either::Right(Either::Right(())) => Err(self.hung("lanes and managers", disk)),
        }
    }

    pub(crate) fn hung(&self, what: &str, disk: &SimDisk) -> Failure {
        let mut story = self.drill.world.pending_tasks();
        story.extend(disk.in_flight().into_iter().map(|request| format!("in flight: {request:?}")));
        Failure { message: format!("{what} hang: nothing ended for {HANGS_AFTER:?} of virtual time"), story }
    }

    async fn lane(&self) {
        for _ in 0..self.drill.options.ops {
            let outcome = self.request().await;
            let pause = match outcome {
                Ok(true) => {
                    self.drill.count(|summary| summary.requests += 1);
                    self.prng.lock().chance(1, 8).then_some(100)
                }
                Ok(false) => Some(400),
                Err(failure) => {
                    self.fail(failure);
                    break;
                }
            };
            if self.crew.lock().failure.is_some() {
                break;
            }
            if let Some(microseconds) = pause {
                self.pause(microseconds).await;
            }
        }
        self.leave(|crew| &mut crew.lanes);
    }

    async fn manager(&self) {
        // Bounded, so that a life in which the lanes hang comes to rest and is seen to hang.
        let operations_max = self.drill.options.ops * self.drill.options.lanes as u64 + 50;
        for _ in 0..operations_max {
            {
                let crew = self.crew.lock();
                if crew.lanes == 0 || crew.failure.is_some() {
                    break;
                }
            }
            match self.operation().await {
                Ok(()) => {}
                // Its doubts stay open, and what it works with stays its own, until the life ends.
                Err(failure) if failure.is_given_up() => break,
                Err(failure) => {
                    self.fail(failure);
                    break;
                }
            }
            self.drill.count(|summary| summary.operations += 1);
            self.pause(self.drill.options.manager_pause.as_micros() as u64).await;
        }
        self.leave(|crew| &mut crew.managers);
    }

    async fn pause(&self, microseconds_max: u64) {
        let pause = self.prng.lock().range(0..microseconds_max);
        self.drill.world.sleep(Duration::from_micros(pause)).await;
    }

    fn leave(&self, which: impl Fn(&mut Crew) -> &mut usize) {
        let mut crew = self.crew.lock();
        *which(&mut crew) -= 1;
        if let Some(waker) = crew.waiting.take() {
            waker.wake();
        }
    }

    fn fail(&self, failure: Failure) {
        let mut crew = self.crew.lock();
        if crew.failure.is_none() {
            crew.failure = Some(failure);
        }
        if let Some(waker) = crew.waiting.take() {
            waker.wake();
        }
    }

    /// Whether garbage collection may begin; whoever is told so ends it with `false`.
    pub(crate) fn claim_collection(&self) -> bool {
        !self.collecting.swap(true, Ordering::Relaxed)
    }
}
