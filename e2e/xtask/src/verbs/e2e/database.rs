//! `e2e database`: PostgreSQL, and what may happen to the machine under it.
//!
//! First the daemon is killed again and again, alone and with its holder; then the power is cut at flushes of a recorded
//! disk. No commit that a client was told of may be missing. The work is done by `e2e/powercut`.

use anyhow::{Result, bail};

use super::filesystems::{self, LIMIT, powercut};
use crate::build::{self, Profile};
use crate::world::World;
use parallax_e2e::process;
use parallax_e2e::say;

/// What this takes from Debian, beside the programs of `e2e filesystems`.
const SERVER: (&str, &str) = ("postgres", "postgresql");
/// Where Debian has servers, one folder for each version; they are on nobody's PATH.
const SERVERS: &str = "/usr/lib/postgresql";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kills of the daemon alone: pauses for the database.
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// Kills of daemon and holder together: the database loses its disk and recovers.
    #[arg(long, default_value_t = 5)]
    deaths: u32,
    /// Places at which the power goes.
    #[arg(long, default_value_t = 20)]
    points: usize,
    /// Decides the moments.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(world: &World, args: &Args) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("block devices and mounts need root. Run: sudo -E cargo xtask e2e database");
    }
    build::install(filesystems::PACKAGES)?;
    let servers = std::fs::read_dir(SERVERS).into_iter().flatten().flatten();
    if !servers.map(|version| version.path().join("bin/postgres")).any(|server| server.is_file()) {
        build::install(&[SERVER])?;
    }
    let binaries = build::project_binaries(world, Profile::Dev)?;
    let powercut = powercut(world)?;
    let seed = args.seed.to_string();
    if args.kills > 0 || args.deaths > 0 {
        let mut kills = process::command(&powercut);
        kills.args(["kills", "--kills", &args.kills.to_string(), "--deaths", &args.deaths.to_string()]);
        kills.args(["--seed", &seed]);
        if let Some(folder) = binaries.parallaxd.parent() {
            kills.arg("--programs").arg(folder);
        }
        say::step("PostgreSQL while its daemon is killed", || process::shown(&mut kills, LIMIT))?;
    }
    if args.points > 0 {
        let mut cuts = process::command(&powercut);
        cuts.args(["database", "--points", &args.points.to_string(), "--seed", &seed]);
        say::step("PostgreSQL after power cuts", || process::shown(&mut cuts, LIMIT))?;
    }
    Ok(())
}
