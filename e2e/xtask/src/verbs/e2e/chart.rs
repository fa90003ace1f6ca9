//! The chart, as an operator uses it: `helm test`, then an upgrade while a pod writes.
//!
//! The upgrade changes a value that every part of Parallax sees. Controller and node plugin must be replaced; the
//! pods that serve devices must stay until somebody deletes them, and a pod that writes must not notice either.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use parallax_e2e::kube::{Kube, text};
use parallax_e2e::objects::{Claim, FILESYSTEM, From, shell};
use parallax_e2e::pool::{CONTROLLER, DAEMON, NODE_PLUGIN, Pool};
use parallax_e2e::process;
use parallax_e2e::say;
use parallax_e2e::stage::{PATIENCE, Stage, condition, same};
use parallax_e2e::wait;
use serde_json::json;

use super::stories::ready;
use crate::build::Profile;
use crate::cluster::{NAMESPACE, helm};
use crate::world::World;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How the project's programs are compiled.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
}

/// Longest time of one command of Helm.
const HELM: Duration = Duration::from_secs(300);
/// A node that is none.
const SECOND: &str = "another-node";
/// A namespace for unprivileged pods only.
const STRICT: &str = "story-restricted";
/// The values that are changed, and then changed back.
const CHANGE: &str = "log.filter=debug,metrics.enabled=true";
const BACK: &str = "log.filter=info,metrics.enabled=false";
/// Writes a number five times a second and syncs it; a failed write ends it.
const WITNESS: &str =
    "n=0; while n=$((n+1)); do echo $n >> /data/log && sync /data/log || exit 1; sleep 0.2; done";

pub(crate) fn run(world: &World, args: &Args) -> Result<()> {
    let kube = ready(world, args.profile)?;
    say::step("helm test: a volume, its snapshot, its restore", || {
        let mut test = helm(world, &["test", "parallax", "-n", NAMESPACE, "--timeout", "4m"]);
        process::output(&mut test, HELM).map(drop)
    })?;

    say::step("what a dry run tells is true", || dry_run(world))?;

    say::step("the controller keeps to the restricted Pod Security Standard", || restricted(&kube))?;

    say::step("nobody has more rights than needed", || rights(&kube))?;

    say::step("a second node is refused before anything is changed", || second_node(world, &kube))?;

    let pool = Pool::of(&kube);
    let stage = Stage::open(&kube, &pool, "chart")?;
    stage.step("a pod starts to write", || {
        stage.claim(Claim { name: "witness", class: FILESYSTEM, size: "256Mi", from: From::Empty })?;
        stage.apply(&[shell(&stage.namespace, "witness", "witness", WITNESS)])?;
        stage.ready("witness")
    })?;
    let before = Pods::of(&kube)?;
    stage.step(&format!("helm upgrade with {CHANGE}"), || upgrade(world, &["--set", CHANGE]))?;
    let after = stage.step("controller and node plugin are replaced, the daemon is not", || {
        wait::until("the replaced pods", PATIENCE, || {
            let now = Pods::of(&kube)?;
            let rolled = now.controller != before.controller && now.node != before.node;
            Ok(rolled.then_some(now))
        })
    })?;
    same("the daemon's pod", &after.daemon, &before.daemon)?;
    stage.step("the pod wrote without a gap, and a new volume is served", || {
        stage.claim(Claim { name: "new", class: FILESYSTEM, size: "64Mi", from: From::Claim("witness") })?;
        stage.ready("witness")?;
        unbroken(&stage.sh("witness", "cat /data/log")?)
    })?;
    stage.step("the daemon's pod is deleted, and the pod that writes goes on", || {
        replace_daemon(&stage)?;
        still_writes(&stage)
    })?;
    stage.step("the new daemon's figures can be read in the cluster", || figures(&stage))?;
    stage.step("helm upgrade back again", || upgrade(world, &["--set", BACK]))?;
    stage.step("the pod still writes", || still_writes(&stage))?;
    stage.step("everything is deleted", || stage.delete(&["pod/witness", "pvc/new", "pvc/witness"]))?;
    stage.step("the namespace goes, and its volumes", || stage.close())?;
    say::step("the whole pool is verified", || pool.check())
}

