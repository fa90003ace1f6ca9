//! Controller: volumes and snapshots of the whole pool, asked of the manager. Touches no device.
//!
//! [`ControllerService`] is what gRPC calls: it names what each call locks and counts it. [`Controller`] does the
//! work and takes no lock.

mod answers;
mod capacity;
mod expand;
mod group;
mod metadata;
mod publish;
mod sizes;
mod snapshots;
mod volumes;

pub(crate) use answers::{bytes, topology};
pub(crate) use publish::READ_ONLY;
pub(crate) use volumes::by_id;

use crate::errors::{Result, from_manager, missing};
use crate::ids::Name;
use crate::proto::csi::{self, controller_server, group_controller_server, snapshot_metadata_server};
use crate::server::Shell;
use parallax_api::client::Client;
use parallax_api::v1;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The work, without locks.
#[derive(Debug)]
pub(crate) struct Controller {
    client: Client,
}

impl Controller {
    /// What pool the manager serves.
    async fn pool(&self) -> Result<v1::Pool> {
        let request = self.client.request(v1::GetPoolRequest {});
        let pool = self.client.manager().get_pool(request).await;
        Ok(pool.map_err(|error| from_manager("asking for the pool", &error))?.into_inner())
    }
}

/// The Controller, GroupController and SnapshotMetadata services.
#[derive(Debug, Clone)]
pub struct ControllerService {
    work: Arc<Controller>,
    shell: Shell,
}

impl ControllerService {
    /// Asks the manager through `client`.
    pub fn new(client: Client, shell: Shell) -> Self {
        Self { work: Arc::new(Controller { client }), shell }
    }
}

/// Key of a volume that exists.
pub(crate) fn volume_key(id: &str) -> Result<String> {
    match id {
        "" => Err(missing("volume_id")),
        id => Ok(format!("volume {}", shown(id))),
    }
}

/// An identifier as it may stand in a log or message: bounded and printable, whatever was sent.
pub(crate) fn shown(id: &str) -> String {
    id.chars().filter(|c| !c.is_control()).take(Name::MAX_BYTES).collect()
}

macro_rules! change {
    ($self:ident, $method:literal, $key:expr, $request:ident, $work:ident) => {{
        let work = Arc::clone(&$self.work);
        let key = $key;
        $self.shell.change($method, key, $request, |request| async move { work.$work(request).await }).await
    }};
}

macro_rules! look {
    ($self:ident, $method:literal, $request:ident, $work:ident) => {
        $self.shell.look($method, $request, |request| $self.work.$work(request)).await
    };
}

#[tonic::async_trait]
impl controller_server::Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>> {
        let name = Name::parse("name", &request.get_ref().name)?;
        change!(self, "CreateVolume", format!("the volume named {name}"), request, create_volume)
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>> {
        change!(self, "DeleteVolume", volume_key(&request.get_ref().volume_id)?, request, delete_volume)
    }

