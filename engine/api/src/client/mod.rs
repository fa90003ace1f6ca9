//! A typed client of the daemon.
//!
//! Invariants:
//! * A connection is a Unix socket or mutual TLS; there is no way to ask for anything less.
//! * A lost connection is made again by the next call; the call that saw it fail reports `UNAVAILABLE`, and may
//!   have taken effect.
//! * Every request from [`Client::request`] carries a deadline; only streams are sent without
//!   ([`Client::unbounded`]).

mod endpoint;

pub use endpoint::{Endpoint, EndpointError, TlsFiles};

use crate::v1::{manager_client::ManagerClient, node_client::NodeClient};
use hyper_util::rt::TokioIo;
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{io::DuplexStream, net::UnixStream, sync::Mutex};
use tonic::{
    Code, IntoRequest, Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Identity, Uri},
};

/// Most bytes of one answer; long lists come in pages, content in pieces far below this.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// The daemon could not be reached; says why and what to try.
#[derive(Debug)]
pub struct ConnectError {
    message: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl ConnectError {
    fn caused(
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { message: message.into(), source: source.into() }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut next: Option<&dyn std::error::Error> = Some(self.source.as_ref());
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for ConnectError {}

/// A connection to one daemon; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    deadline: Duration,
}

impl Client {
    /// Prepares a connection that is made, and made again, when a call needs it.
    pub fn lazy(endpoint: &Endpoint) -> Result<Self, ConnectError> {
        let channel = match endpoint {
            Endpoint::Unix(path) => {
                let path = path.clone();
                local()
                    .connect_with_connector_lazy(tower::service_fn(move |_: Uri| open_socket(path.clone())))
            }
            Endpoint::Tls { host, port, files } => remote(host, *port, files)?.connect_lazy(),
        };
        Ok(Self::over(channel))
    }

    /// Connects now, so that an unreachable daemon is an error with a reason instead of a failed first call.
    pub async fn connect(endpoint: &Endpoint) -> Result<Self, ConnectError> {
        match endpoint {
            Endpoint::Unix(path) => {
                // Only to learn the operating system's own reason; the channel opens its own.
                open_socket(path.clone()).await.map_err(|error| explain_socket(path, error))?;
                Self::lazy(endpoint)
            }
            Endpoint::Tls { host, port, files } => {
                let channel = remote(host, *port, files)?.connect().await.map_err(|error| {
                    ConnectError::caused(format!("cannot reach the manager at https://{host}:{port}"), error)
                })?;
                Ok(Self::over(channel))
            }
        }
    }

    /// Speaks over a pipe to a server in the same process. It lives as long as the pipe.
    pub async fn over_pipe(pipe: DuplexStream) -> Result<Self, ConnectError> {
        let pipe = Arc::new(Mutex::new(Some(pipe)));
        let connector = tower::service_fn(move |_: Uri| {
            let pipe = Arc::clone(&pipe);
            async move {
                let stream = pipe.lock().await.take();
                stream.map(TokioIo::new).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::BrokenPipe))
            }
        });
        let channel = local()
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20)
            .connect_with_connector(connector)
            .await
            .map_err(|error| ConnectError::caused("the pipe to the server in this process broke", error))?;
        Ok(Self::over(channel))
    }

    /// Speaks over a channel that the caller made: for places that are found in another way than by address.
    pub fn over(channel: Channel) -> Self {
        Self { channel, deadline: REQUEST_TIMEOUT }
    }

    /// The same connection with another deadline for [`Client::request`].
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Calls of the manager.
    pub fn manager(&self) -> ManagerClient<Channel> {
        ManagerClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Calls of the node.
    pub fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The channel, for services that are not ours (health).
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request that gives up at the client's deadline.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        request
    }

    /// A request without a deadline: for streams that last as long as their work.
    pub fn unbounded<T>(&self, message: impl IntoRequest<T>) -> Request<T> {
        message.into_request()
    }

    /// Repeats an idempotent call while the daemon is not there or not ready, for at most the client's deadline.
    pub async fn retry<T, F, Fut>(&self, mut call: F) -> Result<T, Status>
    where
        F: FnMut(Self) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        let end = tokio::time::Instant::now() + self.deadline;
        let mut pause = Duration::from_millis(20);
        loop {
            match call(self.clone()).await {
                Err(status)
                    if status.code() == Code::Unavailable && tokio::time::Instant::now() + pause < end =>
                {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                outcome => return outcome,
            }
        }
    }
}

