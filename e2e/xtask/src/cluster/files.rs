//! Configuration files of the parts of the cluster.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::network::{self, BRIDGE, NODE_ADDRESS, POD_NETWORK};
use super::pki::{Authority, Identity};
use super::{Layout, NODE};
use crate::image::PAUSE;

/// Name of the cgroup, in every hierarchy, that holds the node's pods.
pub(crate) const CGROUP: &str = "parallax-dev";

/// Writes the credentials file of one client.
pub(crate) fn kubeconfig(path: &Path, authority: &Authority, identity: &Identity) -> Result<()> {
    write_json(
        path,
        &json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "parallax", "cluster": {
                "server": network::api_url(), "certificate-authority": authority.certificate()}}],
            "users": [{"name": "user", "user": {
                "client-certificate": identity.cert, "client-key": identity.key}}],
            "contexts": [{"name": "parallax", "context": {"cluster": "parallax", "user": "user"}}],
            "current-context": "parallax",
        }),
    )
}

/// Writes kubelet's configuration.
pub(crate) fn kubelet(layout: &Layout, authority: &Authority, serving: &Identity) -> Result<PathBuf> {
    let resolv = layout.at("resolv.conf");
    fs::write(&resolv, "").context("writing resolv.conf")?;
    let path = layout.at("kubelet.json");
    write_json(
        &path,
        &json!({
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "address": NODE_ADDRESS,
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": authority.certificate()},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": serving.cert,
            "tlsPrivateKeyFile": serving.key,
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "podLogsDir": layout.at("pod-logs"),
            "resolvConf": resolv,
            // Nobody answers there; pods only want to be told an address.
            "clusterDNS": ["10.96.0.10"],
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{CGROUP}"),
            "failCgroupV1": false,
            "failSwapOn": false,
            "oomScoreAdj": 0,
            "readOnlyPort": 0,
            "imageGCHighThresholdPercent": 100,
            "imageMaximumGCAge": "0s",
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "volumeStatsAggPeriod": "10s",
            // How soon a running pod sees that its volume has grown.
            "syncFrequency": "10s",
            "shutdownGracePeriod": "0s",
            // Stories kill containers on purpose; their successors should not be punished for it.
            "crashLoopBackOff": {"maxContainerRestartPeriod": "2s"},
        }),
    )?;
    Ok(path)
}

/// Writes containerd's configuration.
pub(crate) fn containerd(layout: &Layout, cni_programs: &Path) -> Result<PathBuf> {
    let path = layout.at("containerd.toml");
    let text = format!(
        r#"version = 2
root = "{root}"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # Without CAP_SYS_RESOURCE a score may only rise.
  restrict_oom_score_adj = true
  device_ownership_from_security_context = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{conf}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#,
        root = layout.at("containerd").display(),
        cni = cni_programs.display(),
        conf = layout.at("cni").display(),
    );
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    fs::create_dir_all(layout.at("cni")).context("creating the folder of the pod network")?;
    write_json(
        &layout.at("cni/10-parallax.conflist"),
        &json!({
            "cniVersion": "1.0.0",
            "name": "parallax",
            "plugins": [{
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": true,
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": POD_NETWORK, "rangeStart": "10.201.1.1", "gateway": NODE_ADDRESS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": layout.at("cni-addresses"),
                },
            }],
        }),
    )?;
    Ok(path)
}

/// What the node is called in certificates and flags.
pub(crate) fn node_user() -> String {
    format!("system:node:{NODE}")
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("writing JSON")?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
