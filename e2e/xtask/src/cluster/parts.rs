//! The programs of the cluster and their command lines, in the order in which they start.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::files;
use super::network::{self, API_ADDRESS, NODE_ADDRESS, SERVICE_NETWORK};
use super::pki::{Authority, Subject};
use super::{Layout, NODE};
use crate::build::{CNI_PLUGINS, ETCD, KUBERNETES};
use crate::world::World;

/// Where etcd answers; on loopback, beside any other etcd of the machine.
const ETCD_CLIENTS: &str = "http://127.0.0.1:12379";
const ETCD_PEERS: &str = "http://127.0.0.1:12380";

/// What the supervisor reads.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Plan {
    /// Directories that the node sees elsewhere: (source, target) binds.
    pub(crate) binds: Vec<(PathBuf, PathBuf)>,
    /// Started in order; one that ends is started again.
    pub(crate) parts: Vec<Part>,
    /// Log files, one for each part.
    pub(crate) logs: PathBuf,
}

/// One program.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Part {
    /// Name in logs and in `cluster status`.
    pub(crate) name: String,
    /// Absolute path, or a name on PATH.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
}

/// Makes certificates and configuration, and the plan that uses them.
pub(crate) fn plan(world: &World, layout: &Layout) -> Result<Plan> {
    let pki = layout.at("pki");
    let authority = Authority::create(&pki)?;
    let serving = authority.sign(
        "apiserver",
        Subject {
            name: "kube-apiserver",
            group: "",
            serves: &[API_ADDRESS, "127.0.0.1", "localhost", "kubernetes", "kubernetes.default.svc"],
        },
    )?;
    let client =
        |file: &str, name: &str, group: &str| authority.sign(file, Subject { name, group, serves: &[] });
    let kubelet_client = client("apiserver-kubelet", "kube-apiserver", "system:masters")?;
    let tokens = authority.key_pair("service-accounts")?;
    let admin = client("admin", "parallax-admin", "system:masters")?;
    files::kubeconfig(&layout.kubeconfig(), &authority, &admin)?;
    for name in ["kube-controller-manager", "kube-scheduler"] {
        let identity = client(name, &format!("system:{name}"), "")?;
        files::kubeconfig(&layout.at(&format!("{name}.kubeconfig")), &authority, &identity)?;
    }
    let node = authority.sign(
        "kubelet",
        Subject { name: &files::node_user(), group: "system:nodes", serves: &[NODE, NODE_ADDRESS] },
    )?;
    files::kubeconfig(&layout.at("kubelet.kubeconfig"), &authority, &node)?;
    let kubelet = files::kubelet(layout, &authority, &node)?;
    let containerd = files::containerd(layout, &CNI_PLUGINS.folder(world))?;

    let file = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let kubernetes = |name: &str, arguments: Vec<String>| Part {
        name: name.into(),
        program: KUBERNETES.program(world, name),
        arguments,
    };
    let parts = vec![
        Part {
            name: "etcd".into(),
            program: ETCD.program(world, "etcd"),
            arguments: vec![
                file("data-dir", &layout.at("etcd")),
                format!("--listen-client-urls={ETCD_CLIENTS}"),
                format!("--advertise-client-urls={ETCD_CLIENTS}"),
                format!("--listen-peer-urls={ETCD_PEERS}"),
                format!("--initial-advertise-peer-urls={ETCD_PEERS}"),
                format!("--initial-cluster=default={ETCD_PEERS}"),
                // The cluster is thrown away; its durability is not under test.
                "--unsafe-no-fsync".into(),
            ],
        },
        kubernetes(
            "kube-apiserver",
            vec![
                format!("--etcd-servers={ETCD_CLIENTS}"),
                format!("--bind-address={API_ADDRESS}"),
                "--secure-port=443".into(),
                format!("--advertise-address={API_ADDRESS}"),
                "--endpoint-reconciler-type=none".into(),
                format!("--service-cluster-ip-range={SERVICE_NETWORK}"),
                "--authorization-mode=Node,RBAC".into(),
                "--enable-admission-plugins=NodeRestriction".into(),
                "--allow-privileged=true".into(),
                file("client-ca-file", &authority.certificate()),
                file("tls-cert-file", &serving.cert),
                file("tls-private-key-file", &serving.key),
                file("kubelet-certificate-authority", &authority.certificate()),
                file("kubelet-client-certificate", &kubelet_client.cert),
                file("kubelet-client-key", &kubelet_client.key),
                "--kubelet-preferred-address-types=InternalIP".into(),
                file("service-account-key-file", &tokens.cert),
                file("service-account-signing-key-file", &tokens.key),
                "--service-account-issuer=https://kubernetes.default.svc".into(),
            ],
        ),
        kubernetes(
            "kube-controller-manager",
            vec![
                file("kubeconfig", &layout.at("kube-controller-manager.kubeconfig")),
                "--bind-address=127.0.0.1".into(),
                "--leader-elect=false".into(),
                "--use-service-account-credentials=true".into(),
                file("root-ca-file", &authority.certificate()),
                file("service-account-private-key-file", &tokens.key),
                file("cluster-signing-cert-file", &authority.certificate()),
                file("cluster-signing-key-file", &authority.key()),
            ],
        ),
        kubernetes(
            "kube-scheduler",
            vec![
                file("kubeconfig", &layout.at("kube-scheduler.kubeconfig")),
                "--bind-address=127.0.0.1".into(),
                "--leader-elect=false".into(),
            ],
        ),
        Part {
            name: "containerd".into(),
            program: "containerd".into(),
            arguments: vec![file("config", &containerd)],
        },
        kubernetes(
            "kubelet",
            vec![
                file("config", &kubelet),
                file("kubeconfig", &layout.at("kubelet.kubeconfig")),
                format!("--hostname-override={NODE}"),
                format!("--node-ip={NODE_ADDRESS}"),
                "--root-dir=/var/lib/kubelet".into(),
            ],
        ),
    ];
    let logs = layout.at("logs");
    let mut binds = Vec::new();
    for (source, target) in [
        ("kubelet", "/var/lib/kubelet"),
        ("parallax", "/var/lib/parallax"),
        ("cni-results", "/var/lib/cni"),
        ("container-logs", "/var/log/containers"),
    ] {
        let source = layout.at(source);
        std::fs::create_dir_all(&source).with_context(|| format!("creating {}", source.display()))?;
        binds.push((source, PathBuf::from(target)));
    }
    std::fs::create_dir_all(&logs).context("creating the folder of logs")?;
    Ok(Plan { binds, parts, logs })
}

/// The address that every client uses, for messages.
pub(crate) fn address() -> String {
    network::api_url()
}
