//! A real one-node Kubernetes on this machine.
//!
//! ```text
//!  host network namespace, bridge plx0: node 10.201.0.1, pods 10.201.0.0/16, API server 10.96.0.1:443
//!  └─ supervisor: process 1 of its own process and mount namespaces
//!      ├─ etcd, kube-apiserver, kube-controller-manager, kube-scheduler
//!      ├─ containerd ── pods
//!      └─ kubelet
//! ```
//!
//! Invariants:
//! * Everything that runs is a descendant of the supervisor: killing that one process ends every other, and
//!   with the last of them every mount of the node goes. `down` therefore never hangs on a stuck part.
//! * The API server listens on the address of the `kubernetes` service itself, so pods reach it without any
//!   proxy or packet filter.
//! * Files live in the state directory only; the machine's own containerd, kubelet or etcd are not touched.

pub(crate) mod addons;
pub(crate) mod down;
pub(crate) mod files;
pub(crate) mod install;
pub(crate) mod network;
pub(crate) mod parts;
pub(crate) mod pki;
pub(crate) mod status;
pub(crate) mod supervisor;
pub(crate) mod up;

use std::path::PathBuf;
use std::process::Command;

use crate::build::{HELM, KUBERNETES};
use crate::world::World;
use parallax_e2e::process;

/// Name of the only node.
pub(crate) const NODE: &str = "parallax-node";
/// Where Parallax is installed.
pub(crate) const NAMESPACE: &str = "parallax-system";

/// The development cluster's directories inside the state directory.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// All of it.
    pub(crate) root: PathBuf,
}

impl Layout {
    /// The layout for `world`.
    pub(crate) fn of(world: &World) -> Self {
        Self { root: world.state.join("cluster") }
    }

    /// A path below the root.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Credentials of the cluster's administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.at("kubeconfig")
    }

    /// Process id, outside, of the supervisor.
    pub(crate) fn pid_file(&self) -> PathBuf {
        self.at("supervisor.pid")
    }
}

/// A command line of kubectl on the development cluster.
pub(crate) fn kubectl(world: &World, arguments: &[&str]) -> Command {
    let mut command = process::command(KUBERNETES.program(world, "kubectl"));
    command.env("KUBECONFIG", Layout::of(world).kubeconfig()).args(arguments);
    command
}

/// A command line of helm on the development cluster.
pub(crate) fn helm(world: &World, arguments: &[&str]) -> Command {
    let mut command = process::command(HELM.program(world, "helm"));
    // Helm reads plug-ins and repositories from the person's home; none of ours are there.
    let home = world.cache.join("helm-home");
    command.env("KUBECONFIG", Layout::of(world).kubeconfig());
    command.env("HELM_CACHE_HOME", &home).env("HELM_CONFIG_HOME", &home).env("HELM_DATA_HOME", &home);
    command.args(arguments);
    command
}
