//! A filesystem on a block device: made, mounted, verified. Only a guest does that.

use crate::errand::Task;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use parallax_sim::Prng;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::{
    ffi::CString,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Longest time until nobody uses a mounted filesystem any more.
const BUSY_MAX: Duration = Duration::from_secs(10);

/// Kinds of filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Ext4, Self::Xfs];

    /// As `mount` calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// Bytes of a volume for it. mkfs.xfs refuses less than 300 MiB.
    pub(crate) fn volume_bytes(self, task: Task) -> u64 {
        match (self, task) {
            (Self::Ext4, Task::Files) => 96 << 20,
            (Self::Ext4, Task::Database) => 256 << 20,
            (Self::Xfs, _) => 320 << 20,
        }
    }
}

/// How it is made and mounted; follows from a seed.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) kind: Kind,
    /// Sector of the volume.
    pub(crate) logical_block: u32,
    block: u32,
    options: &'static str,
}

impl Disk {
    pub(crate) fn new(kind: Kind, seed: u64) -> Self {
        let mut prng = Prng::new(seed ^ 0xd15c);
        let logical_block = *prng.pick(&[512, 4096]);
        let block = *prng.pick(if logical_block == 512 { &[1024, 4096][..] } else { &[4096] });
        let options = match kind {
            // Not `data=journal`: with it ext4 of Linux 6.18 brings back old data after a power cut and finds wrong sums
            // in its journal, on the bare disk too (`--without-store`).
            Kind::Ext4 => *prng.pick(&["", "discard", "commit=1", "discard,commit=1"]),
            // Two images of one disk are looked at side by side.
            Kind::Xfs => *prng.pick(&["nouuid", "nouuid,discard"]),
        };
        Self { kind, logical_block, block, options }
    }

    /// Bytes that it takes the disk to write whole or not at all, whatever happens: a sector; and ext4 its superblock, which
    /// it writes in place, two sectors of 512 bytes.
    pub(crate) fn piece(&self) -> usize {
        let sector = self.logical_block as usize;
        match self.kind {
            Kind::Ext4 => sector.max(1024),
            Kind::Xfs => sector,
        }
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        let options = if self.options.is_empty() { "defaults" } else { self.options };
        format!("sectors of {}, blocks of {}, {options}", self.logical_block, self.block)
    }

    /// Makes it.
    pub(crate) fn make(&self, device: &Path) -> Result<()> {
        let block = self.block.to_string();
        match self.kind {
            Kind::Ext4 => {
                let lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
                run("mkfs.ext4", &["-q", "-F", "-b", &block, "-E", lazy], device)
            }
            Kind::Xfs => run("mkfs.xfs", &["-q", "-f", "-K", "-b", &format!("size={block}")], device),
        }
    }

    /// Mounts it; what was journalled is replayed.
    pub(crate) fn mount(&self, device: &Path, at: &Path) -> Result<()> {
        let options = CString::new(self.options)?;
        mount(device, at, self.kind.name(), MountFlags::NOATIME, options.as_c_str())
            .with_context(|| format!("mounting {} with '{}'", self.kind.name(), self.options))
    }

    /// Unmounts it.
    pub(crate) fn unmount(&self, at: &Path) -> Result<()> {
        let end = Instant::now() + BUSY_MAX;
        loop {
            match unmount(at, UnmountFlags::empty()) {
                Err(rustix::io::Errno::BUSY) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                outcome => return outcome.context("unmounting"),
            }
        }
    }

    /// What its own checker finds, when it is not mounted.
    pub(crate) fn verify(&self, device: &Path) -> Result<()> {
        match self.kind {
            Kind::Ext4 => run("e2fsck", &["-f", "-n"], device),
            Kind::Xfs => run("xfs_repair", &["-n"], device),
        }
    }
}

fn run(program: &str, arguments: &[&str], device: &Path) -> Result<()> {
    let output = Command::new(program)
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .args(arguments)
        .arg(device)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        bail!("{program} ended with {}: {}", output.status, String::from_utf8_lossy(&text));
    }
    Ok(())
}
