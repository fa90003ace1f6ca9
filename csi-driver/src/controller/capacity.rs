//! How much room the pool has.
//!
//! Volumes are thin, so the free space bounds what can be written, not what can be promised: the largest volume
//! is as large as the pool.

use super::Controller;
use super::answers::bytes;
use super::sizes::{MAX_BYTES, MIN_BYTES};
use super::volumes::reaches;
use crate::capability::Capability;
use crate::errors::Result;
use crate::params::VolumeParams;
use crate::proto::csi;

impl Controller {
    pub(super) async fn capacity(
        &self,
        request: csi::GetCapacityRequest,
    ) -> Result<csi::GetCapacityResponse> {
        let pool = self.pool().await?;
        let possible = VolumeParams::parse(&request.parameters).is_ok()
            && request
                .volume_capabilities
                .iter()
                .all(|capability| Capability::parse(Some(capability)).is_ok())
            && request.accessible_topology.as_ref().is_none_or(|topology| reaches(topology, &pool.uuid));
        if !possible {
            return Ok(csi::GetCapacityResponse { available_capacity: 0, ..Default::default() });
        }
        Ok(csi::GetCapacityResponse {
            available_capacity: bytes(pool.free_bytes),
            maximum_volume_size: Some(bytes(pool.capacity_bytes.min(MAX_BYTES))),
            minimum_volume_size: Some(bytes(MIN_BYTES)),
        })
    }
}
