//! What a consumer wants of a volume, parsed from CSI's `VolumeCapability`.

use crate::errors::{Result, missing};
use crate::proto::csi::{VolumeCapability, volume_capability};
use std::fmt;
use tonic::Status;

/// Filesystems that the node plugin makes, mounts and grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Filesystem {
    /// The default.
    #[default]
    Ext4,
    /// For large files and parallel writers.
    Xfs,
}

impl Filesystem {
    /// Empty chooses the default.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            other => Err(Status::invalid_argument(format!(
                "filesystem `{other}` is not offered; use ext4 or xfs (csi.storage.k8s.io/fstype in the StorageClass), \
                 or volumeMode: Block to format it yourself"
            ))),
        }
    }

    /// As mount(2) knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Raw or mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// A block device.
    Block,
    /// A directory.
    Mount {
        /// What lies on the device.
        filesystem: Filesystem,
        /// Options of the class, as written there.
        flags: Vec<String>,
    },
}

/// Who may use it, from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One node, any number of paths.
    SingleNode,
    /// One node, one path.
    SinglePath,
    /// Reading, from one node or many.
    ReadOnly,
    /// Several nodes, some of which write. Block only: virtual machines that move.
    MultiNode,
}

/// One checked capability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// Raw or mounted.
    pub access: Access,
    /// Who may use it.
    pub mode: Mode,
}

impl Capability {
    /// Checks what was sent as `volume_capability`; absent is an error.
    pub fn parse(capability: Option<&VolumeCapability>) -> Result<Self> {
        let capability = capability.ok_or_else(|| missing("volume_capability"))?;
        let access = match &capability.access_type {
            None => return Err(missing("volume_capability.access_type")),
            Some(volume_capability::AccessType::Block(_)) => Access::Block,
            Some(volume_capability::AccessType::Mount(mount)) => {
                if !mount.volume_mount_group.is_empty() {
                    return Err(Status::invalid_argument(
                        "volume_mount_group is not offered; kubelet applies fsGroup",
                    ));
                }
                Access::Mount {
                    filesystem: Filesystem::parse(&mount.fs_type)?,
                    flags: mount.mount_flags.clone(),
                }
            }
        };
        use volume_capability::access_mode::Mode as Sent;
        let sent = capability.access_mode.as_ref().map_or(Sent::Unknown, |mode| mode.mode());
        let mode = match sent {
            Sent::Unknown => return Err(missing("volume_capability.access_mode")),
            Sent::SingleNodeWriter | Sent::SingleNodeMultiWriter => Mode::SingleNode,
            Sent::SingleNodeSingleWriter => Mode::SinglePath,
            Sent::SingleNodeReaderOnly | Sent::MultiNodeReaderOnly => Mode::ReadOnly,
            Sent::MultiNodeSingleWriter | Sent::MultiNodeMultiWriter => Mode::MultiNode,
        };
        if mode == Mode::MultiNode && access != Access::Block {
            return Err(Status::invalid_argument(
                "a filesystem cannot be written from several nodes: ext4 and xfs would destroy each other's metadata; \
                 use volumeMode: Block for ReadWriteMany, or accessModes: [ReadWriteOnce]",
            ));
        }
        Ok(Self { access, mode })
    }

    /// Checks a list that must not be empty.
    pub fn parse_all(capabilities: &[VolumeCapability]) -> Result<Vec<Self>> {
        if capabilities.is_empty() {
            return Err(missing("volume_capabilities"));
        }
        capabilities.iter().map(|capability| Self::parse(Some(capability))).collect()
    }

    /// Whether writing is refused whatever else is asked.
    pub fn read_only(&self) -> bool {
        self.mode == Mode::ReadOnly
    }

    /// Whether it is used raw.
    pub fn is_block(&self) -> bool {
        self.access == Access::Block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode as Sent};

    fn capability(access: Option<AccessType>, mode: Sent) -> VolumeCapability {
        VolumeCapability { access_type: access, access_mode: Some(AccessMode { mode: mode.into() }) }
    }

    fn mount(fs_type: &str) -> Option<AccessType> {
        Some(AccessType::Mount(MountVolume { fs_type: fs_type.into(), ..Default::default() }))
    }

    #[test]
    fn many_writers_need_a_raw_block_volume() {
        let block = capability(Some(AccessType::Block(BlockVolume {})), Sent::MultiNodeMultiWriter);
        assert_eq!(Capability::parse(Some(&block)).unwrap().mode, Mode::MultiNode);
        let error = Capability::parse(Some(&capability(mount(""), Sent::MultiNodeMultiWriter))).unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        assert!(error.message().contains("volumeMode: Block"), "{error}");
    }

    #[test]
    fn readers_may_be_many_and_may_be_mounted() {
        let readers = Capability::parse(Some(&capability(mount("xfs"), Sent::MultiNodeReaderOnly))).unwrap();
        assert!(readers.read_only());
        assert_eq!(readers.access, Access::Mount { filesystem: Filesystem::Xfs, flags: vec![] });
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        for (sent, word) in [
            (capability(None, Sent::SingleNodeWriter), "access_type"),
            (capability(mount(""), Sent::Unknown), "access_mode"),
            (capability(mount("ntfs"), Sent::SingleNodeWriter), "ntfs"),
        ] {
            let error = Capability::parse(Some(&sent)).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().contains(word), "{error}");
        }
        assert!(Capability::parse_all(&[]).is_err());
    }
}
