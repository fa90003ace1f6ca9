//! The node: what the kernel of this machine sees, and content in and out.

mod content;
mod nbd;

use super::{Core, to_status};
use crate::openings::{Attached, Target};
use parallax_api::v1::{self, node_server::Node};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Answers in a stream that a bounded queue feeds.
type Stream<T> = ReceiverStream<Result<T, Status>>;

/// The node.
#[derive(Clone)]
pub struct NodeService(Core);

impl NodeService {
    /// On this pool.
    pub fn new(core: Core) -> Self {
        Self(core)
    }

    /// The volume or snapshot that a request names.
    fn target(&self, named: Option<Named>) -> Result<Target, Status> {
        match named {
            // Whether there is one is seen when it is opened. One that is gone may still be attached.
            Some(Named::VolumeId(id)) => id.parse().map(Target::Volume).map_err(to_status),
            Some(Named::VolumeName(name)) => self.0.named(name).map(Target::Volume),
            Some(Named::SnapshotId(id)) => id.parse().map(Target::Snapshot).map_err(to_status),
            None => Err(Status::invalid_argument("the request does not say which volume or snapshot")),
        }
    }
}

/// The three ways to name a target, which each request has in a type of its own.
enum Named {
    VolumeId(String),
    VolumeName(String),
    SnapshotId(String),
}

macro_rules! named {
    ($($module:ident),+) => {$(
        impl From<v1::$module::Target> for Named {
            fn from(target: v1::$module::Target) -> Self {
                match target {
                    v1::$module::Target::VolumeId(id) => Self::VolumeId(id),
                    v1::$module::Target::VolumeName(name) => Self::VolumeName(name),
                    v1::$module::Target::SnapshotId(id) => Self::SnapshotId(id),
                }
            }
        }
    )+};
}
named!(attach_request, detach_request, serve_nbd_request, read_content_request);

fn attachment(attached: Attached) -> v1::Attachment {
    let (volume_id, snapshot_id) = match attached.target {
        Target::Volume(id) => (id.to_string(), String::new()),
        Target::Snapshot(id) => (id.vdi.to_string(), id.to_string()),
    };
    v1::Attachment {
        volume_id,
        snapshot_id,
        device: attached.loop_device.path.display().to_string(),
        read_only: attached.loop_device.read_only,
        transport: "loop".to_owned(),
        size_bytes: attached.loop_device.capacity,
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn get_node(&self, _: Request<v1::GetNodeRequest>) -> Result<Response<v1::NodeInfo>, Status> {
        Ok(Response::new(v1::NodeInfo {
            name: self.0.engine.host().as_str().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pool_uuid: self.0.engine.pool().info().uuid.to_string(),
            attachments_max: self.0.openings.options().attachments_max,
            attachments: u32::try_from(self.0.openings.attachments().len()).unwrap_or(u32::MAX),
        }))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Result<Response<v1::Attachment>, Status> {
        let request = request.into_inner();
        let target = self.target(request.target.map(Named::from))?;
        let openings = self.0.openings.clone();
        let attach = async move { openings.attach(target, request.read_only).await.map_err(to_status) };
        to_the_end(attach).await.map(attachment).map(Response::new)
    }

    async fn detach(&self, request: Request<v1::DetachRequest>) -> Result<Response<v1::Empty>, Status> {
        let target = match self.target(request.into_inner().target.map(Named::from)) {
            Ok(target) => target,
            Err(status) if status.code() == tonic::Code::NotFound => return Ok(Response::new(v1::Empty {})),
            Err(status) => return Err(status),
        };
        let openings = self.0.openings.clone();
        let detach = async move { openings.detach(target).await.map_err(to_status) };
        to_the_end(detach).await.map(|()| Response::new(v1::Empty {}))
    }

    async fn list_attachments(
        &self,
        _: Request<v1::ListAttachmentsRequest>,
    ) -> Result<Response<v1::ListAttachmentsResponse>, Status> {
        let attachments = self.0.openings.attachments().into_iter().map(attachment).collect();
        Ok(Response::new(v1::ListAttachmentsResponse { attachments }))
    }

    type ServeNbdStream = Stream<v1::NbdExport>;

    async fn serve_nbd(
        &self,
        request: Request<v1::ServeNbdRequest>,
    ) -> Result<Response<Self::ServeNbdStream>, Status> {
        let request = request.into_inner();
        let target = self.target(request.target.map(Named::from))?;
        let core = self.0.clone();
        let serve = async move { nbd::serve(&core, target, request.socket, request.read_only).await };
        to_the_end(serve).await.map(Response::new)
    }

    type ReadContentStream = Stream<v1::Content>;

    async fn read_content(
        &self,
        request: Request<v1::ReadContentRequest>,
    ) -> Result<Response<Self::ReadContentStream>, Status> {
        let target = self.target(request.into_inner().target.map(Named::from))?;
        let core = self.0.clone();
        to_the_end(async move { content::read(&core, target).await }).await.map(Response::new)
    }

    async fn write_content(
        &self,
        request: Request<Streaming<v1::WriteContentRequest>>,
    ) -> Result<Response<v1::WriteContentResponse>, Status> {
        let core = self.0.clone();
        to_the_end(async move { content::write(&core, request.into_inner()).await }).await.map(Response::new)
    }
}

/// Runs work that must not stop half-way when its caller gives up: what it opened would stay open.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|_| Err(Status::unavailable("the daemon failed at this; its log says why")))
}
