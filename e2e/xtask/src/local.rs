//! parallaxd and both CSI plugins as plain processes on this machine, over a pool in a file.
//!
//! Invariants:
//! * The daemon has a mount namespace of its own, as in its container: whoever mounts its devices must not share
//!   one with it.
//! * Dropping a stack ends its processes, the plugins first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result};
use parallax_e2e::process;
use parallax_e2e::say;
use rustix::process::{Pid, Signal, kill_process};

use crate::build::ProjectBinaries;
use crate::verbs::e2e::sanity::{answers, parallax};
use crate::world::World;

/// Size of the pool's file. Sparse.
const POOL_SIZE: &str = "16GiB";
/// Longest time of a clean end: the daemon checkpoints.
const STOP: Duration = Duration::from_secs(40);

/// A running stack.
pub(crate) struct Stack {
    folder: PathBuf,
    cli: PathBuf,
    processes: Vec<Process>,
}

struct Process {
    name: &'static str,
    child: Child,
}

impl Stack {
    /// Starts daemon, controller and node plugin in a fresh folder `STATE/NAME`.
    pub(crate) fn start(world: &World, name: &str, binaries: &ProjectBinaries) -> Result<Self> {
        let folder = world.state.join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
        }
        for part in ["run/exports", "kubelet/plugins", "kubelet/plugins_registry"] {
            fs::create_dir_all(folder.join(part))
                .with_context(|| format!("creating {}", folder.display()))?;
        }
        let mut stack = Self { folder, cli: binaries.parallax.clone(), processes: Vec::new() };
        stack.start_daemon(binaries)?;
        stack.start_plugins(binaries)?;
        Ok(stack)
    }

    fn start_daemon(&mut self, binaries: &ProjectBinaries) -> Result<()> {
        let folder = self.folder.display();
        let config = format!(
            "node: this-machine\n\
             pool:\n  path: {folder}/pool.img\n  create:\n    size: {POOL_SIZE}\n\
             socket: {folder}/run/parallaxd.sock\n\
             tails: {folder}/tails\n\
             exports:\n  directory: {folder}/run/exports\n"
        );
        let path = self.folder.join("parallaxd.yaml");
        fs::write(&path, config).context("writing the daemon's configuration")?;
        let mut command = process::command("unshare");
        command.args(["--mount", "--propagation", "private", "--"]).arg(&binaries.parallaxd);
        command.arg("--config").arg(&path);
        self.spawn("parallaxd", &mut command)?;
        answers(&self.daemon_socket())
    }

    fn start_plugins(&mut self, binaries: &ProjectBinaries) -> Result<()> {
        let unix = |path: PathBuf| format!("unix://{}", path.display());
        let mut controller = process::command(&binaries.parallax_csi);
        controller.args(["controller", "--endpoint", &unix(self.controller_socket())]);
        controller.args(["--manager", &unix(self.daemon_socket())]);
        self.spawn("controller", &mut controller)?;
        let mut node = process::command(&binaries.parallax_csi);
        node.args(["node", "--endpoint", &unix(self.node_socket()), "--daemon", &unix(self.daemon_socket())]);
        node.arg("--no-registrar").arg("--kubelet-dir").arg(self.kubelet());
        self.spawn("node", &mut node)?;
        answers(&self.controller_socket())?;
        answers(&self.node_socket())
    }

    fn spawn(&mut self, name: &'static str, command: &mut std::process::Command) -> Result<()> {
        let child = process::background(command, &self.folder.join(format!("{name}.log")))?;
        self.processes.push(Process { name, child });
        Ok(())
    }

    /// Everything of this stack.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the plugin takes for kubelet's directory.
    pub(crate) fn kubelet(&self) -> PathBuf {
        self.folder.join("kubelet")
    }

    /// Where the daemon answers.
    pub(crate) fn daemon_socket(&self) -> PathBuf {
        self.folder.join("run/parallaxd.sock")
    }

    /// Where the controller plugin answers.
    pub(crate) fn controller_socket(&self) -> PathBuf {
        self.folder.join("run/controller.sock")
    }

    /// Where the node plugin answers.
    pub(crate) fn node_socket(&self) -> PathBuf {
        self.folder.join("run/node.sock")
    }

    /// Verifies the pool through the daemon.
    pub(crate) fn check(&self) -> Result<()> {
        parallax(&self.cli, &self.daemon_socket(), &["check"]).map(drop)
    }

    /// Ends everything; an error when the daemon did not end by itself.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        while let Some(mut process) = self.processes.pop() {
            if let Some(pid) = i32::try_from(process.child.id()).ok().and_then(Pid::from_raw) {
                kill_process(pid, Signal::TERM).ok();
            }
            if let Err(error) = process::finish(&mut process.child, process.name, STOP) {
                outcome = Err(error);
            }
        }
        outcome
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            say::note(format!("stopping: {error:#}"));
        }
    }
}
