//! `cluster up|down|status`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::build::Profile;
use crate::cluster::{Layout, down, install, status, supervisor, up};
use crate::world::World;
use parallax_e2e::say;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Build what is missing, start a one-node Kubernetes and install Parallax in it.
    Up {
        /// How the project's own programs are compiled.
        #[arg(long, value_enum, default_value = "release")]
        profile: Profile,
        /// Only Kubernetes, without Parallax.
        #[arg(long)]
        bare: bool,
    },
    /// Stop the cluster and remove everything that it left.
    Down,
    /// Tell what runs.
    Status,
    /// Process 1 of the node; `up` starts it.
    #[command(hide = true)]
    Supervise {
        /// The plan that `up` wrote.
        plan: PathBuf,
    },
}

pub(crate) fn run(world: &World, verb: &Verb) -> Result<()> {
    match verb {
        Verb::Up { profile, bare } => {
            up::run(world)?;
            if !bare {
                install::run(world, *profile)?;
            }
            println!();
            println!("The cluster is up. Use it with:");
            println!("  export KUBECONFIG={}", Layout::of(world).kubeconfig().display());
            println!(
                "  {}",
                say::dim(format!("{}/kubectl get pods -A", crate::build::KUBERNETES.folder(world).display()))
            );
            Ok(())
        }
        Verb::Down => down::run(world),
        Verb::Status => status::run(world),
        Verb::Supervise { plan } => supervisor::run(plan),
    }
}
