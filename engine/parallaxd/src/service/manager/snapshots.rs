//! Snapshots: take, delete, list, label, compare.
//!
//! Invariants:
//! * Taking is idempotent by name, where one is given; the name of other snapshots is refused.
//! * A list is in order of volume id and number; a snapshot that is deleted while it is listed is left out.

use super::{
    super::{Core, convert, to_status},
    Stream,
    volumes::page,
};
use crate::{engine::now, metrics::Metrics};
use parallax_api::v1;
use parallax_block::{Error, ErrorKind};
use parallax_store::{Name, SnapshotId, SnapshotInfo, TakeSnapshot, VdiId, VdiInfo};
use std::{collections::BTreeSet, time::Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Volumes of one set.
const SET_MAX: usize = 64;

/// Extents of one message, and messages that wait for a slow reader.
const DIFF_EXTENTS: usize = 1024;
const DIFF_QUEUE: usize = 4;

pub(super) async fn create(
    core: &Core,
    request: v1::CreateSnapshotsRequest,
) -> Result<v1::CreateSnapshotsResponse, Status> {
    if request.volumes.is_empty() || request.volumes.len() > SET_MAX {
        return Err(Status::invalid_argument(format!("name 1 to {SET_MAX} volumes to snapshot")));
    }
    let name = match request.name {
        name if name.is_empty() => None,
        name => Some(Name::new(name).map_err(to_status)?),
    };
    let mut vdis = Vec::with_capacity(request.volumes.len());
    for volume in request.volumes {
        let info = core.resolve(Some(volume))?;
        if info.headless {
            return Err(Status::not_found(format!("the volume {} has been deleted", info.id)));
        }
        if vdis.contains(&info.id) {
            return Err(Status::invalid_argument(format!("the volume '{}' is named twice", info.name)));
        }
        vdis.push(info.id);
    }
    let taken = match present(core, name.as_ref(), &vdis).await? {
        Some(taken) => taken,
        None => {
            let take =
                TakeSnapshot { vdis: vdis.clone(), label: request.label, name: name.clone(), at: now() };
            let begun = Instant::now();
            let taken = core.engine.run(move |pool| async move { pool.snapshot(take).await }).await;
            match taken {
                Ok(taken) => {
                    core.metrics.snapshots(taken.len(), begun.elapsed());
                    taken
                }
                // Somebody took the name in between; that is this request's twin or a rival.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    present(core, name.as_ref(), &vdis).await?.ok_or_else(|| to_status(error))?
                }
                Err(error) => return Err(to_status(error)),
            }
        }
    };
    let snapshots = taken.into_iter().map(|info| describe(core, info, 0)).collect();
    Ok(v1::CreateSnapshotsResponse { snapshots })
}

/// The snapshots that carry the name, if they are of these volumes; `None` if there are none.
async fn present(
    core: &Core,
    name: Option<&Name>,
    vdis: &[VdiId],
) -> Result<Option<Vec<SnapshotInfo>>, Status> {
    let Some(name) = name else { return Ok(None) };
    let ids = core.engine.pool().snapshots_named(name.as_str());
    if ids.is_empty() {
        return Ok(None);
    }
    let have: BTreeSet<VdiId> = ids.iter().map(|id| id.vdi).collect();
    if have != vdis.iter().copied().collect() {
        return Err(Status::already_exists(format!("the snapshot name '{name}' is taken by other volumes")));
    }
    core.engine
        .run(move |pool| async move {
            let mut infos = Vec::with_capacity(ids.len());
            for id in ids {
                infos.push(pool.snapshot_info(id).await?);
            }
            Ok(Some(infos))
        })
        .await
        .map_err(to_status)
}

fn describe(core: &Core, info: SnapshotInfo, exclusive: u64) -> v1::Snapshot {
    let volume = core.engine.pool().vdi(info.id.vdi);
    convert::snapshot(info, volume.as_ref().map_or("", live_name), exclusive)
}

/// A name by which the volume can be found: a deleted one has none.
fn live_name(volume: &VdiInfo) -> &str {
    if volume.headless { "" } else { volume.name.as_str() }
}

