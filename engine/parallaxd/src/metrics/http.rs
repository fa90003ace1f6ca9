//! Metrics and health over plain HTTP, on loopback unless the configuration allows others.
//!
//! `/metrics` the figures · `/healthz` the process answers · `/readyz` the pool's device does too.

use super::{Metrics, scrape::Scrape};
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parallax_block::{Error, Result};
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{net::TcpListener, sync::Semaphore};

/// Connections at one time; further ones wait.
const CONNECTIONS_MAX: usize = 16;

/// Time that a client has to send its request line and headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// What is answered.
pub struct Pages {
    /// The figures.
    pub scrape: Scrape,
    /// Whether the device answers.
    pub metrics: Arc<Metrics>,
}

/// Listens; which addresses are allowed is the configuration's matter.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Error::from(error).context(format!("listening for metrics on {address}")))
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, pages: Arc<Pages>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection for metrics was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let answer = pages.answer(request.method(), request.uri().path());
                async move { Ok::<_, Infallible>(answer) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), answer)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a connection for metrics ended early");
            }
            drop(permit);
        });
    }
}

impl Pages {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let (status, kind, body) = match (method, path) {
            (&Method::GET, "/metrics") => match self.scrape.text() {
                Ok(text) => {
                    (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text)
                }
                Err(_) => (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "text/plain",
                    "the figures cannot be written\n".into(),
                ),
            },
            (&Method::GET, "/healthz") => (StatusCode::OK, "text/plain", "ok\n".into()),
            (&Method::GET, "/readyz") if self.metrics.device_failing.load(Ordering::Relaxed) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "text/plain",
                "the pool's device does not answer; see the daemon's log\n".into(),
            ),
            (&Method::GET, "/readyz") => (StatusCode::OK, "text/plain", "ok\n".into()),
            _ => (StatusCode::NOT_FOUND, "text/plain", "try /metrics, /healthz or /readyz\n".into()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
        response
    }
}
