//! Memory and CPU of a daemon that has nothing to do.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::Plan;
use super::peers::Parallax;
use super::progress::Progress;

/// For `--only`.
pub(super) const NAME: &str = "idle";
/// Until what starting left to do is done.
const SETTLE: Duration = Duration::from_secs(3);
/// How long the CPU is watched.
const WATCH: Duration = Duration::from_secs(10);
/// Ticks of the kernel's CPU accounting, the same on every Linux that Debian ships.
const TICKS_PER_SECOND: f64 = 100.0;

/// A daemon that serves so many volumes.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Idle {
    pub(super) volumes: u32,
    /// Memory of its own.
    pub(super) private_bytes: u64,
    /// Pages of its program file, which others could share.
    pub(super) file_bytes: u64,
    pub(super) cpu_percent: f64,
    pub(super) threads: u64,
}

/// Starts the daemon anew, so that what the rows left in its caches does not count.
pub(super) fn measure(parallax: &mut Parallax, plan: Plan, progress: &mut Progress) -> Result<Vec<Idle>> {
    progress.says("an idle daemon");
    parallax.restart()?;
    let mut all = vec![look(parallax.pid()?, 1)?];
    progress.says(&format!("an idle daemon with {} volumes", plan.volumes));
    parallax.serve_more(plan.volumes - 1)?;
    all.push(look(parallax.pid()?, plan.volumes)?);
    Ok(all)
}

fn look(pid: u32, volumes: u32) -> Result<Idle> {
    thread::sleep(SETTLE);
    let before = ticks(pid)?;
    thread::sleep(WATCH);
    let used = ticks(pid)?.saturating_sub(before);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading a process's status")?;
    let number = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim_start_matches(':').trim_end_matches("kB").trim().parse::<u64>().ok()
    };
    let bytes = |key: &str| Ok::<_, anyhow::Error>(number(key).with_context(|| format!("no {key}"))? << 10);
    Ok(Idle {
        volumes,
        private_bytes: bytes("RssAnon")? + bytes("RssShmem")?,
        file_bytes: bytes("RssFile")?,
        cpu_percent: used as f64 / TICKS_PER_SECOND / WATCH.as_secs_f64() * 100.0,
        threads: number("Threads").context("no Threads")?,
    })
}

/// CPU time of a process in ticks, its own and the kernel's for it.
fn ticks(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("reading a process's times")?;
    times(&text).context("a process without times")
}

/// Fields 14 and 15; the name before them may hold anything, but ends with the last parenthesis.
fn times(stat: &str) -> Option<u64> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194304 100 0 0 0 17 5 0 0 20 0 9 0 100 1000 200";
        assert_eq!(times(stat), Some(22));
    }
}
