//! Growing a volume, attached or not. The daemon grows the device; the node plugin then grows the filesystem.

use super::answers::bytes;
use super::sizes::Range;
use super::volumes::by_id;
use super::{Controller, shown};
use crate::capability::Capability;
use crate::errors::{Result, from_manager, missing, no_volume};
use crate::ids::VolumeId;
use crate::proto::csi;
use parallax_api::v1;
use tonic::Status;

impl Controller {
    pub(super) async fn expand(
        &self,
        request: csi::ControllerExpandVolumeRequest,
    ) -> Result<csi::ControllerExpandVolumeResponse> {
        let range =
            Range::parse(Some(request.capacity_range.as_ref().ok_or_else(|| missing("capacity_range"))?))?;
        let capability = match &request.volume_capability {
            Some(capability) => Some(Capability::parse(Some(capability))?),
            None => None,
        };
        let id = VolumeId::parse(&request.volume_id).ok_or_else(|| no_volume(shown(&request.volume_id)))?;
        let volume = self.volume(id).await?;
        let size = match range.grow(volume.size_bytes)? {
            None => volume.size_bytes,
            Some(size) => self.resize(id, size).await?,
        };
        Ok(csi::ControllerExpandVolumeResponse {
            capacity_bytes: bytes(size),
            // A raw device has nothing on it that we could grow. Without a word about it, the node will see.
            node_expansion_required: !capability.is_some_and(|capability| capability.is_block()),
        })
    }

    async fn resize(&self, id: VolumeId, size: u64) -> Result<u64> {
        let pool = self.pool().await?;
        if size > pool.capacity_bytes {
            return Err(Status::out_of_range(format!(
                "{size} bytes were asked for, but the whole pool has {}: such a volume could never be filled",
                pool.capacity_bytes
            )));
        }
        let request = v1::ResizeVolumeRequest { volume: Some(by_id(id)), size_bytes: size };
        let answer = self.client.manager().resize_volume(self.client.request(request)).await;
        let volume = answer.map_err(|error| from_manager(format!("growing volume {id}"), &error))?;
        Ok(volume.into_inner().size_bytes)
    }
}
