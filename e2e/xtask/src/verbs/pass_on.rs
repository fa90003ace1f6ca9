//! `drill`: built and started by its usual name, with the arguments that were given.

use anyhow::Result;

use crate::world::World;
use parallax_e2e::process::{self, BUILD};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Passed on.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) arguments: Vec<String>,
}

/// The engine inside the simulator.
pub(crate) fn drill(world: &World, args: &Args) -> Result<()> {
    let mut command = process::command(env!("CARGO"));
    command.current_dir(&world.repo);
    command.args(["run", "--quiet", "--release", "-p", "parallax-drill", "--"]).args(&args.arguments);
    process::shown(&mut command, BUILD)
}
