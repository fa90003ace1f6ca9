//! Serving: the socket, the shell around every call, and an end that finishes what is under way.
//!
//! Invariants:
//! * A call that changes something runs to its end even if its caller gives up: it is a task of its own and
//!   keeps its locks until it has ended, so that a repetition never overlaps it.
//! * One plugin serves a socket: one that answers is never taken over.

use crate::errors::Result;
use crate::locks::KeyedLocks;
use crate::metrics::{Metrics, code_name};
use anyhow::{Context as _, bail};
use std::fmt::Debug;
use std::future::Future;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokio::net::{UnixListener, UnixStream};
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

/// Parses `unix:///path`, `unix:/path` or `/path`.
pub fn socket_path(text: &str) -> std::result::Result<PathBuf, String> {
    let path = text.strip_prefix("unix:").unwrap_or(text);
    let path = path.strip_prefix("//").unwrap_or(path);
    match path.starts_with('/') {
        true => Ok(path.into()),
        false => Err(format!("`{text}` is not a Unix socket; write unix:///path/to/csi.sock")),
    }
}

/// Listens on `path`, replacing a socket that a dead plugin left.
pub async fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    match UnixStream::connect(path).await {
        Ok(_) => bail!("another process serves {}; stop it first", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
                .with_context(|| format!("removing the stale socket {}", path.display()))?;
        }
        Err(error) => return Err(error).with_context(|| format!("looking at {}", path.display())),
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
    // Sidecars run as the same user or group.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("restricting {}", path.display()))?;
    Ok(listener)
}

/// The wish that this process ends, for everything that serves; cheap to clone.
#[derive(Debug, Clone)]
pub struct End(tokio::sync::watch::Receiver<bool>);

impl End {
    /// Listens for SIGTERM and SIGINT.
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (asked, end) = tokio::sync::watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("ending: calls under way are finished, new ones are refused");
            asked.send_replace(true);
        });
        Ok(Self(end))
    }

    /// Resolves when the process is asked to end.
    pub async fn asked(mut self) {
        // The sender goes only after it has sent.
        let _ = self.0.wait_for(|asked| *asked).await;
    }
}

/// The shell around the calls of one service: locks, log, metrics.
#[derive(Debug, Clone, Default)]
pub struct Shell {
    locks: KeyedLocks<String>,
    metrics: Metrics,
}

impl Shell {
    /// A shell that counts into `metrics`.
    pub fn new(metrics: Metrics) -> Self {
        Self { locks: KeyedLocks::default(), metrics }
    }

    /// Runs a call that changes something. `key` names what no second call may work on meanwhile.
    pub(crate) async fn change<Q, T, F>(
        &self,
        method: &'static str,
        key: impl Into<String>,
        request: Request<Q>,
        work: impl FnOnce(Q) -> F,
    ) -> Result<Response<T>>
    where
        Q: Debug,
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let key = key.into();
        let guard = self.locks.try_lock(key.clone());
        let request = request.into_inner();
        let span = tracing::info_span!("csi", method, subject = key);
        span.in_scope(|| tracing::debug!(?request, "called"));
        let work = guard.map(|guard| (guard, work(request)));
        let began = Instant::now();
        let outcome = match work {
            Err(status) => Err(status),
            Ok((guard, work)) => {
                let task = tokio::spawn(
                    async move {
                        let outcome = work.await;
                        drop(guard);
                        outcome
                    }
                    .instrument(span.clone()),
                );
                task.await.unwrap_or_else(|error| {
                    Err(Status::aborted(format!("the call ended early ({error}); it may have taken effect")))
                })
            }
        };
        span.in_scope(|| self.report(method, began, &outcome, true));
        outcome.map(Response::new)
    }

    /// Runs a call that only looks.
    pub(crate) async fn look<Q, T, F>(
        &self,
        method: &'static str,
        request: Request<Q>,
        work: impl FnOnce(Q) -> F,
    ) -> Result<Response<T>>
    where
        Q: Debug,
        F: Future<Output = Result<T>>,
    {
        let request = request.into_inner();
        let span = tracing::info_span!("csi", method);
        span.in_scope(|| tracing::debug!(?request, "called"));
        let began = Instant::now();
        let outcome = work(request).instrument(span.clone()).await;
        span.in_scope(|| self.report(method, began, &outcome, false));
        outcome.map(Response::new)
    }

    fn report<T>(&self, method: &'static str, began: Instant, outcome: &Result<T>, changes: bool) {
        let took = began.elapsed();
        let code = outcome.as_ref().map_or_else(Status::code, |_| tonic::Code::Ok);
        self.metrics.record(method, code, took);
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        match outcome {
            Ok(_) if changes => tracing::info!(millis, "done"),
            Ok(_) => tracing::debug!(millis, "done"),
            Err(status) => {
                tracing::warn!(millis, code = code_name(code), reason = status.message(), "refused")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn sockets_are_written_in_three_ways() {
        for text in ["unix:///csi/csi.sock", "unix:/csi/csi.sock", "/csi/csi.sock"] {
            assert_eq!(socket_path(text), Ok("/csi/csi.sock".into()));
        }
        assert!(socket_path("tcp://0.0.0.0:1").is_err());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/csi.sock");
        let live = listen(&path).await.unwrap();
        assert!(listen(&path).await.unwrap_err().to_string().contains("another process"));
        drop(live);
        listen(&path).await.unwrap();
    }

    /// kubelet gives up on a slow stage after two minutes and repeats it. The first call goes on: were its lock
    /// freed when the caller left, the repetition would format the device at the same time.
    #[tokio::test]
    async fn a_call_whose_caller_left_keeps_its_lock_until_it_ends() {
        let shell = Shell::default();
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let call = shell.change("Test", "volume a", Request::new(()), |()| async move {
            finished.await.map_err(|_| Status::aborted("dropped"))
        });
        assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err(), "the caller gives up");

        let again = shell.change("Test", "volume a", Request::new(()), |()| async { Ok(()) }).await;
        assert_eq!(again.unwrap_err().code(), tonic::Code::Aborted);

        finish.send(()).unwrap();
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if shell.change("Test", "volume a", Request::new(()), |()| async { Ok(()) }).await.is_ok() {
                return;
            }
        }
        panic!("the lock was never freed");
    }
}
