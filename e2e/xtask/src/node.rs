//! parallaxd alone, over a pool in a file, and what it serves over NBD: for verbs that need no Kubernetes.
//!
//! Invariants:
//! * Every process that was started here ends with the value that stands for it, servers before their daemon.
//! * Garbage is collected only when somebody asks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::build::ProjectBinaries;
use crate::verbs::e2e::sanity::answers;
use parallax_e2e::{process, say};

/// Longest time of an orderly end: a daemon checkpoints.
const STOP: Duration = Duration::from_secs(40);
/// Longest time of a check of a whole pool.
const CHECK: Duration = Duration::from_secs(600);

/// A process in the background; it is asked to end, and waited for, when this is dropped.
pub(crate) struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts it and waits until it accepts on `socket`.
    pub(crate) fn start(command: &mut Command, socket: &Path) -> Result<Self> {
        let server = Self::begin(command, socket)?;
        server.accepts()?;
        Ok(server)
    }

    /// Starts it. Its words go to a log beside the socket.
    pub(crate) fn begin(command: &mut Command, socket: &Path) -> Result<Self> {
        match fs::remove_file(socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", socket.display()));
            }
            _ => {}
        }
        let child = process::background(command, &socket.with_extension("log"))?;
        Ok(Self { child, socket: socket.to_owned() })
    }

    /// Starts something that has no socket.
    pub(crate) fn aside(command: &mut Command, log: &Path) -> Result<Self> {
        Ok(Self { child: process::background(command, log)?, socket: log.with_extension("sock") })
    }

    /// Waits until it accepts.
    pub(crate) fn accepts(&self) -> Result<()> {
        answers(&self.socket).with_context(|| format!("log {}", self.log().display()))
    }

    /// Waits until it ends by itself; an error if it fails or takes longer than `limit`.
    pub(crate) fn ends(&mut self, what: &str, limit: Duration) -> Result<()> {
        let status = process::finish(&mut self.child, what, limit)?;
        if !status.success() {
            let text = fs::read_to_string(self.log()).unwrap_or_default();
            anyhow::bail!(
                "{what} ended with {status}; log {}:\n{}",
                self.log().display(),
                process::tail(&text, 20)
            );
        }
        Ok(())
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn log(&self) -> PathBuf {
        self.socket.with_extension("log")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either may find that it has ended by itself.
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM).ok();
        }
        if process::finish(&mut self.child, "a server", STOP).is_err() {
            say::note(format!(
                "a server was killed after {} s; log {}",
                STOP.as_secs(),
                self.log().display()
            ));
        }
    }
}

/// A daemon over `FOLDER/pool.img`.
pub(crate) struct Node {
    folder: PathBuf,
    binaries: ProjectBinaries,
    daemon: Option<Server>,
    /// In shared memory, as on a real node.
    tails: PathBuf,
}

impl Node {
    /// A daemon that does not run yet. Sockets lie in `folder`, so its path must be short.
    pub(crate) fn new(folder: &Path, binaries: &ProjectBinaries) -> Self {
        let tails = PathBuf::from(format!("/dev/shm/parallax-xtask-{}", std::process::id()));
        Self { folder: folder.to_owned(), binaries: binaries.clone(), daemon: None, tails }
    }

    /// Starts it; a blank pool is formatted. With `size`, a pool that does not exist is created.
    pub(crate) fn start(&mut self, size: Option<u64>) -> Result<()> {
        let folder = self.folder.display();
        let create = size.map_or_else(|| "{}".to_owned(), |size| format!("{{size: {}MiB}}", size >> 20));
        let config = format!(
            "node: this-machine\npool:\n  path: {folder}/pool.img\n  create: {create}\n\
             socket: {folder}/parallaxd.sock\ntails: {}\n\
             exports:\n  directory: {folder}/exports\ngc:\n  automatic: false\n",
            self.tails.display()
        );
        let path = self.folder.join("parallaxd.yaml");
        fs::write(&path, config).context("writing the daemon's configuration")?;
        let mut command = process::command(&self.binaries.parallaxd);
        command.arg("--config").arg(&path);
        self.daemon = Some(Server::start(&mut command, &self.folder.join("parallaxd.sock"))?);
        Ok(())
    }

    /// Ends it.
    pub(crate) fn stop(&mut self) {
        self.daemon = None;
    }

    /// Process of the daemon.
    pub(crate) fn pid(&self) -> Result<u32> {
        Ok(self.daemon.as_ref().context("the daemon does not run")?.pid())
    }

    /// The pool's file.
    pub(crate) fn pool(&self) -> PathBuf {
        self.folder.join("pool.img")
    }

    /// The command line, going through the daemon.
    pub(crate) fn command(&self) -> Command {
        let mut command = process::command(&self.binaries.parallax);
        command.arg("--socket").arg(self.folder.join("parallaxd.sock"));
        command
    }

    /// Runs a command of the command line and gives back what it printed.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Result<String> {
        process::output(self.command().args(arguments), process::COMMAND)
    }

    /// Begins to serve a volume on `FOLDER/VOLUME.sock`.
    pub(crate) fn begin_serving(&self, volume: &str) -> Result<Server> {
        let socket = self.folder.join(format!("{volume}.sock"));
        let mut command = self.command();
        command.args(["serve", volume, "--nbd"]).arg(&socket);
        Server::begin(&mut command, &socket)
    }

    /// The same, and waits until it accepts.
    pub(crate) fn serve(&self, volume: &str) -> Result<Server> {
        let server = self.begin_serving(volume)?;
        server.accepts()?;
        Ok(server)
    }

    /// Ends the daemon and verifies the whole pool, as a person would.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.stop();
        let mut command = process::command(&self.binaries.parallax);
        command.arg("--pool").arg(self.pool()).arg("check");
        process::output(&mut command, CHECK).map(drop)
    }

    /// Version of the daemon.
    pub(crate) fn version(&self) -> Result<String> {
        let mut command = process::command(&self.binaries.parallaxd);
        Ok(process::output(command.arg("--version"), process::COMMAND)?.trim().to_owned())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
        // There is none if the daemon never started.
        fs::remove_dir_all(&self.tails).ok();
    }
}
