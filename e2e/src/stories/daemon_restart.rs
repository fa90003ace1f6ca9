//! parallaxd is told to end, ends cleanly, and its successor goes on with every volume.

use anyhow::{Context, Result};

use super::Story;
use crate::objects::{Claim, FILESYSTEM, From, shell};
use crate::pool::{DAEMON, NAMESPACE};
use crate::stage::{PATIENCE, Stage, condition, same};
use crate::wait;

pub(super) const STORY: Story = Story {
    name: "daemon-restart",
    summary: "parallaxd is terminated and restarted; volumes, snapshots and bytes are all there",
    run,
};

fn run(stage: &Stage) -> Result<()> {
    let namespace = &stage.namespace;
    stage.step("a pod writes, and its volume is snapshotted", || {
        stage.claim(Claim { name: "kept", class: FILESYSTEM, size: "512Mi", from: From::Empty })?;
        stage.apply(&[shell(namespace, "before", "kept", "sleep infinity")])?;
        stage.ready("before")
    })?;
    let write = "head -c 16777216 /dev/urandom > /data/bytes && sync && sha256sum < /data/bytes";
    let sum = stage.step("16 MiB are written and synced", || stage.sh("before", write))?;
    stage.step("a snapshot is taken", || stage.snapshot("moment", "kept"))?;
    stage.step("the pod ends and its volume is detached", || {
        stage.delete(&["pod/before"])?;
        stage.detached("kept")
    })?;
    stage.step("parallaxd is terminated and its successor is ready", || restart(stage))?;
    stage.step("the pool is clean", || stage.pool.check())?;
    stage.step("the volume and the restored snapshot have the same bytes as before", || {
        stage.claim(Claim {
            name: "restored",
            class: FILESYSTEM,
            size: "512Mi",
            from: From::Snapshot("moment"),
        })?;
        for (pod, claim) in [("after", "kept"), ("beside", "restored")] {
            stage.apply(&[shell(namespace, pod, claim, "sleep infinity")])?;
            stage.ready(pod)?;
            same("digest of the file", stage.sh(pod, "sha256sum < /data/bytes")?, sum.clone())?;
        }
        Ok(())
    })?;
    stage.step("everything is deleted", || {
        stage.delete(&["pod/after", "pod/beside", "pvc/kept", "pvc/restored", "volumesnapshot/moment"])
    })
}

/// Deletes the daemon's pod (SIGTERM) and waits for another one.
pub(super) fn restart(stage: &Stage) -> Result<()> {
    let kube = &stage.kube;
    let old = kube.pod(NAMESPACE, DAEMON)?;
    kube.delete(NAMESPACE, &format!("pod/{old}"), PATIENCE)?;
    wait::until("another daemon to be ready", PATIENCE, || {
        let new = kube.pod(NAMESPACE, DAEMON)?;
        let found = kube.json(&["get", "pod", "-n", NAMESPACE, &new])?;
        Ok((new != old && condition(&found, "Ready")).then_some(()))
    })
    .context("restarting parallaxd")
}
