//! A daemon's side: deposits, and comes back after a holder that was restarted.

use super::{
    Deposit,
    server::new_socket,
    wire::{self, Tag},
};
use parallax_block::{Error, ErrorKind, Result, ResultExt};
use parking_lot::Mutex;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    net::{
        Shutdown, SocketAddrUnix, connect, shutdown,
        sockopt::{Timeout, set_socket_timeout},
    },
    time::Timespec,
};
use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// An answer that takes longer does not come.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);

/// Pause between two attempts to reach a holder.
const PAUSE: Duration = Duration::from_millis(100);

/// Pause between two attempts while a daemon serves without a holder.
const RETURN_PAUSE_SECONDS: i64 = 1;

fn os(error: rustix::io::Errno) -> Error {
    Error::from(io::Error::from(error))
}

fn reach(path: &Path) -> Result<OwnedFd> {
    let reaching = || format!("reaching the holder of block devices at {}", path.display());
    let address = SocketAddrUnix::new(path).map_err(os).context(reaching)?;
    let socket = new_socket()?;
    // Before it connects, which waits too while others wait to be let in.
    for which in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, which, Some(ANSWER_WAIT_MAX)).map_err(os).context(reaching)?;
    }
    connect(&socket, &address).map_err(os).context(reaching)?;
    Ok(socket)
}

fn ask(socket: &OwnedFd, tag: Tag, deposit: Option<&Deposit>) -> Result<wire::Message> {
    wire::send(socket, tag, deposit)?;
    match wire::receive(socket)? {
        Some(message) if message.tag == Tag::Busy => {
            Err(Error::new(ErrorKind::Busy, "the holder of block devices serves another daemon"))
        }
        Some(message) => Ok(message),
        None => Err(Error::new(ErrorKind::Io, "the holder of block devices has ended")),
    }
}

/// Has a holder end the connection that it keeps: the I/O that waits fails. Refused while a daemon is connected.
pub fn release(path: &Path) -> Result<()> {
    ask(&reach(path)?, Tag::Release, None).map(drop)
}

/// A daemon's connection with the holder, which lasts as long as this process.
///
/// When the holder goes, the daemon serves on without it, and deposits again when there is a new one.
pub struct Depositor {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    wake: OwnedFd,
}

#[derive(Default)]
struct State {
    socket: Option<Arc<OwnedFd>>,
    deposit: Option<Deposit>,
    serving: bool,
    ended: bool,
}

impl Depositor {
    /// Connects and asks for what is kept. Waits for a holder that is not there yet, and for a daemon before us to be
    /// gone; not longer than `wait_max`.
    pub fn connect(path: &Path, wait_max: Duration) -> Result<(Self, Option<Deposit>)> {
        let end = Instant::now() + wait_max;
        let (socket, kept) = loop {
            let attempt = reach(path).and_then(|socket| Ok((ask(&socket, Tag::Take, None)?, socket)));
            match attempt {
                Ok((answer, socket)) => break (socket, answer.deposit),
                Err(error) if Instant::now() >= end => return Err(error),
                Err(_) => thread::sleep(PAUSE),
            }
        };
        let state = State { socket: Some(Arc::new(socket)), ..State::default() };
        let wake = eventfd(0, EventfdFlags::CLOEXEC).map_err(os).context(|| "making an eventfd")?;
        let shared = Arc::new(Shared { path: path.to_owned(), state: Mutex::new(state), wake });
        let watching = Arc::clone(&shared);
        thread::Builder::new()
            .name("holder-watch".to_owned())
            .spawn(move || watching.watch())
            .context(|| "starting the thread that watches the holder")?;
        Ok((Self { shared }, kept))
    }

    /// Deposits; replaces what was deposited. Whether a holder has it: without one the daemon goes on.
    pub fn put(&self, deposit: Deposit) -> bool {
        let mut state = self.shared.state.lock();
        state.deposit = Some(deposit);
        state.put()
    }

    /// Says that requests are answered.
    pub fn serving(&self) -> bool {
        let mut state = self.shared.state.lock();
        state.serving = true;
        state.tell(Tag::Serving)
    }

    /// Takes everything back: the connection is not needed any more.
    pub fn forget(&self) {
        let mut state = self.shared.state.lock();
        state.deposit = None;
        state.tell(Tag::Forget);
    }

    /// Whether a holder has what was deposited.
    pub fn is_held(&self) -> bool {
        self.shared.state.lock().socket.is_some()
    }

    /// Keeps the connection with the holder until this process has ended, all of its threads included.
    pub fn outlast(self) {
        std::mem::forget(self);
    }
}

impl Drop for Depositor {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.ended = true;
        state.socket = None;
        state.deposit = None;
        drop(state);
        self.shared.wake();
    }
}

impl State {
    fn put(&mut self) -> bool {
        let (Some(socket), Some(deposit)) = (&self.socket, &self.deposit) else { return false };
        let outcome = ask(socket, Tag::Put, Some(deposit)).map(drop);
        self.judge(outcome)
    }

    fn tell(&mut self, tag: Tag) -> bool {
        let Some(socket) = &self.socket else { return false };
        let outcome = ask(socket, tag, None).map(drop);
        self.judge(outcome)
    }

    fn judge(&mut self, outcome: Result<()>) -> bool {
        let Err(error) = outcome else { return true };
        tracing::warn!(%error, "the holder of block devices does not answer; a restart now would fail their I/O");
        if let Some(socket) = self.socket.take() {
            // The thread that watches has a copy of it and has to see that this is over; so has the holder, which lets
            // nobody else in before. If it is over already, both know.
            let _ = shutdown(&socket, Shutdown::Both);
        }
        false
    }
}

impl Shared {
    fn wake(&self) {
        // It is a counter of 64 bits that nobody resets; it is written to once.
        let _ = rustix::io::write(&self.wake, &[1; 8]);
    }

    /// Notices the end of the holder, and deposits again with the next one.
    fn watch(&self) {
        loop {
            let socket = {
                let state = self.state.lock();
                if state.ended {
                    return;
                }
                state.socket.clone()
            };
            let pause = Timespec { tv_sec: RETURN_PAUSE_SECONDS, tv_nsec: 0 };
            let gone = {
                let mut watched = vec![PollFd::new(&self.wake, PollFlags::IN)];
                // Answers are awaited by those who asked, under the lock: only the end is looked for here.
                watched.extend(socket.as_ref().map(|socket| PollFd::new(socket, PollFlags::RDHUP)));
                let _ = poll(&mut watched, socket.is_none().then_some(&pause));
                watched.get(1).is_some_and(|it| !it.revents().is_empty())
            };
            let mut state = self.state.lock();
            if state.ended {
                return;
            }
            if gone && state.socket.is_some() {
                tracing::warn!("the holder of block devices is gone; a restart now would fail their I/O");
                state.socket = None;
            }
            if state.socket.is_none()
                && let Ok(socket) = reach(&self.path)
            {
                self.return_to(&mut state, socket);
            }
        }
    }

    fn return_to(&self, state: &mut State, socket: OwnedFd) {
        // Whatever a holder keeps that was not ours by now is of nobody.
        state.socket = Some(Arc::new(socket));
        let held = match state.deposit {
            Some(_) => state.put(),
            None => true,
        };
        if held && (!state.serving || state.tell(Tag::Serving)) {
            tracing::info!("the block devices are held again");
        }
    }
}