/// A client's dry run does not look at the cluster. It once said that no node had the labels.
fn dry_run(world: &World) -> Result<()> {
    let mut command = helm(world, &["upgrade", "parallax", "--dry-run=client", "--reset-then-reuse-values"]);
    command.arg(world.repo.join("charts/parallax")).args(["-n", NAMESPACE]);
    let told = process::output(&mut command, HELM)?;
    ensure!(told.contains("without a look at the cluster"), "it pretends to know the nodes: {told}");
    Ok(())
}

/// Pods of the controller fit a namespace that allows nothing more; a daemon's would not.
fn restricted(kube: &Kube) -> Result<()> {
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": STRICT, "labels": labels}});
    kube.apply(&[namespace])?;
    let fits = |selector: &str| -> Result<()> {
        let found = kube.json(&["get", "pod", "-n", NAMESPACE, &kube.pod(NAMESPACE, selector)?])?;
        let mut spec = found["spec"].clone();
        // What belongs to the namespace that it comes from.
        for key in ["serviceAccountName", "serviceAccount", "nodeName"] {
            spec.as_object_mut().context("a pod without a specification")?.remove(key);
        }
        kube.would_take(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fits", "namespace": STRICT}, "spec": spec,
        }))
    };
    let outcome = wait::until("the namespace's service account", PATIENCE, || {
        Ok(kube.run(&["get", "-n", STRICT, "serviceaccount/default"]).is_ok().then_some(()))
    })
    .and_then(|()| fits(CONTROLLER))
    .and_then(|()| {
        let refusal = fits(DAEMON).err().context("a privileged pod was taken, too")?;
        ensure!(
            format!("{refusal:#}").contains("violates PodSecurity"),
            "refused for another reason: {refusal:#}"
        );
        Ok(())
    });
    kube.run(&["delete", "namespace", STRICT, "--wait=false"])?;
    outcome
}

/// What the two service accounts may do, and what they may not.
const RIGHTS: &[(&str, &str, &str, bool)] = &[
    ("controller", "create", "persistentvolumes", true),
    ("controller", "get", "secrets", false),
    ("controller", "create", "pods", false),
    ("controller", "delete", "persistentvolumeclaims", false),
    ("controller", "create", "clusterrolebindings", false),
    ("node", "get", "secrets", false),
    ("node", "list", "pods", false),
    ("node", "get", "nodes", false),
    ("node", "get", "persistentvolumes", false),
];

fn rights(kube: &Kube) -> Result<()> {
    for (account, verb, resource, expected) in RIGHTS {
        let account = format!("--as=system:serviceaccount:{NAMESPACE}:parallax-{account}");
        // Its exit status is the answer, so a "no" looks like a failure.
        let allowed = match kube.run(&["auth", "can-i", verb, resource, &account, "-n", NAMESPACE]) {
            Ok(answer) => answer.trim_end().ends_with("yes"),
            Err(error) if error.to_string().lines().any(|line| line.ends_with("no")) => false,
            Err(error) => return Err(error),
        };
        same(&format!("{account} {verb} {resource}"), allowed, *expected)?;
    }
    Ok(())
}

/// Deletes the daemon's pod, as an upgrade wants, and waits for the next.
fn replace_daemon(stage: &Stage) -> Result<()> {
    let kube = &stage.kube;
    let old = kube.pod(NAMESPACE, DAEMON)?;
    kube.delete(NAMESPACE, &format!("pod/{old}"), PATIENCE)?;
    wait::until("another daemon to be ready", PATIENCE, || {
        let Ok(new) = kube.pod(NAMESPACE, DAEMON) else { return Ok(None) };
        let found = kube.json(&["get", "pod", "-n", NAMESPACE, &new])?;
        Ok((new != old && condition(&found, "Ready")).then_some(()))
    })
}

/// Waits for another line, and looks for gaps.
fn still_writes(stage: &Stage) -> Result<()> {
    let count = || -> Result<usize> { Ok(stage.sh("witness", "wc -l < /data/log")?.trim().parse()?) };
    let seen = count()?;
    wait::until("another line", PATIENCE, || Ok((count()? > seen).then_some(())))?;
    unbroken(&stage.sh("witness", "cat /data/log")?)
}

/// Reads the daemon's metrics as Prometheus would, from a pod.
fn figures(stage: &Stage) -> Result<()> {
    let kube = &stage.kube;
    let found = kube.json(&["get", "pod", "-n", NAMESPACE, &kube.pod(NAMESPACE, DAEMON)?])?;
    let page =
        stage.sh("witness", &format!("wget -qO- http://{}:9809/metrics", text(&found["status"]["podIP"])))?;
    let volume = page.contains("parallax_volume_io_bytes_total{volume=");
    ensure!(volume, "no open volume is told of: {}", process::tail(&page, 20));
    Ok(())
}

