//! The CSI plugins die, again and again, in the middle of whatever they do; volumes never notice.
//!
//! Each step of a volume's life is begun and, at a delay that grows from step to step, both plugins are killed
//! with SIGKILL. The step must succeed all the same, and a pod that was running before the first kill must have
//! written without interruption to the end.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Story, growth};
use crate::objects::{Claim, FILESYSTEM, From, XFS, overseer, shell, snapshot, xfs_class};
use crate::stage::{PATIENCE, Stage, same};
use crate::wait;

pub(super) const STORY: Story = Story {
    name: "plugin-killed",
    summary: "both CSI plugins are killed during every call; nothing is lost, nothing is left over",
    run,
};

/// When the plugins die after a step was begun. Calls take from one to some hundred milliseconds.
const DELAYS_MS: [u64; 4] = [0, 60, 250, 900];

/// Writes a line a second and syncs it; a failed write ends it.
const WITNESS: &str =
    "n=0; while n=$((n+1)); do echo $n >> /data/log && sync /data/log || exit 1; sleep 0.2; done";

fn run(stage: &Stage) -> Result<()> {
    let before = stage.pool.data_bytes()?;
    stage.apply(&[xfs_class()])?;
    stage.step("a witness pod starts to write", || {
        stage.claim(Claim { name: "witness", class: FILESYSTEM, size: "256Mi", from: From::Empty })?;
        stage.apply(&[
            shell(&stage.namespace, "witness", "witness", WITNESS),
            overseer(&stage.namespace, "killer"),
        ])?;
        stage.ready("killer")?;
        stage.ready("witness")
    })?;
    for delay in DELAYS_MS {
        stage.step(
            &format!("a whole life, with the plugins killed {delay} ms after each step began"),
            || life(stage, Duration::from_millis(delay)),
        )?;
    }
    stage.step("the witness wrote without a gap", || {
        let log = stage.sh("witness", "cat /data/log")?;
        let numbers: Vec<u64> = log.lines().filter_map(|line| line.parse().ok()).collect();
        let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
        anyhow::ensure!(numbers.len() > 10, "it wrote only {} lines", numbers.len());
        same("lines of the witness", numbers, expected)?;
        stage.delete(&["pod/witness", "pod/killer", "pvc/witness"])
    })?;
    stage.step("no volume and no snapshot is left over", || stage.pool.returns_to(before))
}

/// Create, attach, stage, publish; expand; snapshot; restore; unpublish, unstage, detach, delete.
fn life(stage: &Stage, delay: Duration) -> Result<()> {
    let namespace = &stage.namespace;
    let kill = || kill_plugins(stage, delay);

    stage.claim(Claim { name: "victim", class: XFS, size: "512Mi", from: From::Empty })?;
    stage.apply(&[shell(namespace, "victim", "victim", "sleep infinity")])?;
    kill()?;
    stage.ready("victim")?;
    let sum = stage.sh("victim", "head -c 4194304 /dev/urandom > /data/a; sync; sha256sum < /data/a")?;

    growth::resize(stage, "victim", "768Mi")?;
    kill()?;
    wait::until("the filesystem to grow", PATIENCE, || {
        let room: u64 = stage.sh("victim", "df -k /data | tail -1 | awk '{print $2}'")?.trim().parse()?;
        Ok((room > 650_000).then_some(()))
    })?;

    stage.apply(&[snapshot(namespace, "moment", "victim")])?;
    kill()?;
    stage.snapshot_ready("moment")?;

    stage.claim(Claim { name: "restored", class: XFS, size: "768Mi", from: From::Snapshot("moment") })?;
    stage.apply(&[shell(namespace, "restored", "restored", "sleep infinity")])?;
    kill()?;
    stage.ready("restored")?;
    same("digest of the restored file", stage.sh("restored", "sha256sum < /data/a")?, sum)?;

    stage.kube.run(&["delete", "-n", namespace, "pod", "victim", "restored", "--wait=false"])?;
    kill()?;
    stage.delete(&["pod/victim", "pod/restored"])?;

    stage.kube.run(&["delete", "-n", namespace, "volumesnapshot", "moment", "--wait=false"])?;
    stage.kube.run(&["delete", "-n", namespace, "pvc", "victim", "restored", "--wait=false"])?;
    kill()?;
    stage.delete(&["volumesnapshot/moment", "pvc/victim", "pvc/restored"])
}

/// Ends both plugins without a chance to clean up, from outside their containers; the sidecars end with them. Kubelet
/// starts the containers again.
fn kill_plugins(stage: &Stage, delay: Duration) -> Result<()> {
    std::thread::sleep(delay);
    // Those that were killed a moment ago may not have been started again yet.
    wait::until("a plugin to kill", PATIENCE, || {
        stage.sh("killer", "kill -9 $(pidof parallax-csi)").map(Some)
    })
    .context("killing the plugins")
    .map(drop)
}
