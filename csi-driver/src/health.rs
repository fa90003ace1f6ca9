//! HTTP for probes and metrics, on loopback or the pod's address.
//!
//! * `/healthz`: our own socket answers `Probe` in time. False means that this process is stuck: restart it. The
//!   daemon being away does not count: a restart of the plugin would not bring it back.
//! * `/readyz`: `Probe` answers ready.
//! * `/metrics`: OpenMetrics.

use crate::metrics::Metrics;
use crate::proto::csi::{ProbeRequest, identity_client::IdentityClient};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::Semaphore;
use tonic::transport::{Channel, Endpoint, Uri};

const PROBE_TIMEOUT: Duration = Duration::from_secs(4);
const CONNECTIONS: usize = 32;

/// Serves until the task is dropped. `socket` is where our own gRPC server listens.
pub async fn serve(listener: TcpListener, socket: PathBuf, metrics: Metrics) {
    let state = Arc::new(Health { probe: IdentityClient::new(channel(socket)), metrics });
    let bound = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&bound).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a health connection failed");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let state = Arc::clone(&state);
                async move { Ok::<_, Infallible>(state.answer(&request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a health connection broke");
            }
            drop(permit);
        });
    }
}

fn channel(socket: PathBuf) -> Channel {
    Endpoint::from_static("http://own.socket").connect_with_connector_lazy(tower::service_fn(
        move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        },
    ))
}

struct Health {
    probe: IdentityClient<Channel>,
    metrics: Metrics,
}

impl Health {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/healthz") => match self.ready().await {
                Some(_) => text(StatusCode::OK, "alive\n"),
                None => text(StatusCode::SERVICE_UNAVAILABLE, "Probe was not answered\n"),
            },
            (&Method::GET, "/readyz") => match self.ready().await {
                Some(true) => text(StatusCode::OK, "ready\n"),
                _ => text(StatusCode::SERVICE_UNAVAILABLE, "parallaxd or the manager cannot be reached\n"),
            },
            (&Method::GET, "/metrics") => {
                let mut response = text(StatusCode::OK, self.metrics.encode());
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response
                    .headers_mut()
                    .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
                response
            }
            _ => text(StatusCode::NOT_FOUND, "known are /healthz, /readyz and /metrics\n"),
        }
    }

    /// `None` when the probe itself is not answered.
    async fn ready(&self) -> Option<bool> {
        let mut probe = self.probe.clone();
        let answer = tokio::time::timeout(PROBE_TIMEOUT, probe.probe(ProbeRequest {})).await.ok()?.ok()?;
        Some(answer.into_inner().ready.unwrap_or(true))
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}
