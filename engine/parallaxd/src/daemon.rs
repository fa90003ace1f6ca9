//! The daemon's life: open, serve, stop.
//!
//! Stopping, in order: accept nothing new; finish requests under way; leave block devices to the holder, or without one
//! take away those that nobody holds; flush and close every volume; close the pool, which checkpoints and releases it. All of it within
//! `shutdown_within`: what takes longer is recovered from the journal at the next start, and the exit says so.

use crate::{
    config::{Config, Io},
    engine::{Engine, EngineOptions, Format, default_data_threads, host_name},
    gc::Collector,
    metrics::{Metrics, http, scrape::Scrape},
    openings::{ExportOptions, Openings},
    probe,
    server::{self, Health},
    service::Core,
};
use parallax_block::{Error, ErrorKind, Result};
use parallax_device::IoMode;
use parallax_store::Name;
use std::{
    future::Future,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet};

/// Exit code when volumes were still held or were not closed in time: nothing acknowledged is lost, but whoever
/// holds a device sees errors.
const EXIT_UNCLEAN: u8 = 3;

/// Time that requests under way get to finish, as a share of the whole.
const DRAIN_SHARE: u32 = 4;

/// Longest wait for the I/O of a daemon before us.
const PREDECESSOR_WAIT_MAX: Duration = Duration::from_secs(30);
const PREDECESSOR_PAUSE: Duration = Duration::from_millis(50);

impl From<Io> for IoMode {
    fn from(io: Io) -> Self {
        match io {
            Io::Auto => Self::Auto,
            Io::Uring => Self::Uring,
            Io::Threads => Self::Threads,
        }
    }
}

/// An engine's options, as the configuration has them.
pub fn engine_options(config: &Config, io_flusher: bool) -> Result<EngineOptions> {
    Ok(EngineOptions {
        path: config.pool.path.clone(),
        io: config.pool.io.into(),
        data_threads: config.data_threads.unwrap_or_else(default_data_threads),
        io_flusher,
        tails: config.tails.clone(),
        host: match &config.node {
            Some(name) => Name::new(name.clone())?,
            None => host_name()?,
        },
        create: config.pool.create.as_ref().map(|create| Format {
            file_bytes: create.size.map(|size| size.0),
            extent_bytes: create.extent.map(|size| size.0),
            force: false,
        }),
    })
}

