//! A source, its snapshot, a clone and a restore are deleted in every order, and all space comes back.

use anyhow::Result;

use super::Story;
use crate::objects::{Claim, FILESYSTEM, From, shell};
use crate::stage::Stage;

pub(super) const STORY: Story = Story {
    name: "delete-orders",
    summary: "source, snapshot and clone go in every order; the pool ends as it began",
    run,
};

const FAMILY: [&str; 3] = ["pvc/source", "volumesnapshot/moment", "pvc/clone"];
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

fn run(stage: &Stage) -> Result<()> {
    let before = stage.pool.data_bytes()?;
    for order in ORDERS {
        let objects = order.map(|index| FAMILY[index]);
        stage.step(&objects.join(", then "), || {
            family(stage)?;
            stage.delete(&objects)?;
            stage.pool.returns_to(before)
        })?;
    }
    Ok(())
}

/// Makes the family, with data that only one member holds and data that all share. Pods are gone afterwards.
fn family(stage: &Stage) -> Result<()> {
    let fill = |pod: &str, claim: &str, file: &str| {
        let script = format!("head -c 8388608 /dev/urandom > /data/{file} && sync");
        stage.apply(&[shell(&stage.namespace, pod, claim, &script)])?;
        stage.ended(pod)?;
        stage.delete(&[&format!("pod/{pod}")])
    };
    stage.claim(Claim { name: "source", class: FILESYSTEM, size: "256Mi", from: From::Empty })?;
    fill("fill", "source", "shared")?;
    stage.snapshot("moment", "source")?;
    fill("change", "source", "only-in-source")?;
    stage.claim(Claim { name: "clone", class: FILESYSTEM, size: "256Mi", from: From::Snapshot("moment") })?;
    fill("use", "clone", "only-in-clone")
}
