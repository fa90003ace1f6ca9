//! The Manager service of the test daemon.

use super::NODE;
use super::shop::{Result, Shop};
use parallax_api::v1::{self, FilesystemState, manager_server::Manager};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio_stream::StreamExt as _;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

pub struct Service(pub Arc<Mutex<Shop>>);

impl Service {
    fn shop(&self, method: &str) -> Result<MutexGuard<'_, Shop>> {
        let shop = self.0.lock().unwrap();
        shop.fail(method)?;
        Ok(shop)
    }
}

fn answer<T>(message: T) -> Result<Response<T>> {
    Ok(Response::new(message))
}

fn left_out<T>() -> Result<T> {
    Err(Status::unimplemented("the test daemon does not offer it"))
}

fn paged<T: Clone>(all: Vec<(String, T)>, after: &str, limit: u32) -> (Vec<T>, bool) {
    let rest = all.into_iter().filter(|(id, _)| id.as_str() > after).map(|(_, one)| one).collect::<Vec<_>>();
    let limit = if limit == 0 { rest.len() } else { limit as usize };
    let more = rest.len() > limit;
    (rest.into_iter().take(limit).collect(), more)
}

#[tonic::async_trait]
impl Manager for Service {
    async fn create_volume(&self, request: Request<v1::CreateVolumeRequest>) -> Result<Response<v1::Volume>> {
        answer(self.shop("create_volume")?.create(request.into_inner())?)
    }

    async fn delete_volume(&self, request: Request<v1::DeleteVolumeRequest>) -> Result<Response<v1::Empty>> {
        self.shop("delete_volume")?.delete(request.into_inner().volume)?;
        answer(v1::Empty {})
    }

    async fn get_volume(&self, request: Request<v1::GetVolumeRequest>) -> Result<Response<v1::Volume>> {
        let request = request.into_inner();
        let shop = self.shop("get_volume")?;
        let mut volume = shop.find(request.volume)?;
        volume.attached = shop.attachments.contains_key(&volume.id);
        if request.with_usage {
            volume.usage =
                Some(v1::Usage { mapped_bytes: shop.mapped_bytes(&volume.id), ..Default::default() });
        }
        answer(volume)
    }

