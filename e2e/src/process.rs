//! Running other programs: to their end with a deadline, or on in the background.
//!
//! Invariants:
//! * Output of a program never fills a pipe that nobody reads: it goes to a file or to a reader thread.
//! * A program that outlives its deadline is killed and reported; nothing here waits for ever.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Long enough for any single command that is not a build.
pub const COMMAND: Duration = Duration::from_secs(120);
/// Long enough for a cold build of the largest program.
pub const BUILD: Duration = Duration::from_secs(40 * 60);

/// Begins a command.
pub fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.stdin(Stdio::null());
    command
}

/// Runs to the end and gives back standard output; an error carries the end of standard error.
pub fn output(command: &mut Command, limit: Duration) -> Result<String> {
    let shown = show(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {shown}"))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = finish(&mut child, &shown, limit)?;
    let stdout = stdout.join().unwrap_or_default();
    let stderr = stderr.join().unwrap_or_default();
    if !status.success() {
        bail!("{shown} ended with {status}: {}", tail(&format!("{stdout}{stderr}"), 15));
    }
    Ok(stdout)
}

/// Runs to the end with all output in the file `log`; an error carries the end of it.
pub fn logged(command: &mut Command, log: &Path, limit: Duration) -> Result<()> {
    let shown = show(command);
    let file = append(log)?;
    let mut child = command
        .stdout(file.try_clone().with_context(|| format!("opening {}", log.display()))?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("starting {shown}"))?;
    let status = finish(&mut child, &shown, limit)?;
    if !status.success() {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        bail!("{shown} ended with {status}; log {}:\n{}", log.display(), tail(&text, 20));
    }
    Ok(())
}

/// Runs to the end with the terminal's own output.
pub fn shown(command: &mut Command, limit: Duration) -> Result<()> {
    let text = show(command);
    let mut child = command.spawn().with_context(|| format!("starting {text}"))?;
    let status = finish(&mut child, &text, limit)?;
    if !status.success() {
        bail!("{text} ended with {status}");
    }
    Ok(())
}

/// Starts a program that goes on; its output is appended to `log`.
pub fn background(command: &mut Command, log: &Path) -> Result<Child> {
    let shown = show(command);
    let file = append(log)?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone().with_context(|| format!("opening {}", log.display()))?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("starting {shown}"))
}

/// Waits for the end of `child` without polling; kills it at the deadline.
pub fn finish(child: &mut Child, shown: &str, limit: Duration) -> Result<ExitStatus> {
    if let Some(status) = child.try_wait().with_context(|| format!("waiting for {shown}"))? {
        return Ok(status);
    }
    if !ends_within(child.id(), limit)? {
        child.kill().with_context(|| format!("killing {shown}"))?;
        child.wait().with_context(|| format!("waiting for {shown}"))?;
        bail!("{shown} did not end within {} s and was killed", limit.as_secs());
    }
    child.wait().with_context(|| format!("waiting for {shown}"))
}

/// Whether the process ends (or has ended) within `limit`.
pub fn ends_within(pid: u32, limit: Duration) -> Result<bool> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(true) };
    let fd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        Err(error) => return Err(error).context("opening a process descriptor"),
    };
    let begun = Instant::now();
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let timeout = Timespec::try_from(left).context("a deadline beyond the clock's range")?;
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for a process"),
        }
    }
}

/// The command as a person would type it, shortened.
pub fn show(command: &Command) -> String {
    let mut text = Path::new(command.get_program())
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    if text.chars().count() > 160 {
        text = text.chars().take(160).collect::<String>() + " …";
    }
    text
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn append(log: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening the log {}", log.display()))
}

fn drain(source: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut source) = source {
            // A broken pipe ends the text early; what was read is still worth showing.
            source.read_to_end(&mut bytes).ok();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_past_its_deadline_is_killed_and_named() {
        let error = output(command("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("sleep 60 did not end"), "{error}");
    }

    #[test]
    fn the_error_of_a_failed_program_carries_its_words() {
        let error = output(command("ls").arg("/nowhere/at/all"), COMMAND).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }

    #[test]
    fn the_tail_keeps_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 5), "a");
    }
}
