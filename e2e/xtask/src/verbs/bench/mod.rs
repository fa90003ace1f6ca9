//! `bench`: Parallax beside its peers, in one run on one disk; writes the tables of docs/benchmarks.md.
//!
//! `rows` says what is measured, `peers` who, `fio` how. `store` asks `parallax bench` for what needs no NBD,
//! `idle` looks at a daemon that has nothing to do. `results` is what came of it, `tables` how it is shown.
//!
//! Invariants:
//! * Every figure is a share of the raw file's, measured a moment before on the same disk. Subjects take turns, in
//!   another order each time, and the median of the turns is shown with its spread.
//! * Nothing is written to the documentation unless every row was measured.
//! * The images are gone afterwards, whatever happens.

mod fio;
mod idle;
mod machine;
mod measure;
mod peers;
mod progress;
mod results;
mod rows;
mod store;
mod tables;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::build::{self, Profile, ProjectBinaries};
use crate::world::World;
use parallax_e2e::say;
use peers::{Ground, Parallax};
use progress::Progress;
use results::Results;
use rows::{ROWS, Row};

/// Programs that are measured or measure.
pub(crate) const PACKAGES: &[(&str, &str)] = &[
    ("fio", "fio"),
    ("nbdkit", "nbdkit"),
    ("qemu-nbd", "qemu-utils"),
    ("qemu-img", "qemu-utils"),
    ("nbdinfo", "libnbd-bin"),
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Small images and short turns: shows that everything works, says little about speed.
    #[arg(long)]
    quick: bool,
    /// Only this row (several times for several), `store` or `idle`; the documentation stays as it is.
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Tell which rows there are.
    #[arg(long)]
    list: bool,
    /// Directory on the disk to measure; needs free room for 12 images. The state directory when absent.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Where the numbers go, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables of docs/benchmarks.md even after a quick run.
    #[arg(long)]
    write: bool,
    /// How the project's programs are compiled.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Plan {
    image_bytes: u64,
    turn: Duration,
    turns: u32,
    /// Snapshots for the rows that have many.
    many: u32,
    /// Snapshots in the largest pool whose opening is timed.
    opening: u32,
    /// Volumes of the idle daemon that has many.
    volumes: u32,
}

const FULL: Plan = Plan {
    image_bytes: 1 << 30,
    turn: Duration::from_secs(2),
    turns: 3,
    many: 10_000,
    opening: 100_000,
    volumes: 100,
};
const QUICK: Plan = Plan {
    image_bytes: 64 << 20,
    turn: Duration::from_millis(300),
    turns: 1,
    many: 200,
    opening: 2000,
    volumes: 5,
};

/// Images that lie on the disk at the same time, the pool counted as several.
const IMAGES: u64 = 12;

pub(crate) fn run(world: &World, args: &Args) -> Result<()> {
    if args.list {
        for row in ROWS {
            println!("{:<22}{}", row.name, row.title);
        }
        println!("{:<22}the store without NBD: loads, snapshots, clones, opening", store::NAME);
        println!("{:<22}memory and CPU of a daemon that has nothing to do", idle::NAME);
        return Ok(());
    }
    let selected = Selection::of(&args.only)?;
    build::install(PACKAGES)?;
    let binaries = build::project_binaries(world, args.profile)?;
    let plan = if args.quick { QUICK } else { FULL };
    let folder = args.directory.clone().unwrap_or_else(|| world.state.clone()).join("bench");
    let ground = Ground { folder, bytes: plan.image_bytes };
    fs::create_dir_all(&ground.folder).with_context(|| format!("creating {}", ground.folder.display()))?;

    let begun = Instant::now();
    let mut results = Results::begin(plan, args.quick, &ground.folder)?;
    let outcome = measure_all(plan, &selected, &ground, &binaries, &mut results);
    results.end(begun.elapsed());

    // What was measured before something failed is worth keeping.
    let json = args.json.clone().unwrap_or_else(|| world.state.join("bench.json"));
    let text = serde_json::to_string_pretty(&results).context("writing the numbers as JSON")?;
    fs::write(&json, text).with_context(|| format!("writing {}", json.display()))?;
    println!("{}", tables::markdown(&results));
    println!("numbers in {}", json.display());
    outcome?;
    if selected.whole && (!args.quick || args.write) {
        let document = world.repo.join("docs/benchmarks.md");
        tables::write(&document, &results)?;
        println!("{} {}", say::good("wrote"), document.display());
    }
    Ok(())
}

fn measure_all(
    plan: Plan,
    selected: &Selection,
    ground: &Ground,
    binaries: &ProjectBinaries,
    results: &mut Results,
) -> Result<()> {
    let mut progress = Progress::of(plan, selected);
    if !selected.rows.is_empty() || selected.idle {
        let _scratch = Scratch::make(ground, plan)?;
        let mut parallax = Parallax::new(ground.clone(), binaries, plan.many);
        let peers = measure::peers(ground, &selected.rows);
        measure::run(plan, &selected.rows, &mut parallax, peers, &mut progress, results)?;
        if selected.idle {
            results.idle = idle::measure(&mut parallax, plan, &mut progress)?;
        }
        progress.says("verifying the pool");
        parallax.check()?;
    }
    if selected.store {
        // The images are gone: there need not be room for both.
        let _scratch = Scratch::make(ground, plan)?;
        results.store = Some(store::measure(&binaries.parallax, &ground.folder, plan, &mut progress)?);
    }
    progress.end();
    Ok(())
}

/// What is to be measured.
struct Selection {
    rows: Vec<&'static Row>,
    store: bool,
    idle: bool,
    whole: bool,
}

impl Selection {
    fn of(names: &[String]) -> Result<Self> {
        if names.is_empty() {
            return Ok(Self { rows: ROWS.iter().collect(), store: true, idle: true, whole: true });
        }
        let known =
            |name: &str| name == store::NAME || name == idle::NAME || ROWS.iter().any(|row| row.name == name);
        if let Some(unknown) = names.iter().find(|name| !known(name)) {
            bail!("there is no row '{unknown}'; cargo xtask bench --list shows them");
        }
        let asked = |name: &str| names.iter().any(|asked| asked == name);
        Ok(Self {
            rows: ROWS.iter().filter(|row| asked(row.name)).collect(),
            store: asked(store::NAME),
            idle: asked(idle::NAME),
            whole: false,
        })
    }
}

/// The folder of the images; removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn make(ground: &Ground, plan: Plan) -> Result<Self> {
        let folder = &ground.folder;
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let scratch = Self(folder.clone());
        let wanted = plan.image_bytes * IMAGES;
        let free = free_bytes(folder)?;
        if free < wanted {
            bail!(
                "{} has {} MiB free, {} are needed; name another disk with --directory",
                folder.display(),
                free >> 20,
                wanted >> 20
            );
        }
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            say::note(format!("{} stays behind: {error}", self.0.display()));
        }
    }
}

fn free_bytes(folder: &Path) -> Result<u64> {
    let found =
        rustix::fs::statvfs(folder).with_context(|| format!("asking how full {} is", folder.display()))?;
    Ok(found.f_bavail * found.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_is_never_the_whole_and_an_unknown_row_is_named() {
        assert!(Selection::of(&[]).unwrap().whole);
        let some = Selection::of(&["read-4k-q1".into(), "idle".into()]).unwrap();
        assert!(!some.whole && some.idle && !some.store && some.rows.len() == 1);
        let error = Selection::of(&["read-5k".into()]).err().unwrap();
        assert!(error.to_string().contains("read-5k"), "{error}");
    }
}
