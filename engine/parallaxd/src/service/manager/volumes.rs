//! Volumes: create, delete, list, rename, grow, revert, publish.
//!
//! Invariants:
//! * Creating is idempotent by name: who asks for what exists gets it; who asks for something else under a name
//!   that is taken is refused.
//! * Deleting what is not there succeeds.
//! * A grown volume is never shrunk, and its block device shows the new size before the call is answered.

use super::super::{Core, PAGE_MAX, convert, to_status};
use crate::{engine::now, metrics::Metrics};
use parallax_api::{units::ByteSize, v1};
use parallax_block::{self as block, BLOCK_SIZE, Error, ErrorKind};
use parallax_store::{CreateVdi, Name, Publication, Source, VdiId, VdiInfo};
use tonic::Status;

/// Four levels of the radix tree map this much.
const VOLUME_BYTES_MAX: u64 = 256 << 40;

/// Times that a compare-and-set is tried against others who change the same volume.
const ATTEMPTS: usize = 8;

pub(super) async fn create(core: &Core, request: v1::CreateVolumeRequest) -> Result<v1::Volume, Status> {
    let name = Name::new(request.name.clone()).map_err(to_status)?;
    let source = source_of(&request).map_err(to_status)?;
    check_size(request.size_bytes)?;
    if !matches!(request.logical_block_bytes, 0 | 512 | 4096) {
        return Err(Status::invalid_argument(format!(
            "a logical block of {} bytes is neither 512 nor 4096",
            request.logical_block_bytes
        )));
    }
    if let Ok(present) = core.engine.pool().vdi_named(name.as_str()) {
        return same_or_taken(core, present, &request, source).await;
    }
    let made = make(core, name.clone(), &request, source).await;
    match made {
        Ok(info) => {
            Metrics::add(&core.metrics.volumes_created, 1);
            core.describe(info, false).await
        }
        // Somebody created it in between; that is this request's twin or a rival.
        Err(status) if status.code() == tonic::Code::AlreadyExists => {
            let present = core.engine.pool().vdi_named(name.as_str()).map_err(to_status)?;
            same_or_taken(core, present, &request, source).await
        }
        Err(status) => Err(status),
    }
}

async fn make(
    core: &Core,
    name: Name,
    request: &v1::CreateVolumeRequest,
    source: Source,
) -> Result<VdiInfo, Status> {
    let size = (request.size_bytes != 0).then_some(request.size_bytes);
    let mut logical_block = request.logical_block_bytes;
    match source {
        Source::Empty if size.is_none() => {
            return Err(Status::invalid_argument("a new empty volume needs a size"));
        }
        Source::Empty => {}
        Source::Snapshot(id) => {
            let taken = core
                .engine
                .run(move |pool| async move { pool.materialise(id).await })
                .await
                .map_err(to_status)?;
            check_covers(size, taken.size)?;
            if logical_block == 0 {
                logical_block = core.engine.pool().vdi(id.vdi).map_err(to_status)?.logical_block;
            }
        }
        Source::Vdi(id) => {
            let from = core.engine.pool().vdi(id).map_err(to_status)?;
            if from.headless {
                return Err(Status::not_found(format!("the volume {id} has been deleted")));
            }
            check_covers(size, from.size)?;
            if logical_block == 0 {
                logical_block = from.logical_block;
            }
        }
    }
    let create = CreateVdi {
        name,
        size,
        source,
        logical_block: if logical_block == 0 { 512 } else { logical_block },
        attributes: request.attributes.clone().into_iter().collect(),
        at: now(),
    };
    core.engine.run(move |pool| async move { pool.create_vdi(create).await }).await.map_err(to_status)
}

/// Answers a repeated request with the volume that it made, and refuses any other.
async fn same_or_taken(
    core: &Core,
    present: VdiInfo,
    request: &v1::CreateVolumeRequest,
    source: Source,
) -> Result<v1::Volume, Status> {
    match difference(&present, request.size_bytes, request.logical_block_bytes, source) {
        None => core.describe(present, false).await,
        Some(difference) => {
            Err(Status::already_exists(format!("the volume '{}' exists already, {difference}", present.name)))
        }
    }
}

