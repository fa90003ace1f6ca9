//! The daemon dies while a pod with little memory writes as fast as it can: nothing on the node may hang.
//!
//! Writing back a page needs the daemon, and the daemon needs memory: where it waited for pages that only it can
//! clean, the node would stand still. So the pod's memory is full of dirty pages of ours when parallaxd is killed.
//! Whether its device survives that or fails, one of two things happens in time: the load goes on, or it ends with an
//! error and its pod can be replaced. In both cases everything is there that was synced before.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Story;
use crate::kube::text;
use crate::objects::{Claim, FILESYSTEM, From, overseer, shell};
use crate::pool::{DAEMON, NAMESPACE};
use crate::say;
use crate::stage::{PATIENCE, Stage, condition};
use crate::wait;

pub(super) const STORY: Story = Story {
    name: "memory-limit",
    summary: "verified fio with little memory writes while parallaxd is killed; nothing hangs, nothing synced is lost",
    run,
};

/// fio and a shell, made for the stories.
const IMAGE: &str = "localhost/parallax-fio:stable";
/// Far less than what fio writes between two looks of the kernel at dirty pages.
const MEMORY: &str = "64Mi";
/// Lines that the ledger must gain before and, if the device survives, after the kill.
const LINES: u64 = 20;
/// Longest time until a pod on a dead device has gone.
const GONE: Duration = Duration::from_secs(120);

/// A file whose every block carries a checksum of itself; written, synced and read back once.
const KEPT: &str = "fio --name=kept --filename=/data/kept --size=64m --rw=randwrite --bs=4k --ioengine=psync \
    --verify=crc32c --verify_fatal=1 --end_fsync=1 --minimal --output=/tmp/kept";

/// fio writes and verifies without end; beside it, a ledger tells on standard output each number that it has synced.
const LOAD: &str = r#"
fio --name=load --filename=/data/load --size=256m --rw=randwrite --bs=16k --ioengine=psync --fsync=64 \
    --verify=crc32c --verify_backlog=512 --verify_fatal=1 --time_based --runtime=3600 --output=/tmp/load &
fio=$!
n=1
while kill -0 $fio && echo $n >> /data/ledger && sync /data/ledger; do
  echo "synced $n"
  n=$((n + 1))
  sleep 0.1
done
wait $fio
echo "fio ended with $?"
"#;

fn run(stage: &Stage) -> Result<()> {
    stage.step(&format!("a pod may use {MEMORY}, and fills a file with checksums"), || {
        stage.claim(Claim { name: "small", class: FILESYSTEM, size: "1Gi", from: From::Empty })?;
        stage.apply(&[fio(&stage.namespace, "kept", KEPT)])?;
        stage.ended("kept")?;
        stage.delete(&["pod/kept"])
    })?;
    stage.step("its successor writes and verifies without pause", || {
        stage.apply(&[fio(&stage.namespace, "load", LOAD)])?;
        stage.ready("load")?;
        wait::until("the ledger to be written", PATIENCE, || {
            Ok((Progress::of(stage)?.synced > LINES).then_some(()))
        })
    })?;
    stage.step("parallaxd is killed with SIGKILL, and starts again", || kill_daemon(stage))?;
    let end = stage.step("the load goes on or ends with an error", || {
        let begun = Progress::of(stage)?.synced;
        wait::until("the load to go on or to end", PATIENCE, || {
            let now = Progress::of(stage)?;
            Ok((now.ended || now.synced > begun + LINES).then_some(now))
        })
    })?;
    say::note(if end.ended { "its device failed" } else { "its device survived" });
    stage.step("the node and the pod still answer", || {
        stage.sh("load", "true")?;
        let nodes = stage.kube.json(&["get", "nodes"])?;
        let ready = |node: &Value| condition(node, "Ready");
        ensure!(
            nodes["items"].as_array().is_some_and(|nodes| nodes.iter().all(ready)),
            "a node is not ready"
        );
        Ok(())
    })?;
    let synced = Progress::of(stage)?.synced;
    stage.step("the pod can be deleted", || stage.kube.delete(&stage.namespace, "pod/load", GONE))?;
    stage.step("another pod finds everything that was synced", || {
        let script = format!("{KEPT} --verify_only && cat /data/ledger");
        stage.apply(&[fio(&stage.namespace, "after", &script)])?;
        stage.ended("after")?;
        let ledger = stage.kube.run(&["logs", "-n", &stage.namespace, "after"])?;
        whole(&ledger, synced)
    })?;
    stage.step("everything is deleted", || stage.delete(&["pod/after", "pod/killer", "pvc/small"]))
}

