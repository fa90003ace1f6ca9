//! `e2e filesystems`: ext4 and xfs over a disk that remembers everything, and the power cut at every flush.
//!
//! The work is done by `e2e/powercut`; this builds and starts it.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::build;
use crate::world::World;
use parallax_e2e::process::{self, BUILD};

/// Programs that this takes from Debian.
pub(crate) const PACKAGES: &[(&str, &str)] = &[
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("xfs_repair", "xfsprogs"),
    ("unshare", "util-linux"),
];

/// Longest time of one command: thousands of points take as long as they take.
pub(super) const LIMIT: Duration = Duration::from_secs(12 * 3600);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Places at which the power goes.
    #[arg(long, default_value_t = 200)]
    points: usize,
    /// The first seed; every 100 points have their own.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only `ext4` or only `xfs`, not each in turn.
    #[arg(long)]
    fs: Option<String>,
    /// Bugs of the store are switched on in turn instead; each must be found.
    #[arg(long, conflicts_with_all = ["points", "seed", "fs"])]
    mutants: bool,
    /// Passed on to the program; `-- --help` tells what it knows.
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl Args {
    /// What continuous integration asks for.
    pub(crate) fn for_ci() -> Self {
        Self { points: 200, seed: 1, fs: None, mutants: false, arguments: Vec::new() }
    }

    /// The mutants, for continuous integration.
    pub(crate) fn mutants() -> Self {
        Self { mutants: true, ..Self::for_ci() }
    }
}

pub(crate) fn run(world: &World, args: &Args) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("block devices and mounts need root. Run: sudo -E cargo xtask e2e filesystems");
    }
    build::install(PACKAGES)?;
    let mut command = process::command(powercut(world)?);
    if args.mutants {
        command.arg("mutants");
    } else {
        command.args(["filesystems", "--points", &args.points.to_string(), "--seed", &args.seed.to_string()]);
        if let Some(fs) = &args.fs {
            command.args(["--fs", fs]);
        }
    }
    process::shown(command.args(&args.arguments), LIMIT)
}

/// Builds the program.
pub(crate) fn powercut(world: &World) -> Result<std::path::PathBuf> {
    let mut command = process::command(env!("CARGO"));
    command.current_dir(&world.repo).args(["build", "--quiet", "--locked", "-p", "parallax-powercut"]);
    process::shown(command.args(["--features", "mutants"]), BUILD)?;
    Ok(world.target().join("debug/powercut"))
}
