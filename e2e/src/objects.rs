//! Kubernetes objects that stories use, as small functions.

use serde_json::{Value, json};

/// Class for filesystems, as the chart makes it.
pub const FILESYSTEM: &str = "parallax";
/// Class for raw disks, as the chart makes it.
pub const BLOCK: &str = "parallax-block";
/// Class for xfs, made by [`xfs_class`]. Growing a mounted xfs needs no more rights than mounting it, while ext4
/// asks for CAP_SYS_RESOURCE, which some machines withhold even from root.
pub const XFS: &str = "story-xfs";
/// Snapshot class, as the chart makes it.
pub const SNAPSHOT_CLASS: &str = "parallax";
/// A shell.
pub const SHELL_IMAGE: &str = "localhost/busybox:stable";

/// What a claim is filled with.
#[derive(Clone, Copy, Debug)]
pub enum From<'a> {
    /// Nothing.
    Empty,
    /// A VolumeSnapshot.
    Snapshot(&'a str),
    /// Another claim.
    Claim(&'a str),
}

/// A claim.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its class.
    pub class: &'a str,
    /// Such as `1Gi`.
    pub size: &'a str,
    /// What it is filled with.
    pub from: From<'a>,
}

impl Claim<'_> {
    /// The object. Classes that end in `block` give raw devices.
    pub fn object(&self, namespace: &str) -> Value {
        let mut spec = json!({
            "storageClassName": self.class,
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": if self.class.ends_with("block") { "Block" } else { "Filesystem" },
            "resources": {"requests": {"storage": self.size}},
        });
        match self.from {
            From::Empty => {}
            From::Snapshot(name) => {
                spec["dataSource"] =
                    json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name});
            }
            From::Claim(name) => {
                spec["dataSource"] = json!({"kind": "PersistentVolumeClaim", "name": name});
            }
        }
        json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": self.name, "namespace": namespace},
            "spec": spec,
        })
    }
}

/// A snapshot of a claim.
pub fn snapshot(namespace: &str, name: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "volumeSnapshotClassName": SNAPSHOT_CLASS,
            "source": {"persistentVolumeClaimName": claim},
        },
    })
}

/// A storage class of a story's own.
pub fn storage_class(name: &str, parameters: &Value) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": "csi.parallax.dev",
        "parameters": parameters,
        "volumeBindingMode": "Immediate",
        "allowVolumeExpansion": true,
    })
}

/// The class of [`XFS`].
pub fn xfs_class() -> Value {
    storage_class(XFS, &json!({"csi.storage.k8s.io/fstype": "xfs"}))
}

/// A pod with a shell that has a claim at `/data` and runs `script`.
pub fn shell(namespace: &str, name: &str, claim: &str, script: &str) -> Value {
    let mut pod = pod(namespace, name, claim);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", script]);
    pod
}

/// A pod with a shell that has a raw claim as `/dev/disk` and sleeps.
pub fn raw_shell(namespace: &str, name: &str, claim: &str) -> Value {
    let mut pod = pod(namespace, name, claim);
    pod["spec"]["containers"][0]["volumeDevices"] = json!([{"name": "data", "devicePath": "/dev/disk"}]);
    pod["spec"]["containers"][0]["command"] = json!(["sleep", "infinity"]);
    pod
}

/// A pod with a shell and no volume that sees, and may end, every process of its node.
pub fn overseer(namespace: &str, name: &str) -> Value {
    let mut pod = pod(namespace, name, "none");
    pod["spec"]["hostPID"] = json!(true);
    pod["spec"]["volumes"] = json!([]);
    pod["spec"]["containers"][0]["command"] = json!(["sleep", "infinity"]);
    pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    pod
}

fn pod(namespace: &str, name: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            // A shell that is process 1 ignores SIGTERM.
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "containers": [{"name": "main", "image": SHELL_IMAGE, "imagePullPolicy": "IfNotPresent"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
        },
    })
}
