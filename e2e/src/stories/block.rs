//! A raw block volume: what a virtual machine's disk is.

use anyhow::Result;

use super::Story;
use crate::objects::{BLOCK, Claim, From, raw_shell};
use crate::stage::{Stage, same};

pub(super) const STORY: Story =
    Story { name: "block", summary: "a raw device is written, cloned, discarded and grown", run };

const DIGEST: &str = "dd if=/dev/disk bs=1M count=16 iflag=direct 2>/dev/null | sha256sum";

fn run(stage: &Stage) -> Result<()> {
    stage.step("a raw claim of 256 MiB serves a pod", || {
        stage.claim(Claim { name: "disk", class: BLOCK, size: "256Mi", from: From::Empty })?;
        stage.apply(&[raw_shell(&stage.namespace, "machine", "disk")])?;
        stage.ready("machine")
    })?;
    stage.step("the device has the claimed size and 512-byte sectors", || {
        let size = stage.sh("machine", "blockdev --getsize64 /dev/disk; blockdev --getss /dev/disk")?;
        same("size and sector", size.split_whitespace().collect::<Vec<_>>(), vec!["268435456", "512"])
    })?;
    stage.step("an unwritten device reads as zeroes", || {
        let zeroes = stage.sh("machine", &format!("head -c 16777216 /dev/zero | sha256sum; {DIGEST}"))?;
        let digests: Vec<&str> = zeroes.lines().collect();
        same("digest", digests[1], digests[0])
    })?;
    let written = stage.step("16 MiB are written past the page cache", || {
        stage.sh("machine", "dd if=/dev/urandom of=/tmp/r bs=1M count=16 2>/dev/null")?;
        stage.sh("machine", "dd if=/tmp/r of=/dev/disk bs=1M oflag=direct 2>/dev/null; sync")?;
        stage.sh("machine", DIGEST)
    })?;
    stage.step("a clone of the attached disk has the same bytes", || {
        stage.claim(Claim { name: "clone", class: BLOCK, size: "256Mi", from: From::Claim("disk") })?;
        stage.apply(&[raw_shell(&stage.namespace, "twin", "clone")])?;
        stage.ready("twin")?;
        same("digest of the clone", stage.sh("twin", DIGEST)?, written.clone())
    })?;
    stage.step("discarding the clone does not touch the source", || {
        stage.sh("twin", "blkdiscard /dev/disk")?;
        let zeroes = stage.sh("twin", "head -c 16777216 /dev/zero | sha256sum")?;
        same("digest of the discarded clone", stage.sh("twin", DIGEST)?, zeroes)?;
        same("digest of the source", stage.sh("machine", DIGEST)?, written)
    })?;
    stage.step("the disk grows while it is attached", || {
        super::growth::resize(stage, "disk", "512Mi")?;
        crate::wait::until("the device to be larger", crate::stage::PATIENCE, || {
            Ok((stage.sh("machine", "blockdev --getsize64 /dev/disk")?.trim() == "536870912").then_some(()))
        })
    })?;
    stage
        .step("everything is deleted", || stage.delete(&["pod/machine", "pod/twin", "pvc/clone", "pvc/disk"]))
}
