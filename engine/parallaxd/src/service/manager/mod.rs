//! The manager: the pool's registry.
//!
//! One file for each subject; this one only maps calls to them.

mod pool;
mod scrub;
mod snapshots;
mod volumes;

use super::Core;
use parallax_api::v1::{self, manager_server::Manager};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Answers in a stream that a bounded queue feeds.
type Stream<T> = ReceiverStream<Result<T, Status>>;

/// The manager.
#[derive(Clone)]
pub struct ManagerService(Core);

impl ManagerService {
    /// On this pool.
    pub fn new(core: Core) -> Self {
        Self(core)
    }
}

#[tonic::async_trait]
impl Manager for ManagerService {
    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        volumes::create(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::Empty>, Status> {
        volumes::delete(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn get_volume(
        &self,
        request: Request<v1::GetVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let request = request.into_inner();
        let info = self.0.resolve(request.volume)?;
        self.0.describe(info, request.with_usage).await.map(Response::new)
    }

    async fn list_volumes(
        &self,
        request: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        volumes::list(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn rename_volume(
        &self,
        request: Request<v1::RenameVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        volumes::rename(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn resize_volume(
        &self,
        request: Request<v1::ResizeVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        volumes::resize(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn revert_volume(
        &self,
        request: Request<v1::RevertVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        volumes::revert(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn set_filesystem_state(
        &self,
        request: Request<v1::SetFilesystemStateRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        volumes::set_filesystem(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn publish_volume(
        &self,
        request: Request<v1::PublishVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        volumes::publish(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn unpublish_volume(
        &self,
        request: Request<v1::UnpublishVolumeRequest>,
    ) -> Result<Response<v1::Empty>, Status> {
        volumes::unpublish(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn create_snapshots(
        &self,
        request: Request<v1::CreateSnapshotsRequest>,
    ) -> Result<Response<v1::CreateSnapshotsResponse>, Status> {
        snapshots::create(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Result<Response<v1::Empty>, Status> {
        snapshots::delete(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn get_snapshot(
        &self,
        request: Request<v1::GetSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        snapshots::get(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        snapshots::list(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn label_snapshot(
        &self,
        request: Request<v1::LabelSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        snapshots::label(&self.0, request.into_inner()).await.map(Response::new)
    }

    type DiffSnapshotsStream = Stream<v1::DiffExtents>;

    async fn diff_snapshots(
        &self,
        request: Request<v1::DiffSnapshotsRequest>,
    ) -> Result<Response<Self::DiffSnapshotsStream>, Status> {
        snapshots::diff(&self.0, &request.into_inner()).await.map(Response::new)
    }

    async fn get_pool(&self, _: Request<v1::GetPoolRequest>) -> Result<Response<v1::Pool>, Status> {
        Ok(Response::new(pool::get(&self.0)))
    }

    type CollectGarbageStream = Stream<v1::GcProgress>;

    async fn collect_garbage(
        &self,
        _: Request<v1::CollectGarbageRequest>,
    ) -> Result<Response<Self::CollectGarbageStream>, Status> {
        Ok(Response::new(pool::collect_garbage(&self.0)))
    }

    type CheckPoolStream = Stream<v1::CheckProgress>;

    async fn check_pool(
        &self,
        _: Request<v1::CheckPoolRequest>,
    ) -> Result<Response<Self::CheckPoolStream>, Status> {
        Ok(Response::new(pool::check(&self.0)))
    }

    type ScrubPoolStream = Stream<v1::ScrubProgress>;

    async fn scrub_pool(
        &self,
        request: Request<v1::ScrubPoolRequest>,
    ) -> Result<Response<Self::ScrubPoolStream>, Status> {
        Ok(Response::new(scrub::run(&self.0, request.into_inner())))
    }
}
