//! A named thread that is an executor and owns one way into the kernel.
//!
//! ```text
//! outside --inbox + eventfd--> [ inbox -> timers -> ready tasks -> backend (submit, wait, reap) ] --wakers-->
//! ```
//!
//! Invariants:
//! * The thread sleeps in the kernel, in one call that also submits what its tasks have asked for. Without work it
//!   uses no processor time at all; between the requests of a quick client it may look on for a few microseconds
//!   (`patience`).
//! * Tasks of a reactor are polled on its thread only, so what they ask for goes into its own ring without a
//!   lock or a hand-over.
//! * Whatever the kernel has been lent is given back before the thread ends.

mod backend;
pub(crate) mod join;
mod patience;
mod poller;
#[expect(unsafe_code, reason = "memory is lent to the kernel")]
mod ring;
mod task;
mod timers;

pub use join::Join;

use crate::operation::{Failure, Request, Slot};
use backend::{Backend, Wait};
use parallax_block::{BoxFuture, Error, ErrorKind, Result, ResultExt, Runtime};
use parking_lot::Mutex;
use rustix::event::EventfdFlags;
use slab::Slab;
use std::{
    cell::RefCell,
    collections::VecDeque,
    fmt,
    future::Future,
    os::fd::OwnedFd,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{JoinHandle, ThreadId},
    time::Duration,
};
use task::Task;
use timers::{Alarm, Sleep, TimerKey, Timers};

/// How asynchronous I/O reaches the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IoMode {
    /// io_uring where the kernel has and permits it, else threads.
    #[default]
    Auto,
    /// io_uring, or fail.
    Uring,
    /// A pool of threads for files, poll(2) for sockets.
    Threads,
}

/// How a reactor is set up.
#[derive(Debug, Clone, Copy)]
pub struct ReactorOptions {
    /// How I/O reaches the kernel.
    pub io: IoMode,
    /// Requests that the kernel may have at one time; more wait in the reactor.
    pub in_flight_max: u32,
    /// Marks the thread as one that writes back memory (`PR_SET_IO_FLUSHER`), so that serving a local block
    /// device cannot deadlock with reclaim. Needs CAP_SYS_RESOURCE; without it a warning is logged.
    pub io_flusher: bool,
}

impl Default for ReactorOptions {
    fn default() -> Self {
        Self { io: IoMode::Auto, in_flight_max: 1024, io_flusher: false }
    }
}

/// What other threads see of a reactor.
struct Shared {
    inbox: Mutex<Inbox>,
    /// The thread is about to wait, or waits: a sender must write to `wake`.
    sleeping: AtomicBool,
    /// There may be something in the inbox.
    mail: AtomicBool,
    wake: OwnedFd,
    thread: Mutex<Option<JoinHandle<()>>>,
    io: std::sync::OnceLock<IoMode>,
}

#[derive(Default)]
struct Inbox {
    messages: Vec<Message>,
    closed: bool,
}

enum Message {
    Spawn(BoxFuture<'static, ()>),
    Wake(Arc<Task>),
    Request(Request),
    Timer(TimerKey, Arc<Alarm>),
    DropTimer(TimerKey),
    Stop,
}

impl Shared {
    fn send(&self, message: Message) {
        let mut inbox = self.inbox.lock();
        if inbox.closed {
            drop(inbox);
            message.refuse();
            return;
        }
        inbox.messages.push(message);
        self.mail.store(true, Ordering::SeqCst);
        drop(inbox);
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // Fails only if the counter is full, and then the thread is being woken anyway.
            let _ = rustix::io::write(&self.wake, &1u64.to_le_bytes());
        }
    }
}

impl Message {
    /// Gives up a message that nobody will read.
    fn refuse(self) {
        match self {
            Self::Request(request) => request.complete(Err(Failure::Cancelled)),
            // Sleepers of a dead reactor are woken rather than left for ever.
            Self::Timer(_, alarm) => alarm.ring(),
            Self::Spawn(_) | Self::Wake(_) | Self::DropTimer(_) | Self::Stop => {}
        }
    }
}

/// What only the thread itself sees of a reactor.
struct Local {
    shared: Arc<Shared>,
    thread: ThreadId,
    ready: RefCell<VecDeque<Arc<Task>>>,
    tasks: RefCell<Slab<Arc<Task>>>,
    timers: RefCell<Timers>,
    backend: RefCell<Backend>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Local>>> = const { RefCell::new(None) };
}

/// Runs `body` with the reactor of this thread, if it has one.
fn with_current<T>(body: impl FnOnce(Option<&Local>) -> T) -> T {
    // During thread teardown there is none.
    let mut body = Some(body);
    let answer = CURRENT.try_with(|current| {
        let current = current.borrow();
        body.take().map(|body| body(current.as_deref()))
    });
    match (answer, body) {
        (Ok(Some(answer)), _) => answer,
        (_, Some(body)) => body(None),
        _ => unreachable!("the body is taken only where its answer is kept"),
    }
}

