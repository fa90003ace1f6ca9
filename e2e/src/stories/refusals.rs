//! What cannot be is refused with an event that tells a person what to do.

use anyhow::Result;
use serde_json::json;

use super::Story;
use crate::objects::{self, Claim, From, shell, storage_class};
use crate::pool::{DAEMON, NAMESPACE};
use crate::stage::{PATIENCE, Stage};
use crate::wait;

pub(super) const STORY: Story = Story {
    name: "refusals",
    summary: "a claim too large, a bad parameter, a missing pool and a snapshot of nothing are explained",
    run,
};

const MISSPELT: &str = "story-misspelt";
const AT_ONCE: &str = "story-at-once";

fn run(stage: &Stage) -> Result<()> {
    stage.apply(&[
        storage_class(AT_ONCE, &json!({})),
        storage_class(MISSPELT, &json!({"logicalBlokSize": "512"})),
    ])?;
    stage.step("a claim of 4 PiB is too large", || {
        stage.claim(Claim { name: "huge", class: AT_ONCE, size: "4Pi", from: From::Empty })?;
        explained(stage, "huge", &["256", "TiB"])
    })?;
    stage.step("a misspelt parameter is named, with those that exist", || {
        stage.claim(Claim { name: "misspelt", class: MISSPELT, size: "1Gi", from: From::Empty })?;
        explained(stage, "misspelt", &["logicalBlokSize", "logicalBlockSize"])
    })?;
    stage.step("a snapshot of a claim that does not exist says so", || {
        stage.apply(&[objects::snapshot(&stage.namespace, "nothing", "no-such-claim")])?;
        explained(stage, "nothing", &["cannot get claim"])
    })?;
    stage.step("without its daemon the pool is missed, in words", || {
        park(stage, true)?;
        stage.claim(Claim { name: "waiting", class: AT_ONCE, size: "64Mi", from: From::Empty })?;
        // The stories that follow want the daemon back, whatever comes of this.
        explained(stage, "waiting", &["manager"]).inspect_err(|_| drop(park(stage, false)))
    })?;
    stage.step("when the daemon is back the same claim is bound and works", || {
        park(stage, false)?;
        stage.bound("waiting")?;
        stage.apply(&[shell(&stage.namespace, "works", "waiting", "echo yes > /data/yes && sync")])?;
        stage.ended("works")
    })?;
    stage.step("everything is deleted", || {
        stage.delete(&["pod/works", "volumesnapshot/nothing", "pvc/huge", "pvc/misspelt", "pvc/waiting"])?;
        stage.kube.run(&["delete", "storageclass", AT_ONCE, MISSPELT]).map(drop)
    })
}

/// Waits for a warning about the object whose message has all `words`.
fn explained(stage: &Stage, object: &str, words: &[&str]) -> Result<()> {
    wait::until(&format!("an event that explains {object}"), PATIENCE, || {
        let selector = format!("--field-selector=type=Warning,involvedObject.name={object}");
        let found = stage.kube.json(&["get", "events", "-n", &stage.namespace, &selector])?;
        let messages: Vec<&str> = found["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|event| event["message"].as_str())
            .collect();
        match messages.iter().find(|message| words.iter().all(|word| message.contains(word))) {
            Some(message) => {
                crate::say::note(message);
                Ok(Some(()))
            }
            None => anyhow::bail!("no message has {words:?}; there are {messages:?}"),
        }
    })
}

/// Sends the daemon away from every node, or lets it come back.
fn park(stage: &Stage, away: bool) -> Result<()> {
    let kube = &stage.kube;
    let set = kube.run(&["get", "daemonset", "-n", NAMESPACE, "-l", DAEMON, "-o", "name"])?;
    let value = if away { r#""true""# } else { "null" };
    let patch = format!(
        r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{{"parallax.dev/nowhere":{value}}}}}}}}}}}"#
    );
    kube.run(&["patch", "-n", NAMESPACE, set.trim(), "-p", &patch])?;
    // Its controller must have seen this first, or it starts once more what is deleted here.
    wait::until("the daemon set to be counted anew", PATIENCE, || {
        let found = kube.json(&["get", "-n", NAMESPACE, set.trim()])?;
        let seen = found["status"]["observedGeneration"] == found["metadata"]["generation"];
        let nodes = found["status"]["desiredNumberScheduled"].as_u64();
        Ok((seen && nodes.is_some_and(|nodes| (nodes == 0) == away)).then_some(()))
    })?;
    wait::until("the daemon to follow", PATIENCE, || {
        let running = kube.pod(NAMESPACE, DAEMON).is_ok();
        if away && running {
            // The set replaces pods only when they are deleted.
            kube.run(&["delete", "pod", "-n", NAMESPACE, "-l", DAEMON, "--wait=true"])?;
        }
        Ok((running != away).then_some(()))
    })
}
