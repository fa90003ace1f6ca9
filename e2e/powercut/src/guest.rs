//! The other process: it mounts, and has a mount namespace of its own.
//!
//! Who serves a block device must not mount it too, or the machine hangs when that process dies. So this program starts
//! itself again for whatever touches the filesystem. The two talk in lines: see [`Word`].

use anyhow::{Context, Result, anyhow, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

/// Longest time between two words.
const SILENCE_MAX: Duration = Duration::from_secs(180);
/// Longest time from the last word to the end.
const END_MAX: Duration = Duration::from_secs(60);

/// The answer after which a guest ends its load.
pub(crate) const STOP: &str = "stop";

/// What the guest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// A promise was kept; it waits until that is recorded.
    Promise { worker: u32, number: u64 },
    /// The load is done, and all is still mounted; it waits.
    Done,
    /// Something is not as it must be.
    Wrong(String),
    /// It could not go on.
    Error(String),
}

impl Word {
    /// As a line.
    pub(crate) fn line(&self) -> String {
        match self {
            Self::Promise { worker, number } => format!("promise {worker} {number}"),
            Self::Done => "done".into(),
            Self::Wrong(text) => format!("wrong {}", text.replace('\n', " ")),
            Self::Error(text) => format!("error {}", text.replace('\n', " ")),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        Some(match word {
            "promise" => {
                let (worker, number) = rest.split_once(' ')?;
                Self::Promise { worker: worker.parse().ok()?, number: number.parse().ok()? }
            }
            "done" => Self::Done,
            "wrong" => Self::Wrong(rest.into()),
            "error" => Self::Error(rest.into()),
            _ => return None,
        })
    }
}

/// A running guest. Dropping it kills it.
pub(crate) struct Guest {
    child: Child,
    input: ChildStdin,
    words: Receiver<Word>,
}

impl Guest {
    /// Starts this program again as `guest ARGUMENTS`.
    pub(crate) fn start(arguments: &[String]) -> Result<Self> {
        // Under this name it is found even when somebody builds another one meanwhile.
        let program = format!("/proc/{}/exe", std::process::id());
        let mut child = Command::new("unshare")
            // Whatever it starts ends with it, and its mounts with that.
            .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--"])
            .arg(program)
            .arg("guest")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting unshare")?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("a process without pipes");
        };
        let (say, words) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let word = Word::parse(&line).unwrap_or_else(|| Word::Error(format!("unexpected: {line}")));
                if say.send(word).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, input, words })
    }

    /// The next word; `None` when it has no more to say.
    pub(crate) fn word(&mut self) -> Result<Option<Word>> {
        match self.words.recv_timeout(SILENCE_MAX) {
            Ok(Word::Error(text)) => Err(anyhow!(text)),
            Ok(word) => Ok(Some(word)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!("nothing happened on the filesystem for {} s: I/O hangs", SILENCE_MAX.as_secs())
            }
        }
    }

    /// Lets it go on.
    pub(crate) fn go_on(&mut self) -> Result<()> {
        self.input.write_all(b"ok\n").context("answering the guest")
    }

    /// Lets it go on no longer.
    pub(crate) fn stop(&mut self) -> Result<()> {
        writeln!(self.input, "{STOP}").context("answering the guest")
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> Result<()> {
        let status = self.ended()?;
        if !status.success() {
            bail!("the guest ended with {status}");
        }
        Ok(())
    }

    /// Kills it, and everything that it has started, and waits for the end of that.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.ended().map(drop)
    }

    fn ended(&mut self) -> Result<ExitStatus> {
        let descriptor = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        let limit = Timespec::try_from(END_MAX)?;
        if poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&limit))? == 0 {
            bail!("the guest does not end within {} s", END_MAX.as_secs());
        }
        Ok(self.child.wait()?)
    }

    /// Everything that it finds wrong, to its end.
    pub(crate) fn findings(mut self) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        while let Some(word) = self.word()? {
            match word {
                Word::Wrong(text) => wrong.push(text),
                other => bail!("unexpected: {other:?}"),
            }
        }
        self.finish()?;
        Ok(wrong)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may be gone already, or wait for a device that ends only with this process.
        let _ = self.child.kill();
        let _ = self.child.try_wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_lines() {
        let words = [
            Word::Promise { worker: 3, number: 9 },
            Word::Done,
            Word::Wrong("a b".into()),
            Word::Error("c".into()),
        ];
        for word in words {
            assert_eq!(Word::parse(&word.line()), Some(word));
        }
        assert_eq!(Word::parse("promise 1"), None);
    }
}
