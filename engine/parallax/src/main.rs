//! The command line.
//!
//! `args` says what can be asked, `session` finds the way to the pool, `commands` do it, `output` shows it,
//! `failure` tells what to try when it did not work.
#![forbid(unsafe_code)]

mod args;
mod bare;
mod bench;
mod commands;
mod failure;
mod forest;
mod image;
mod inspect;
mod output;
mod session;
mod time;

use args::{Arguments, Command, PoolCommand};
use clap::Parser;
use commands::{check, device, evict, export, gc, import, pool, scrub, shell, snapshots, tree, volumes};
use failure::{FAILED, Failure, Outcome};
use output::Output;
use session::Session;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.json;
    // Checking has its own code for not having run, so that a script never takes that for damage.
    let failed = if matches!(arguments.command, Command::Check { .. } | Command::Scrub { .. }) {
        check::COULD_NOT_RUN
    } else {
        FAILED
    };
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Failure::from)
        .and_then(|runtime| {
            let outcome = runtime.block_on(run(arguments));
            // What still waits for a terminal or a file must not keep the process.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) if json => {
            let error = serde_json::json!({ "error": failure.message(), "try": failure.next() });
            eprintln!("{error}");
            ExitCode::from(failed)
        }
        Err(failure) => {
            eprintln!("parallax: {failure}");
            ExitCode::from(failed)
        }
    }
}

/// Runs a command; its exit code.
async fn run(Arguments { place, json, command }: Arguments) -> Outcome<u8> {
    let output = Output { json };
    match command {
        Command::Check { repair } => return check::run(&place, output, repair).await,
        Command::Scrub { rate } => return scrub::run(&place, output, rate).await,
        Command::Completions { shell } => {
            shell::completions(shell);
            return Ok(0);
        }
        Command::Inspect(what) => return inspect::run(place.pool.as_deref(), output, &what).map(|()| 0),
        Command::Bench(arguments) => return bench::run(&place, &arguments, output).await.map(|()| 0),
        Command::Man { directory } => return shell::man(&directory).map(|()| 0),
        Command::Pool(PoolCommand::Create { path, size, extent, force }) => {
            return pool::create(output, place, &path, size, extent, force).await.map(|()| 0);
        }
        Command::Pool(PoolCommand::Evict { path, name, yes }) => {
            return evict::run(output, &place, &path, &name, yes).await.map(|()| 0);
        }
        _ => {}
    }
    let session = Session::open(&place).await?;
    let outcome = with_pool(&session, output, command).await;
    let closed = session.close().await;
    // What the command itself has to say comes first.
    outcome.and(closed).map(|()| 0)
}

async fn with_pool(session: &Session, output: Output, command: Command) -> Outcome {
    match command {
        Command::Pool(PoolCommand::Info) => pool::info(session, output).await,
        Command::Create { name, size, from, block } => {
            volumes::create(session, output, name, size, from.as_deref(), block).await
        }
        Command::Delete { volume } => volumes::delete(session, output, &volume).await,
        Command::List { all, usage } => volumes::list(session, output, all, usage).await,
        Command::Rename { volume, name } => volumes::rename(session, output, &volume, name).await,
        Command::Resize { volume, size } => volumes::resize(session, output, &volume, size).await,
        Command::Revert { volume, snapshot } => volumes::revert(session, output, &volume, &snapshot).await,
        Command::Snapshot { volumes, label, name } => {
            snapshots::take(session, output, &volumes, label, name).await
        }
        Command::SnapList { volume, usage } => {
            snapshots::list(session, output, volume.as_deref(), usage).await
        }
        Command::SnapLabel { snapshot, text } => snapshots::label(session, output, &snapshot, text).await,
        Command::SnapDelete { snapshot } => snapshots::delete(session, output, &snapshot).await,
        Command::Diff { base, target } => snapshots::diff(session, output, &base, &target).await,
        Command::Tree { volume, svg } => tree::run(session, output, volume.as_deref(), svg.as_deref()).await,
        Command::Import { image, name, format, size } => {
            import::run(session, output, &image, name, format, size).await
        }
        Command::Export { source, file, force } => export::run(session, output, &source, &file, force).await,
        Command::Serve { source, nbd, read_only } => {
            device::serve(session, output, &source, &nbd, read_only).await
        }
        Command::Attach { source, read_only } => device::attach(session, output, &source, read_only).await,
        Command::Detach { source } => device::detach(session, output, &source).await,
        Command::Attachments => device::list(session, output).await,
        Command::Gc => gc::run(session, output).await,
        Command::Check { .. }
        | Command::Scrub { .. }
        | Command::Inspect(_)
        | Command::Bench(_)
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Pool(PoolCommand::Create { .. } | PoolCommand::Evict { .. }) => {
            Err(Failure::new("this command does not work on an open pool"))
        }
    }
}
