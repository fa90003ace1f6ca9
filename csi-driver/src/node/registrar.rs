//! Makes the node plugin known to kubelet: a socket in kubelet's registry folder that answers who we are.
//!
//! The socket appears only when the daemon answers, because kubelet asks for the node's identity right after it.

mod authority;

use crate::DRIVER_NAME;
use crate::identity::DependsOn;
use crate::proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
    registration_server::{Registration, RegistrationServer},
};
use crate::server::listen;
use anyhow::Context as _;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Answers kubelet.
#[derive(Debug)]
pub struct Registrar {
    endpoint: PathBuf,
}

impl Registrar {
    /// `endpoint` is our CSI socket as kubelet sees it.
    pub fn new(endpoint: PathBuf) -> Self {
        Self { endpoint }
    }

    /// Where kubelet looks, below its registry folder.
    pub fn socket(folder: &Path) -> PathBuf {
        folder.join(format!("{DRIVER_NAME}-reg.sock"))
    }

    /// Serves in `folder` until `end`, from when `depends_on` answers.
    pub async fn serve(
        self,
        folder: &Path,
        depends_on: DependsOn,
        end: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        tokio::pin!(end);
        while !depends_on.answers().await {
            tokio::select! {
                () = &mut end => return Ok(()),
                () = tokio::time::sleep(ASK_AGAIN) => {}
            }
        }
        let socket = Self::socket(folder);
        let listener = listen(&socket).await.context("registering with kubelet")?;
        tracing::info!(socket = %socket.display(), "waiting for kubelet");
        let calls = UnixListenerStream::new(listener).map(|call| call.map(authority::repaired));
        let served = tonic::transport::Server::builder()
            .add_service(RegistrationServer::new(self))
            .serve_with_incoming_shutdown(calls, end)
            .await;
        // Its disappearance tells kubelet that we are gone.
        let _ = std::fs::remove_file(&socket);
        served.context("answering kubelet")
    }
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: DRIVER_NAME.to_owned(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!("registered with kubelet");
        } else {
            // kubelet tries again by itself.
            tracing::error!(reason = status.error, "kubelet refused the registration");
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
