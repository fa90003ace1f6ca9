//! The way to a pool: through the daemon, or in this process.
//!
//! Both ways speak to the same services. Without a daemon they run here, behind a pipe, on a pool that this
//! process has opened exclusively: so no command can behave differently for the way it was reached.

use crate::{
    args::Place,
    failure::{Failure, Outcome},
};
use parallax_api::{
    client::{Client, Endpoint},
    v1::{self, volume_ref::By},
};
use parallax_device::IoMode;
use parallax_store::Name;
use parallaxd::{
    config::GcConfig,
    engine::{Engine, EngineOptions, default_data_threads, entropy, host_name},
    gc::Collector,
    metrics::Metrics,
    openings::{ExportOptions, Openings},
    server,
    service::Core,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::task::JoinHandle;

/// Bytes that the pipe to our own server holds.
const PIPE_BYTES: usize = 4 << 20;

/// Longest time that a command waits for an answer.
const DEADLINE: Duration = Duration::from_secs(120);

/// A way to a pool.
pub(crate) struct Session {
    client: Client,
    own: Option<Own>,
}

/// A pool that this process holds.
struct Own {
    engine: Arc<Engine>,
    openings: Arc<Openings>,
    server: JoinHandle<parallax_block::Result<()>>,
    /// Where block devices of this process keep their files, if there are any.
    exports: PathBuf,
}

/// A volume or a snapshot, with its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// Volume.
    Volume(String),
    /// Snapshot.
    Snapshot(String),
}

impl Session {
    /// Opens the pool that the arguments name.
    pub(crate) async fn open(place: &Place) -> Outcome<Self> {
        match &place.pool {
            Some(pool) => Self::own(pool, place).await,
            None => {
                let client = Client::connect(&Endpoint::Unix(place.socket.clone())).await?;
                Ok(Self { client: client.with_deadline(DEADLINE), own: None })
            }
        }
    }

    async fn own(path: &Path, place: &Place) -> Outcome<Self> {
        let options = EngineOptions {
            path: path.to_owned(),
            io: IoMode::Auto,
            data_threads: default_data_threads(),
            io_flusher: false,
            tails: place.tails.clone(),
            host: place.host.as_deref().map_or_else(host_name, Name::new)?,
            create: None,
        };
        let engine = Arc::new(Engine::open(options).await.map_err(|error| explain_open(path, error))?);
        // A name that nobody can take before us.
        let directory = std::env::temp_dir().join(format!("parallax-{:032x}", entropy()()));
        let exports = ExportOptions {
            directory: directory.clone(),
            attachments_max: 16,
            memory_bytes_max: 64 << 20,
            // What this process attaches goes with it.
            holder: None,
        };
        let openings = Arc::new(Openings::new(Arc::clone(&engine), exports));
        let metrics = Arc::new(Metrics::default());
        let gc = GcConfig { automatic: false, ..GcConfig::default() };
        let collector = Arc::new(Collector::new(Arc::clone(&engine), Arc::clone(&metrics), gc));
        let core = Core { engine: Arc::clone(&engine), openings: Arc::clone(&openings), collector, metrics };
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let server = tokio::spawn(async move { server::serve_pipe(&core, theirs).await });
        let client = Client::over_pipe(ours).await?.with_deadline(DEADLINE);
        Ok(Self { client, own: Some(Own { engine, openings, server, exports: directory }) })
    }

    /// Whether the pool is held by this process, and what it attaches goes with it.
    pub(crate) fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// The client.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Gives everything back. With a daemon there is nothing to give.
    pub(crate) async fn close(self) -> Outcome {
        drop(self.client);
        let Some(own) = self.own else { return Ok(()) };
        own.openings.stop();
        let mut server = own.server;
        if tokio::time::timeout(Duration::from_secs(10), &mut server).await.is_err() {
            server.abort();
        }
        let held = own.openings.shutdown().await;
        // Most commands never make it.
        let _ = std::fs::remove_dir_all(&own.exports);
        own.engine.close().await.map_err(|error| Failure::from(error).during("closing the pool"))?;
        match held.first() {
            None => Ok(()),
            Some(attached) => Err(Failure::new(format!(
                "{} was still in use: it was flushed, but its I/O fails from now on",
                attached.loop_device.path.display()
            ))),
        }
    }

    /// The id of a volume that is given by name or id.
    pub(crate) async fn volume(&self, text: &str) -> Outcome<v1::Volume> {
        let by = if is_uuid(text) { By::Id(text.to_owned()) } else { By::Name(text.to_owned()) };
        let request =
            v1::GetVolumeRequest { volume: Some(v1::VolumeRef { by: Some(by) }), with_usage: false };
        let answer = self.client.manager().get_volume(self.client.request(request)).await;
        Ok(answer.map_err(|status| Failure::from(status).or_try("parallax list"))?.into_inner())
    }

    /// The id of a snapshot that is given as `volume@number`, as an id, or by the name that it was taken under.
    pub(crate) async fn snapshot(&self, text: &str) -> Outcome<String> {
        use v1::get_snapshot_request::By;
        if let Some((volume, number)) = split_snapshot(text) {
            if is_uuid(volume) {
                return Ok(text.to_owned());
            }
            let volume = self.volume(volume).await?;
            return Ok(format!("{}@{number}", volume.id));
        }
        let request = v1::GetSnapshotRequest { by: Some(By::Name(text.to_owned())), with_usage: false };
        let answer = self.client.manager().get_snapshot(self.client.request(request)).await;
        Ok(answer.map_err(|status| Failure::from(status).or_try("parallax snap-list"))?.into_inner().id)
    }

    /// A volume or a snapshot: what looks like `volume@number` is a snapshot.
    pub(crate) async fn source(&self, text: &str) -> Outcome<Source> {
        if split_snapshot(text).is_some() {
            return self.snapshot(text).await.map(Source::Snapshot);
        }
        self.volume(text).await.map(|volume| Source::Volume(volume.id))
    }
}

/// A reference for requests that want one.
pub(crate) fn by_id(id: &str) -> Option<v1::VolumeRef> {
    Some(v1::VolumeRef { by: Some(By::Id(id.to_owned())) })
}

fn split_snapshot(text: &str) -> Option<(&str, u64)> {
    let (volume, number) = text.rsplit_once('@')?;
    Some((volume, number.parse().ok().filter(|_| !volume.is_empty())?))
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

fn explain_open(path: &Path, error: parallax_block::Error) -> Failure {
    use parallax_block::ErrorKind::{Busy, Corrupt, NotFound};
    let path = path.display();
    let kind = error.kind();
    let failure = Failure::from(error);
    match kind {
        Busy => failure.or_try("the same without --pool: a daemon holds the pool"),
        Corrupt => failure.or_try(format!("parallax check --pool {path}")),
        NotFound => failure.or_try(format!("parallax pool create {path} --size 64G")),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_told_from_volumes() {
        assert_eq!(split_snapshot("db@3"), Some(("db", 3)));
        assert_eq!(split_snapshot("user@host@12"), Some(("user@host", 12)));
        for text in ["db", "db@", "@3", "db@x", "db@-1"] {
            assert_eq!(split_snapshot(text), None, "{text}");
        }
    }

    #[test]
    fn ids_are_told_from_names() {
        assert!(is_uuid("6e1f8a52-9d0c-4c8e-a0f4-3a1d2b7c9e11"));
        assert!(!is_uuid("6e1f8a52-9d0c-4c8e-a0f4-3a1d2b7c9e1g"));
        assert!(!is_uuid("db"));
    }
}
