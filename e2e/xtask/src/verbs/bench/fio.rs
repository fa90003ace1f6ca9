//! One run of fio, and what came of it.
//!
//! A run of writes ends with a flush that counts into its time, so that what a peer left in memory is paid for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use parallax_e2e::process;

/// What fio writes and reads.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// The file itself, by io_uring, past the page cache.
    File(PathBuf),
    /// A server on a Unix socket, by fio's NBD engine.
    Nbd(PathBuf),
}

/// Direction and order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Pattern {
    RandomRead,
    RandomWrite,
    Read,
    Write,
}

impl Pattern {
    pub(super) const fn writes(self) -> bool {
        matches!(self, Self::RandomWrite | Self::Write)
    }

    const fn word(self) -> &'static str {
        match self {
            Self::RandomRead => "randread",
            Self::RandomWrite => "randwrite",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// When a run is over.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// After a time, however often that goes over the image.
    Time(Duration),
    /// After so many requests.
    Requests(u64),
    /// After one pass over the image.
    Pass,
}

/// A workload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) pattern: Pattern,
    /// Bytes of a request.
    pub(super) block: u64,
    /// Requests in flight.
    pub(super) depth: u32,
    /// A flush after each write.
    pub(super) flush: bool,
    /// Most requests a second; `None` is as many as there are.
    pub(super) rate: Option<u32>,
}

/// What one run gave.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Sample {
    pub(super) iops: f64,
    pub(super) bytes_per_second: f64,
    /// Mean and 99th percentile of the time of one request, without its flush.
    pub(super) mean_us: f64,
    pub(super) p99_us: f64,
}

/// Runs `job` over `bytes` of `target`. One seed gives one order of requests.
pub(super) fn run(target: &Target, job: Job, bytes: u64, end: End, seed: u64) -> Result<Sample> {
    let mut command = command(target, job, bytes, end, seed);
    let limit = match end {
        End::Time(time) => time + Duration::from_secs(120),
        End::Requests(_) | End::Pass => Duration::from_secs(300),
    };
    let text = process::output(&mut command, limit)?;
    sample(&text, job.pattern)
        .with_context(|| format!("fio reported nothing usable: {}", process::tail(&text, 5)))
}

/// The command, for whoever wants to run it in the background.
pub(super) fn command(target: &Target, job: Job, bytes: u64, end: End, seed: u64) -> std::process::Command {
    let mut command = process::command("fio");
    command.args(["--name=row", "--output-format=json"]);
    match target {
        Target::File(path) => {
            command.args(["--ioengine=io_uring", "--direct=1"]).arg(filename(path));
        }
        Target::Nbd(socket) => {
            command.arg("--ioengine=nbd").arg(format!("--uri=nbd+unix:///?socket={}", socket.display()));
        }
    }
    command.arg(format!("--rw={}", job.pattern.word())).arg(format!("--bs={}", job.block));
    command.arg(format!("--iodepth={}", job.depth)).arg(format!("--size={bytes}"));
    command.arg(format!("--randseed={seed}"));
    match end {
        End::Time(time) => {
            command.arg("--time_based").arg(format!("--runtime={}ms", time.as_millis()));
        }
        End::Requests(count) => {
            command.arg(format!("--io_size={}", count * job.block));
        }
        End::Pass => {}
    }
    if let Some(rate) = job.rate {
        command.arg(format!("--rate_iops={rate}"));
    }
    if job.pattern.writes() {
        command.arg("--end_fsync=1");
    }
    if job.flush {
        // Only the data for the file: its size does not change. The NBD engine knows one kind of flush.
        command.arg(match target {
            Target::File(_) => "--fdatasync=1",
            Target::Nbd(_) => "--fsync=1",
        });
    }
    command
}

fn filename(path: &Path) -> String {
    format!("--filename={}", path.display())
}

/// Reads fio's report; a warning before the JSON is passed over.
fn sample(text: &str, pattern: Pattern) -> Option<Sample> {
    let report: Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
    let job = report.get("jobs")?.get(0)?;
    if job.get("error")?.as_u64()? != 0 {
        return None;
    }
    let side = job.get(if pattern.writes() { "write" } else { "read" })?;
    let number = |value: &Value| value.as_f64();
    let latency = side.get("clat_ns")?;
    let p99 = latency.get("percentile").and_then(|all| all.get("99.000000")).and_then(number);
    Some(Sample {
        iops: number(side.get("iops")?).filter(|iops| *iops > 0.0)?,
        bytes_per_second: number(side.get("bw_bytes")?)?,
        mean_us: number(latency.get("mean")?)? / 1e3,
        p99_us: p99.unwrap_or_default() / 1e3,
    })
}

/// Name and version.
pub(super) fn version() -> Result<String> {
    Ok(process::output(process::command("fio").arg("--version"), process::COMMAND)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"fio: this is a warning
        {"jobs": [{"error": 0,
          "read": {"iops": 0.0, "bw_bytes": 0, "clat_ns": {"mean": 0.0}},
          "write": {"iops": 1000.5, "bw_bytes": 4098048,
                    "clat_ns": {"mean": 90000.0, "percentile": {"99.000000": 250000}}}}]}"#;

    #[test]
    fn the_side_that_was_asked_for_is_read() {
        let sample = sample(REPORT, Pattern::RandomWrite).unwrap();
        assert_eq!((sample.iops, sample.mean_us, sample.p99_us), (1000.5, 90.0, 250.0));
    }

    #[test]
    fn a_run_that_did_nothing_or_failed_is_not_a_sample() {
        assert!(sample(REPORT, Pattern::RandomRead).is_none());
        assert!(sample(&REPORT.replace("\"error\": 0", "\"error\": 5"), Pattern::RandomWrite).is_none());
        assert!(sample("no report", Pattern::Read).is_none());
    }

    #[test]
    fn a_flush_after_each_write_is_asked_for_in_the_words_of_each_engine() {
        let job = Job { pattern: Pattern::RandomWrite, block: 4096, depth: 1, flush: true, rate: None };
        let asks = |target: &Target, option: &str| {
            command(target, job, 1 << 20, End::Pass, 1).get_args().any(|argument| argument == option)
        };
        assert!(asks(&Target::File("/x".into()), "--fdatasync=1"));
        assert!(asks(&Target::Nbd("/x".into()), "--fsync=1"));
    }
}
