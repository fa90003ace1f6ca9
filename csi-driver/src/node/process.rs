//! Runs the filesystem tools of the distribution: bounded in time and in output, killed with us.

use std::ffi::OsStr;
use std::io;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

/// Output of a tool that is kept: enough for its complaint, which comes last.
const OUTPUT_BYTES: usize = 8 << 10;

/// How a tool ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// The end of what it printed to either stream.
    pub(crate) output: String,
    /// The end of what it printed to standard output.
    pub(crate) stdout: String,
}

/// A tool to run.
#[derive(Debug)]
pub(crate) struct Tool {
    command: Command,
    name: &'static str,
    limit: Duration,
}

impl Tool {
    /// A tool found by `name`, to be killed after `limit`.
    pub(crate) fn new(name: &'static str, limit: Duration) -> Self {
        let mut command = Command::new(name);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.env("LC_ALL", "C");
        Self { command, name, limit }
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub(crate) fn args<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.command.args(arguments);
        self
    }

    /// Leaves an open file with the tool, as its standard input: a lock on it lasts until the tool has ended too.
    pub(crate) fn holding(mut self, file: std::fs::File) -> Self {
        self.command.stdin(Stdio::from(file));
        self
    }

    /// Runs it to its end. An error means that it could not be started or did not end in time.
    pub(crate) async fn run(mut self) -> io::Result<Outcome> {
        let started = self.command.spawn();
        let mut child = started.map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("{} cannot be started: {error}; is it installed?", self.name),
            )
        })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (stdout, stderr) = tokio::join!(tail(stdout), tail(stderr));
            let status = child.wait().await?;
            let output = format!("{stdout}{stderr}").trim().to_owned();
            Ok(Outcome { code: status.code(), output, stdout })
        };
        match tokio::time::timeout(self.limit, work).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // A tool that hangs on a dead device ignores the signal until its I/O fails.
                let _ = child.start_kill();
                let seconds = self.limit.as_secs();
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{} did not end in {seconds} s", self.name),
                ))
            }
        }
    }
}

/// Reads to the end and keeps the last bytes.
async fn tail(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut kept = Vec::new();
    let mut piece = vec![0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut piece).await {
        kept.extend_from_slice(&piece[..count]);
        if kept.len() > 2 * OUTPUT_BYTES {
            kept.drain(..kept.len() - OUTPUT_BYTES);
        }
    }
    kept.drain(..kept.len().saturating_sub(OUTPUT_BYTES));
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_bounded_and_its_end_is_kept() {
        let tool =
            Tool::new("sh", Duration::from_secs(20)).args(["-c", "seq 1 20000; echo last words >&2; exit 3"]);
        let outcome = tool.run().await.unwrap();
        assert_eq!(outcome.code, Some(3));
        assert!(outcome.output.len() <= 2 * OUTPUT_BYTES);
        assert!(outcome.output.ends_with("20000\nlast words"), "{}", outcome.output);
    }

    #[tokio::test]
    async fn a_tool_that_hangs_is_given_up() {
        let error = Tool::new("sleep", Duration::from_millis(50)).arg("60").run().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_missing_tool_is_named() {
        let error = Tool::new("mkfs.nothing", Duration::from_secs(1)).run().await.unwrap_err();
        assert!(error.to_string().contains("mkfs.nothing"), "{error}");
    }
}
