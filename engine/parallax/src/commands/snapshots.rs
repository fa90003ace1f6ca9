//! snapshot, snap-list, snap-label, snap-delete, diff.

use super::volumes::Done;
use crate::{
    failure::{Failure, Outcome},
    output::{Output, SnapshotView, size, table},
    session::{Session, by_id},
    time,
};
use parallax_api::v1;
use serde::Serialize;

#[derive(Serialize)]
struct Snapshots {
    snapshots: Vec<SnapshotView>,
}

pub(crate) async fn take(
    session: &Session,
    output: Output,
    volumes: &[String],
    label: String,
    name: String,
) -> Outcome {
    let mut refs = Vec::with_capacity(volumes.len());
    for volume in volumes {
        refs.extend(by_id(&session.volume(volume).await?.id));
    }
    let client = session.client();
    let request = v1::CreateSnapshotsRequest { volumes: refs, label, name };
    let taken = client.manager().create_snapshots(client.request(request)).await?.into_inner();
    let snapshots = taken.snapshots.into_iter().map(SnapshotView::from).collect();
    output.show(&Snapshots { snapshots }, |Snapshots { snapshots }| {
        snapshots.iter().map(|snapshot| snapshot.short() + "\n").collect()
    })
}

/// Every snapshot of a volume, or of all, page by page.
pub(crate) async fn all(
    session: &Session,
    volume: Option<&str>,
    with_usage: bool,
) -> Outcome<Vec<v1::Snapshot>> {
    let client = session.client();
    let mut snapshots: Vec<v1::Snapshot> = Vec::new();
    loop {
        let after = snapshots.last().map(|snapshot| snapshot.id.clone()).unwrap_or_default();
        let request =
            v1::ListSnapshotsRequest { volume: volume.and_then(by_id), limit: 0, after, with_usage };
        let page = client.manager().list_snapshots(client.request(request)).await?.into_inner();
        let more = page.more && !page.snapshots.is_empty();
        snapshots.extend(page.snapshots);
        if !more {
            return Ok(snapshots);
        }
    }
}

pub(crate) async fn list(session: &Session, output: Output, volume: Option<&str>, usage: bool) -> Outcome {
    let id = match volume {
        Some(volume) => Some(session.volume(volume).await?.id),
        None => None,
    };
    let found = all(session, id.as_deref(), usage).await?;
    let snapshots = found.into_iter().map(SnapshotView::from).collect();
    output.show(&Snapshots { snapshots }, |Snapshots { snapshots }| {
        if snapshots.is_empty() {
            return "no snapshots yet; `parallax snapshot NAME` takes one".into();
        }
        let mut titles = vec!["snapshot", "taken (utc)", "size>"];
        if usage {
            titles.push("exclusive>");
        }
        titles.extend(["state", "label"]);
        table(
            &titles,
            snapshots.iter().map(|snapshot| {
                let mut row =
                    vec![snapshot.short(), time::plain(snapshot.created_at_ms), size(snapshot.size_bytes)];
                if usage {
                    row.push(size(snapshot.exclusive_bytes));
                }
                let state = if snapshot.ready { "ready" } else { "settling" };
                row.extend([state.to_owned(), snapshot.label.clone()]);
                row
            }),
        )
    })
}

pub(crate) async fn label(session: &Session, output: Output, snapshot: &str, text: String) -> Outcome {
    let id = session.snapshot(snapshot).await?;
    let client = session.client();
    let request = v1::LabelSnapshotRequest { id, label: text };
    let labelled = client.manager().label_snapshot(client.request(request)).await?.into_inner();
    output.show(&SnapshotView::from(labelled), |now| format!("{snapshot}: {}", now.label))
}

pub(crate) async fn delete(session: &Session, output: Output, snapshot: &str) -> Outcome {
    let id = session.snapshot(snapshot).await?;
    let client = session.client();
    // Deleting what is not there succeeds, but a person who mistyped wants to know.
    let by = Some(v1::get_snapshot_request::By::Id(id.clone()));
    client.manager().get_snapshot(client.request(v1::GetSnapshotRequest { by, with_usage: false })).await?;
    client.manager().delete_snapshot(client.request(v1::DeleteSnapshotRequest { id: id.clone() })).await?;
    output.show(&Done { done: "deleted", id }, |_| format!("deleted {snapshot}"))
}

#[derive(Serialize)]
struct Diff {
    changed_bytes: u64,
    unmapped_bytes: u64,
    extents: Vec<ExtentView>,
}

#[derive(Serialize)]
struct ExtentView {
    offset: u64,
    length: u64,
    data: bool,
}

pub(crate) async fn diff(session: &Session, output: Output, base: &str, target: &str) -> Outcome {
    let base_id = if base == "empty" { String::new() } else { session.snapshot(base).await? };
    let target_id = session.snapshot(target).await?;
    let client = session.client();
    let request = v1::DiffSnapshotsRequest { base_id, target_id, starting_offset: 0 };
    let mut stream = client.manager().diff_snapshots(client.unbounded(request)).await?.into_inner();
    let mut diff = Diff { changed_bytes: 0, unmapped_bytes: 0, extents: vec![] };
    while let Some(part) = stream.message().await.map_err(Failure::from)? {
        for v1::DiffExtent { offset, length, data } in part.extents {
            *(if data { &mut diff.changed_bytes } else { &mut diff.unmapped_bytes }) += length;
            diff.extents.push(ExtentView { offset, length, data });
        }
    }
    output.show(&diff, |diff| {
        let rows = diff.extents.iter().map(|extent| {
            let what = if extent.data { "data" } else { "hole" };
            vec![extent.offset.to_string(), extent.length.to_string(), what.to_owned()]
        });
        let list =
            if diff.extents.is_empty() { String::new() } else { table(&["offset>", "length>", "now"], rows) };
        format!(
            "{list}{} changed, {} became holes, in {} extents",
            size(diff.changed_bytes),
            size(diff.unmapped_bytes),
            diff.extents.len()
        )
    })
}
