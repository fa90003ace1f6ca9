//! `fuzz`: replays the kept bad inputs of every room, and makes new ones for as long as asked.
//!
//! An input that breaks a promise is kept in the room's corpus, with the outcome `?`; the test that failed says how to
//! run it again.

use anyhow::{Context, Result, bail};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::world::World;
use parallax_e2e::process::{self, BUILD};
use parallax_e2e::say;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Time for new inputs, shared by the rooms. Without it each makes as many as continuous integration does.
    #[arg(long)]
    minutes: Option<f64>,
    /// Only the rooms whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Repeats what an earlier run made.
    #[arg(long)]
    seed: Option<u64>,
    /// Only counts what is kept.
    #[arg(long)]
    count: bool,
}

struct Room {
    name: &'static str,
    /// Its tests, as arguments of `cargo test`.
    tests: &'static [&'static str],
    /// Where it keeps its inputs.
    corpus: &'static str,
    /// Targets that share its time.
    targets: u32,
}

const ROOMS: [Room; 7] = [
    Room {
        name: "format",
        tests: &["-p", "parallax-format", "--test", "fuzz"],
        corpus: "engine/format/tests/corpus",
        targets: 13,
    },
    Room {
        name: "pool",
        tests: &["-p", "parallax-store", "--test", "fuzz"],
        corpus: "engine/store/tests/corpus",
        targets: 1,
    },
    Room {
        name: "nbd",
        tests: &["-p", "parallax-export", "--test", "fuzz"],
        corpus: "engine/export/tests/corpus",
        targets: 1,
    },
    Room {
        name: "fuse",
        tests: &["-p", "parallax-export", "--lib", "loop_export::fuzz"],
        corpus: "engine/export/tests/corpus",
        targets: 1,
    },
    Room {
        name: "daemon",
        tests: &["-p", "parallaxd", "--test", "fuzz"],
        corpus: "engine/parallaxd/tests/corpus",
        targets: 3,
    },
    Room {
        name: "images",
        tests: &["-p", "parallax", "--bin", "parallax", "image::fuzz"],
        corpus: "engine/parallax/tests/corpus",
        targets: 1,
    },
    Room {
        name: "csi",
        tests: &["-p", "parallax-csi", "--test", "fuzz"],
        corpus: "csi-driver/tests/corpus",
        targets: 1,
    },
];

pub(crate) fn run(world: &World, args: &Args) -> Result<()> {
    if args.count {
        return count(world);
    }
    let rooms: Vec<&Room> = ROOMS
        .iter()
        .filter(|room| args.only.as_ref().is_none_or(|only| room.name.contains(only.as_str())))
        .collect();
    if rooms.is_empty() {
        let names: Vec<&str> = ROOMS.iter().map(|room| room.name).collect();
        bail!("no room has that name; there are {}", names.join(", "));
    }
    let seed = match args.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH).context("asking for the time")?.as_secs(),
    };
    println!("seed {seed}");
    let mut failed = Vec::new();
    for room in &rooms {
        println!("\n{}", say::bold(room.name));
        let mut command = process::command(env!("CARGO"));
        command.current_dir(&world.repo).arg("test").args(room.tests);
        command.args(["--", "--nocapture", "--test-threads", "1"]);
        command.env("FUZZ", "keep").env("FUZZ_SEED", seed.to_string());
        let mut limit = BUILD;
        if let Some(minutes) = args.minutes {
            let seconds = minutes * 60.0 / rooms.len() as f64;
            let each = (seconds / f64::from(room.targets)).ceil().max(1.0);
            command.env("FUZZ_SECONDS", each.to_string());
            limit += Duration::from_secs_f64(2.0 * seconds);
        }
        if let Err(error) = process::shown(&mut command, limit) {
            say::failure(&error);
            failed.push(room.name);
        }
    }
    if !failed.is_empty() {
        bail!("inputs were found that break a promise: {}; they are kept in the corpus", failed.join(", "));
    }
    Ok(())
}

/// Prints how many inputs each target keeps.
fn count(world: &World) -> Result<()> {
    let mut folders: Vec<&str> = ROOMS.iter().map(|room| room.corpus).collect();
    folders.dedup();
    let (mut kept, mut refused) = (0, 0);
    for folder in folders {
        let mut files: Vec<_> = std::fs::read_dir(world.repo.join(folder))
            .with_context(|| format!("looking into {folder}"))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
            .collect();
        files.sort();
        for path in files {
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let outcomes: Vec<&str> =
                text.lines().filter_map(|line| line.trim_start().strip_prefix("=> ")).collect();
            let bad = outcomes.iter().filter(|outcome| **outcome != "accepted").count();
            let name = path.strip_prefix(&world.repo).unwrap_or(&path).display();
            println!("{bad:5} refused, {:3} accepted  {name}", outcomes.len() - bad);
            kept += outcomes.len();
            refused += bad;
        }
    }
    println!("{kept} inputs are kept, {refused} of them refused");
    Ok(())
}
