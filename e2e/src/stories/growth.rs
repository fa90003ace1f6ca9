//! A volume grows under load, without its pod noticing anything but the room.

use anyhow::{Context, Result};

use super::Story;
use crate::objects::{Claim, FILESYSTEM, From, XFS, shell, xfs_class};
use crate::stage::{PATIENCE, Stage};
use crate::wait;

pub(super) const STORY: Story =
    Story { name: "growth", summary: "a filesystem grows three times while a pod writes to it", run };

/// Writes numbered files with their digests until told to stop; an error ends it.
const LOAD: &str = r#"
set -e
n=0
while [ ! -e /data/stop ]; do
  head -c 1048576 /dev/urandom > /data/file-$((n % 40))
  sha256sum /data/file-$((n % 40)) > /data/sum-$((n % 40))
  n=$((n + 1)); echo $n > /data/count
  [ $((n % 10)) -ne 0 ] || sync
done
cat /data/sum-* | sha256sum -c
"#;

/// Asks for another size of a claim.
pub(super) fn resize(stage: &Stage, claim: &str, size: &str) -> Result<()> {
    let patch = format!(r#"{{"spec":{{"resources":{{"requests":{{"storage":"{size}"}}}}}}}}"#);
    stage.kube.run(&["patch", "-n", &stage.namespace, "pvc", claim, "-p", &patch]).map(drop)
}

fn room_kib(stage: &Stage) -> Result<u64> {
    let answer = stage.sh("load", "df -k /data | tail -1 | awk '{print $2}'")?;
    answer.trim().parse().context("reading the size of the filesystem")
}

fn run(stage: &Stage) -> Result<()> {
    stage.apply(&[xfs_class()])?;
    stage.step("a claim of 512 MiB serves a pod that writes without pause", || {
        stage.claim(Claim { name: "growing", class: XFS, size: "512Mi", from: From::Empty })?;
        stage.apply(&[shell(&stage.namespace, "load", "growing", LOAD)])?;
        stage.ready("load")
    })?;
    for (size, kib) in [("768Mi", 650_000), ("1Gi", 900_000), ("4Gi", 3_800_000)] {
        stage.step(&format!("it grows to {size}"), || {
            resize(stage, "growing", size)?;
            wait::until(&format!("the filesystem to have {size}"), PATIENCE, || {
                let room = room_kib(stage)?;
                anyhow::ensure!(room >= kib, "it has {room} KiB; {}", stage.kube.events(&stage.namespace));
                Ok(Some(()))
            })
        })?;
    }
    stage.step("the claim tells its new size", || {
        let claim = "pvc/growing";
        stage
            .kube
            .wait_for(&stage.namespace, claim, "resized", PATIENCE, |found| {
                found["status"]["capacity"]["storage"] == "4Gi"
            })
            .map(drop)
    })?;
    stage.step("no write was lost or torn", || {
        let count: u64 = stage.sh("load", "cat /data/count")?.trim().parse()?;
        anyhow::ensure!(count > 0, "the load wrote nothing");
        stage.sh("load", "touch /data/stop")?;
        stage.ended("load")
    })?;
    stage.step("ext4 has grown, at the latest, when its next pod starts", || {
        let sleep = |pod: &str| shell(&stage.namespace, pod, "offline", "sleep infinity");
        stage.claim(Claim { name: "offline", class: FILESYSTEM, size: "128Mi", from: From::Empty })?;
        stage.apply(&[sleep("first")])?;
        stage.ready("first")?;
        resize(stage, "offline", "256Mi")?;
        stage.delete(&["pod/first"])?;
        stage.detached("offline")?;
        stage.apply(&[sleep("second")])?;
        stage.ready("second")?;
        wait::until("the filesystem to have 256Mi", PATIENCE, || {
            let room: u64 = stage.sh("second", "df -k /data | tail -1 | awk '{print $2}'")?.trim().parse()?;
            Ok((room > 220_000).then_some(()))
        })
    })?;
    stage.step("everything is deleted", || {
        stage.delete(&["pod/load", "pod/second", "pvc/growing", "pvc/offline"])
    })
}
