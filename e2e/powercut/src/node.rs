//! The real daemon with its holder, over a pool in a file: for what a process that dies leaves behind.
//!
//! Invariants:
//! * Daemon and holder have a mount namespace of their own, as in their containers.
//! * Everything ends with the value that stands for it.

use anyhow::{Context, Result, bail, ensure};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Longest time of a start.
const START_MAX: Duration = Duration::from_secs(60);
/// Seconds that I/O waits for a daemon before it fails.
const PATIENCE: &str = "120";

/// See the module.
pub(crate) struct Node {
    folder: tempfile::TempDir,
    /// In shared memory, as on a real node.
    tails: tempfile::TempDir,
    programs: PathBuf,
    holder: Option<Child>,
    daemon: Option<Child>,
}

impl Node {
    /// Neither runs yet. `programs`: the folder of `parallaxd` and `parallax`.
    pub(crate) fn new(programs: &Path) -> Result<Self> {
        for program in ["parallaxd", "parallax"] {
            let path = programs.join(program);
            ensure!(
                path.is_file(),
                "there is no program {}; `cargo build -p {program}` makes it",
                path.display()
            );
        }
        let folder = tempfile::Builder::new().prefix("powercut-").tempdir()?;
        let mount = folder.path().join("mount");
        std::fs::create_dir(&mount)?;
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711))?;
        let tails = tempfile::Builder::new().prefix("powercut-tails-").tempdir_in("/dev/shm")?;
        let path = folder.path().display();
        let configuration = format!(
            "node: powercut\npool: {{path: {path}/pool.img, create: {{size: 1GiB}}}}\nsocket: {path}/parallaxd.sock\n\
             tails: {}\nexports: {{directory: {path}/exports, holder: {path}/holder/holder.sock}}\n",
            tails.path().join("tails").display()
        );
        std::fs::write(folder.path().join("parallaxd.yaml"), configuration)?;
        Ok(Self { folder, tails, programs: programs.to_owned(), holder: None, daemon: None })
    }

    /// An empty directory.
    pub(crate) fn mount_point(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    /// Starts the holder.
    pub(crate) fn start_holder(&mut self) -> Result<()> {
        let socket = self.folder.path().join("holder/holder.sock");
        let arguments = ["supervise".into(), "--patience".into(), PATIENCE.into(), "--socket".into()];
        self.holder = Some(self.spawn(&[&arguments[..], &[socket.display().to_string()]].concat())?);
        Ok(())
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) fn start_daemon(&mut self) -> Result<()> {
        let configuration = self.folder.path().join("parallaxd.yaml").display().to_string();
        let mut daemon = self.spawn(&["--config".into(), configuration])?;
        let end = Instant::now() + START_MAX;
        while self.cli(&["list"]).is_err() {
            if let Some(status) = daemon.try_wait()? {
                bail!("the daemon ended with {status}: {}", self.log());
            }
            ensure!(Instant::now() < end, "the daemon does not answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    fn spawn(&self, arguments: &[String]) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.folder.path().join("log"))?;
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--"])
            .arg(self.programs.join("parallaxd"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting unshare")
    }

    /// SIGKILL to the daemon.
    pub(crate) fn kill_daemon(&mut self) -> Result<()> {
        kill(&mut self.daemon)
    }

    /// SIGKILL to the holder.
    pub(crate) fn kill_holder(&mut self) -> Result<()> {
        kill(&mut self.holder)
    }

    /// Runs a command of the command line and gives what it printed.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(self.programs.join("parallax"))
            .arg("--socket")
            .arg(self.folder.path().join("parallaxd.sock"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("starting parallax")?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() {
            bail!(
                "parallax {arguments:?} ended with {}: {text} {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(text)
    }

    /// What daemon and holder have said last.
    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Keeps pool, log and tails for a person to look at; where.
    pub(crate) fn keep(mut self) -> (PathBuf, PathBuf) {
        self.folder.disable_cleanup(true);
        self.tails.disable_cleanup(true);
        (self.folder.path().into(), self.tails.path().into())
    }
}

fn kill(process: &mut Option<Child>) -> Result<()> {
    if let Some(mut process) = process.take() {
        process.kill()?;
        process.wait()?;
    }
    Ok(())
}

impl Drop for Node {
    fn drop(&mut self) {
        // With the holder gone, whatever still waits for a daemon fails.
        let _ = kill(&mut self.holder);
        let _ = kill(&mut self.daemon);
    }
}
