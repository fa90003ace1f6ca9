//! Runs the drill and says what came of it.

#![forbid(unsafe_code)]

mod commands;

use clap::{Parser, Subcommand};
use commands::{damage, enumerate, long, mutants, seeds};
use std::process::ExitCode;

/// Tortures the store in a simulated world. A seed always gives the same run.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    seeds: seeds::Args,
}

#[derive(Subcommand)]
enum Verb {
    /// Damages a real pool in one way, for good, to see what `parallax check` says of it.
    Damage(damage::Args),
    /// Looks at every crash point of every small workload.
    Enumerate(enumerate::Args),
    /// Everything for hours, with a summary.
    Long(long::Args),
    /// Switches on bugs of the store, one after the other, and wants every one found.
    Mutants(mutants::Args),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let well = match arguments.verb {
        None => seeds::run(&arguments.seeds),
        Some(Verb::Damage(arguments)) => damage::run(&arguments),
        Some(Verb::Enumerate(arguments)) => enumerate::run(&arguments),
        Some(Verb::Long(arguments)) => long::run(&arguments),
        Some(Verb::Mutants(arguments)) => mutants::run(&arguments),
    };
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
