//! A cluster, through kubectl.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{self, COMMAND};
use crate::wait;

/// How to reach a cluster.
#[derive(Clone, Debug)]
pub struct Kube {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

impl Kube {
    /// A cluster by the path of a kubectl and a kubeconfig.
    pub fn new(kubectl: impl Into<PathBuf>, kubeconfig: impl Into<PathBuf>) -> Self {
        Self { kubectl: kubectl.into(), kubeconfig: kubeconfig.into() }
    }

    /// Path of the kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A kubectl command line.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = process::command(&self.kubectl);
        command.env("KUBECONFIG", &self.kubeconfig).args(arguments);
        command
    }

    /// Runs kubectl and gives back what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_within(arguments, COMMAND)
    }

    /// Runs kubectl with a deadline of its own.
    pub fn run_within(&self, arguments: &[&str], limit: Duration) -> Result<String> {
        process::output(&mut self.command(arguments), limit)
    }

    /// Runs kubectl with `-o json`.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.run(&all)?).context("reading kubectl's answer")
    }

    /// Applies objects.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        objects.iter().try_for_each(|object| self.send(object, &["apply"]))
    }

    /// Asks whether the cluster would take an object; it is not made.
    pub fn would_take(&self, object: &Value) -> Result<()> {
        self.send(object, &["apply", "--dry-run=server"])
    }

    fn send(&self, object: &Value, verb: &[&str]) -> Result<()> {
        let file = std::env::temp_dir().join(format!(
            "parallax-apply-{}-{}.json",
            std::process::id(),
            object["metadata"]["name"].as_str().unwrap_or("object")
        ));
        std::fs::write(&file, object.to_string()).context("writing an object for kubectl")?;
        let outcome = self.run(&[verb, &["-f", &file.to_string_lossy()]].concat());
        std::fs::remove_file(&file).ok();
        outcome.map(drop).with_context(|| {
            format!("applying {} {}", text(&object["kind"]), text(&object["metadata"]["name"]))
        })
    }

    /// Waits until `check` says yes of the object; the error tells the object's last state and events.
    pub fn wait_for(
        &self,
        namespace: &str,
        object: &str,
        what: &str,
        limit: Duration,
        check: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let outcome = wait::until(&format!("{object} to be {what}"), limit, || {
            let found = self.json(&["get", "-n", namespace, object])?;
            Ok(check(&found).then_some(found))
        });
        outcome.map_err(|error| error.context(self.events(namespace)))
    }

    /// Warnings of a namespace, one a line.
    pub fn events(&self, namespace: &str) -> String {
        let columns = "custom-columns=OBJECT:.involvedObject.name,REASON:.reason,MESSAGE:.message";
        self.run(&["get", "events", "-n", namespace, "--field-selector=type=Warning", "-o", columns])
            .unwrap_or_else(|error| format!("no events: {error:#}"))
    }

    /// Runs a command in a pod's first (or default) container.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str], limit: Duration) -> Result<String> {
        let mut arguments = vec!["exec", "-n", namespace, pod, "--"];
        arguments.extend(command);
        self.run_within(&arguments, limit)
    }

    /// Deletes an object and waits until it is gone.
    pub fn delete(&self, namespace: &str, object: &str, limit: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", limit.as_secs());
        self.run_within(
            &["delete", "-n", namespace, object, "--ignore-not-found", "--wait=true", &timeout],
            limit + COMMAND,
        )
        .map(drop)
        .map_err(|error| error.context(self.events(namespace)))
    }

    /// Name of the only running pod that a selector finds.
    pub fn pod(&self, namespace: &str, selector: &str) -> Result<String> {
        let found = self.json(&["get", "pods", "-n", namespace, "-l", selector])?;
        let items = found["items"].as_array().cloned().unwrap_or_default();
        let mut alive = items.iter().filter(|pod| {
            pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running"
        });
        match (alive.next(), alive.next()) {
            (Some(pod), None) => Ok(text(&pod["metadata"]["name"]).to_owned()),
            (None, _) => bail!("no pod runs for {selector} in {namespace}"),
            (Some(_), Some(_)) => bail!("several pods run for {selector} in {namespace}"),
        }
    }
}

/// The text of a JSON string; empty for anything else.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
