//! csi-sanity against parallaxd and parallax-csi as they are shipped, three processes on this machine.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use parallax_e2e::process::{self, COMMAND};
use parallax_e2e::{say, wait};

use crate::build::{self, CSI_SANITY, Profile};
use crate::local::Stack;
use crate::verbs::ci::Count;
use crate::world::World;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How the project's programs are compiled.
    #[arg(long, value_enum, default_value = "dev")]
    pub(crate) profile: Profile,
    /// Only the tests whose name matches this expression.
    #[arg(long)]
    pub(crate) focus: Option<String>,
}

/// Tests that are left out, each for a reason. None is.
const SKIPPED: &[&str] = &[];

/// Runs the conformance test; an error when any test of it failed.
pub(crate) fn run(world: &World, args: &Args) -> Result<Count> {
    if !rustix::process::geteuid().is_root() {
        bail!("csi-sanity mounts real volumes and needs root. Run: sudo -E cargo xtask e2e sanity");
    }
    CSI_SANITY.ensure(world)?;
    let binaries = build::project_binaries(world, args.profile)?;
    let stack =
        say::step("starting parallaxd and both CSI plugins", || Stack::start(world, "sanity", &binaries))?;
    let report = stack.folder().join("csi-sanity.log");
    let mut command = process::command(CSI_SANITY.program(world, "csi-sanity"));
    command.arg(format!("--csi.endpoint=unix://{}", stack.node_socket().display()));
    command.arg(format!("--csi.controllerendpoint=unix://{}", stack.controller_socket().display()));
    // Both folders must not exist: the test makes them itself, below what the plugin accepts as kubelet's.
    command.arg(format!("--csi.mountdir={}", stack.kubelet().join("target").display()));
    command.arg(format!("--csi.stagingdir={}", stack.kubelet().join("staging").display()));
    command.args(["--csi.testvolumesize=268435456", "--csi.testvolumeexpandsize=536870912"]);
    command.args(["--ginkgo.no-color", "--ginkgo.v"]);
    if let Some(focus) = &args.focus {
        command.arg(format!("--ginkgo.focus={focus}"));
    }
    if !SKIPPED.is_empty() {
        command.arg(format!("--ginkgo.skip={}", SKIPPED.join("|")));
    }
    command.env("GOMAXPROCS", "1");
    let mut run = || {
        fs::remove_file(&report).ok();
        let outcome =
            say::step("csi-sanity", || process::logged(&mut command, &report, Duration::from_secs(900)));
        let text = fs::read_to_string(&report).context("reading the report of csi-sanity")?;
        anyhow::Ok((outcome, text))
    };
    let (mut outcome, mut text) = run()?;
    // It waits for its connection to change, a minute long, also if that was ready before it began to wait. One
    // processor makes this rare.
    if outcome.is_err() && text.contains("Connection timed out") {
        say::note("csi-sanity has missed that it was connected; once more");
        (outcome, text) = run()?;
    }
    let count = summary(&text)
        .with_context(|| format!("csi-sanity gave no summary: {}", process::tail(&text, 20)))?;
    println!("{} passed, {} failed; report {}", count.passed, count.failed, report.display());
    if outcome.is_err() || count.failed > 0 {
        for line in text.lines().filter(|line| line.trim_start().starts_with("[FAIL]")) {
            println!("  {}", say::bad(line.trim()));
        }
    }
    say::step("the whole pool is verified", || stack.check())?;
    stack.stop()?;
    if outcome.is_err() && count.failed == 0 {
        outcome?;
    }
    if count.failed > 0 {
        println!("logs: {}", world.state.join("sanity").display());
    }
    Ok(count)
}

/// Counts of ginkgo's closing line, `FAIL! -- 3 Passed | 1 Failed | 0 Pending | 2 Skipped`.
pub(crate) fn summary(text: &str) -> Option<Count> {
    let line = text.lines().rev().find(|line| line.contains(" Passed | ") && line.contains(" Failed"))?;
    let number = |word: &str| {
        let before = line.split(word).next()?;
        before.rsplit(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty())?.parse().ok()
    };
    Some(Count { passed: number(" Passed")?, failed: number(" Failed")? })
}

/// Waits until a socket accepts.
pub(crate) fn answers(socket: &Path) -> Result<()> {
    wait::until(&format!("{} to accept", socket.display()), Duration::from_secs(30), || {
        std::os::unix::net::UnixStream::connect(socket).map(Some).context("connecting").map(|s| s.map(drop))
    })
}

/// Runs the command line of Parallax against a daemon's socket.
pub(crate) fn parallax(program: &Path, socket: &Path, arguments: &[&str]) -> Result<String> {
    let mut command: Command = process::command(program);
    command.arg("--socket").arg(socket).args(arguments);
    process::output(&mut command, COMMAND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_of_ginkgo_is_read() {
        let text = "noise 7 Passed\nRan 92 of 94 Specs in 12.1 seconds\n\
            FAIL! -- 90 Passed | 2 Failed | 1 Pending | 1 Skipped\n";
        assert_eq!(summary(text), Some(Count { passed: 90, failed: 2 }));
        assert_eq!(summary("nothing"), None);
    }
}