    async fn list_volumes(
        &self,
        request: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>> {
        let request = request.into_inner();
        let all = self.shop("list_volumes")?.volumes.clone().into_iter().collect();
        let (volumes, more) = paged(all, &request.after, request.limit);
        answer(v1::ListVolumesResponse { volumes, more })
    }

    async fn rename_volume(&self, _: Request<v1::RenameVolumeRequest>) -> Result<Response<v1::Volume>> {
        left_out()
    }

    async fn resize_volume(&self, request: Request<v1::ResizeVolumeRequest>) -> Result<Response<v1::Volume>> {
        let request = request.into_inner();
        answer(self.shop("resize_volume")?.resize(request.volume, request.size_bytes)?)
    }

    async fn revert_volume(&self, _: Request<v1::RevertVolumeRequest>) -> Result<Response<v1::Volume>> {
        left_out()
    }

    async fn set_filesystem_state(
        &self,
        request: Request<v1::SetFilesystemStateRequest>,
    ) -> Result<Response<v1::Volume>> {
        let request = request.into_inner();
        let mut shop = self.shop("set_filesystem_state")?;
        let id = shop.find(request.volume)?.id;
        let volume = shop.volumes.get_mut(&id).unwrap();
        if volume.filesystem_state != request.expected {
            return Err(Status::failed_precondition("its state is another"));
        }
        volume.filesystem_state = FilesystemState::try_from(request.next).unwrap().into();
        answer(volume.clone())
    }

    async fn publish_volume(
        &self,
        request: Request<v1::PublishVolumeRequest>,
    ) -> Result<Response<v1::Volume>> {
        let request = request.into_inner();
        let mut shop = self.shop("publish_volume")?;
        let id = shop.find(request.volume)?.id;
        let publication = request.publication.unwrap();
        if publication.node != NODE {
            return Err(Status::not_found(format!("no node {} has joined this pool", publication.node)));
        }
        let volume = shop.volumes.get_mut(&id).unwrap();
        match volume.publications.first() {
            None => volume.publications.push(publication),
            Some(first) if *first == publication => {}
            Some(first) => {
                return Err(Status::failed_precondition(format!("it is published to {}", first.node)));
            }
        }
        answer(volume.clone())
    }

    async fn unpublish_volume(
        &self,
        request: Request<v1::UnpublishVolumeRequest>,
    ) -> Result<Response<v1::Empty>> {
        let request = request.into_inner();
        let mut shop = self.shop("unpublish_volume")?;
        let id = shop.find(request.volume)?.id;
        let volume = shop.volumes.get_mut(&id).unwrap();
        volume.publications.retain(|one| !request.node.is_empty() && one.node != request.node);
        answer(v1::Empty {})
    }

    async fn create_snapshots(
        &self,
        request: Request<v1::CreateSnapshotsRequest>,
    ) -> Result<Response<v1::CreateSnapshotsResponse>> {
        let snapshots = self.shop("create_snapshots")?.snapshot(request.into_inner())?;
        answer(v1::CreateSnapshotsResponse { snapshots })
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Result<Response<v1::Empty>> {
        let id = request.into_inner().id;
        let mut shop = self.shop("delete_snapshot")?;
        if shop.snapshots.remove(&id).is_some() {
            std::fs::remove_file(shop.file(&id)).unwrap();
        }
        answer(v1::Empty {})
    }

    async fn get_snapshot(&self, request: Request<v1::GetSnapshotRequest>) -> Result<Response<v1::Snapshot>> {
        use v1::get_snapshot_request::By;
        let shop = self.shop("get_snapshot")?;
        let found = match request.into_inner().by.unwrap() {
            By::Id(id) => shop.snapshots.get(&id),
            By::Name(name) => shop.snapshots.values().find(|snapshot| snapshot.name == name),
        };
        answer(found.cloned().ok_or_else(|| Status::not_found("no such snapshot"))?)
    }

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>> {
        let request = request.into_inner();
        let shop = self.shop("list_snapshots")?;
        let of = request.volume.map(|volume| match volume.by {
            Some(v1::volume_ref::By::Id(id)) => id,
            other => panic!("{other:?}"),
        });
        let all = shop.snapshots.clone().into_iter();
        let all =
            all.filter(|(_, snapshot)| of.as_ref().is_none_or(|id| snapshot.volume_id == *id)).collect();
        let (snapshots, more) = paged(all, &request.after, request.limit);
        answer(v1::ListSnapshotsResponse { snapshots, more })
    }

    async fn label_snapshot(&self, _: Request<v1::LabelSnapshotRequest>) -> Result<Response<v1::Snapshot>> {
        left_out()
    }

    type DiffSnapshotsStream = BoxStream<v1::DiffExtents>;

    /// Blocks that differ, one extent for each, two extents in a message.
    async fn diff_snapshots(
        &self,
        request: Request<v1::DiffSnapshotsRequest>,
    ) -> Result<Response<Self::DiffSnapshotsStream>> {
        const BLOCK: usize = 4096;
        let request = request.into_inner();
        let shop = self.shop("diff_snapshots")?;
        let target = std::fs::read(shop.file(&request.target_id)).unwrap();
        let base = match request.base_id.as_str() {
            "" => Vec::new(),
            id => std::fs::read(shop.file(id)).unwrap(),
        };
        let zero = [0; BLOCK];
        let start = usize::try_from(request.starting_offset).unwrap() / BLOCK;
        let extents = target.chunks(BLOCK).enumerate().skip(start).filter(|(index, block)| {
            let old = base.get(index * BLOCK..(index + 1) * BLOCK).unwrap_or(&zero);
            *block != old
        });
        let extents = extents.map(|(index, block)| v1::DiffExtent {
            offset: (index * BLOCK) as u64,
            length: BLOCK as u64,
            data: block != zero,
        });
        let extents = extents.collect::<Vec<_>>();
        let messages = extents.chunks(2).map(|chunk| Ok(v1::DiffExtents { extents: chunk.to_vec() }));
        answer(Box::pin(tokio_stream::iter(messages.collect::<Vec<_>>()).fuse()))
    }

    async fn get_pool(&self, _: Request<v1::GetPoolRequest>) -> Result<Response<v1::Pool>> {
        let shop = self.shop("get_pool")?;
        answer(v1::Pool {
            uuid: shop.pool.to_string(),
            capacity_bytes: 64 << 30,
            free_bytes: 32 << 30,
            volume_count: shop.volumes.len() as u64,
            ..Default::default()
        })
    }

    type CollectGarbageStream = BoxStream<v1::GcProgress>;

    async fn collect_garbage(
        &self,
        _: Request<v1::CollectGarbageRequest>,
    ) -> Result<Response<Self::CollectGarbageStream>> {
        left_out()
    }

    type CheckPoolStream = BoxStream<v1::CheckProgress>;

    async fn check_pool(&self, _: Request<v1::CheckPoolRequest>) -> Result<Response<Self::CheckPoolStream>> {
        left_out()
    }

    type ScrubPoolStream = BoxStream<v1::ScrubProgress>;

    async fn scrub_pool(&self, _: Request<v1::ScrubPoolRequest>) -> Result<Response<Self::ScrubPoolStream>> {
        left_out()
    }
}
