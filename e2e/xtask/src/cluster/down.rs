//! `cluster down`: ends everything, then removes what is left of it.
//!
//! Never hangs: the node's process 1 is killed, and with it every process of the node. What the kernel cannot
//! end within the deadline (a task stuck in I/O) is named instead of waited for.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::files::CGROUP;
use super::up::cgroup_hierarchies;
use super::{Layout, NAMESPACE, helm, kubectl, network, status};
use crate::world::World;
use parallax_e2e::process::{self, COMMAND};
use parallax_e2e::{say, wait};

const KILL: Duration = Duration::from_secs(30);

/// Stops the cluster and removes its state. Logs are kept until the next `up` with `keep_logs`.
pub(crate) fn run(world: &World) -> Result<()> {
    let layout = Layout::of(world);
    if let Some(init) = status::init(&layout) {
        say::step("stopping the cluster", || stop(world, &layout, init))?;
    }
    let loops = stale_loops()?;
    for device in &loops {
        // Its backing file has lost its server; detaching is all that can be done, and it may already be gone.
        process::output(process::command("losetup").args(["--detach", device]), COMMAND).ok();
    }
    network::remove()?;
    for hierarchy in cgroup_hierarchies() {
        remove_cgroup(&hierarchy.join(CGROUP));
    }
    if layout.root.exists() {
        say::step("removing its state", || {
            wait::until("the node's mounts to be released", KILL, || {
                fs::remove_dir_all(&layout.root).context("removing the state directory").map(Some)
            })
        })?;
    }
    println!("{} the cluster is down", say::good("✓"));
    Ok(())
}

fn stop(world: &World, layout: &Layout, init: u32) -> Result<()> {
    // A clean end lets the daemon checkpoint and detach; the cluster need not be well for it, so failures pass.
    let pods = ["delete", "pods", "--all", "-A", "--grace-period=3", "--wait=false"];
    process::output(&mut kubectl(world, &pods), Duration::from_secs(10)).ok();
    let uninstall = ["uninstall", "parallax", "-n", NAMESPACE, "--no-hooks"];
    process::output(&mut helm(world, &uninstall), Duration::from_secs(10)).ok();
    let supervisor = status::supervisor(layout);
    for pid in [Some(init), supervisor].into_iter().flatten() {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::KILL).ok();
        }
    }
    if !process::ends_within(init, KILL)? {
        say::note(format!(
            "process {init} is stuck in the kernel; something waits for a device that nobody serves"
        ));
    }
    fs::remove_file(layout.pid_file()).ok();
    Ok(())
}

/// Loop devices of Parallax whose server is dead. One that still answers belongs to somebody else.
fn stale_loops() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").context("reading /sys/block")? {
        let entry = entry.context("reading /sys/block")?;
        let Ok(backing) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        let device = format!("/dev/{}", entry.file_name().to_string_lossy());
        let mut read = process::command("dd");
        read.args([&format!("if={device}"), "of=/dev/null", "bs=4096", "count=1", "iflag=direct"]);
        if backing.starts_with("/parallax-") && process::output(&mut read, Duration::from_secs(5)).is_err() {
            found.push(device);
        }
    }
    Ok(found)
}

/// Removes a cgroup from its leaves up. A busy one stays; it costs nothing and the next `up` uses it again.
fn remove_cgroup(path: &Path) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path());
    }
    fs::remove_dir(path).ok();
}