/// In what a volume differs from what a request asks for; 0 asks for nothing in particular.
fn difference(present: &VdiInfo, size: u64, logical_block: u32, source: Source) -> Option<String> {
    if size != 0 && size != present.size {
        return Some(format!(
            "with {} instead of {}",
            ByteSize(present.size).exact(),
            ByteSize(size).exact()
        ));
    }
    if logical_block != 0 && logical_block != present.logical_block {
        return Some(format!("with blocks of {} bytes", present.logical_block));
    }
    let same_source = match source {
        Source::Empty => present.source_snapshot.is_none() && present.source_vdi.is_none(),
        Source::Snapshot(id) => present.source_vdi.is_none() && present.source_snapshot == Some(id),
        Source::Vdi(id) => present.source_vdi == Some(id),
    };
    (!same_source).then(|| "made from another source".to_owned())
}

fn source_of(request: &v1::CreateVolumeRequest) -> block::Result<Source> {
    use v1::create_volume_request::Source as From;
    Ok(match &request.source {
        None => Source::Empty,
        Some(From::SnapshotId(id)) => Source::Snapshot(id.parse()?),
        Some(From::VolumeId(id)) => Source::Vdi(id.parse()?),
    })
}

fn check_size(bytes: u64) -> Result<(), Status> {
    if bytes > VOLUME_BYTES_MAX {
        return Err(Status::out_of_range(format!(
            "{} is more than the {} that a volume can have",
            ByteSize(bytes),
            ByteSize(VOLUME_BYTES_MAX)
        )));
    }
    if !bytes.is_multiple_of(BLOCK_SIZE as u64) {
        return Err(Status::invalid_argument(format!("{bytes} bytes are not a multiple of {BLOCK_SIZE}")));
    }
    Ok(())
}

fn check_covers(size: Option<u64>, source: u64) -> Result<(), Status> {
    match size {
        Some(size) if size < source => Err(Status::out_of_range(format!(
            "{} is less than the {} of its source",
            ByteSize(size).exact(),
            ByteSize(source).exact()
        ))),
        _ => Ok(()),
    }
}

pub(super) async fn delete(core: &Core, request: v1::DeleteVolumeRequest) -> Result<v1::Empty, Status> {
    let info = match core.resolve(request.volume) {
        Ok(info) => info,
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(v1::Empty {}),
        Err(status) => return Err(status),
    };
    if info.headless {
        return Ok(v1::Empty {});
    }
    let id = info.id;
    match core.engine.run(move |pool| async move { pool.delete_vdi(id).await }).await {
        Ok(()) => {
            Metrics::add(&core.metrics.volumes_deleted, 1);
            core.collector.deleted();
            tracing::info!(volume = %id, name = %info.name, "deleted");
            Ok(v1::Empty {})
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(v1::Empty {}),
        Err(error) => Err(to_status(error)),
    }
}

pub(super) async fn list(
    core: &Core,
    request: v1::ListVolumesRequest,
) -> Result<v1::ListVolumesResponse, Status> {
    let after: Option<VdiId> = match request.after.as_str() {
        "" => None,
        text => Some(text.parse().map_err(to_status)?),
    };
    let limit = page(request.limit);
    let mut wanted = core
        .engine
        .pool()
        .vdis()
        .into_iter()
        .filter(|info| request.with_headless || !info.headless)
        .skip_while(|info| after.is_some_and(|after| info.id <= after));
    let mut volumes = Vec::new();
    for info in wanted.by_ref().take(limit) {
        match core.describe(info, request.with_usage).await {
            Ok(volume) => volumes.push(volume),
            // Deleted while its space was being counted.
            Err(status) if status.code() == tonic::Code::NotFound => {}
            Err(status) => return Err(status),
        }
    }
    Ok(v1::ListVolumesResponse { volumes, more: wanted.next().is_some() })
}

/// Entries of one page.
pub(super) fn page(limit: u32) -> usize {
    if limit == 0 { PAGE_MAX } else { (limit as usize).min(PAGE_MAX) }
}

pub(super) async fn rename(core: &Core, request: v1::RenameVolumeRequest) -> Result<v1::Volume, Status> {
    let info = core.resolve(request.volume)?;
    let name = Name::new(request.name).map_err(to_status)?;
    if info.name == name {
        return core.describe(info, false).await;
    }
    let id = info.id;
    let info = core
        .engine
        .run(move |pool| async move { pool.rename_vdi(id, name).await })
        .await
        .map_err(to_status)?;
    core.describe(info, false).await
}

pub(super) async fn resize(core: &Core, request: v1::ResizeVolumeRequest) -> Result<v1::Volume, Status> {
    let mut info = core.resolve(request.volume)?;
    let (id, size) = (info.id, request.size_bytes);
    check_size(size)?;
    if size < info.size {
        return Err(Status::out_of_range(format!(
            "'{}' has {} and volumes never shrink",
            info.name,
            ByteSize(info.size).exact()
        )));
    }
    if size > info.size {
        info = core
            .engine
            .run(move |pool| async move { pool.resize_vdi(id, size).await })
            .await
            .map_err(to_status)?;
    }
    // Also when the size is as it was: an earlier call may have ended between the two steps.
    core.openings.resized(id).await.map_err(to_status)?;
    core.describe(info, false).await
}

pub(super) async fn revert(core: &Core, request: v1::RevertVolumeRequest) -> Result<v1::Volume, Status> {
    let info = core.resolve(request.volume)?;
    let to = request.snapshot_id.parse().map_err(to_status)?;
    let id = info.id;
    let info = core
        .engine
        .run(move |pool| async move {
            pool.materialise(to).await?;
            pool.revert_vdi(id, to).await
        })
        .await
        .map_err(to_status)?;
    core.collector.deleted();
    core.describe(info, false).await
}

pub(super) async fn set_filesystem(
    core: &Core,
    request: v1::SetFilesystemStateRequest,
) -> Result<v1::Volume, Status> {
    let info = core.resolve(request.volume)?;
    let expected = convert::filesystem_from(request.expected).map_err(to_status)?;
    let next = convert::filesystem_from(request.next).map_err(to_status)?;
    let id = info.id;
    let info = core
        .engine
        .run(move |pool| async move { pool.set_filesystem(id, expected, next).await })
        .await
        .map_err(to_status)?;
    core.describe(info, false).await
}

pub(super) async fn publish(core: &Core, request: v1::PublishVolumeRequest) -> Result<v1::Volume, Status> {
    let wanted = convert::publication_from(request.publication).map_err(to_status)?;
    let id = core.resolve(request.volume)?.id;
    let host = core.engine.host();
    change_publications(core, id, |present| {
        let next = publish_in(present, &wanted)?;
        // This daemon is the pool's only host: no other node could attach it.
        if next.is_some() && wanted.node != *host {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("no node '{}' has joined this pool; its host is '{host}'", wanted.node),
            ));
        }
        Ok(next)
    })
    .await
}