/// How far the load has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Progress {
    synced: u64,
    ended: bool,
}

impl Progress {
    fn of(stage: &Stage) -> Result<Self> {
        Self::read(&stage.kube.run(&["logs", "-n", &stage.namespace, "load"])?)
    }

    fn read(log: &str) -> Result<Self> {
        let last = log.lines().rev().find_map(|line| line.strip_prefix("synced "));
        let synced = last.map_or(Ok(0), str::parse).context("reading the ledger's last number")?;
        Ok(Self { synced, ended: log.lines().any(|line| line.starts_with("fio ended with ")) })
    }
}

/// Whether a ledger holds every number up to `synced`. Lines after it were never promised and may be torn.
fn whole(ledger: &str, synced: u64) -> Result<()> {
    let mut lines = ledger.lines();
    for number in 1..=synced {
        let line = lines.next();
        ensure!(
            line == Some(&number.to_string()),
            "{number} of {synced} was synced, and the ledger has {line:?} in its place"
        );
    }
    Ok(())
}

/// Of all the programs named parallaxd, the one that has the pool.
const KILL: &str = r#"
for pid in $(pidof parallaxd); do
  if tr '\0' ' ' < /proc/$pid/cmdline | grep -q -- '--config'; then kill -9 $pid && exit 0; fi
done
echo 'no daemon was found'; exit 1
"#;

/// Kills the daemon from outside its container, as nothing inside can kill its first process.
fn kill_daemon(stage: &Stage) -> Result<()> {
    let (pod, before) = daemon(stage)?;
    stage.apply(&[overseer(&stage.namespace, "killer")])?;
    stage.ready("killer")?;
    stage.sh("killer", KILL)?;
    wait::until("the daemon to run again", PATIENCE, || {
        let (now, restarts) = daemon(stage)?;
        let found = stage.kube.json(&["get", "pod", "-n", NAMESPACE, &now])?;
        Ok(((now != pod || restarts > before) && condition(&found, "Ready")).then_some(()))
    })
}

/// The daemon's pod and how often its containers were started again.
fn daemon(stage: &Stage) -> Result<(String, u64)> {
    let pod = stage.kube.pod(NAMESPACE, DAEMON)?;
    let found = stage.kube.json(&["get", "pod", "-n", NAMESPACE, &pod])?;
    let containers = found["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    let restarts = containers
        .iter()
        .filter(|container| text(&container["name"]) == "parallaxd")
        .filter_map(|container| container["restartCount"].as_u64())
        .sum();
    Ok((pod, restarts))
}

/// A pod with fio, little memory, and the claim at `/data`.
fn fio(namespace: &str, name: &str, script: &str) -> Value {
    let mut pod = shell(namespace, name, "small", script);
    pod["spec"]["containers"][0]["image"] = json!(IMAGE);
    pod["spec"]["containers"][0]["resources"] =
        json!({"limits": {"memory": MEMORY}, "requests": {"memory": MEMORY}});
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_how_far_the_load_came() {
        let log = "synced 1\nsynced 2\nsh: I/O error\nfio ended with 1\n";
        assert_eq!(Progress::read(log).unwrap(), Progress { synced: 2, ended: true });
        assert_eq!(Progress::read("").unwrap(), Progress { synced: 0, ended: false });
    }

    #[test]
    fn a_ledger_may_say_more_than_was_synced_and_never_less() {
        assert!(whole("1\n2\n3\n", 2).is_ok());
        assert!(whole("1\n2\n\0\0", 2).is_ok());
        assert!(whole("1\n", 2).is_err());
        assert!(whole("1\n3\n", 2).is_err());
    }
}
