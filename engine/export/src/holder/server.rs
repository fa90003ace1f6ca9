//! The holder's process.

use super::{
    Deposit,
    wire::{self, Message, Tag},
};
use parallax_block::{Error, ErrorKind, Result, ResultExt};
use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
        socket_with,
    },
    time::Timespec,
};
use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// How a holder is set up.
#[derive(Debug, Clone)]
pub struct HolderOptions {
    /// Where it listens. The directory is made with mode 0700.
    pub socket: PathBuf,
    /// How long I/O waits for a daemon to come back.
    pub patience: Duration,
}

/// A holder that listens.
pub struct Holder {
    listener: OwnedFd,
    patience: Duration,
    kept: Option<Deposit>,
    /// When the connection that is kept is ended, unless a daemon serves it before.
    deadline: Option<Instant>,
    daemon: Option<OwnedFd>,
}

fn os(error: rustix::io::Errno) -> Error {
    Error::from(io::Error::from(error))
}

pub(super) fn new_socket() -> Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(os)
}

impl Holder {
    /// Listens. A stale socket is replaced, one that answers is not.
    pub fn listen(options: &HolderOptions) -> Result<Self> {
        let path = &options.socket;
        let listening = || format!("listening on {}", path.display());
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory).context(listening)?;
        }
        let address = SocketAddrUnix::new(path).map_err(os).context(listening)?;
        if connect(new_socket()?, &address).is_ok() {
            return Err(
                Error::new(ErrorKind::AlreadyExists, "another holder answers there").context(listening())
            );
        }
        if fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
            return Err(Error::invalid("something else than a socket is there").context(listening()));
        }
        // Made aside, so that it is never there with the rights of everybody.
        let aside = path.with_extension("new");
        remove_socket(&aside).context(listening)?;
        let listener = new_socket()?;
        let address = SocketAddrUnix::new(&aside).map_err(os).context(listening)?;
        bind(&listener, &address).map_err(os).context(listening)?;
        fs::set_permissions(&aside, Permissions::from_mode(0o600)).context(listening)?;
        listen(&listener, BACKLOG).map_err(os).context(listening)?;
        fs::rename(&aside, path).context(listening)?;
        Ok(Self { listener, patience: options.patience, kept: None, deadline: None, daemon: None })
    }

    /// Serves for ever.
    pub fn run(mut self) -> Result<()> {
        loop {
            self.wait()?;
        }
    }

    /// Waits for one thing to happen, and deals with it.
    pub(super) fn wait(&mut self) -> Result<()> {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            self.give_up();
            return Ok(());
        }
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let (arrived, spoke) = {
            let mut watched = vec![PollFd::new(&self.listener, PollFlags::IN)];
            watched.extend(self.daemon.as_ref().map(|daemon| PollFd::new(daemon, PollFlags::IN)));
            match poll(&mut watched, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(os(error).context("waiting for daemons")),
            }
            let happened = |at: usize| watched.get(at).is_some_and(|it| !it.revents().is_empty());
            (happened(0), happened(1))
        };
        if spoke && let Some(daemon) = self.daemon.take() {
            self.listen_to(daemon);
        }
        if arrived {
            self.welcome();
        }
        Ok(())
    }

    fn welcome(&mut self) {
        let accepted = accept_with(&self.listener, SocketFlags::CLOEXEC);
        let visitor = match accepted {
            Ok(visitor) => visitor,
            Err(error) => {
                tracing::warn!(%error, "a daemon could not be let in");
                return;
            }
        };
        if self.daemon.is_some() {
            // Its own end tells it as well.
            let _ = wire::send(&visitor, Tag::Busy, None);
            return;
        }
        self.daemon = Some(visitor);
    }

    fn listen_to(&mut self, daemon: OwnedFd) {
        match wire::receive(&daemon) {
            Ok(Some(message)) => match self.answer(&daemon, message) {
                Ok(()) => self.daemon = Some(daemon),
                Err(error) => self.lost(&error.to_string()),
            },
            Ok(None) => self.lost("it has ended"),
            Err(error) => self.lost(&error.to_string()),
        }
    }

    fn answer(&mut self, daemon: &OwnedFd, message: Message) -> Result<()> {
        match message.tag {
            Tag::Take => {
                return match &self.kept {
                    Some(deposit) => wire::send(daemon, Tag::Kept, Some(deposit)),
                    None => wire::send(daemon, Tag::Nothing, None),
                };
            }
            Tag::Put => {
                let Some(deposit) = message.deposit else { return Err(Error::invalid("nothing to keep")) };
                self.kept = Some(deposit);
            }
            Tag::Serving => self.deadline = None,
            Tag::Forget => self.close(),
            Tag::Release => self.give_up(),
            Tag::Kept | Tag::Nothing | Tag::Done | Tag::Busy => {
                return Err(Error::invalid(format!("it asked for {:?}", message.tag)));
            }
        }
        wire::send(daemon, Tag::Done, None)
    }

    fn lost(&mut self, reason: &str) {
        if self.kept.is_none() {
            return;
        }
        let patience = self.patience;
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + patience);
        let left = deadline.saturating_duration_since(Instant::now());
        tracing::warn!(
            reason,
            seconds = left.as_secs(),
            "the daemon is gone; I/O of its block devices waits for the next one"
        );
    }

    /// Nobody has come: what waits is failed.
    fn give_up(&mut self) {
        self.deadline = None;
        if let Some(deposit) = &self.kept {
            let path = format!("/sys/fs/fuse/connections/{}/abort", deposit.connection);
            tracing::error!(
                connection = deposit.connection,
                "no daemon serves the block devices that are kept: their I/O fails from now on"
            );
            // Closing the last descriptor does the same; this also helps against a daemon that does not die.
            if let Err(error) = fs::write(&path, "1") {
                tracing::debug!(%error, path, "the connection ends with its descriptors alone");
            }
        }
        self.close();
    }

    fn close(&mut self) {
        if let Some(Deposit { device, root, state, .. }) = self.kept.take() {
            // The connection first: what still waits for it fails, and nothing waits while the mount goes.
            drop(device);
            drop(root);
            drop(state);
        }
        self.deadline = None;
    }

    /// Whether anything is kept.
    pub fn keeps_something(&self) -> bool {
        self.kept.is_some()
    }
}

impl AsFd for Holder {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

fn remove_socket(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
