//! `parallaxd --respawn`: runs the daemon as a child, and starts it again at once when it is killed.
//!
//! Somebody else restarts it too, but kubelet waits longer after every crash, up to five minutes in which I/O stands
//! still; and no supervisor starts a second daemon before the first is wholly gone, which may itself wait for the
//! second: a thread that asked its own filesystem for something when it was killed is answered by the next daemon.
//!
//! For containers, where everything goes with their first process. Elsewhere a service manager does it.
//!
//! Invariants:
//! * A daemon that ends by itself, well or badly, is not started again: this process ends with its code.
//! * Nor is one that was killed too often in a short time: then there is something to be seen.
//! * There is never more than one daemon that could answer requests: the next one starts when the descriptors of the one
//!   before are closed. A pipe tells that even if a thread of it lives on.

use parallax_block::{Error, ErrorKind, Result, ResultExt};
use rustix::{
    io::{FdFlags, fcntl_setfd},
    process::{Pid, Signal, kill_process},
};
use std::{
    collections::VecDeque,
    io::{self, PipeReader, Read},
    path::Path,
    process::{ExitCode, ExitStatus},
    time::{Duration, Instant},
};
use tokio::process::{Child, Command};

/// Deaths within the window after which it gives up.
const DEATHS_MAX: usize = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// A process whose descriptors are closed is gone for good within this time, or waits for its successor.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// Deaths of late.
#[derive(Default)]
struct Deaths(VecDeque<Instant>);

impl Deaths {
    /// Counts one; whether there were too many.
    fn too_many(&mut self, now: Instant) -> bool {
        self.0.push_back(now);
        self.0.retain(|death| now.duration_since(*death) < WINDOW);
        self.0.len() >= DEATHS_MAX
    }
}

/// How a daemon came to its end.
enum End {
    Status(ExitStatus),
    /// Its descriptors are closed, but a thread of it waits, maybe for its successor.
    Lingering,
}

/// Runs the daemon with that configuration file until it ends by itself or `stop`.
pub async fn run(config: &Path, node: Option<&str>, stop: impl Future<Output = ()>) -> Result<ExitCode> {
    let program = std::env::current_exe().context(|| "looking for this program")?;
    let mut deaths = Deaths::default();
    tokio::pin!(stop);
    loop {
        let (mut child, gone) = start(&program, config, node)?;
        let end = tokio::select! {
            end = wait(&mut child, gone) => end?,
            () = &mut stop => {
                tell_to_stop(&child);
                return child.wait().await.context(|| "waiting for the daemon").map(code_of);
            }
        };
        match end {
            End::Status(status) if status.code().is_some() => return Ok(code_of(status)),
            End::Status(status) => {
                eprintln!("parallaxd: the daemon was killed ({status}); starting it again")
            }
            End::Lingering => {
                eprintln!("parallaxd: the daemon was killed and a thread of it waits; starting the next");
                // Its end is awaited, so that it does not stay as a zombie.
                tokio::spawn(async move { child.wait().await });
            }
        }
        if deaths.too_many(Instant::now()) {
            return Err(Error::new(
                ErrorKind::Io,
                format!("the daemon was killed {DEATHS_MAX} times within {} s", WINDOW.as_secs()),
            ));
        }
    }
}

fn start(program: &Path, config: &Path, node: Option<&str>) -> Result<(Child, PipeReader)> {
    let starting = || "starting the daemon";
    let (reader, writer) = io::pipe().context(starting)?;
    // The child keeps its end open as long as any thread that shares its descriptors lives.
    fcntl_setfd(&writer, FdFlags::empty()).map_err(io::Error::from).context(starting)?;
    let mut command = Command::new(program);
    command.env("PARALLAXD_CONFIG", config).kill_on_drop(true);
    if let Some(node) = node {
        command.env("PARALLAX_NODE", node);
    }
    let child = command.spawn().context(starting)?;
    drop(writer);
    Ok((child, reader))
}

async fn wait(child: &mut Child, mut gone: PipeReader) -> Result<End> {
    let waiting = || "waiting for the daemon";
    let closed = tokio::task::spawn_blocking(move || gone.read(&mut [0]));
    tokio::select! {
        status = child.wait() => return status.context(waiting).map(End::Status),
        _ = closed => {}
    }
    match tokio::time::timeout(LAST_BREATH, child.wait()).await {
        Ok(status) => status.context(waiting).map(End::Status),
        Err(_) => Ok(End::Lingering),
    }
}

fn tell_to_stop(child: &Child) {
    let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(pid) = pid {
        // If it is gone already, its end is noticed at once.
        let _ = kill_process(pid, Signal::TERM);
    }
}

fn code_of(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    /// How a daemon that does what the script says comes to its end.
    async fn end_of(script: &str) -> End {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("daemon");
        fs::write(&program, format!("#!/bin/bash\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let (mut child, gone) = start(&program, Path::new("/config"), Some("node")).unwrap();
        wait(&mut child, gone).await.unwrap()
    }

    #[tokio::test]
    async fn an_end_by_itself_is_told_from_a_kill() {
        let by_itself = end_of("[ $PARALLAXD_CONFIG$PARALLAX_NODE = /confignode ] && exit 3").await;
        assert!(matches!(by_itself, End::Status(status) if status.code() == Some(3)));
        let killed = end_of("kill -9 $$").await;
        assert!(matches!(killed, End::Status(status) if status.code().is_none()));
    }

    /// A thread that was killed while it waits for the daemon's own answer lives until the next daemon answers: whoever
    /// waits for its end before he starts that one waits for ever.
    #[tokio::test]
    async fn a_daemon_that_lingers_without_descriptors_is_not_waited_for() {
        let close_all =
            "for fd in /proc/$$/fd/*; do fd=${fd##*/}; [ $fd -gt 2 ] && eval \"exec $fd>&-\"; done";
        let begun = Instant::now();
        assert!(matches!(end_of(&format!("{close_all}\nsleep 30")).await, End::Lingering));
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn deaths_count_only_while_they_are_recent() {
        let mut deaths = Deaths::default();
        let start = Instant::now();
        for death in 1..DEATHS_MAX {
            assert!(!deaths.too_many(start), "death {death}");
        }
        assert!(!deaths.too_many(start + WINDOW));
        assert_eq!(deaths.0.len(), 1);
        for death in 2..DEATHS_MAX {
            assert!(!deaths.too_many(start + WINDOW), "death {death}");
        }
        assert!(deaths.too_many(start + WINDOW));
    }
}
