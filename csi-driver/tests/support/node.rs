//! The Node service of the test daemon.

use super::NODE;
use super::shop::{Result, Shop};
use parallax_api::v1::{self, node_server::Node};
use std::sync::{Arc, Mutex, MutexGuard};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

pub struct Service(pub Arc<Mutex<Shop>>);

impl Service {
    fn shop(&self, method: &str) -> Result<MutexGuard<'_, Shop>> {
        let shop = self.0.lock().unwrap();
        shop.fail(method)?;
        Ok(shop)
    }
}

fn left_out<T>() -> Result<T> {
    Err(Status::unimplemented("the test daemon does not offer it"))
}

#[tonic::async_trait]
impl Node for Service {
    async fn get_node(&self, _: Request<v1::GetNodeRequest>) -> Result<Response<v1::NodeInfo>> {
        let shop = self.shop("get_node")?;
        Ok(Response::new(v1::NodeInfo {
            name: NODE.to_owned(),
            pool_uuid: shop.pool.to_string(),
            attachments_max: 100,
            attachments: shop.attachments.len() as u32,
            ..Default::default()
        }))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Result<Response<v1::Attachment>> {
        let request = request.into_inner();
        let Some(v1::attach_request::Target::VolumeId(id)) = request.target else { return left_out() };
        Ok(Response::new(self.shop("attach")?.attach(&id, request.read_only)?))
    }

    async fn detach(&self, request: Request<v1::DetachRequest>) -> Result<Response<v1::Empty>> {
        let Some(v1::detach_request::Target::VolumeId(id)) = request.into_inner().target else {
            return left_out();
        };
        self.shop("detach")?.detach(&id)?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn list_attachments(
        &self,
        _: Request<v1::ListAttachmentsRequest>,
    ) -> Result<Response<v1::ListAttachmentsResponse>> {
        let attachments = self.shop("list_attachments")?.attachments.values().cloned().collect();
        Ok(Response::new(v1::ListAttachmentsResponse { attachments }))
    }

    type ServeNbdStream = BoxStream<v1::NbdExport>;

    async fn serve_nbd(&self, _: Request<v1::ServeNbdRequest>) -> Result<Response<Self::ServeNbdStream>> {
        left_out()
    }

    type ReadContentStream = BoxStream<v1::Content>;

    async fn read_content(
        &self,
        _: Request<v1::ReadContentRequest>,
    ) -> Result<Response<Self::ReadContentStream>> {
        left_out()
    }

    async fn write_content(
        &self,
        _: Request<Streaming<v1::WriteContentRequest>>,
    ) -> Result<Response<v1::WriteContentResponse>> {
        left_out()
    }
}
