//! `cluster status`: what runs, and whether it is well.

use std::fs;
use std::time::Duration;

use anyhow::Result;

use super::parts::Plan;
use super::{Layout, NAMESPACE, kubectl, parts};
use crate::world::World;
use parallax_e2e::process;
use parallax_e2e::say;

/// Process id of `unshare`, outside the node, when it runs.
pub(crate) fn supervisor(layout: &Layout) -> Option<u32> {
    let pid: u32 = fs::read_to_string(layout.pid_file()).ok()?.trim().parse().ok()?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    // Process ids are used again: it must be ours.
    String::from_utf8_lossy(&line).contains("supervise").then_some(pid)
}

/// Process id, as seen outside, of the node's process 1.
pub(crate) fn init(layout: &Layout) -> Option<u32> {
    let pid = supervisor(layout)?;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Prints parts, node and pods.
pub(crate) fn run(world: &World) -> Result<()> {
    let layout = Layout::of(world);
    let Some(init) = init(&layout) else {
        println!("The development cluster does not run. Start it with: cargo xtask cluster up");
        return Ok(());
    };
    println!("{}", say::bold(format!("One-node Kubernetes at {}", parts::address())));
    let running = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap_or_default();
    let names: Vec<String> = running
        .split_whitespace()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect();
    let plan: Plan = serde_json::from_str(&fs::read_to_string(layout.at("plan.json"))?)?;
    for part in &plan.parts {
        // The kernel keeps 15 characters of a name.
        let alive = names.iter().any(|name| part.name.starts_with(name.as_str()));
        println!("  {:<26}{}", part.name, if alive { say::good("runs") } else { say::bad("down") });
    }
    println!("  {:<26}{}", "logs", plan.logs.display());
    println!("  {:<26}{}", "kubeconfig", layout.kubeconfig().display());
    for arguments in [
        vec!["get", "nodes", "-o", "wide"],
        vec!["get", "pods", "-n", NAMESPACE, "-o", "wide"],
        vec!["get", "pvc,volumesnapshots", "-A"],
    ] {
        println!();
        let answer = process::output(&mut kubectl(world, &arguments), Duration::from_secs(15));
        println!("{}", answer.unwrap_or_else(|error| format!("{error:#}")).trim_end());
    }
    Ok(())
}
