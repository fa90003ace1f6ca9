//! `demo`: the story of a volume, told on a real cluster.

use std::path::PathBuf;

use anyhow::Result;

use crate::world::World;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Use a cluster that exists and has Parallax, instead of starting one.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
}

pub(crate) fn run(_world: &World, args: &Args) -> Result<()> {
    anyhow::bail!("{:?}", args.kubeconfig)
}
