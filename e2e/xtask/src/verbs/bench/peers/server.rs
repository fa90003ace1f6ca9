//! A server in a process of its own, on a Unix socket.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::super::fio::Target;
use crate::verbs::e2e::sanity::answers;
use parallax_e2e::process;

/// Longest time of an orderly end.
const STOP: Duration = Duration::from_secs(40);

/// Ends with this value.
pub(crate) struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts it and waits until it accepts.
    pub(crate) fn start(command: &mut Command, socket: &Path) -> Result<Self> {
        let server = Self::begin(command, socket)?;
        server.accepts()?;
        Ok(server)
    }

    /// Starts it. Its words go to a log beside the socket.
    pub(crate) fn begin(command: &mut Command, socket: &Path) -> Result<Self> {
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", socket.display()));
            }
            _ => {}
        }
        let child = process::background(command, &socket.with_extension("log"))?;
        Ok(Self { child, socket: socket.to_owned() })
    }

    /// Waits until it accepts.
    pub(crate) fn accepts(&self) -> Result<()> {
        let log = self.socket.with_extension("log");
        answers(&self.socket).with_context(|| format!("log {}", log.display()))
    }

    /// Starts something that has no socket.
    pub(crate) fn aside(command: &mut Command, log: &Path) -> Result<Self> {
        Ok(Self { child: process::background(command, log)?, socket: log.with_extension("sock") })
    }

    /// Its socket.
    pub(crate) fn target(&self) -> Target {
        Target::Nbd(self.socket.clone())
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            kill_process(pid, Signal::TERM).ok();
        }
        if process::finish(&mut self.child, "a server", STOP).is_err() {
            parallax_e2e::say::note(format!(
                "a server did not end within {} s; log {}",
                STOP.as_secs(),
                self.socket.with_extension("log").display()
            ));
        }
    }
}