/// Hands a request to the reactor of this thread, else to `home`, else fails it.
pub(crate) fn submit(request: Request, home: Option<&ReactorHandle>) {
    let left = with_current(|local| match local {
        Some(local) => {
            local.backend.borrow_mut().start(request);
            None
        }
        None => Some(request),
    });
    match (left, home) {
        (None, _) => {}
        (Some(request), Some(home)) => home.0.send(Message::Request(request)),
        (Some(request), None) => request.complete(Err(Failure::Cancelled)),
    }
}

/// Gives up a request whose answer nobody waits for any more.
pub(crate) fn cancel(slot: &Arc<Slot>) {
    // A future that moved away from the thread that has its request leaves it to end by itself.
    with_current(|local| {
        if let Some(local) = local {
            local.backend.borrow_mut().cancel(slot);
        }
    });
}

/// Time since boot, suspension included.
pub(crate) fn boottime() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Starts reactors.
pub struct Reactor;

impl Reactor {
    /// Starts a named thread with an executor. Names longer than 15 bytes are cut by the kernel.
    pub fn start(name: &str, options: ReactorOptions) -> Result<ReactorHandle> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(std::io::Error::from)
            .context(|| "creating an eventfd")?;
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            sleeping: AtomicBool::new(false),
            mail: AtomicBool::new(false),
            wake,
            thread: Mutex::new(None),
            io: std::sync::OnceLock::new(),
        });
        let (report, reported) = mpsc::channel();
        let inside = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // The ring must be made by the thread that will use it.
                match Backend::open(options, &inside.wake) {
                    Ok(backend) => {
                        if options.io_flusher {
                            become_io_flusher();
                        }
                        // The starter is waiting, unless it has panicked.
                        let _ = inside.io.set(backend.mode());
                        let _ = report.send(Ok(()));
                        serve(inside, backend);
                    }
                    Err(error) => {
                        let _ = report.send(Err(error));
                    }
                }
            })
            .context(|| format!("starting the thread '{name}'"))?;
        *shared.thread.lock() = Some(thread);
        reported
            .recv()
            .map_err(|_| Error::new(ErrorKind::Io, format!("the thread '{name}' died while starting")))??;
        Ok(ReactorHandle(shared))
    }
}

fn become_io_flusher() {
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::warn!(
            %error,
            "cannot mark this thread as an I/O flusher; give the process CAP_SYS_RESOURCE if it serves block \
             devices to its own node"
        );
    }
}

/// Rounds of ready tasks between two looks at the kernel.
const ROUNDS: usize = 16;

fn serve(shared: Arc<Shared>, backend: Backend) {
    let local = Rc::new(Local {
        shared,
        thread: std::thread::current().id(),
        ready: RefCell::default(),
        tasks: RefCell::default(),
        timers: RefCell::default(),
        backend: RefCell::new(backend),
    });
    CURRENT.with(|current| *current.borrow_mut() = Some(Rc::clone(&local)));
    let mut messages = Vec::new();
    let mut finished = Vec::new();
    let mut running = true;
    while running {
        running = local.read_mail(&mut messages);
        local.ring_alarms();
        for _ in 0..ROUNDS {
            if !local.run_ready() {
                break;
            }
        }
        local.turn(running, &mut finished);
    }
    local.end(&mut finished);
    CURRENT.with(|current| current.borrow_mut().take());
}

impl Local {
    /// Returns whether the reactor goes on.
    fn read_mail(&self, messages: &mut Vec<Message>) -> bool {
        if !self.shared.mail.swap(false, Ordering::SeqCst) {
            return true;
        }
        std::mem::swap(messages, &mut self.shared.inbox.lock().messages);
        let mut go_on = true;
        for message in messages.drain(..) {
            match message {
                Message::Spawn(future) => self.adopt(Task::new(future, Arc::clone(&self.shared))),
                Message::Wake(task) => self.ready.borrow_mut().push_back(task),
                Message::Request(request) => self.backend.borrow_mut().start(request),
                Message::Timer(key, alarm) => self.timers.borrow_mut().insert(key, alarm),
                Message::DropTimer(key) => self.timers.borrow_mut().remove(key),
                Message::Stop => go_on = false,
            }
        }
        go_on
    }

    fn adopt(&self, task: Arc<Task>) {
        let key = self.tasks.borrow_mut().insert(Arc::clone(&task));
        task.key.store(key, Ordering::Relaxed);
        self.ready.borrow_mut().push_back(task);
    }

    fn ring_alarms(&self) {
        if self.timers.borrow().first().is_none() {
            return;
        }
        let now = boottime();
        loop {
            let due = self.timers.borrow_mut().pop_due(now);
            match due {
                Some(alarm) => alarm.ring(),
                None => return,
            }
        }
    }