/// The publications with one more, or `None` if it is there already.
fn publish_in(present: &VdiInfo, wanted: &Publication) -> block::Result<Option<Vec<Publication>>> {
    if present.headless {
        return Err(Error::new(ErrorKind::NotFound, format!("the volume {} has been deleted", present.id)));
    }
    match present.publications.as_slice() {
        [] => Ok(Some(vec![wanted.clone()])),
        [one, ..] if one == wanted => Ok(None),
        [one, ..] if one.node == wanted.node => Err(Error::new(
            ErrorKind::AlreadyExists,
            format!("'{}' is published to {} already, with other access", present.name, one.node),
        )),
        [one, ..] => Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!("'{}' is published to {}; it must be unpublished there first", present.name, one.node),
        )),
    }
}

pub(super) async fn unpublish(core: &Core, request: v1::UnpublishVolumeRequest) -> Result<v1::Empty, Status> {
    let id = match core.resolve(request.volume) {
        Ok(info) => info.id,
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(v1::Empty {}),
        Err(status) => return Err(status),
    };
    let node = request.node;
    change_publications(core, id, |present| {
        let keep: Vec<Publication> = present
            .publications
            .iter()
            .filter(|publication| !node.is_empty() && publication.node.as_str() != node)
            .cloned()
            .collect();
        Ok((keep.len() != present.publications.len()).then_some(keep))
    })
    .await
    .map(|_| v1::Empty {})
}

/// Compare-and-set, tried again while others change the same list.
async fn change_publications(
    core: &Core,
    id: VdiId,
    next: impl Fn(&VdiInfo) -> block::Result<Option<Vec<Publication>>> + Send + Sync,
) -> Result<v1::Volume, Status> {
    for _ in 0..ATTEMPTS {
        let present = core.engine.pool().vdi(id).map_err(to_status)?;
        let Some(next) = next(&present).map_err(to_status)? else {
            return core.describe(present, false).await;
        };
        let expected = present.publications.clone();
        let set = core
            .engine
            .run(move |pool| async move { pool.set_publications(id, &expected, next).await })
            .await;
        match set {
            Ok(info) => return core.describe(info, false).await,
            Err(error) => {
                let changed =
                    core.engine.pool().vdi(id).is_ok_and(|later| later.publications != present.publications);
                if !changed {
                    return Err(to_status(error));
                }
            }
        }
    }
    Err(Status::aborted("others keep publishing this volume; ask again"))
}

#[cfg(test)]
mod tests;