pub(super) async fn delete(core: &Core, request: v1::DeleteSnapshotRequest) -> Result<v1::Empty, Status> {
    let id: SnapshotId = request.id.parse().map_err(to_status)?;
    match core.engine.run(move |pool| async move { pool.delete_snapshot(id).await }).await {
        Ok(()) => {
            Metrics::add(&core.metrics.snapshots_deleted, 1);
            core.collector.deleted();
            Ok(v1::Empty {})
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(v1::Empty {}),
        Err(error) => Err(to_status(error)),
    }
}

pub(super) async fn get(core: &Core, request: v1::GetSnapshotRequest) -> Result<v1::Snapshot, Status> {
    use v1::get_snapshot_request::By;
    let id: SnapshotId = match request.by {
        Some(By::Id(id)) => id.parse().map_err(to_status)?,
        Some(By::Name(name)) => match core.engine.pool().snapshots_named(&name).as_slice() {
            [one] => *one,
            [] => return Err(Status::not_found(format!("there is no snapshot named '{name}'"))),
            many => {
                return Err(Status::failed_precondition(format!(
                    "'{name}' names a set of {} snapshots; ask for one by its id",
                    many.len()
                )));
            }
        },
        None => return Err(Status::invalid_argument("the request does not say which snapshot")),
    };
    let with_usage = request.with_usage;
    let (info, exclusive) = core
        .engine
        .run(move |pool| async move {
            let info = pool.snapshot_info(id).await?;
            let exclusive = if with_usage { pool.exclusive(id).await? } else { 0 };
            Ok((info, exclusive))
        })
        .await
        .map_err(to_status)?;
    Ok(describe(core, info, exclusive))
}

pub(super) async fn list(
    core: &Core,
    request: v1::ListSnapshotsRequest,
) -> Result<v1::ListSnapshotsResponse, Status> {
    let after: Option<SnapshotId> = match request.after.as_str() {
        "" => None,
        text => Some(text.parse().map_err(to_status)?),
    };
    let vdis: Vec<VdiInfo> = match request.volume {
        Some(volume) => vec![core.resolve(Some(volume))?],
        None => core.engine.pool().vdis(),
    };
    let limit = page(request.limit);
    let mut snapshots = Vec::new();
    for (vdi, from) in plan(&vdis, after) {
        // One more than fits, to know whether there are more.
        let want = limit + 1 - snapshots.len();
        let found = with_exclusive(core, vdi.id, from, want, request.with_usage).await?;
        snapshots.extend(
            found.into_iter().map(|(info, exclusive)| convert::snapshot(info, live_name(vdi), exclusive)),
        );
        if snapshots.len() > limit {
            snapshots.truncate(limit);
            return Ok(v1::ListSnapshotsResponse { snapshots, more: true });
        }
    }
    Ok(v1::ListSnapshotsResponse { snapshots, more: false })
}

/// Volumes that still have something to list after `after`, and the number to go on from.
fn plan(vdis: &[VdiInfo], after: Option<SnapshotId>) -> Vec<(&VdiInfo, u64)> {
    vdis.iter()
        .filter_map(|vdi| match after {
            Some(after) if vdi.id < after.vdi => None,
            Some(after) if vdi.id == after.vdi => Some((vdi, after.number)),
            _ => Some((vdi, 0)),
        })
        .filter(|(vdi, _)| vdi.snapshots > 0)
        .collect()
}

async fn with_exclusive(
    core: &Core,
    vdi: VdiId,
    after: u64,
    limit: usize,
    with_usage: bool,
) -> Result<Vec<(SnapshotInfo, u64)>, Status> {
    core.engine
        .run(move |pool| async move {
            let infos = match pool.snapshots(vdi, after, limit).await {
                Err(error) if error.kind() == ErrorKind::NotFound => vec![],
                infos => infos?,
            };
            let mut found = Vec::with_capacity(infos.len());
            for info in infos {
                let exclusive = match with_usage.then_some(info.materialised) {
                    Some(true) => match pool.exclusive(info.id).await {
                        Err(error) if error.kind() == ErrorKind::NotFound => continue,
                        exclusive => exclusive?,
                    },
                    _ => 0,
                };
                found.push((info, exclusive));
            }
            Ok(found)
        })
        .await
        .map_err(to_status)
}

pub(super) async fn label(core: &Core, request: v1::LabelSnapshotRequest) -> Result<v1::Snapshot, Status> {
    let id: SnapshotId = request.id.parse().map_err(to_status)?;
    let label = request.label;
    let info = core
        .engine
        .run(move |pool| async move { pool.label_snapshot(id, &label).await })
        .await
        .map_err(to_status)?;
    Ok(describe(core, info, 0))
}

pub(super) async fn diff(
    core: &Core,
    request: &v1::DiffSnapshotsRequest,
) -> Result<Stream<v1::DiffExtents>, Status> {
    let base: Option<SnapshotId> = match request.base_id.as_str() {
        "" => None,
        text => Some(text.parse().map_err(to_status)?),
    };
    let target: SnapshotId = request.target_id.parse().map_err(to_status)?;
    let mut from = request.starting_offset;
    let engine = core.engine.clone();
    let first = {
        let engine = engine.clone();
        engine
            .run(move |pool| async move {
                for id in base.into_iter().chain([target]) {
                    if !pool.snapshot_info(id).await?.materialised {
                        let why = format!("the snapshot {id} is not ready yet; ask again");
                        return Err(Error::new(ErrorKind::FailedPrecondition, why));
                    }
                }
                pool.diff(base, target, from, DIFF_EXTENTS).await
            })
            .await
            .map_err(to_status)?
    };
    let (sender, receiver) = mpsc::channel(DIFF_QUEUE);
    tokio::spawn(async move {
        let mut extents = first;
        loop {
            let last = extents.len() < DIFF_EXTENTS;
            from = extents.last().map_or(from, |extent| extent.range.end());
            if !extents.is_empty() && sender.send(Ok(convert::diff(&extents))).await.is_err() || last {
                return;
            }
            let next = engine
                .run(move |pool| async move { pool.diff(base, target, from, DIFF_EXTENTS).await })
                .await;
            match next {
                Ok(next) => extents = next,
                Err(error) => {
                    // Whoever asked may have gone; then nobody wants the error either.
                    let _ = sender.send(Err(to_status(error))).await;
                    return;
                }
            }
        }
    });
    Ok(ReceiverStream::new(receiver))
}
