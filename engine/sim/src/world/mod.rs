//! A clock, an executor and a source of chance, all from one seed.
//!
//! Invariants:
//! * Everything runs on the thread that calls [`World::run`]; one task at a time is polled, chosen by the seed
//!   among those that are ready.
//! * Time is virtual. It moves only when no task is ready, to the next timer.
//! * The same seed and the same program give the same [`World::history`].
//! * A world that can never go on says so ([`Deadlock`]) instead of hanging.
//!
//! Tasks belong to a [`Process`]. Killing one drops its tasks between two polls, as `kill -9` would; what
//! they had asked of a disk goes on without them.

mod deadlock;
mod process;
mod sleep;

pub use deadlock::Deadlock;
pub use process::Process;

use crate::{Prng, history::History};
use parallax_block::{BoxFuture, Runtime};
use parking_lot::Mutex;
use sleep::Sleep;
use std::{
    collections::BTreeMap,
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

/// Polls and timers after which a run is taken to be going round in circles.
const STEPS_MAX: u64 = 200_000_000;

type TaskId = u64;
type ProcessId = u64;
type TimerKey = (Duration, u64, u64);

/// A seeded world; cheap to clone, all clones are the same world.
#[derive(Clone)]
pub struct World {
    shared: Arc<Shared>,
}

struct Shared {
    seed: u64,
    state: Mutex<State>,
    ready: Arc<Mutex<Vec<TaskId>>>,
}

struct State {
    prng: Prng,
    now: Duration,
    sequence: u64,
    steps: u64,
    tasks: BTreeMap<TaskId, Task>,
    timers: BTreeMap<TimerKey, Timer>,
    processes: BTreeMap<ProcessId, Arc<str>>,
    /// Process of the task that is being polled.
    current: ProcessId,
    running: bool,
    history: History,
    /// Things that are held back on purpose, for the report of a deadlock.
    held: BTreeMap<(usize, u64), String>,
}

struct Task {
    process: ProcessId,
    name: String,
    polls: u64,
    waker: Arc<TaskWaker>,
    /// Away while it is being polled.
    future: Option<BoxFuture<'static, ()>>,
}

enum Timer {
    Wake(Waker),
    Call(Box<dyn FnOnce() + Send>),
}

enum Step {
    Poll(TaskId),
    Fire(Timer),
    Stuck,
}

struct TaskWaker {
    id: TaskId,
    queued: AtomicBool,
    ready: Arc<Mutex<Vec<TaskId>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().push(self.id);
        }
    }
}

impl World {
    /// A world for `seed`, at time zero, with nothing in it.
    pub fn new(seed: u64) -> Self {
        let state = State {
            prng: Prng::new(seed),
            now: Duration::ZERO,
            sequence: 0,
            steps: 0,
            tasks: BTreeMap::new(),
            timers: BTreeMap::new(),
            processes: BTreeMap::from([(0, "world".into())]),
            current: 0,
            running: false,
            history: History::new(seed),
            held: BTreeMap::new(),
        };
        Self { shared: Arc::new(Shared { seed, state: Mutex::new(state), ready: Arc::default() }) }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.shared.seed
    }

    /// Hash of everything that happened so far: polls, timers, requests and their bytes, in order.
    pub fn history(&self) -> u64 {
        self.shared.state.lock().history.value()
    }

    /// A stream of chance of the caller's own.
    pub fn prng(&self) -> Prng {
        self.shared.state.lock().prng.fork()
    }

    /// Seeded randomness for identities, in the form that the store's environment wants.
    pub fn entropy(&self) -> Arc<dyn Fn() -> u128 + Send + Sync> {
        let prng = Mutex::new(self.prng());
        Arc::new(move || prng.lock().next_u128())
    }

    /// A process: tasks that die together.
    pub fn process(&self, name: &str) -> Process {
        let mut state = self.shared.state.lock();
        let id = state.next_sequence();
        state.processes.insert(id, name.into());
        Process { world: self.clone(), id }
    }