/// Transport of sockets and pipes; the address is never looked up.
fn local() -> tonic::transport::Endpoint {
    tonic::transport::Endpoint::from_static("http://parallaxd.local").connect_timeout(CONNECT_TIMEOUT)
}

async fn open_socket(path: PathBuf) -> std::io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(path).await.map(TokioIo::new)
}

fn explain_socket(path: &Path, error: std::io::Error) -> ConnectError {
    let path = path.display();
    let message = match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!("no daemon: there is no socket at {path}; start parallaxd, or name a pool with --pool")
        }
        std::io::ErrorKind::ConnectionRefused => {
            format!("no daemon: nothing listens at {path}; parallaxd has stopped")
        }
        std::io::ErrorKind::PermissionDenied => {
            format!("the socket {path} is only for its owner; run as the user of parallaxd (root)")
        }
        _ => format!("cannot connect to {path}"),
    };
    ConnectError::caused(message, error)
}

fn remote(host: &str, port: u16, files: &TlsFiles) -> Result<tonic::transport::Endpoint, ConnectError> {
    let read = |what: &str, path: &Path| {
        std::fs::read(path).map_err(|error| {
            ConnectError::caused(format!("cannot read the {what} {}", path.display()), error)
        })
    };
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("CA certificate", &files.ca)?))
        .identity(Identity::from_pem(
            read("client certificate", &files.certificate)?,
            read("client key", &files.key)?,
        ))
        .domain_name(files.server_name.clone().unwrap_or_else(|| host.trim_matches(['[', ']']).to_owned()));
    tonic::transport::Endpoint::from_shared(format!("https://{host}:{port}"))
        .map_err(|error| ConnectError::caused(format!("'{host}:{port}' is not an address"), error))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .tls_config(tls)
        .map_err(|error| ConnectError::caused("the certificates are not usable", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_socket_names_the_next_step() {
        let endpoint = Endpoint::Unix("/nonexistent/parallaxd.sock".into());
        let error = Client::connect(&endpoint).await.unwrap_err().to_string();
        assert!(error.contains("start parallaxd, or name a pool with --pool"), "{error}");
    }

    #[tokio::test]
    async fn a_missing_certificate_is_named() {
        let files = TlsFiles { ca: "/nonexistent/ca.pem".into(), ..TlsFiles::default() };
        let endpoint = Endpoint::Tls { host: "localhost".into(), port: 1, files };
        let error = Client::lazy(&endpoint).unwrap_err().to_string();
        assert!(error.contains("CA certificate /nonexistent/ca.pem"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn retries_end_at_the_deadline() {
        let endpoint = Endpoint::Unix("/nonexistent/parallaxd.sock".into());
        let client = Client::lazy(&endpoint).unwrap().with_deadline(Duration::from_secs(3));
        let calls = std::sync::atomic::AtomicU32::new(0);
        let outcome: Result<(), Status> = client
            .retry(|_| {
                calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                async { Err(Status::unavailable("not yet")) }
            })
            .await;
        assert_eq!(outcome.unwrap_err().code(), Code::Unavailable);
        assert!((5..15).contains(&calls.into_inner()));
    }

    #[tokio::test]
    async fn other_errors_are_not_repeated() {
        let endpoint = Endpoint::Unix("/nonexistent/parallaxd.sock".into());
        let client = Client::lazy(&endpoint).unwrap();
        let outcome: Result<(), Status> = client.retry(|_| async { Err(Status::not_found("gone")) }).await;
        assert_eq!(outcome.unwrap_err().code(), Code::NotFound);
    }
}
