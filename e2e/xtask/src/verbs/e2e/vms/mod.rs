//! `e2e vms`: a Debian disk, its clone and a clone of the clone run as virtual machines at the same time.
//!
//! Lifecycle: a root image is made from Debian's packages and imported as qcow2; two clones are made; three daemons'
//! exports are booted by QEMU. Each guest writes its mark with fsync, restarts, verifies what it finds and switches
//! off. Then the disks are exported and read from outside.
//!
//! Invariants:
//! * Guests are emulated, so that this runs without virtualisation, however slowly.
//! * Neither guest nor daemon has a network.

mod disk;
mod guest;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::build::{self, Profile};
use crate::node::{Node, Server};
use crate::world::World;
use disk::Disk;
use parallax_e2e::process::{self, COMMAND};
use parallax_e2e::say;

/// Programs that this takes from Debian.
pub(crate) const PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("mmdebstrap", "mmdebstrap"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How the project's programs are compiled.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
    /// Keep the folder with the guests' consoles, the daemon's log and the pool.
    #[arg(long)]
    keep: bool,
}

/// The volumes, each with what it is made from.
const VOLUMES: [(&str, Option<&str>); 3] =
    [("origin", None), ("clone", Some(AS_IMPORTED)), ("grandchild", Some("clone"))];
/// The origin before anybody ran on it.
const AS_IMPORTED: &str = "origin@1";
/// Bytes of the pool's file. Sparse.
const POOL_BYTES: u64 = 8 << 30;
/// Longest time of importing or exporting a disk.
const COPY: Duration = Duration::from_secs(600);

pub(crate) fn run(world: &World, args: &Args) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("making a root image needs root. Run: sudo -E cargo xtask e2e vms");
    }
    build::install(PACKAGES)?;
    let disk = Disk::ensure(world)?;
    let binaries = build::project_binaries(world, args.profile)?;
    let folder = world.state.join("vms");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;

    let mut node = Node::new(&folder, &binaries);
    tell(&mut node, &disk, &folder).with_context(|| format!("logs are in {}", folder.display()))?;
    if !args.keep {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    println!("{} three machines, three disks", say::good("✓"));
    Ok(())
}

fn tell(node: &mut Node, disk: &Disk, folder: &Path) -> Result<()> {
    say::step("a pool, the imported image, its clone and a clone of the clone", || {
        node.start(Some(POOL_BYTES))?;
        let mut import = node.command();
        import.arg("import").arg(&disk.image).arg("origin");
        process::output(&mut import, COPY)?;
        node.cli(&["snapshot", "origin", "--label", "as imported"])?;
        for (name, from) in VOLUMES {
            if let Some(from) = from {
                node.cli(&["create", name, "--from", from])?;
            }
        }
        Ok(())
    })?;

    say::step("all three start, write, start again and read", || {
        let served = VOLUMES.map(|(name, _)| node.serve(name)).into_iter().collect::<Result<Vec<_>>>()?;
        let mut guests = served
            .iter()
            .zip(VOLUMES)
            .map(|(export, (name, _))| guest::start(disk, name, export.socket(), folder))
            .collect::<Result<Vec<Server>>>()?;
        for (guest, (name, _)) in guests.iter_mut().zip(VOLUMES) {
            guest.ends(&format!("the machine on {name}"), guest::LIMIT)?;
        }
        Ok(())
    })?;
    for (name, _) in VOLUMES {
        let said = guest::words(folder, name)?;
        for word in &said {
            say::note(format!("{name}: {word}"));
        }
        guest::judge(name, &said)?;
    }
    println!("{}", node.cli(&["tree"])?.trim_end());

    for (name, _) in VOLUMES {
        say::step(format!("{name}, read from outside"), || examine(&exported(node, folder, name)?, &[name]))?;
    }
    say::step("the snapshot that the clone came from has no mark", || {
        examine(&exported(node, folder, AS_IMPORTED)?, &[])
    })?;
    say::step("the whole pool is verified", || node.check())
}

/// A volume or snapshot as a raw file.
fn exported(node: &Node, folder: &Path, source: &str) -> Result<PathBuf> {
    let image = folder.join("exported.img");
    let mut command = node.command();
    command.args(["export", "--force", source]).arg(&image);
    process::output(&mut command, COPY)?;
    Ok(image)
}

/// The file system is clean and has exactly these marks.
fn examine(image: &Path, names: &[&str]) -> Result<()> {
    process::output(process::command("e2fsck").args(["-f", "-n"]).arg(image), COPY)?;
    let mut command = process::command("debugfs");
    command.args(["-R", "ls -p /var/lib/marks"]).arg(image);
    let found = marks(&process::output(&mut command, COMMAND)?);
    let wanted: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    ensure!(found == wanted, "marks on the disk are {found:?}, not {wanted:?}");
    Ok(())
}

/// Names in the listing of debugfs, `/inode/mode/user/group/name/size/`, that have a sum.
fn marks(listing: &str) -> Vec<String> {
    let names = listing.lines().filter_map(|line| line.split('/').nth(5));
    let mut marks: Vec<String> =
        names.filter_map(|name| name.strip_suffix(".sum")).map(str::to_owned).collect();
    marks.sort_unstable();
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_from_a_listing() {
        let listing = "/12/040755/0/0/.//\n/2/040755/0/0/..//\n/13/100644/0/0/clone/16777216/\n\
            /14/100644/0/0/clone.sum/72/\n";
        assert_eq!(marks(listing), ["clone"]);
        assert!(marks("").is_empty());
    }
}
