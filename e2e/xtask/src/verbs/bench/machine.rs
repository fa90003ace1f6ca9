//! The machine that was measured on.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use parallax_e2e::process::{self, COMMAND};

#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    pub(super) processor: String,
    pub(super) cores: usize,
    pub(super) memory_gib: u64,
    pub(super) system: String,
    pub(super) kernel: String,
    /// What the images lie on.
    pub(super) disk: String,
    pub(super) date: String,
}

impl Machine {
    pub(super) fn look(folder: &Path) -> Result<Self> {
        Ok(Self {
            processor: field("/proc/cpuinfo", "model name", ':')?,
            cores: std::thread::available_parallelism().context("counting cores")?.get(),
            memory_gib: memory()?,
            system: field("/etc/os-release", "PRETTY_NAME", '=')?.trim_matches('"').to_owned(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            disk: disk(folder)?,
            date: words(process::command("date").args(["--utc", "+%Y-%m-%d %H:%M UTC"]))?,
        })
    }
}

/// Processes that wanted to run, over the last minute.
pub(super) fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("reading the load")?;
    text.split(' ').next().and_then(|first| first.parse().ok()).context("a load without numbers")
}

/// The first value of a key in a file of lines.
fn field(path: &str, key: &str, between: char) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let value = text.lines().find_map(|line| {
        let (found, value) = line.split_once(between)?;
        (found.trim() == key).then(|| value.trim().to_owned())
    });
    Ok(value.unwrap_or_else(|| "unknown".into()))
}

fn memory() -> Result<u64> {
    let text = field("/proc/meminfo", "MemTotal", ':')?;
    let kib: u64 = text.trim_end_matches("kB").trim().parse().context("reading the size of the memory")?;
    Ok((kib + (1 << 19)) >> 20)
}

fn disk(folder: &Path) -> Result<String> {
    let mut command = process::command("findmnt");
    command.args(["--noheadings", "--output", "FSTYPE,SOURCE", "--target"]).arg(folder);
    let text = words(&mut command)?;
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" on "))
}

fn words(command: &mut std::process::Command) -> Result<String> {
    Ok(process::output(command, COMMAND)?.trim().to_owned())
}
