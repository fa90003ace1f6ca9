//! The node daemon.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use parallax_export::loop_export::protect_process;
use parallaxd::{
    config::{Config, DEFAULT_PATH},
    daemon, logging, respawn,
    supervise::{self, Supervise},
};
use std::{path::PathBuf, process::ExitCode};
use tokio::signal::unix::{SignalKind, signal};

/// Serves volumes of a Parallax pool on this node.
#[derive(Debug, Parser)]
#[command(name = "parallaxd", version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH, env = "PARALLAXD_CONFIG")]
    config: PathBuf,

    /// Name of this node, where the configuration has none; the host's name otherwise.
    #[arg(long, value_name = "NAME", env = "PARALLAX_NODE")]
    node: Option<String>,

    /// Checks the configuration and what it names on this machine, and exits.
    #[arg(long)]
    check_config: bool,

    /// Runs the daemon as a child, and starts it again at once when it is killed.
    #[arg(long)]
    respawn: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keeps block devices alive while the daemon restarts; reads no configuration and touches no volume.
    Supervise(Supervise),
}

fn main() -> ExitCode {
    // Before any other thread exists: threads inherit it.
    let protection = protect_process();
    let arguments = Arguments::parse();
    let outcome = match &arguments.command {
        Some(Command::Supervise(arguments)) => supervise::run(arguments),
        None if arguments.respawn => respawn(&arguments),
        None => run(&arguments, protection.io_flusher, protection.memory_locked),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("parallaxd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments, io_flusher: bool, memory_locked: bool) -> anyhow::Result<ExitCode> {
    let mut config = Config::load(&arguments.config)?;
    // One file for every node: a container has neither the node's name nor a file of its own.
    config.node = config.node.or_else(|| arguments.node.clone());
    config.check_machine()?;
    if arguments.check_config {
        println!("{}: ok", arguments.config.display());
        return Ok(ExitCode::SUCCESS);
    }
    logging::start(&config.log)?;
    if !io_flusher || !memory_locked {
        tracing::warn!(
            io_flusher,
            memory_locked,
            "not protected against memory pressure: give the daemon CAP_SYS_RESOURCE and CAP_IPC_LOCK"
        );
    }
    // The control plane is small; data moves on threads of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_name("control")
        .enable_all()
        .build()?;
    let code =
        runtime.block_on(async { anyhow::Ok(daemon::run(config, io_flusher, told_to_stop()?).await?) })?;
    // A worker that hangs in the kernel must not keep the process.
    runtime.shutdown_background();
    Ok(code)
}

fn respawn(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        let run = respawn::run(&arguments.config, arguments.node.as_deref(), told_to_stop()?);
        anyhow::Ok(run.await?)
    })?;
    // A daemon before the last may linger, and the pipe that tells of its end.
    runtime.shutdown_background();
    Ok(code)
}

fn told_to_stop() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
