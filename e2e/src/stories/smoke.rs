//! The shortest whole life: claim, write, snapshot, restore, compare, delete.

use anyhow::Result;

use super::Story;
use crate::objects::{Claim, FILESYSTEM, From, shell};
use crate::stage::{Stage, same};

pub(super) const STORY: Story =
    Story { name: "smoke", summary: "a claim is written, snapshotted, restored and compared", run };

fn run(stage: &Stage) -> Result<()> {
    let before = stage.pool.data_bytes()?;
    stage.step("a claim of 1 GiB serves a pod", || {
        stage.claim(Claim { name: "source", class: FILESYSTEM, size: "1Gi", from: From::Empty })?;
        stage.apply(&[shell(&stage.namespace, "writer", "source", "sleep infinity")])?;
        stage.ready("writer")
    })?;
    let sum = stage.step("the pod writes 32 MiB and syncs", || {
        stage.sh("writer", "head -c 33554432 /dev/urandom > /data/bytes && sync && sha256sum < /data/bytes")
    })?;
    stage.step("a snapshot is taken while the pod runs", || stage.snapshot("moment", "source"))?;
    stage.step("the pod overwrites its file", || stage.sh("writer", "echo other > /data/bytes; sync"))?;
    stage.step("a second pod starts on the restored snapshot", || {
        stage.claim(Claim {
            name: "restored",
            class: FILESYSTEM,
            size: "1Gi",
            from: From::Snapshot("moment"),
        })?;
        stage.apply(&[shell(&stage.namespace, "reader", "restored", "sleep infinity")])?;
        stage.ready("reader")
    })?;
    stage.step("it sees the moment of the snapshot", || {
        same("digest of the file", stage.sh("reader", "sha256sum < /data/bytes")?, sum)
    })?;
    stage.step("everything is deleted and the space returns", || {
        stage.delete(&["pod/writer", "pod/reader", "pvc/source", "pvc/restored", "volumesnapshot/moment"])?;
        stage.pool.returns_to(before)
    })
}
