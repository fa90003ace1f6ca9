//! `model`: looks at every state of the many-host protocol's models, all rules kept and each rule dropped.

use anyhow::Result;

use super::pass_on::Args;
use crate::world::World;
use parallax_e2e::process::{self, BUILD};

/// `parallax-model full`, unless the arguments say otherwise.
pub(crate) fn run(world: &World, args: &Args) -> Result<()> {
    let mut command = process::command(env!("CARGO"));
    command.current_dir(&world.repo);
    command.args(["run", "--quiet", "--release", "-p", "parallax-model", "--"]);
    command.args(if args.arguments.is_empty() { vec!["full".to_owned()] } else { args.arguments.clone() });
    process::shown(&mut command, BUILD)
}
