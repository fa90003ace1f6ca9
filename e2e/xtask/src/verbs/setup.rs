//! `setup`: everything that a fresh machine lacks, at once, so that later verbs start quickly.

use anyhow::Result;

use super::e2e::vms;
use super::{bench, ci};
use crate::build::{self, CSI_SANITY, FOR_CLUSTER, KUBERNETES_E2E};
use crate::cluster::up;
use crate::image;
use crate::world::World;
use parallax_e2e::say;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also what Kubernetes' own storage suite needs.
    #[arg(long)]
    suite: bool,
}

pub(crate) fn run(world: &World, args: &Args) -> Result<()> {
    build::install(ci::PACKAGES)?;
    build::install(bench::PACKAGES)?;
    build::install(vms::PACKAGES)?;
    build::install(up::PACKAGES)?;
    for recipe in FOR_CLUSTER {
        recipe.ensure(world)?;
    }
    CSI_SANITY.ensure(world)?;
    image::for_node(world)?;
    image::for_stories(world)?;
    if args.suite {
        KUBERNETES_E2E.ensure(world)?;
        image::for_suite(world)?;
    }
    println!("{} this machine has what every verb needs; cache {}", say::good("✓"), world.cache.display());
    Ok(())
}
