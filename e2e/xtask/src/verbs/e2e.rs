//! `e2e sanity|stories|suite`.

use anyhow::Result;
use clap::Subcommand;

use crate::world::World;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// csi-sanity against the real daemon and the real driver, on this machine.
    Sanity,
}

pub(crate) fn run(_world: &World, verb: &Verb) -> Result<()> {
    match verb {
        Verb::Sanity => anyhow::bail!("not here"),
    }
}
