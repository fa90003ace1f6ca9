//! parallaxd is killed twenty times under a pod that writes: the pod notices pauses, and nothing else.
//!
//! By turns the daemon alone is killed, which its parent starts again, and the whole container, whose pod is then deleted,
//! so that kubelet makes a new one at once instead of waiting longer and longer. The volume's device waits in the
//! holder meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Story;
use crate::objects::{Claim, FILESYSTEM, From, shell};
use crate::pool::{DAEMON, NAMESPACE};
use crate::say;
use crate::stage::{PATIENCE, Stage, condition};
use crate::wait;

pub(super) const STORY: Story = Story {
    name: "daemon-killed",
    summary: "parallaxd is killed twenty times under verified writes; they pause, nothing fails, nothing is lost",
    run,
};

/// fio and a shell, made for the stories.
const IMAGE: &str = "localhost/parallax-fio:stable";

const KILLS: u32 = 20;

/// Writes and verifies without end; beside it, a ledger tells each number that it has synced. The number appears by a
/// rename: it was once read when it had just been truncated.
const LOAD: &str = r#"
fio --name=load --filename=/data/load --size=64m --rw=randwrite --bs=16k --ioengine=libaio --direct=1 --iodepth=8 \
    --fsync=64 --verify=crc32c --verify_backlog=512 --verify_fatal=1 --time_based --runtime=3600 --output=/tmp/load &
fio=$!
n=1
while kill -0 $fio && echo $n >> /data/ledger && sync /data/ledger; do
  echo $n > /tmp/next && mv /tmp/next /tmp/synced
  n=$((n + 1))
  sleep 0.05
done
wait $fio
cat /tmp/load
exit 1
"#;

/// Of all the programs named parallaxd, the one that another one started: it has the pool.
const KILL_DAEMON: &str = "for pid in $(pidof parallaxd); do \
    parent=$(awk '/^PPid:/ {print $2}' /proc/$pid/status); \
    if [ \"$(cat /proc/$parent/comm)\" = parallaxd ]; then kill -9 $pid && exit 0; fi; done; exit 1";

/// Its parent, with which the container ends.
const KILL_CONTAINER: &str = "for pid in $(pidof parallaxd); do \
    if tr '\\0' ' ' < /proc/$pid/cmdline | grep -q -- '--config'; then kill -9 $pid && exit 0; fi; done; exit 1";

fn run(stage: &Stage) -> Result<()> {
    let namespace = &stage.namespace;
    stage.step("a pod writes and verifies without pause", || {
        stage.claim(Claim { name: "busy", class: FILESYSTEM, size: "256Mi", from: From::Empty })?;
        let mut load = shell(namespace, "load", "busy", LOAD);
        load["spec"]["containers"][0]["image"] = json!(IMAGE);
        stage.apply(&[load, killer(namespace)])?;
        stage.ready("load")?;
        stage.ready("killer")?;
        beyond(stage, 10)
    })?;
    let mut longest = Duration::ZERO;
    stage.step(&format!("parallaxd is killed {KILLS} times, and each time the writes go on"), || {
        for round in 0..KILLS {
            longest = longest.max(if round % 2 == 0 { kill_daemon(stage)? } else { kill_container(stage)? });
        }
        Ok(())
    })?;
    say::note(format!("the longest pause took {} ms, a new pod included", longest.as_millis()));
    stage.step("the load has not ended, and the ledger is whole", || {
        let synced = synced(stage)?;
        let ledger = stage.sh("load", "cat /data/ledger")?;
        let numbers: Vec<u64> = ledger.lines().filter_map(|line| line.parse().ok()).collect();
        ensure!(numbers.len() as u64 >= synced, "{synced} numbers were synced, {} are there", numbers.len());
        let gap = numbers.iter().zip(1..).find(|(found, expected)| *found != expected);
        ensure!(gap.is_none(), "the ledger has a gap: {gap:?}");
        beyond(stage, synced)
    })?;
    stage.step("the pods end and the volume is detached", || {
        stage.delete(&["pod/load", "pod/killer"])?;
        stage.detached("busy")
    })?;
    stage.step("the pool is clean", || stage.pool.check())?;
    stage.step("everything is deleted", || stage.delete(&["pvc/busy"]))
}

/// A pod that sees every process of the node.
fn killer(namespace: &str) -> serde_json::Value {
    let mut killer = shell(namespace, "killer", "none", "sleep infinity");
    killer["spec"]["hostPID"] = json!(true);
    killer["spec"]["volumes"] = json!([]);
    killer["spec"]["containers"][0]["volumeMounts"] = json!([]);
    killer["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    killer
}

/// The last number that the pod has synced.
fn synced(stage: &Stage) -> Result<u64> {
    let text = stage.sh("load", "cat /tmp/synced")?;
    text.trim().parse().with_context(|| format!("reading the ledger's last number {text:?}"))
}

fn beyond(stage: &Stage, number: u64) -> Result<()> {
    wait::until("the ledger to grow", PATIENCE, || Ok((synced(stage)? > number).then_some(())))
}

/// Kills the daemon, and answers with the time until the pod has synced again.
fn kill_daemon(stage: &Stage) -> Result<Duration> {
    stage.sh("killer", KILL_DAEMON).context("killing parallaxd")?;
    let begun = Instant::now();
    beyond(stage, synced(stage)? + 1)?;
    Ok(begun.elapsed())
}

/// The same with its container and its pod; waits for another to be ready.
fn kill_container(stage: &Stage) -> Result<Duration> {
    let kube = &stage.kube;
    let old = kube.pod(NAMESPACE, DAEMON)?;
    stage.sh("killer", KILL_CONTAINER).context("killing the container of parallaxd")?;
    let begun = Instant::now();
    let forced = ["--force", "--grace-period=0", "--wait=false"];
    let object = format!("pod/{old}");
    kube.run(&[&["delete", "-n", NAMESPACE, object.as_str()][..], &forced].concat())?;
    beyond(stage, synced(stage)? + 1)?;
    let pause = begun.elapsed();
    wait::until("another daemon to be ready", PATIENCE, || {
        let Ok(new) = kube.pod(NAMESPACE, DAEMON) else { return Ok(None) };
        let found = kube.json(&["get", "pod", "-n", NAMESPACE, &new])?;
        Ok((new != old && condition(&found, "Ready")).then_some(()))
    })?;
    Ok(pause)
}