/// With a node more, of which only the object exists, an upgrade must say what to do and do nothing.
fn second_node(world: &World, kube: &Kube) -> Result<()> {
    let labels = json!({"kubernetes.io/os": "linux"});
    kube.apply(&[
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": SECOND, "labels": labels}}),
    ])?;
    let outcome = upgrade(world, &[]);
    kube.run(&["delete", "node", SECOND])?;
    // The DaemonSets may have placed pods there, and no kubelet will ever remove them.
    let there = format!("--field-selector=spec.nodeName={SECOND}");
    kube.run(&["delete", "pods", "-n", NAMESPACE, &there, "--force", "--grace-period=0"])?;
    let error = outcome.err().context("an upgrade was accepted although two nodes would share the pool")?;
    let told = format!("{error:#}");
    ensure!(told.contains("kubectl label node"), "the refusal does not help: {told}");
    Ok(())
}

/// Changes values of the release and keeps all others.
fn upgrade(world: &World, changes: &[&str]) -> Result<()> {
    let mut command = helm(world, &["upgrade", "parallax"]);
    command.arg(world.repo.join("charts/parallax")).args(["--reset-then-reuse-values", "-n", NAMESPACE]);
    command.args(["--wait", "--timeout", "3m"]).args(changes);
    process::output(&mut command, HELM).map(drop)
}

/// Identities of the pods of each part that run; those on their way out do not count.
#[derive(Debug, Eq, PartialEq)]
struct Pods {
    controller: Vec<String>,
    node: Vec<String>,
    daemon: Vec<String>,
}

impl Pods {
    fn of(kube: &Kube) -> Result<Self> {
        let identities = |selector: &str| -> Result<Vec<String>> {
            let found = kube.json(&["get", "pods", "-n", NAMESPACE, "-l", selector])?;
            let items = found["items"].as_array().cloned().unwrap_or_default();
            let alive = items.iter().filter(|pod| {
                pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running"
            });
            let mut all: Vec<String> = alive.map(|pod| text(&pod["metadata"]["uid"]).to_owned()).collect();
            all.sort_unstable();
            ensure!(!all.is_empty(), "no pod is there for {selector}");
            Ok(all)
        };
        Ok(Self {
            controller: identities(CONTROLLER)?,
            node: identities(NODE_PLUGIN)?,
            daemon: identities(DAEMON)?,
        })
    }
}

/// Whether the lines are the numbers from one on.
fn unbroken(log: &str) -> Result<()> {
    let numbers: Vec<usize> = log.lines().filter_map(|line| line.parse().ok()).collect();
    ensure!(!numbers.is_empty(), "the witness wrote nothing");
    let gap = numbers.iter().zip(1..).find(|(found, expected)| *found != expected);
    ensure!(gap.is_none(), "the witness has a gap: {gap:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A misspelt value that nobody refuses is a value that somebody believes in.
    #[test]
    fn every_object_among_the_values_has_a_list_of_its_keys() {
        /// Kubernetes' own objects, and what is handed on as it is.
        const OPEN: &[&str] = &["requests", "limits", "affinity", "global", "extraConfig"];
        fn open(name: &str, schema: &serde_json::Value, found: &mut Vec<String>) {
            let keys = schema["properties"].as_object();
            if schema["type"] == "object"
                && schema.get("additionalProperties").is_none_or(|more| *more == true)
                && !OPEN.contains(&name)
            {
                found.push(name.to_owned());
            }
            keys.into_iter().flatten().for_each(|(name, schema)| open(name, schema, found));
            schema.get("items").into_iter().for_each(|items| open(name, items, found));
        }
        let schema = include_str!("../../../../../charts/parallax/values.schema.json");
        let mut found = Vec::new();
        open("values", &serde_json::from_str(schema).unwrap(), &mut found);
        assert!(found.is_empty(), "any key is taken in {found:?}");
    }

    #[test]
    fn a_gap_is_found() {
        assert!(unbroken("1\n2\n3\n").is_ok());
        assert!(unbroken("1\n3\n").is_err());
        assert!(unbroken("").is_err());
    }
}
