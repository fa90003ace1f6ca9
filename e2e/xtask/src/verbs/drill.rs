//! `drill`: the engine inside the simulator, with the arguments that were given, or for hours.

use anyhow::Result;

use crate::world::World;
use parallax_e2e::process::{self, BUILD};
use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seeds and crash points for so long on all cores, then a summary.
    #[arg(long)]
    hours: Option<f64>,
    /// Passed on.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Optimised, with every assertion: the profile `drill`.
pub(crate) fn run(world: &World, args: &Args) -> Result<()> {
    let mut command = process::command(env!("CARGO"));
    command.current_dir(&world.repo);
    command.args([
        "run",
        "--quiet",
        "--profile",
        "drill",
        "-p",
        "parallax-drill",
        "--features",
        "mutants",
        "--",
    ]);
    let mut limit = BUILD;
    if let Some(hours) = args.hours {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        command.args(["long", "--hours", &hours.to_string(), "--threads", &threads.to_string()]);
        limit += Duration::from_secs_f64(hours * 3600.0);
    }
    process::shown(command.args(&args.arguments), limit)
}
