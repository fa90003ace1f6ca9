//! Node: makes volumes visible on this machine. The daemon gives the device, this process mounts it.
//!
//! [`NodeService`] is what gRPC calls: it locks the volume of each call and counts it. [`Node`] does the work and
//! takes no lock. Nothing is remembered between calls: what is attached is asked of the daemon, what is mounted
//! of the kernel, what was formatted of the manager.

mod attach;
mod device;
mod expand;
mod filesystem;
mod mount;
mod mountinfo;
mod process;
mod publish;
pub mod registrar;
mod signature;
mod stage;
mod stats;
mod verdict;

use crate::controller::{bytes, topology, volume_key};
use crate::errors::{Result, from_manager, missing, no_volume};
use crate::ids::{KubeletDir, VolumeId};
use crate::proto::csi::{self, node_server};
use crate::server::Shell;
use parallax_api::client::Client;
use parallax_api::v1;
use std::sync::Arc;
use tonic::{Request, Response};

/// The work, without locks.
#[derive(Debug)]
pub(crate) struct Node {
    client: Client,
    kubelet: KubeletDir,
}

/// The Node service.
#[derive(Debug, Clone)]
pub struct NodeService {
    work: Arc<Node>,
    shell: Shell,
}

impl NodeService {
    /// Asks the daemon through `client`; paths lie below `kubelet`.
    pub fn new(client: Client, kubelet: KubeletDir, shell: Shell) -> Self {
        Self { work: Arc::new(Node { client, kubelet }), shell }
    }
}

/// A volume that a caller named: missing is INVALID_ARGUMENT, no id of ours is NOT_FOUND.
fn volume_id(text: &str) -> Result<VolumeId> {
    match text {
        "" => Err(missing("volume_id")),
        text => VolumeId::parse(text).ok_or_else(|| no_volume(crate::controller::shown(text))),
    }
}

macro_rules! change {
    ($self:ident, $method:literal, $request:ident, $work:ident) => {{
        let work = Arc::clone(&$self.work);
        let key = volume_key(&$request.get_ref().volume_id)?;
        $self.shell.change($method, key, $request, |request| async move { work.$work(request).await }).await
    }};
}

#[tonic::async_trait]
impl node_server::Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>> {
        change!(self, "NodeStageVolume", request, stage)
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>> {
        change!(self, "NodeUnstageVolume", request, unstage)
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>> {
        change!(self, "NodePublishVolume", request, publish)
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>> {
        change!(self, "NodeUnpublishVolume", request, unpublish)
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>> {
        change!(self, "NodeExpandVolume", request, expand)
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>> {
        self.shell.look("NodeGetVolumeStats", request, |request| self.work.stats(request)).await
    }

    async fn node_get_info(
        &self,
        request: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>> {
        self.shell.look("NodeGetInfo", request, |_| self.work.info()).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>> {
        use csi::node_service_capability::{Rpc, Type, rpc};
        let capabilities = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::ExpandVolume,
            rpc::Type::SingleNodeMultiWriter,
        ];
        let capabilities = capabilities
            .map(|kind| csi::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) });
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }
}

impl Node {
    async fn info(&self) -> Result<csi::NodeGetInfoResponse> {
        let answer = self.client.node().get_node(self.client.request(v1::GetNodeRequest {})).await;
        let node =
            answer.map_err(|error| from_manager("asking the daemon for its name", &error))?.into_inner();
        Ok(csi::NodeGetInfoResponse {
            node_id: node.name,
            max_volumes_per_node: bytes(node.attachments_max.into()),
            accessible_topology: Some(topology(&node.pool_uuid)),
        })
    }
}
