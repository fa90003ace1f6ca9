//! Growing the filesystem after the volume has grown.

use super::Node;
use super::device::Device;
use super::filesystem::{self, Grown};
use super::mount;
use crate::capability::{Capability, Filesystem};
use crate::controller::bytes;
use crate::errors::{Result, interrupted, missing, no_volume};
use crate::ids::{KubeletPath, VolumeId};
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
        let raw = match &request.volume_capability {
            Some(capability) => Capability::parse(Some(capability))?.is_block(),
            None => false,
        };
        let nothing_there = || Status::not_found(format!("volume {id} is not at {}", request.volume_path));
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

        // Nothing on a raw device is ours to grow, wherever kubelet says that it is.
        if !raw {
            let path =
                self.kubelet.path_from("volume_path", &request.volume_path).map_err(|_| nothing_there())?;
            grow_at(id, &path, &device).await?.ok_or_else(nothing_there)?;
        }
        Ok(csi::NodeExpandVolumeResponse { capacity_bytes: bytes(volume.size_bytes) })
    }
}

/// Grows what is mounted at `path`; `None` if that is not the volume.
async fn grow_at(id: VolumeId, path: &KubeletPath, device: &Device) -> Result<Option<()>> {
    let table = mount::table().await.map_err(|error| interrupted("looking at the mounts", error))?;
    if device.shown(&table).any(|mount| mount.target == path.as_path()) {
        return Ok(Some(()));
    }
    let Some(mounted) = table.at(path.as_path()).filter(|mount| mount.device == device.number()) else {
        return Ok(None);
    };
    if mounted.read_only() {
        // It grows when it is next mounted for writing.
        return Ok(Some(()));
    }
    let filesystem = Filesystem::parse(&mounted.kind)?;
    match filesystem::grow(filesystem, device, path.as_path()).await? {
        Grown::Full => Ok(Some(())),
        Grown::NotPermitted => Err(Status::failed_precondition(format!(
            "volume {id} has grown, but this host does not let {filesystem} grow while it is mounted \
             (CAP_SYS_RESOURCE is withheld): it grows when its pods have been deleted and one starts again"
        ))),
    }
}
