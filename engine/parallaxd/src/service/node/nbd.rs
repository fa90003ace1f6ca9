//! NBD for as long as the call lasts.
//!
//! Lifecycle: open, listen, say where; when the caller goes or the daemon stops: stop listening, let requests in
//! flight finish, close.

use super::{
    super::{Core, to_status},
    Stream,
};
use crate::openings::{Opening, Target};
use parallax_api::v1;
use parallax_block::{self as block, Error, ResultExt};
use parallax_export::nbd::{Limits, NbdExport, NbdServer, NbdServerHandle};
use parallax_store::{FilesystemState, VdiId};
use std::{
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// What fits the kernel's address of a Unix socket, with its NUL.
const SOCKET_BYTES_MAX: usize = 107;

pub(super) async fn serve(
    core: &Core,
    target: Target,
    socket: String,
    read_only: bool,
) -> Result<Stream<v1::NbdExport>, Status> {
    let socket = socket_path(core, target, socket).map_err(to_status)?;
    if let Target::Volume(id) = target
        && !read_only
    {
        end_formatting(core, id).await.map_err(to_status)?;
    }
    let opening = core.openings.open(target).await.map_err(to_status)?;
    let read_only = read_only || matches!(target, Target::Snapshot(_));
    let server = match start(core, &opening, &socket, read_only) {
        Ok(server) => server,
        Err(error) => {
            if let Err(error) = core.openings.close(&opening).await {
                tracing::warn!(%error, "after an NBD server that did not start");
            }
            return Err(to_status(error));
        }
    };
    let (sender, receiver) = mpsc::channel(1);
    let uri = format!("nbd+unix:///?socket={}", escape(&server.socket()));
    tracing::info!(%target, socket = %socket.display(), read_only, "serving NBD");
    let openings = Arc::clone(&core.openings);
    tokio::spawn(async move {
        let mut stopping = openings.stopping();
        if sender.send(Ok(v1::NbdExport { uri })).await.is_ok() {
            tokio::select! {
                () = sender.closed() => {}
                // An error means that the openings are gone, which is a way of stopping.
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
        }
        server.shutdown().await;
        // When the daemon stops, it closes everything that is open itself.
        if !*stopping.borrow()
            && let Err(error) = openings.close(&opening).await
        {
            tracing::error!(%error, "after serving NBD");
        }
    });
    Ok(ReceiverStream::new(receiver))
}

/// A volume whose mkfs was interrupted is formatted again when it is staged, unless somebody has had it to write to.
async fn end_formatting(core: &Core, id: VdiId) -> block::Result<()> {
    let (from, to) = (FilesystemState::Formatting, FilesystemState::Formatted);
    if core.engine.pool().vdi(id)?.filesystem != from {
        return Ok(());
    }
    core.engine.run(move |pool| async move { pool.set_filesystem(id, from, to).await }).await.map(drop)
}

fn start(core: &Core, opening: &Opening, socket: &Path, read_only: bool) -> block::Result<NbdServerHandle> {
    let export = NbdExport {
        name: String::new(),
        device: Arc::clone(opening.device()),
        read_only,
        description: format!("parallax {}", opening.target()),
    };
    NbdServer::start(core.engine.reactors().all(), socket, vec![export], Limits::default())
        .context(|| format!("serving NBD on {}", socket.display()))
}

/// Where to listen: as asked, or under the exports' own directory.
fn socket_path(core: &Core, target: Target, socket: String) -> block::Result<PathBuf> {
    if !socket.is_empty() {
        if socket.len() > SOCKET_BYTES_MAX || socket.contains('\0') {
            return Err(Error::invalid(format!(
                "a socket's path has at most {SOCKET_BYTES_MAX} bytes and no NUL; this one has {} bytes",
                socket.len()
            )));
        }
        let path = PathBuf::from(socket);
        if !path.is_absolute() {
            return Err(Error::invalid(format!("the socket '{}' must be an absolute path", path.display())));
        }
        return Ok(path);
    }
    let directory = core.openings.options().directory.join("nbd");
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .context(|| format!("creating {}", directory.display()))?;
    Ok(directory.join(format!("{target}.sock")))
}

/// A path as part of a URI's query.
fn escape(path: &Path) -> String {
    use std::{fmt::Write, os::unix::ffi::OsStrExt};
    path.as_os_str().as_bytes().iter().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => {
                text.push(char::from(*byte));
            }
            // Writing to a string cannot fail.
            _ => drop(write!(text, "%{byte:02X}")),
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_add_to_the_query() {
        assert_eq!(escape(Path::new("/run/a b&c=1.sock")), "/run/a%20b%26c%3D1.sock");
    }
}
