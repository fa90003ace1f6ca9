//! Stories on the development cluster, or on another one.

use std::path::PathBuf;

use anyhow::{Result, bail};
use parallax_e2e::kube::Kube;
use parallax_e2e::{runner, say, stories};

use crate::build::{KUBERNETES, Profile};
use crate::cluster::{Layout, install, up};
use crate::image;
use crate::world::World;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Names of stories; all when none is given.
    names: Vec<String>,
    /// Tell which stories there are.
    #[arg(long)]
    list: bool,
    /// Use a cluster that exists and has Parallax and the stories' images.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// How the project's programs are compiled.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
}

/// Stories whose pods run more than a shell.
const NEED_IMAGES: &[&str] = &["daemon-killed", "memory-limit", "postgres"];

pub(crate) fn run(world: &World, args: &Args) -> Result<()> {
    if args.list {
        for story in stories::ALL {
            println!("{:<16}{}", story.name, story.summary);
        }
        return Ok(());
    }
    let selected = runner::select(&args.names)?;
    let kube = match &args.kubeconfig {
        Some(path) => {
            KUBERNETES.ensure(world)?;
            Kube::new(KUBERNETES.program(world, "kubectl"), path)
        }
        None => {
            let kube = ready(world, args.profile)?;
            if selected.iter().any(|story| NEED_IMAGES.contains(&story.name)) {
                up::import(world, &image::for_stories(world)?)?;
            }
            kube
        }
    };
    let outcome = runner::tell(&kube, &selected);
    println!();
    println!("{} passed, {} failed", outcome.passed, outcome.failed);
    if outcome.failed > 0 {
        bail!("{} of {} stories failed", outcome.failed, selected.len());
    }
    println!("{} every story ended as it should", say::good("✓"));
    Ok(())
}

/// The development cluster with Parallax in it, started if it does not run.
pub(crate) fn ready(world: &World, profile: Profile) -> Result<Kube> {
    up::run(world)?;
    install::run(world, profile)?;
    Ok(Kube::new(KUBERNETES.program(world, "kubectl"), Layout::of(world).kubeconfig()))
}
