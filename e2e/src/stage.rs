//! Where one story plays: a namespace of its own, and the words for what happens in it.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::kube::{Kube, text};
use crate::objects::{self, Claim};
use crate::pool::Pool;
use crate::say;

/// Longest time that a claim, a pod or a snapshot may take. Generous: machines of continuous integration are slow,
/// and a deadline is for what never happens. With a load average of 25 on two cores, fio has taken 203 s for 64 MiB.
pub const PATIENCE: Duration = Duration::from_secs(400);

/// The stage of one story.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The cluster.
    pub kube: Kube,
    /// The pool, through the command line.
    pub pool: Pool,
    /// The story's own namespace.
    pub namespace: String,
}

impl Stage {
    /// Prepares an empty namespace.
    pub fn open(kube: &Kube, pool: &Pool, name: &str) -> Result<Self> {
        let namespace = format!("story-{name}");
        let gone = kube.run(&["delete", "namespace", &namespace, "--ignore-not-found", "--timeout=120s"]);
        gone.context("removing what an earlier run of the story left")?;
        kube.apply(&[json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})])?;
        // Pods are refused until their service account exists.
        kube.wait_for(&namespace, "serviceaccount/default", "there", PATIENCE, |_| true)?;
        Ok(Self { kube: kube.clone(), pool: pool.clone(), namespace })
    }

    /// Deletes the namespace and waits until its volumes are gone too.
    pub fn close(&self) -> Result<()> {
        self.kube.run_within(
            &["delete", "namespace", &self.namespace, "--timeout=240s"],
            Duration::from_secs(260),
        )?;
        crate::wait::until("the story's volumes to be deleted", PATIENCE, || {
            let volumes = self.kube.json(&["get", "pv"])?;
            let ours = volumes["items"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|volume| volume["spec"]["claimRef"]["namespace"] == self.namespace.as_str());
            Ok((!ours).then_some(()))
        })
    }

    /// A step that is told.
    pub fn step<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        say::step(what, work).with_context(|| format!("step: {what}"))
    }

    /// Applies objects.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        self.kube.apply(objects)
    }

    /// Makes a claim and does not wait.
    pub fn claim(&self, claim: Claim<'_>) -> Result<()> {
        self.apply(&[claim.object(&self.namespace)])
    }

    /// Waits until a claim is bound.
    pub fn bound(&self, claim: &str) -> Result<Value> {
        self.kube.wait_for(&self.namespace, &format!("pvc/{claim}"), "bound", PATIENCE, |found| {
            found["status"]["phase"] == "Bound"
        })
    }

    /// Waits until no node holds a claim's volume.
    pub fn detached(&self, claim: &str) -> Result<()> {
        let found = self.kube.json(&["get", "-n", &self.namespace, &format!("pvc/{claim}")])?;
        let volume = &found["spec"]["volumeName"];
        crate::wait::until(&format!("the volume of {claim} to be detached"), PATIENCE, || {
            let attachments = self.kube.json(&["get", "volumeattachments"])?;
            let held = attachments["items"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|attachment| attachment["spec"]["source"]["persistentVolumeName"] == *volume);
            Ok((!held).then_some(()))
        })
    }

    /// Waits until a pod is ready.
    pub fn ready(&self, pod: &str) -> Result<()> {
        self.kube
            .wait_for(&self.namespace, &format!("pod/{pod}"), "ready", PATIENCE, |found| {
                condition(found, "Ready")
            })
            .map(drop)
    }

    /// Waits until a pod's program has ended well.
    pub fn ended(&self, pod: &str) -> Result<()> {
        let object = format!("pod/{pod}");
        let found = self.kube.wait_for(&self.namespace, &object, "at its end", PATIENCE, |found| {
            matches!(text(&found["status"]["phase"]), "Succeeded" | "Failed")
        })?;
        anyhow::ensure!(
            found["status"]["phase"] == "Succeeded",
            "pod {pod} failed: {}",
            self.kube.run(&["logs", "-n", &self.namespace, pod]).unwrap_or_default()
        );
        Ok(())
    }

    /// Takes a snapshot and waits until it can be restored.
    pub fn snapshot(&self, name: &str, claim: &str) -> Result<()> {
        self.apply(&[objects::snapshot(&self.namespace, name, claim)])?;
        self.snapshot_ready(name)
    }

    /// Waits until a snapshot can be restored.
    pub fn snapshot_ready(&self, name: &str) -> Result<()> {
        self.kube
            .wait_for(&self.namespace, &format!("volumesnapshot/{name}"), "ready to use", PATIENCE, |found| {
                found["status"]["readyToUse"] == true
            })
            .map(drop)
    }

    /// Runs a shell line in a pod.
    pub fn sh(&self, pod: &str, line: &str) -> Result<String> {
        self.kube.exec(&self.namespace, pod, &["sh", "-c", line], PATIENCE)
    }

    /// Deletes objects (`kind/name`) one after the other, each until it is gone.
    pub fn delete(&self, objects: &[&str]) -> Result<()> {
        objects.iter().try_for_each(|object| self.kube.delete(&self.namespace, object, PATIENCE))
    }
}

/// Whether a condition of an object is true.
pub fn condition(object: &Value, kind: &str) -> bool {
    object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == kind && condition["status"] == "True")
}

/// Fails unless `found` is `expected`; says what was compared.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<()> {
    anyhow::ensure!(found == expected, "{what}: found {found:?}, expected {expected:?}");
    Ok(())
}
