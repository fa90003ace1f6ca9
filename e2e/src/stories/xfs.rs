//! xfs, whose every copy carries the same identity: two of them must still be mounted side by side.

use anyhow::Result;

use super::Story;
use crate::objects::{Claim, From, XFS, shell, xfs_class};
use crate::stage::{Stage, same};

pub(super) const STORY: Story =
    Story { name: "xfs", summary: "an xfs volume, its restore and its clone are mounted on one node", run };

fn run(stage: &Stage) -> Result<()> {
    stage.apply(&[xfs_class()])?;
    stage.step("an xfs claim serves a pod", || {
        stage.claim(Claim { name: "source", class: XFS, size: "1Gi", from: From::Empty })?;
        stage.apply(&[shell(&stage.namespace, "first", "source", "sleep infinity")])?;
        stage.ready("first")?;
        let kind = stage.sh("first", "grep ' /data ' /proc/mounts | cut -d' ' -f3")?;
        same("filesystem", kind.trim(), "xfs")
    })?;
    let sum = stage.step("files are written", || {
        stage.sh("first", "head -c 8388608 /dev/urandom > /data/a; sync; sha256sum < /data/a")
    })?;
    stage.step("a restored snapshot and a clone run beside it", || {
        stage.snapshot("moment", "source")?;
        stage.claim(Claim { name: "restored", class: XFS, size: "1Gi", from: From::Snapshot("moment") })?;
        stage.claim(Claim { name: "cloned", class: XFS, size: "2Gi", from: From::Claim("source") })?;
        for (pod, claim) in [("second", "restored"), ("third", "cloned")] {
            stage.apply(&[shell(&stage.namespace, pod, claim, "sleep infinity")])?;
            stage.ready(pod)?;
            same("digest", stage.sh(pod, "sha256sum < /data/a")?, sum.clone())?;
        }
        Ok(())
    })?;
    stage.step("the larger clone's filesystem has the clone's size", || {
        let size: u64 = stage.sh("third", "df -k /data | tail -1 | awk '{print $2}'")?.trim().parse()?;
        anyhow::ensure!(size > 1_800_000, "the filesystem has {size} KiB, the claim 2 GiB");
        Ok(())
    })?;
    stage.step("everything is deleted", || {
        stage.delete(&[
            "pod/first",
            "pod/second",
            "pod/third",
            "pvc/source",
            "pvc/restored",
            "pvc/cloned",
        ])?;
        stage.delete(&["volumesnapshot/moment"])
    })
}