    async fn controller_publish_volume(
        &self,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>> {
        let key = volume_key(&request.get_ref().volume_id)?;
        change!(self, "ControllerPublishVolume", key, request, publish)
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>> {
        let key = volume_key(&request.get_ref().volume_id)?;
        change!(self, "ControllerUnpublishVolume", key, request, unpublish)
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>> {
        look!(self, "ValidateVolumeCapabilities", request, validate)
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>> {
        look!(self, "ListVolumes", request, list_volumes)
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>> {
        look!(self, "ControllerGetVolume", request, get_volume)
    }

    async fn get_capacity(
        &self,
        request: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>> {
        look!(self, "GetCapacity", request, capacity)
    }

    async fn create_snapshot(
        &self,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>> {
        let name = Name::parse("name", &request.get_ref().name)?;
        change!(self, "CreateSnapshot", format!("the snapshot named {name}"), request, create_snapshot)
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>> {
        let key = format!("snapshot {}", shown(&request.get_ref().snapshot_id));
        change!(self, "DeleteSnapshot", key, request, delete_snapshot)
    }

    async fn list_snapshots(
        &self,
        request: Request<csi::ListSnapshotsRequest>,
    ) -> Result<Response<csi::ListSnapshotsResponse>> {
        look!(self, "ListSnapshots", request, list_snapshots)
    }

    async fn get_snapshot(
        &self,
        request: Request<csi::GetSnapshotRequest>,
    ) -> Result<Response<csi::GetSnapshotResponse>> {
        look!(self, "GetSnapshot", request, get_snapshot)
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Result<Response<csi::ControllerExpandVolumeResponse>> {
        let key = volume_key(&request.get_ref().volume_id)?;
        change!(self, "ControllerExpandVolume", key, request, expand)
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>> {
        use csi::controller_service_capability::{Rpc, Type, rpc};
        let capabilities = [
            rpc::Type::CreateDeleteVolume,
            rpc::Type::PublishUnpublishVolume,
            rpc::Type::ListVolumes,
            rpc::Type::GetCapacity,
            rpc::Type::CreateDeleteSnapshot,
            rpc::Type::ListSnapshots,
            rpc::Type::CloneVolume,
            rpc::Type::PublishReadonly,
            rpc::Type::ExpandVolume,
            rpc::Type::ListVolumesPublishedNodes,
            rpc::Type::GetVolume,
            rpc::Type::SingleNodeMultiWriter,
            // GET_SNAPSHOT is offered and not announced: it is alpha, and csi-sanity 5.4.0 refuses unknown capabilities.
        ];
        let capabilities = capabilities.map(|kind| csi::ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
        });
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }
}

#[tonic::async_trait]
impl group_controller_server::GroupController for ControllerService {
    async fn group_controller_get_capabilities(
        &self,
        _: Request<csi::GroupControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::GroupControllerGetCapabilitiesResponse>> {
        use csi::group_controller_service_capability::{Rpc, Type, rpc};
        let kind = rpc::Type::CreateDeleteGetVolumeGroupSnapshot.into();
        Ok(Response::new(csi::GroupControllerGetCapabilitiesResponse {
            capabilities: vec![csi::GroupControllerServiceCapability {
                r#type: Some(Type::Rpc(Rpc { r#type: kind })),
            }],
        }))
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<csi::CreateVolumeGroupSnapshotRequest>,
    ) -> Result<Response<csi::CreateVolumeGroupSnapshotResponse>> {
        let name = Name::parse("name", &request.get_ref().name)?;
        change!(
            self,
            "CreateVolumeGroupSnapshot",
            format!("the snapshot named {name}"),
            request,
            create_group
        )
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<csi::DeleteVolumeGroupSnapshotRequest>,
    ) -> Result<Response<csi::DeleteVolumeGroupSnapshotResponse>> {
        let key = format!("group {}", shown(&request.get_ref().group_snapshot_id));
        change!(self, "DeleteVolumeGroupSnapshot", key, request, delete_group)
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<csi::GetVolumeGroupSnapshotRequest>,
    ) -> Result<Response<csi::GetVolumeGroupSnapshotResponse>> {
        look!(self, "GetVolumeGroupSnapshot", request, get_group)
    }
}

#[tonic::async_trait]
impl snapshot_metadata_server::SnapshotMetadata for ControllerService {
    async fn get_metadata_allocated(
        &self,
        request: Request<csi::GetMetadataAllocatedRequest>,
    ) -> Result<Response<metadata::Answers<csi::GetMetadataAllocatedResponse>>> {
        look!(self, "GetMetadataAllocated", request, allocated)
    }

    async fn get_metadata_delta(
        &self,
        request: Request<csi::GetMetadataDeltaRequest>,
    ) -> Result<Response<metadata::Answers<csi::GetMetadataDeltaResponse>>> {
        look!(self, "GetMetadataDelta", request, delta)
    }
}

/// Turns a NOT_FOUND of the manager into `None`.
fn optional<T>(answer: std::result::Result<Response<T>, Status>) -> std::result::Result<Option<T>, Status> {
    match answer {
        Ok(response) => Ok(Some(response.into_inner())),
        Err(error) if error.code() == tonic::Code::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
