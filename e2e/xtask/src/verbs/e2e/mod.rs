//! `e2e sanity|stories|chart|suite|vms|filesystems|database`.

pub(crate) mod chart;
pub(crate) mod database;
pub(crate) mod filesystems;
pub(crate) mod sanity;
pub(crate) mod stories;
pub(crate) mod suite;
pub(crate) mod vms;

use anyhow::Result;
use clap::Subcommand;

use crate::world::World;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// csi-sanity against the real daemon and the real driver, on this machine, without a cluster.
    Sanity(sanity::Args),
    /// Stories of users, on the development cluster.
    Stories(stories::Args),
    /// `helm test`, and an upgrade of the chart under a pod that writes.
    Chart(chart::Args),
    /// Kubernetes' own storage suite, on the development cluster.
    Suite(suite::Args),
    /// A Debian disk and its clones as virtual machines, all at once, without a cluster.
    Vms(vms::Args),
    /// ext4 and xfs whose power is cut at every flush, without a cluster.
    Filesystems(filesystems::Args),
    /// PostgreSQL under power cuts and kills of the daemon, without a cluster.
    Database(database::Args),
}

pub(crate) fn run(world: &World, verb: &Verb) -> Result<()> {
    match verb {
        Verb::Sanity(args) => sanity::run(world, args).map(drop),
        Verb::Stories(args) => stories::run(world, args),
        Verb::Chart(args) => chart::run(world, args),
        Verb::Suite(args) => suite::run(world, args),
        Verb::Vms(args) => vms::run(world, args),
        Verb::Filesystems(args) => filesystems::run(world, args),
        Verb::Database(args) => database::run(world, args),
    }
}
