//! Process 1 of the node: mounts its directories, starts its parts, starts again what ends.
//!
//! `up` starts this binary once more, inside new process and mount namespaces, with the hidden verb
//! `cluster supervise`.
//!
//! Invariants:
//! * Nothing mounted here is seen outside: the mount namespace was made private before it was shared again
//!   among the node's own containers.
//! * Being process 1, it reaps every orphan; when it dies the kernel kills the rest of the node.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{WaitOptions, wait};

use super::parts::{Part, Plan};
use parallax_e2e::process::{self, COMMAND};

/// A part that keeps ending is not started more often than this.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Runs the plan in the file `path`; returns only on an error of its own.
pub(crate) fn run(path: &Path) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let plan: Plan = serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    mounts(&plan)?;
    let mut running = BTreeMap::new();
    for part in &plan.parts {
        let child = start(part, &plan.logs)?;
        running.insert(child.id(), (part, Instant::now()));
    }
    loop {
        // Children that are no part are orphans of pods: reaped, and that is all.
        let ended = match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => (pid, status),
            Ok(None) | Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("waiting for the parts of the cluster"),
        };
        let pid = ended.0.as_raw_nonzero().get().unsigned_abs();
        if let Some((part, begun)) = running.remove(&pid) {
            eprintln!("{} ended: {:?}; starting it again", part.name, ended.1);
            std::thread::sleep(RESTART_PAUSE.saturating_sub(begun.elapsed()));
            let child = start(part, &plan.logs)?;
            running.insert(child.id(), (part, Instant::now()));
        }
    }
}

fn start(part: &Part, logs: &Path) -> Result<Child> {
    let mut command = process::command(&part.program);
    command.args(&part.arguments);
    process::background(&mut command, &logs.join(format!("{}.log", part.name)))
}

fn mounts(plan: &Plan) -> Result<()> {
    // Containers that ask for bidirectional propagation need shared mounts.
    mount(&["--make-rshared", "/"])?;
    // Whatever the machine itself keeps in /run is not the node's.
    mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])?;
    mount(&["--make-shared", "/run"])?;
    for (source, target) in &plan.binds {
        fs::create_dir_all(target).with_context(|| format!("creating {}", target.display()))?;
        mount(&["--bind", &source.to_string_lossy(), &target.to_string_lossy()])?;
        mount(&["--make-shared", &target.to_string_lossy()])?;
    }
    Ok(())
}

fn mount(arguments: &[&str]) -> Result<()> {
    process::output(process::command("mount").args(arguments), COMMAND).map(drop)
}
