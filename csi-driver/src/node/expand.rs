//! Growing the filesystem after the volume has grown.

use super::Node;
use super::device::Device;
use super::filesystem::{self, Grown};
use super::mount;
use crate::capability::{Capability, Filesystem};
use crate::controller::bytes;
use crate::errors::{Result, interrupted, missing, no_volume};
use crate::proto::csi;
use tonic::Status;

impl Node {
    pub(super) async fn expand(
        &self,
        request: csi::NodeExpandVolumeRequest,
    ) -> Result<csi::NodeExpandVolumeResponse> {
        if request.volume_path.is_empty() {
            return Err(missing("volume_path"));
        }
        let id = super::volume_id(&request.volume_id)?;
        if let Some(capability) = &request.volume_capability {
            Capability::parse(Some(capability))?;
        }
        let nothing_there = || Status::not_found(format!("volume {id} is not at {}", request.volume_path));
        let path =
            self.kubelet.path_from("volume_path", &request.volume_path).map_err(|_| nothing_there())?;
        let volume = self.volume(id, false).await?;
        let range = request.capacity_range.unwrap_or_default();
        let required = u64::try_from(range.required_bytes).unwrap_or(0);
        if required > volume.size_bytes {
            return Err(Status::out_of_range(format!(
                "volume {id} has {} bytes and {required} are required: the controller has to grow it first",
                volume.size_bytes
            )));
        }
        let mut attachment = self.attached(id).await?.ok_or_else(|| no_volume(id))?;
        // The daemon grows the device when the volume grows; the kernel shows it a moment later.
        attachment.size_bytes = volume.size_bytes;
        let device = Device::wait(&attachment).await?;

        let table = mount::table().await.map_err(|error| interrupted("looking at the mounts", error))?;
        let raw = table.of_node(device.path()).any(|mount| mount.target == path.as_path());
        let mounted = table.at(path.as_path()).filter(|mount| mount.device == device.number());
        match mounted {
            Some(mounted) if !mounted.read_only() => {
                let filesystem = Filesystem::parse(&mounted.kind)?;
                if filesystem::grow(filesystem, &device, path.as_path()).await? == Grown::NotPermitted {
                    return Err(Status::failed_precondition(format!(
                        "volume {id} has grown, but this host does not let {filesystem} grow while it is mounted \
                         (CAP_SYS_RESOURCE is withheld): it grows when its pods have been deleted and one starts again"
                    )));
                }
            }
            // A read-only filesystem grows when it is next mounted for writing.
            Some(_) => {}
            None if raw => {}
            // A raw volume that is staged but not published has nothing at its path.
            None if request.volume_capability.as_ref().is_some_and(is_block) => {}
            None => return Err(nothing_there()),
        }
        Ok(csi::NodeExpandVolumeResponse { capacity_bytes: bytes(volume.size_bytes) })
    }
}

fn is_block(capability: &csi::VolumeCapability) -> bool {
    matches!(capability.access_type, Some(csi::volume_capability::AccessType::Block(_)))
}
