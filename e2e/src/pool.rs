//! The pool, asked through the command line inside the daemon's pod.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::kube::Kube;
use crate::wait;

/// Where Parallax is installed.
pub const NAMESPACE: &str = "parallax-system";
/// Finds the daemon's pods.
pub const DAEMON: &str = "app.kubernetes.io/component=daemon";
/// Finds the CSI node plugin's pods.
pub const NODE_PLUGIN: &str = "app.kubernetes.io/component=node";
/// Finds the CSI controller's pods.
pub const CONTROLLER: &str = "app.kubernetes.io/component=controller";

/// Longest time of one command: verifying a pool reads all of its metadata.
const COMMAND: Duration = Duration::from_secs(300);

/// The pool of a cluster.
#[derive(Clone, Debug)]
pub struct Pool {
    kube: Kube,
}

impl Pool {
    /// The pool behind the daemon of a cluster.
    pub fn of(kube: &Kube) -> Self {
        Self { kube: kube.clone() }
    }

    /// Runs `parallax` with arguments in the daemon's pod.
    pub fn parallax(&self, arguments: &[&str]) -> Result<String> {
        let pod = self.kube.pod(NAMESPACE, DAEMON)?;
        let mut command = vec!["parallax"];
        command.extend(arguments);
        self.kube.exec(NAMESPACE, &pod, &command, COMMAND)
    }

    /// The same, with `--json`.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = arguments.to_vec();
        all.push("--json");
        let text = self.parallax(&all)?;
        serde_json::from_str(&text).with_context(|| format!("reading the answer of parallax: {text}"))
    }

    /// Verifies everything in the pool.
    pub fn check(&self) -> Result<()> {
        self.parallax(&["check"]).map(drop).context("parallax check found damage or could not run")
    }

    /// Bytes of data that the pool holds after everything unreachable was given back.
    pub fn data_bytes(&self) -> Result<u64> {
        self.parallax(&["gc"])?;
        let info = self.json(&["pool", "info"])?;
        match info["data_bytes"].as_u64() {
            Some(bytes) => Ok(bytes),
            None => bail!("parallax pool info tells no data_bytes: {info}"),
        }
    }

    /// Waits until the pool holds at most `bytes` of data: deleted volumes reach it a little after their claims.
    pub fn returns_to(&self, bytes: u64) -> Result<()> {
        wait::until(&format!("the pool to hold at most {bytes} bytes of data"), COMMAND, || {
            let now = self.data_bytes()?;
            if now <= bytes {
                return Ok(Some(()));
            }
            bail!("it holds {now}")
        })
    }
}