/// Opens the pool. With a holder a daemon before us may be dying: the device is held until its last I/O has finished.
async fn open_engine(config: &Config, io_flusher: bool) -> Result<Engine> {
    let end =
        Instant::now() + config.exports.holder.as_ref().map_or(Duration::ZERO, |_| PREDECESSOR_WAIT_MAX);
    loop {
        match Engine::open(engine_options(config, io_flusher)?).await {
            Err(error) if error.kind() == ErrorKind::Busy && Instant::now() < end => {
                tokio::time::sleep(PREDECESSOR_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// Runs until `stop`, then stops cleanly.
pub async fn run(config: Config, io_flusher: bool, stop: impl Future<Output = ()>) -> Result<ExitCode> {
    // Sockets first: a second daemon is told so before it waits for the device.
    let (socket, socket_file) = server::bind_socket(&config.socket).await?;
    let network = match &config.manager {
        Some(manager) => Some((server::bind_manager(manager).await?, manager.tls.clone())),
        None => None,
    };
    let pages = match &config.metrics {
        Some(metrics) => Some(http::bind(metrics.listen).await?),
        None => None,
    };

    let engine = Arc::new(open_engine(&config, io_flusher).await?);
    let metrics = Arc::new(Metrics::default());
    let exports = ExportOptions {
        directory: config.exports.directory.clone(),
        attachments_max: config.exports.attachments_max,
        memory_bytes_max: config.exports.memory.0,
        holder: config.exports.holder.clone(),
    };
    let openings = Arc::new(Openings::new(Arc::clone(&engine), exports));
    if let Err(error) = openings.prepare().await {
        if config.exports.holder.is_some() {
            // Whoever restarts us tries again, and what the holder keeps waits as long as it may.
            return Err(error.context("taking over block devices"));
        }
        tracing::warn!(%error, "block devices cannot be offered on this node; NBD and the manager work");
    }
    let collector = Arc::new(Collector::new(Arc::clone(&engine), Arc::clone(&metrics), config.gc));
    let core = Core {
        engine: Arc::clone(&engine),
        openings: Arc::clone(&openings),
        collector: Arc::clone(&collector),
        metrics: Arc::clone(&metrics),
    };

    let (healthy, health) = watch::channel(true);
    let health = Health::new(health);
    let mut background = JoinSet::new();
    background.spawn(health.clone().report());
    background.spawn(Arc::clone(&collector).work());
    background.spawn(probe::watch(Arc::clone(&engine), Arc::clone(&openings), Arc::clone(&metrics), healthy));
    if let Some(listener) = pages {
        let scrape = Scrape::new(Arc::clone(&engine), Arc::clone(&openings), Arc::clone(&metrics));
        background
            .spawn(http::serve(listener, Arc::new(http::Pages { scrape, metrics: Arc::clone(&metrics) })));
    }

    let (stopping, stopped) = watch::channel(false);
    let mut servers = JoinSet::new();
    {
        let (core, health, stopped) = (core.clone(), health.clone(), stopped.clone());
        servers
            .spawn(async move { server::serve_socket(&core, &health, socket, becomes_true(stopped)).await });
    }
    if let Some((listener, tls)) = network {
        let (core, health) = (core.clone(), health.clone());
        servers.spawn(async move {
            server::serve_manager(&core, &health, &tls, listener, becomes_true(stopped)).await
        });
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = %engine.host(),
        pool = %engine.pool().info().uuid,
        device = %engine.path().display(),
        socket = %config.socket.display(),
        "ready"
    );

    let failed = tokio::select! {
        () = stop => None,
        failed = first_failure(&mut servers) => Some(failed),
    };
    tracing::info!("stopping: no new requests");
    stopping.send_replace(true);
    let within = config.shutdown_within.0;
    let outcome =
        tokio::time::timeout(within, shut_down(&engine, &openings, &mut servers, within / DRAIN_SHARE)).await;
    background.shutdown().await;
    socket_file.remove();
    if let Some(error) = failed {
        return Err(error);
    }
    match outcome {
        Ok(Ok(true)) => {
            tracing::info!("stopped: everything is checkpointed and released");
            Ok(ExitCode::SUCCESS)
        }
        Ok(Ok(false)) => Ok(ExitCode::from(EXIT_UNCLEAN)),
        Ok(Err(error)) => Err(error.context("stopping")),
        Err(_) => {
            tracing::error!(
                seconds = within.as_secs(),
                "not everything was closed in time; the next start recovers it from the journal"
            );
            Ok(ExitCode::from(EXIT_UNCLEAN))
        }
    }
}

/// Gives everything back; whether nobody was using any of it.
async fn shut_down(
    engine: &Engine,
    openings: &Openings,
    servers: &mut JoinSet<Result<()>>,
    drain: Duration,
) -> Result<bool> {
    openings.stop();
    let drained = async {
        while let Some(ended) = servers.join_next().await {
            if let Ok(Err(error)) = ended {
                tracing::warn!(%error, "while stopping");
            }
        }
    };
    if tokio::time::timeout(drain, drained).await.is_err() {
        tracing::warn!("requests are still under way; they are cut off");
    }
    let held = openings.shutdown().await;
    for attached in &held {
        tracing::error!(
            volume = %attached.target,
            device = %attached.loop_device.path.display(),
            "still in use: flushed and checkpointed, but its I/O fails from now on"
        );
    }
    engine.close().await?;
    Ok(held.is_empty())
}

async fn becomes_true(mut flag: watch::Receiver<bool>) {
    // An error means that the sender is gone, which only happens when everything stops.
    let _ = flag.wait_for(|flag| *flag).await;
}

/// Completes when a server ends before it was told to.
async fn first_failure(servers: &mut JoinSet<Result<()>>) -> Error {
    match servers.join_next().await {
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => Error::new(ErrorKind::Io, "a server panicked").with_source(error),
        Some(Ok(Ok(()))) | None => Error::new(ErrorKind::Io, "a server ended by itself"),
    }
}
