//! Real filesystems on a real block device, over a disk that remembers everything it was asked: the power can go at each
//! flush, and what was synced must be there.
//!
//! A load runs on ext4 or xfs on the loop export of a volume. The pool's disk is in memory and keeps a history of every
//! write and flush. Then the history is cut off at its flushes: what a power cut may leave becomes a disk of its own, the
//! pool is opened there without the memory of the machine before, and the filesystem is mounted, compared with what
//! the load was promised, and checked by its own checker. The pool is verified before and after.
//!
//! Read in this order: `media` (the disk), `load` (what is done and what may be left of it), `bed` (the engine), `guest`
//! and `errand` (the other process), `round` (all together).
#![forbid(unsafe_code)]

mod bed;
mod commands;
mod database;
mod disk;
mod errand;
mod guest;
mod load;
mod media;
mod node;
mod round;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Cuts the power of real filesystems.
#[derive(Parser)]
#[command(name = "powercut", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Loads on ext4 and xfs, cut off at many places.
    Filesystems(commands::filesystems::Args),
    /// PostgreSQL on ext4 and xfs, cut off at some places.
    Database(commands::database::Args),
    /// PostgreSQL over the real daemon, which is killed again and again.
    Kills(commands::kills::Args),
    /// One place of a recorded history, again.
    Point(commands::point::Args),
    /// Bugs of the store, switched on: each must be found.
    Mutants(commands::mutants::Args),
    /// The part of this program that mounts.
    #[command(subcommand, hide = true)]
    Guest(errand::Errand),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.command {
        Command::Guest(errand) => match errand::run(errand) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(_) => return ExitCode::FAILURE,
        },
        Command::Filesystems(args) => commands::filesystems::run(args),
        Command::Database(args) => commands::database::run(args),
        Command::Kills(args) => commands::kills::run(args),
        Command::Point(args) => commands::point::run(args),
        Command::Mutants(args) => commands::mutants::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
