//! Parameters of a StorageClass and of a VolumeSnapshotClass.
//!
//! An unknown key is refused with the list of those that exist: a misspelt one must not be ignored. Keys that
//! the sidecars add about the Kubernetes object (`csi.storage.k8s.io/...`) are kept as attributes of the volume.

use std::collections::HashMap;
use tonic::Status;

const RESERVED: &str = "csi.storage.k8s.io/";
const LOGICAL_BLOCK_SIZE: &str = "logicalBlockSize";

/// Keys about the claim that are worth keeping with the volume.
const CLAIM_KEYS: [&str; 3] = ["pvc/name", "pvc/namespace", "pv/name"];
/// Keys about a snapshot object.
const SNAPSHOT_KEYS: [&str; 3] =
    ["volumesnapshot/name", "volumesnapshot/namespace", "volumesnapshotcontent/name"];
const GROUP_KEYS: [&str; 3] =
    ["volumegroupsnapshot/name", "volumegroupsnapshot/namespace", "volumegroupsnapshotcontent/name"];

/// Attribute that tells which claim a volume serves; shown by the command line.
pub const ATTRIBUTE_PREFIX: &str = "kubernetes.io/";

/// Size of the sectors that a volume offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogicalBlock {
    /// What images and partition tables expect.
    #[default]
    B512,
    /// For guests that were built for it.
    B4096,
}

impl LogicalBlock {
    /// In bytes.
    pub fn bytes(self) -> u32 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }
}

/// Checked parameters of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeParams {
    /// Sectors of the volume, if the class says so: a clone keeps its source's otherwise.
    pub logical_block: Option<LogicalBlock>,
    /// What the volume is for, to be kept with it.
    pub attributes: HashMap<String, String>,
}

impl VolumeParams {
    /// Checks the parameters of CreateVolume.
    pub fn parse(parameters: &HashMap<String, String>) -> Result<Self, Status> {
        let mut params = Self::default();
        for (key, value) in parameters {
            match key.strip_prefix(RESERVED) {
                Some(reserved) if CLAIM_KEYS.contains(&reserved) => {
                    params.attributes.insert(format!("{ATTRIBUTE_PREFIX}{reserved}"), value.clone());
                }
                // The provisioner turns it into the capability's fs_type.
                Some("fstype") => {}
                None if key == LOGICAL_BLOCK_SIZE => params.logical_block = Some(logical_block(value)?),
                _ => return Err(unknown(key, &[LOGICAL_BLOCK_SIZE])),
            }
        }
        Ok(params)
    }
}

fn logical_block(value: &str) -> Result<LogicalBlock, Status> {
    match value {
        "512" => Ok(LogicalBlock::B512),
        "4096" => Ok(LogicalBlock::B4096),
        other => Err(Status::invalid_argument(format!(
            "parameter {LOGICAL_BLOCK_SIZE}: `{other}` is not possible; use \"512\" or \"4096\""
        ))),
    }
}

/// Checks the parameters of CreateSnapshot and answers with a label for the snapshot.
pub fn snapshot_label(parameters: &HashMap<String, String>) -> Result<String, Status> {
    label(parameters, &SNAPSHOT_KEYS)
}

/// Checks the parameters of CreateVolumeGroupSnapshot and answers with a label for its members.
pub fn group_label(parameters: &HashMap<String, String>) -> Result<String, Status> {
    label(parameters, &GROUP_KEYS)
}

/// `keys` are the name, the namespace and the content's name.
fn label(parameters: &HashMap<String, String>, keys: &[&str; 3]) -> Result<String, Status> {
    for key in parameters.keys() {
        if !key.strip_prefix(RESERVED).is_some_and(|reserved| keys.contains(&reserved)) {
            return Err(unknown(key, &[]));
        }
    }
    let get = |key: &str| parameters.get(&format!("{RESERVED}{key}"));
    Ok(match (get(keys[1]), get(keys[0])) {
        (Some(namespace), Some(name)) => shortened(format!("{namespace}/{name}")),
        _ => String::new(),
    })
}

/// The store keeps labels of at most this many bytes.
const LABEL_BYTES: usize = 64;

fn shortened(mut label: String) -> String {
    if label.len() > LABEL_BYTES {
        let end =
            (0..=LABEL_BYTES - '…'.len_utf8()).rev().find(|at| label.is_char_boundary(*at)).unwrap_or(0);
        label.truncate(end);
        label.push('…');
    }
    label
}

/// Nothing about a volume can be changed by a VolumeAttributesClass yet.
pub fn refuse_mutable(parameters: &HashMap<String, String>) -> Result<(), Status> {
    match parameters.keys().next() {
        None => Ok(()),
        Some(key) => Err(Status::invalid_argument(format!(
            "mutable parameter `{key}` is unknown: this driver has no parameters that a VolumeAttributesClass can set"
        ))),
    }
}

fn unknown(key: &str, known: &[&str]) -> Status {
    let known = match known {
        [] => "none can be set here".to_owned(),
        known => format!("known are: {}", known.join(", ")),
    };
    Status::invalid_argument(format!("parameter `{key}` is unknown; {known}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_class_may_choose_the_sector_size() {
        let parse = |value| VolumeParams::parse(&map(&[("logicalBlockSize", value)]));
        assert_eq!(parse("4096").unwrap().logical_block, Some(LogicalBlock::B4096));
        assert_eq!(parse("512").unwrap().logical_block, Some(LogicalBlock::B512));
        assert!(parse("1024").unwrap_err().message().contains("512"));
        assert_eq!(VolumeParams::parse(&map(&[])).unwrap().logical_block, None);
    }

    #[test]
    fn a_misspelt_key_is_refused_by_name() {
        for key in ["logicalblocksize", "csi.storage.k8s.io/pvc/nam", "fsType"] {
            let error = VolumeParams::parse(&map(&[(key, "512")])).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().contains(key) && error.message().contains("logicalBlockSize"));
        }
    }

    #[test]
    fn the_claim_is_kept_with_the_volume() {
        let params = VolumeParams::parse(&map(&[
            ("csi.storage.k8s.io/pvc/name", "db"),
            ("csi.storage.k8s.io/pvc/namespace", "prod"),
            ("csi.storage.k8s.io/fstype", "xfs"),
        ]))
        .unwrap();
        assert_eq!(
            params.attributes,
            map(&[("kubernetes.io/pvc/name", "db"), ("kubernetes.io/pvc/namespace", "prod")])
        );
    }

    #[test]
    fn a_snapshot_is_labelled_with_its_object() {
        let parameters = map(&[
            ("csi.storage.k8s.io/volumesnapshot/name", "before"),
            ("csi.storage.k8s.io/volumesnapshot/namespace", "prod"),
            ("csi.storage.k8s.io/volumesnapshotcontent/name", "snapcontent-1"),
        ]);
        assert_eq!(snapshot_label(&parameters).unwrap(), "prod/before");
        assert_eq!(snapshot_label(&map(&[])).unwrap(), "");
        let long = "n".repeat(200);
        let parameters = map(&[
            ("csi.storage.k8s.io/volumesnapshot/name", &long),
            ("csi.storage.k8s.io/volumesnapshot/namespace", "prod"),
        ]);
        assert_eq!(snapshot_label(&parameters).unwrap().len(), LABEL_BYTES);
        assert!(snapshot_label(&map(&[("speed", "1")])).unwrap_err().message().contains("speed"));
    }
}
