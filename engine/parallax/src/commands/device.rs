//! attach, detach, attachments, serve.

use super::volumes::Done;
use crate::{
    failure::{Failure, Outcome},
    output::{Output, size, table},
    session::{Session, Source, by_id},
};
use parallax_api::v1;
use serde::Serialize;
use std::path::{Path, absolute};

#[derive(Serialize)]
struct AttachmentView {
    device: String,
    volume_id: String,
    snapshot: Option<String>,
    read_only: bool,
    transport: String,
    size_bytes: u64,
}

impl From<v1::Attachment> for AttachmentView {
    fn from(attachment: v1::Attachment) -> Self {
        Self {
            device: attachment.device,
            volume_id: attachment.volume_id,
            snapshot: Some(attachment.snapshot_id).filter(|id| !id.is_empty()),
            read_only: attachment.read_only,
            transport: attachment.transport,
            size_bytes: attachment.size_bytes,
        }
    }
}

pub(crate) async fn attach(session: &Session, output: Output, source: &str, read_only: bool) -> Outcome {
    use v1::attach_request::Target;
    let target = match session.source(source).await? {
        Source::Volume(id) => {
            if !read_only {
                end_formatting(session, &id).await?;
            }
            Target::VolumeId(id)
        }
        Source::Snapshot(id) => Target::SnapshotId(id),
    };
    let client = session.client();
    let request = v1::AttachRequest { target: Some(target), read_only };
    let attached = client.node().attach(client.request(request)).await?.into_inner();
    output.show(&AttachmentView::from(attached), |attached| attached.device.clone())?;
    if session.is_own() {
        eprintln!("attached until interrupted (Ctrl-C): no daemon holds this pool");
        interrupted().await?;
        detach_source(session, source).await?;
    }
    Ok(())
}

/// A volume whose mkfs was interrupted is formatted again when a pod next uses it. Whoever has it at hand may write to
/// it, and that must stay.
async fn end_formatting(session: &Session, id: &str) -> Outcome {
    let (expected, next) = (v1::FilesystemState::Formatting, v1::FilesystemState::Formatted);
    if session.volume(id).await?.filesystem_state() == expected {
        let (expected, next) = (expected.into(), next.into());
        let request = v1::SetFilesystemStateRequest { volume: by_id(id), expected, next };
        let client = session.client();
        client.manager().set_filesystem_state(client.request(request)).await?;
    }
    Ok(())
}

pub(crate) async fn detach(session: &Session, output: Output, source: &str) -> Outcome {
    let id = detach_source(session, source).await?;
    output.show(&Done { done: "detached", id }, |_| format!("detached {source}"))
}

async fn detach_source(session: &Session, source: &str) -> Outcome<String> {
    use v1::detach_request::Target;
    let (id, target) = match session.source(source).await? {
        Source::Volume(id) => (id.clone(), Target::VolumeId(id)),
        Source::Snapshot(id) => (id.clone(), Target::SnapshotId(id)),
    };
    let client = session.client();
    let request = v1::DetachRequest { target: Some(target) };
    client.node().detach(client.request(request)).await?;
    Ok(id)
}

#[derive(Serialize)]
struct Attachments {
    attachments: Vec<AttachmentView>,
}

pub(crate) async fn list(session: &Session, output: Output) -> Outcome {
    let client = session.client();
    let answer = client.node().list_attachments(client.request(v1::ListAttachmentsRequest {})).await?;
    let attachments = answer.into_inner().attachments.into_iter().map(AttachmentView::from).collect();
    output.show(&Attachments { attachments }, |Attachments { attachments }| {
        if attachments.is_empty() {
            return "nothing is attached; `parallax attach NAME` gives a volume a block device".into();
        }
        let rows = attachments.iter().map(|attachment| {
            let access = if attachment.read_only { "read-only" } else { "read-write" };
            let what = attachment.snapshot.as_ref().unwrap_or(&attachment.volume_id);
            vec![attachment.device.clone(), size(attachment.size_bytes), access.to_owned(), what.clone()]
        });
        table(&["device", "size>", "access", "shows"], rows)
    })
}

#[derive(Serialize)]
struct Serving {
    uri: String,
}

pub(crate) async fn serve(
    session: &Session,
    output: Output,
    source: &str,
    socket: &Path,
    read_only: bool,
) -> Outcome {
    use v1::serve_nbd_request::Target;
    let target = match session.source(source).await? {
        Source::Volume(id) => Target::VolumeId(id),
        Source::Snapshot(id) => Target::SnapshotId(id),
    };
    // The daemon has a working directory of its own.
    let socket = absolute(socket)?;
    let socket = socket
        .to_str()
        .ok_or_else(|| Failure::new(format!("the path {} is not UTF-8", socket.display())))?
        .to_owned();
    let client = session.client();
    let request = v1::ServeNbdRequest { target: Some(target), socket, read_only };
    let mut stream = client.node().serve_nbd(client.unbounded(request)).await?.into_inner();
    let Some(export) = stream.message().await? else {
        return Err(Failure::new("the server stopped before it began"));
    };
    output.show(&Serving { uri: export.uri }, |serving| serving.uri.clone())?;
    tokio::select! {
        interrupted = interrupted() => interrupted,
        ended = stream.message() => match ended {
            Ok(_) => Err(Failure::new("the daemon stopped serving").or_try("the same again when it is back")),
            Err(status) => Err(status.into()),
        },
    }
}

/// Completes at SIGINT or SIGTERM.
async fn interrupted() -> Outcome {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