    /// Runs everything until `future` is done. Panics with the [`Deadlock`] if it never can be.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        match self.try_run(future) {
            Ok(output) => output,
            Err(deadlock) => panic!("{deadlock}"),
        }
    }

    /// Runs everything until `future` is done, or nothing can happen any more.
    pub fn try_run<F: Future>(&self, future: F) -> Result<F::Output, Deadlock> {
        let _entered = self.enter();
        let mut future = pin!(future);
        let id = self.shared.state.lock().next_sequence();
        let root = self.waker(id);
        root.wake_by_ref();
        let waker = Waker::from(root.clone());
        loop {
            match self.step(None) {
                Step::Poll(task) if task == id => {
                    root.queued.store(false, Ordering::Relaxed);
                    if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                        return Ok(output);
                    }
                }
                Step::Poll(task) => self.poll_task(task),
                Step::Fire(timer) => timer.fire(),
                Step::Stuck => return Err(self.deadlock()),
            }
        }
    }

    /// Runs until nothing is ready and no timer is left. Never returns if a task sleeps again and again: use
    /// [`World::run_for`] then.
    pub fn run_until_idle(&self) {
        self.run_until(None);
    }

    /// Runs everything that happens within `duration`, and moves the clock to its end.
    pub fn run_for(&self, duration: Duration) {
        let deadline = self.shared.state.lock().now + duration;
        self.run_until(Some(deadline));
        self.shared.state.lock().now = deadline;
    }

    fn run_until(&self, deadline: Option<Duration>) {
        let _entered = self.enter();
        loop {
            match self.step(deadline) {
                Step::Poll(task) => self.poll_task(task),
                Step::Fire(timer) => timer.fire(),
                Step::Stuck => return,
            }
        }
    }

    /// Drops every task and timer: they hold the world, and it holds them. Nothing runs in it any more.
    pub fn end(&self) {
        loop {
            let left = {
                let mut state = self.shared.state.lock();
                state.processes.clear();
                (std::mem::take(&mut state.tasks), std::mem::take(&mut state.timers))
            };
            if left.0.is_empty() && left.1.is_empty() {
                break;
            }
            // Outside the lock: what they own may call back when it is dropped.
            drop(left);
        }
    }

    /// Names of tasks that are not done, with their process.
    pub fn pending_tasks(&self) -> Vec<String> {
        let state = self.shared.state.lock();
        state
            .tasks
            .iter()
            .map(|(id, task)| {
                let process = state.processes.get(&task.process).map_or("a dead process", |name| &**name);
                format!("task {id} '{}' of {process} ({} polls)", task.name, task.polls)
            })
            .collect()
    }

    /// Gives up the processor once: other ready tasks may run first.
    pub async fn yield_now(&self) {
        let mut yielded = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Name of the process whose task is being polled; `world` outside of any.
    pub fn current_process(&self) -> Arc<str> {
        let state = self.shared.state.lock();
        state.processes.get(&state.current).cloned().unwrap_or_else(|| "dead".into())
    }

    /// Starts a named task of no process.
    pub fn spawn_named(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_in(0, name.to_owned(), Box::pin(task));
    }

    /// Calls `action` after `delay`, between polls.
    pub(crate) fn call_after(&self, delay: Duration, action: Box<dyn FnOnce() + Send>) {
        let mut state = self.shared.state.lock();
        let key = state.timer_key(delay);
        state.timers.insert(key, Timer::Call(action));
    }

    pub(crate) fn note(&self, tag: u64, first: u64, second: u64) {
        self.shared.state.lock().history.note(tag, first, second);
    }

    pub(crate) fn note_held(&self, key: (usize, u64), what: Option<String>) {
        let mut state = self.shared.state.lock();
        match what {
            Some(what) => state.held.insert(key, what),
            None => state.held.remove(&key),
        };
    }

    fn enter(&self) -> Entered<'_> {
        let mut state = self.shared.state.lock();
        assert!(!state.running, "a world is run by one caller at a time, never from inside itself");
        state.running = true;
        Entered(&self.shared)
    }

    fn waker(&self, id: TaskId) -> Arc<TaskWaker> {
        Arc::new(TaskWaker { id, queued: AtomicBool::new(false), ready: self.shared.ready.clone() })
    }

    fn spawn_in(&self, process: ProcessId, name: String, future: BoxFuture<'static, ()>) {
        let waker = {
            let mut state = self.shared.state.lock();
            if !state.processes.contains_key(&process) {
                drop(state);
                drop(future);
                return;
            }
            let id = state.next_sequence();
            let waker = self.waker(id);
            let name = if name.is_empty() { format!("#{id}") } else { name };
            state
                .tasks
                .insert(id, Task { process, name, polls: 0, waker: waker.clone(), future: Some(future) });
            waker
        };
        waker.wake_by_ref();
    }

    /// What happens next; `Stuck` if nothing does before the deadline.
    fn step(&self, deadline: Option<Duration>) -> Step {
        let mut state = self.shared.state.lock();
        state.steps += 1;
        assert!(
            state.steps < STEPS_MAX,
            "no end in sight after {STEPS_MAX} steps, at {:?}: a busy loop?",
            state.now
        );
        let mut ready = self.shared.ready.lock();
        if !ready.is_empty() {
            let chosen = state.prng.index(ready.len());
            let id = ready.swap_remove(chosen);
            state.history.note(1, id, 0);
            return Step::Poll(id);
        }
        let Some(entry) = state.timers.first_entry() else { return Step::Stuck };
        let at = entry.key().0;
        if deadline.is_some_and(|deadline| at > deadline) {
            return Step::Stuck;
        }
        let timer = entry.remove();
        state.now = state.now.max(at);
        let now = state.now.as_nanos() as u64;
        state.history.note(2, now, 0);
        Step::Fire(timer)
    }

    fn poll_task(&self, id: TaskId) {
        let (mut future, waker) = {
            let mut state = self.shared.state.lock();
            let Some(task) = state.tasks.get_mut(&id) else { return };
            task.polls += 1;
            task.waker.queued.store(false, Ordering::Relaxed);
            let (process, waker) = (task.process, task.waker.clone());
            let Some(future) = task.future.take() else { return };
            state.current = process;
            (future, waker)
        };
        let done = future.as_mut().poll(&mut Context::from_waker(&Waker::from(waker))).is_ready();
        let mut state = self.shared.state.lock();
        state.current = 0;
        let leftover = if done {
            state.tasks.remove(&id).map(|_| future)
        } else if let Some(task) = state.tasks.get_mut(&id) {
            task.future = Some(future);
            None
        } else {
            Some(future)
        };
        drop(state);
        // Outside the lock: what a task owned may call back when it is dropped.
        drop(leftover);
    }

    fn deadlock(&self) -> Deadlock {
        let tasks = self.pending_tasks();
        let state = self.shared.state.lock();
        Deadlock {
            seed: self.shared.seed,
            now: state.now,
            tasks,
            held: state.held.values().cloned().collect(),
        }
    }
}

impl Runtime for World {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.spawn_in(0, String::new(), task);
    }

    fn now(&self) -> Duration {
        self.shared.state.lock().now
    }

    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()> {
        let key = self.shared.state.lock().timer_key(delay);
        Box::pin(Sleep { world: self.clone(), key, armed: false })
    }
}

impl State {
    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Timers of one instant fire in seeded order.
    fn timer_key(&mut self, delay: Duration) -> TimerKey {
        (self.now.saturating_add(delay), self.prng.next_u64(), self.next_sequence())
    }
}

impl Timer {
    fn fire(self) {
        match self {
            Self::Wake(waker) => waker.wake(),
            Self::Call(action) => action(),
        }
    }
}

struct Entered<'a>(&'a Shared);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.state.lock().running = false;
    }
}
