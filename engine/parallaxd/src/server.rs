//! Where the protocol is served.
//!
//! Invariants:
//! * The Unix socket has mode 0600 from its first moment: it is made aside and renamed into place.
//! * On the network there is the manager alone, by TLS, for clients whose certificate our CA signed.
//! * A second daemon on the same socket is refused, a stale socket is replaced.

use crate::{
    config::{ManagerConfig, TlsConfig},
    service::{Core, ManagerService, NodeService},
};
use parallax_api::v1::{manager_server::ManagerServer, node_server::NodeServer};
use parallax_block::{Error, ErrorKind, Result, ResultExt};
use std::{
    fs::Permissions,
    future::Future,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
    sync::watch,
};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::{
    Certificate, Identity, Server, ServerTlsConfig,
    server::{Connected, Router},
};
use tonic_health::{ServingStatus, server::HealthReporter};

/// Bytes of the largest request: a piece of content and its frame.
const REQUEST_BYTES_MAX: usize = 8 << 20;

/// Requests that one connection may have under way.
const REQUESTS_MAX: usize = 128;

const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Health as gRPC clients ask for it: the process by the empty name, each service by its own.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
    changes: watch::Receiver<bool>,
}

impl Health {
    /// Follows `changes`, which say whether the pool's device answers.
    pub fn new(changes: watch::Receiver<bool>) -> Self {
        Self { reporter: HealthReporter::new(), changes }
    }

    /// Reports until it is dropped.
    pub async fn report(mut self) {
        self.reporter.set_service_status("", ServingStatus::Serving).await;
        loop {
            let healthy = *self.changes.borrow_and_update();
            let status = if healthy { ServingStatus::Serving } else { ServingStatus::NotServing };
            for service in ["parallax.v1.Manager", "parallax.v1.Node"] {
                self.reporter.set_service_status(service, status).await;
            }
            if self.changes.changed().await.is_err() {
                return;
            }
        }
    }
}

fn builder() -> Server {
    Server::builder()
        .concurrency_limit_per_connection(REQUESTS_MAX)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .max_concurrent_streams(REQUESTS_MAX as u32)
}

fn manager(core: &Core) -> ManagerServer<ManagerService> {
    ManagerServer::new(ManagerService::new(core.clone())).max_decoding_message_size(REQUEST_BYTES_MAX)
}

/// Both services.
fn local(core: &Core, health: Option<&Health>) -> Router {
    let node = NodeServer::new(NodeService::new(core.clone())).max_decoding_message_size(REQUEST_BYTES_MAX);
    let health = health.map(|health| {
        tonic_health::pb::health_server::HealthServer::new(
            tonic_health::server::HealthService::from_health_reporter(health.reporter.clone()),
        )
    });
    builder().add_service(manager(core)).add_service(node).add_optional_service(health)
}

/// Serves both services over one pipe, for a client in this process.
pub async fn serve_pipe(core: &Core, pipe: tokio::io::DuplexStream) -> Result<()> {
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(Pipe(pipe)));
    local(core, None).serve_with_incoming(incoming).await.map_err(|error| {
        Error::new(ErrorKind::Io, "the pipe to this process's own server broke").with_source(error)
    })
}

/// Serves both services on a socket until `stop`.
pub async fn serve_socket(
    core: &Core,
    health: &Health,
    listener: UnixListener,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    local(core, Some(health))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await
        .map_err(|error| Error::new(ErrorKind::Io, "serving the control socket failed").with_source(error))
}

/// The name in the file tree of a socket on which this process listens.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> std::io::Result<Self> {
        let found = std::fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device: found.dev(), inode: found.ino() })
    }

    /// Removes it, unless the next daemon has put its own there by now.
    pub fn remove(self) {
        if Self::of(&self.path).is_ok_and(|now| (now.device, now.inode) == (self.device, self.inode)) {
            // Whoever comes next replaces a socket that stays behind.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens on a socket that only its owner can use.
pub async fn bind_socket(path: &Path) -> Result<(UnixListener, SocketFile)> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(Error::new(
            ErrorKind::AlreadyExists,
            format!(
                "another parallaxd answers at {}; stop it, or give this one its own socket",
                path.display()
            ),
        ));
    }
    if let Ok(found) = std::fs::symlink_metadata(path) {
        use std::os::unix::fs::FileTypeExt;
        if !found.file_type().is_socket() {
            return Err(Error::invalid(format!("{} exists and is not a socket", path.display())));
        }
    }
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .context(|| format!("creating {}", directory.display()))?;
    }
    let aside = aside(path);
    // Left by a process with the same number that died here; nobody else uses this name.
    let _ = std::fs::remove_file(&aside);
    let bound = (|| {
        let listener = UnixListener::bind(&aside)?;
        std::fs::set_permissions(&aside, Permissions::from_mode(0o600))?;
        let file = SocketFile { path: path.to_owned(), ..SocketFile::of(&aside)? };
        std::fs::rename(&aside, path)?;
        Ok::<_, std::io::Error>((listener, file))
    })();
    bound.context(|| format!("listening on {}", path.display()))
}

fn aside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}

/// Listens for the manager on the network.
pub async fn bind_manager(config: &ManagerConfig) -> Result<TcpListener> {
    TcpListener::bind(config.listen)
        .await
        .context(|| format!("listening on {} for the manager", config.listen))
}

/// Serves the manager by mutual TLS until `stop`.
pub async fn serve_manager(
    core: &Core,
    health: &Health,
    tls: &TlsConfig,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let read = |what: &str, path: &Path| {
        std::fs::read(path).context(|| format!("reading the {what} {}", path.display()))
    };
    let identity = Identity::from_pem(read("certificate", &tls.certificate)?, read("key", &tls.key)?);
    let tls = ServerTlsConfig::new()
        .identity(identity)
        .client_ca_root(Certificate::from_pem(read("client CA", &tls.client_ca)?))
        .client_auth_optional(false);
    let health = tonic_health::pb::health_server::HealthServer::new(
        tonic_health::server::HealthService::from_health_reporter(health.reporter.clone()),
    );
    builder()
        .tls_config(tls)
        .map_err(|error| Error::invalid("manager.tls: the certificates are not usable").with_source(error))?
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_service(manager(core))
        .add_service(health)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop)
        .await
        .map_err(|error| Error::new(ErrorKind::Io, "serving the manager failed").with_source(error))
}

/// One end of a pipe in this process, as a connection.
struct Pipe(tokio::io::DuplexStream);

impl Connected for Pipe {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/d.sock");
        let _listener = bind_socket(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_second_daemon_is_refused_and_a_stale_socket_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d.sock");
        let first = bind_socket(&path).await.unwrap();
        let error = bind_socket(&path).await.unwrap_err();
        assert!(error.to_string().contains("another parallaxd answers"), "{error}");
        drop(first);
        bind_socket(&path).await.unwrap();
    }

    /// A daemon that had stopped listening and was still closing its volumes removed, at its very end, the socket on which
    /// the next one listened already. Nobody could reach that one any more.
    #[tokio::test]
    async fn a_daemon_that_ends_leaves_the_socket_of_the_next_one_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d.sock");
        let (listener, old) = bind_socket(&path).await.unwrap();
        drop(listener);
        let (_listener, new) = bind_socket(&path).await.unwrap();
        old.remove();
        UnixStream::connect(&path).await.unwrap();
        new.remove();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(bind_socket(&path).await.unwrap_err().to_string().contains("not a socket"));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
