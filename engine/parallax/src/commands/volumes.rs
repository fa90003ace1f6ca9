//! create, delete, list, rename, resize, revert.

use crate::{
    failure::{Failure, Outcome},
    output::{Output, VolumeView, size, table},
    session::{Session, Source, by_id},
};
use parallax_api::{units::ByteSize, v1};
use serde::Serialize;

#[derive(Serialize)]
struct Volumes {
    volumes: Vec<VolumeView>,
}

/// What `delete` and the like answer.
#[derive(Serialize)]
pub(crate) struct Done {
    /// What was done.
    pub(crate) done: &'static str,
    /// To what.
    pub(crate) id: String,
}

pub(crate) async fn create(
    session: &Session,
    output: Output,
    name: String,
    bytes: Option<ByteSize>,
    from: Option<&str>,
    block: Option<u32>,
) -> Outcome {
    use v1::create_volume_request::Source as From;
    let source = match from {
        None => None,
        Some(text) => Some(match session.source(text).await? {
            Source::Volume(id) => From::VolumeId(id),
            Source::Snapshot(id) => From::SnapshotId(id),
        }),
    };
    let request = v1::CreateVolumeRequest {
        name,
        size_bytes: bytes.unwrap_or_default().0,
        source,
        attributes: Default::default(),
        logical_block_bytes: block.unwrap_or(0),
    };
    let client = session.client();
    let made = client.manager().create_volume(client.request(request)).await?.into_inner();
    output.show(&VolumeView::from(made), |volume| {
        let from = from.map(|from| format!(" from {from}")).unwrap_or_default();
        format!("created {}: {}{from}", volume.name, size(volume.size_bytes))
    })
}

pub(crate) async fn delete(session: &Session, output: Output, volume: &str) -> Outcome {
    let found = session.volume(volume).await?;
    let client = session.client();
    let request = v1::DeleteVolumeRequest { volume: by_id(&found.id) };
    client
        .manager()
        .delete_volume(client.request(request))
        .await
        .map_err(|status| Failure::from(status).or_try(format!("parallax detach {volume}")))?;
    output.show(&Done { done: "deleted", id: found.id }, |_| match found.snapshot_count {
        0 => format!("deleted {volume}"),
        count => format!("deleted {volume}; its {count} snapshots stay (parallax list --all)"),
    })
}

/// Every volume, page by page.
pub(crate) async fn all(
    session: &Session,
    with_headless: bool,
    with_usage: bool,
) -> Outcome<Vec<v1::Volume>> {
    let client = session.client();
    let mut volumes: Vec<v1::Volume> = Vec::new();
    loop {
        let after = volumes.last().map(|volume| volume.id.clone()).unwrap_or_default();
        let request = v1::ListVolumesRequest { limit: 0, after, with_usage, with_headless };
        let page = client.manager().list_volumes(client.request(request)).await?.into_inner();
        let more = page.more && !page.volumes.is_empty();
        volumes.extend(page.volumes);
        if !more {
            return Ok(volumes);
        }
    }
}

pub(crate) async fn list(session: &Session, output: Output, deleted: bool, usage: bool) -> Outcome {
    let mut volumes: Vec<VolumeView> =
        all(session, deleted, usage).await?.into_iter().map(VolumeView::from).collect();
    volumes.sort_by(|one, other| {
        (one.deleted, &one.name, &one.id).cmp(&(other.deleted, &other.name, &other.id))
    });
    output.show(&Volumes { volumes }, |Volumes { volumes }| {
        if volumes.is_empty() {
            return "no volumes yet; `parallax create NAME --size 10G` makes one".into();
        }
        let mut titles = vec!["name", "size>"];
        if usage {
            titles.extend(["mapped>", "shared>", "metadata>"]);
        }
        titles.extend(["snapshots>", "state", "id"]);
        let faults: String = volumes
            .iter()
            .filter_map(|volume| Some(format!("\n{}: {}\n", volume.name, volume.fault.as_deref()?)))
            .collect();
        let rows = volumes.iter().map(|volume| {
            let mut row = vec![volume.shown(), size(volume.size_bytes)];
            if let Some(usage) = &volume.usage {
                row.extend([usage.mapped_bytes, usage.shared_bytes, usage.metadata_bytes].map(size));
            }
            row.extend([volume.snapshots.to_string(), volume.state(), volume.id.clone()]);
            row
        });
        table(&titles, rows) + &faults
    })
}

pub(crate) async fn rename(session: &Session, output: Output, volume: &str, name: String) -> Outcome {
    let id = session.volume(volume).await?.id;
    let client = session.client();
    let request = v1::RenameVolumeRequest { volume: by_id(&id), name };
    let renamed = client.manager().rename_volume(client.request(request)).await?.into_inner();
    output.show(&VolumeView::from(renamed), |now| format!("renamed {volume} to {}", now.name))
}

pub(crate) async fn resize(session: &Session, output: Output, volume: &str, bytes: ByteSize) -> Outcome {
    let found = session.volume(volume).await?;
    let client = session.client();
    let request = v1::ResizeVolumeRequest { volume: by_id(&found.id), size_bytes: bytes.0 };
    let resized = client.manager().resize_volume(client.request(request)).await?.into_inner();
    output.show(&VolumeView::from(resized), |now| {
        format!("{volume} has {} now, {} before", size(now.size_bytes), size(found.size_bytes))
    })
}

pub(crate) async fn revert(session: &Session, output: Output, volume: &str, snapshot: &str) -> Outcome {
    let id = session.volume(volume).await?.id;
    let snapshot_id = session.snapshot(snapshot).await?;
    let client = session.client();
    let request = v1::RevertVolumeRequest { volume: by_id(&id), snapshot_id };
    let reverted = client
        .manager()
        .revert_volume(client.request(request))
        .await
        .map_err(|status| Failure::from(status).or_try(format!("parallax detach {volume}")))?;
    output.show(&VolumeView::from(reverted.into_inner()), |_| format!("{volume} is as it was at {snapshot}"))
}