    /// Polls the tasks that are ready now. Returns whether there were any.
    fn run_ready(&self) -> bool {
        let count = self.ready.borrow().len();
        for _ in 0..count {
            let Some(task) = self.ready.borrow_mut().pop_front() else { break };
            if task.run() {
                let gone = self.tasks.borrow_mut().try_remove(task.key.load(Ordering::Relaxed));
                drop(gone);
            }
        }
        count > 0
    }

    /// Submits, waits if there is nothing else to do, and delivers what has finished.
    fn turn(&self, may_wait: bool, finished: &mut Vec<backend::Finished>) {
        let mut wait = Wait::No;
        if may_wait && self.ready.borrow().is_empty() {
            self.shared.sleeping.store(true, Ordering::SeqCst);
            // A sender either sees `sleeping`, or has set `mail` before this looks.
            if !self.shared.mail.load(Ordering::SeqCst) {
                wait = Wait::Until(self.timers.borrow().first());
            }
        }
        self.backend.borrow_mut().turn(wait, finished);
        self.shared.sleeping.store(false, Ordering::SeqCst);
        deliver(finished);
    }

    fn end(&self, finished: &mut Vec<backend::Finished>) {
        let mut orphans = {
            let mut inbox = self.shared.inbox.lock();
            inbox.closed = true;
            std::mem::take(&mut inbox.messages)
        };
        orphans.drain(..).for_each(Message::refuse);
        self.ready.borrow_mut().clear();
        loop {
            let tasks: Vec<_> = self.tasks.borrow_mut().drain().collect();
            if tasks.is_empty() {
                break;
            }
            tasks.iter().for_each(|task| task.abandon());
        }
        self.backend.borrow_mut().drain(finished);
        deliver(finished);
        loop {
            let alarm = self.timers.borrow_mut().pop_due(Duration::MAX);
            match alarm {
                Some(alarm) => alarm.ring(),
                None => break,
            }
        }
        self.ready.borrow_mut().clear();
    }
}

/// Leaves the answers. Wakers run arbitrary code, so nothing may be borrowed here.
fn deliver(finished: &mut Vec<backend::Finished>) {
    for (request, outcome) in finished.drain(..) {
        request.complete(outcome);
    }
}

/// A running reactor; cheap to clone. It runs until [`ReactorHandle::shutdown`], not until the last handle is
/// dropped.
#[derive(Clone)]
pub struct ReactorHandle(Arc<Shared>);

impl ReactorHandle {
    /// Starts a task on the reactor. Nobody waits for it.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        Runtime::spawn(self, Box::pin(task));
    }

    /// Starts a task on the reactor and gives its result to whoever awaits the answer, on any executor.
    pub fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> Join<T> {
        let (answer, join) = join::pair();
        self.spawn(async move { answer.send(task.await) });
        join
    }

    /// Runs a task on the reactor and waits for it. Called on a reactor's own thread it fails, for it would
    /// wait for itself.
    pub fn block_on<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> Result<T> {
        if with_current(|local| local.is_some()) {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                "a task of an I/O thread must await, not block",
            ));
        }
        join::wait(self.run(task))
    }

    /// Which way into the kernel this reactor uses: never [`IoMode::Auto`].
    pub fn io(&self) -> IoMode {
        self.0.io.get().copied().unwrap_or_default()
    }

    /// Stops the reactor: drops its tasks, waits for requests in flight, ends the thread. Called on the
    /// reactor's own thread it only asks for that.
    pub fn shutdown(&self) {
        self.0.send(Message::Stop);
        let own = with_current(|local| {
            local.is_some_and(|local| {
                Arc::ptr_eq(&local.shared, &self.0) && local.thread == std::thread::current().id()
            })
        });
        if own {
            return;
        }
        let thread = self.0.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("an I/O thread panicked");
        }
    }
}

impl fmt::Debug for ReactorHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReactorHandle({:?})", self.io())
    }
}

impl Runtime for ReactorHandle {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        let task = with_current(|local| match local {
            Some(local) if Arc::ptr_eq(&local.shared, &self.0) => {
                local.adopt(Task::new(task, Arc::clone(&self.0)));
                None
            }
            _ => Some(task),
        });
        if let Some(task) = task {
            self.0.send(Message::Spawn(task));
        }
    }

    /// On the reactor of this thread, if it has one.
    fn spawn_near(&self, task: BoxFuture<'static, ()>) {
        let left = with_current(|local| match local {
            Some(local) => {
                local.adopt(Task::new(task, Arc::clone(&local.shared)));
                None
            }
            None => Some(task),
        });
        if let Some(task) = left {
            Runtime::spawn(self, task);
        }
    }

    fn now(&self) -> Duration {
        boottime()
    }

    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()> {
        Box::pin(Sleep::new(Arc::clone(&self.0), boottime().saturating_add(delay)))
    }
}
