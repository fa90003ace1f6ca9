//! `parallaxd supervise`: the process that keeps block devices alive while there is no daemon.
//!
//! It is the same program so that there is one to ship, but it runs none of the daemon: no pool, no configuration, no
//! network. It is meant to be restarted as rarely as the node.

use clap::Args;
use parallax_export::holder::{self, Holder, HolderOptions};
use std::{path::PathBuf, process::ExitCode, time::Duration};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::{LogConfig, LogFormat},
    logging,
};

/// Where it listens when nothing else is said.
const DEFAULT_SOCKET: &str = "/run/parallax/holder/holder.sock";

/// Arguments of `parallaxd supervise`.
#[derive(Debug, Args)]
pub struct Supervise {
    /// Socket for the daemon of this node.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,

    /// Seconds that I/O waits for a daemon to come back; then it fails.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    patience: u64,

    /// Writes one JSON object a line.
    #[arg(long)]
    json: bool,

    /// Ends now what a running holder keeps, and exits: I/O that waits fails. For a node that gets no daemon any more.
    #[arg(long)]
    release: bool,
}

/// Runs until it is told to end.
pub fn run(arguments: &Supervise) -> anyhow::Result<ExitCode> {
    if arguments.release {
        holder::release(&arguments.socket)?;
        return Ok(ExitCode::SUCCESS);
    }
    let format = if arguments.json { LogFormat::Json } else { LogFormat::Text };
    logging::start(&LogConfig { format, ..LogConfig::default() })?;
    let patience = Duration::from_secs(arguments.patience);
    let listening = Holder::listen(&HolderOptions { socket: arguments.socket.clone(), patience })?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        socket = %arguments.socket.display(),
        seconds = arguments.patience,
        "holding block devices"
    );
    // The first process of a container dies of no signal that it does not want; at the end of a machine, whatever waits
    // for a daemon must not wait for this one to be killed.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let holding = tokio::task::spawn_blocking(|| listening.run());
        tokio::select! {
            ended = holding => ended??,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        anyhow::Ok(())
    })?;
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}
