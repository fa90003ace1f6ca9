//! Identity: who we are, what we can do, whether what we depend on answers.

use crate::proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
    identity_server::Identity,
    plugin_capability::{self, service, volume_expansion},
};
use crate::{
    DRIVER_NAME,
    errors::{Result, message_of},
};
use parallax_api::{client::Client, v1};
use std::time::Duration;
use tonic::{Request, Response};

/// Sidecars and probes give up after a few seconds.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

/// What this process needs to be ready.
#[derive(Debug, Clone)]
pub enum DependsOn {
    /// The controller: the manager of the pool.
    Manager(Client),
    /// The node plugin: this machine's daemon.
    Daemon(Client),
}

impl DependsOn {
    /// Whether it answers.
    pub async fn answers(&self) -> bool {
        let answer = async {
            match self {
                Self::Manager(client) => {
                    client.manager().get_pool(client.request(v1::GetPoolRequest {})).await.map(drop)
                }
                Self::Daemon(client) => {
                    client.node().get_node(client.request(v1::GetNodeRequest {})).await.map(drop)
                }
            }
        };
        match tokio::time::timeout(READY_TIMEOUT, answer).await {
            Ok(Ok(())) => true,
            Ok(Err(status)) => {
                tracing::warn!(reason = message_of(&status), "not ready");
                false
            }
            Err(_) => {
                tracing::warn!("not ready: no answer in time");
                false
            }
        }
    }
}

/// The Identity service.
#[derive(Debug)]
pub struct IdentityService {
    depends_on: DependsOn,
}

impl IdentityService {
    /// Ready when `depends_on` answers.
    pub fn new(depends_on: DependsOn) -> Self {
        Self { depends_on }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: Default::default(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>> {
        use plugin_capability::{Service, Type, VolumeExpansion};
        let services = [
            service::Type::ControllerService,
            service::Type::VolumeAccessibilityConstraints,
            service::Type::GroupControllerService,
            service::Type::SnapshotMetadataService,
        ];
        let types =
            services.map(|service| Type::Service(Service { r#type: service.into() })).into_iter().chain([
                Type::VolumeExpansion(VolumeExpansion { r#type: volume_expansion::Type::Online.into() }),
            ]);
        Ok(Response::new(GetPluginCapabilitiesResponse {
            capabilities: types.map(|kind| PluginCapability { r#type: Some(kind) }).collect(),
        }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>> {
        Ok(Response::new(ProbeResponse { ready: Some(self.depends_on.answers().await) }))
    }
}
