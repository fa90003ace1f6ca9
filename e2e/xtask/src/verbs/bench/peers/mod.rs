//! Who is measured: the raw file, Parallax, and what else serves a disk image over NBD.
//!
//! Every peer gets the setting that bypasses the page cache, where it has one; [`Subject::how`] tells which.

mod nbdkit;
mod parallax;
mod qcow2;
mod raw;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::fio::{self, End, Job, Pattern, Target};
use super::rows::Image;
use crate::node::Server;
use parallax_e2e::process::{self, COMMAND};

pub(super) use nbdkit::NbdkitFile;
pub(super) use parallax::{Parallax, Taken};
pub(super) use qcow2::{Qcow2, Qcow2Chain};
pub(super) use raw::{QemuRaw, RawFile};

/// Where images lie and how large they are.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub(super) folder: PathBuf,
    /// Bytes of one image.
    pub(super) bytes: u64,
}

impl Ground {
    fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.join(name)
    }
}

/// An image that is ready to be measured; dropping it gives back what was made for this run alone.
pub(super) struct Prepared {
    pub(super) target: Target,
    /// Kept for its drop, before the files that it serves.
    _server: Option<Server>,
    _files: Vec<Scrap>,
}

impl Prepared {
    /// Something that outlives this run.
    fn lasting(target: Target) -> Self {
        Self { target, _server: None, _files: Vec::new() }
    }

    /// Something of this run alone.
    fn brief(server: Server, files: Vec<Scrap>) -> Self {
        Self { target: served(&server), _server: Some(server), _files: files }
    }
}

/// A file that is deleted when this is dropped.
struct Scrap(PathBuf);

impl Drop for Scrap {
    fn drop(&mut self) {
        // It lies in a folder that is removed at the end; the next run overwrites it anyway.
        std::fs::remove_file(&self.0).ok();
    }
}

/// One column of the tables.
pub(super) trait Subject {
    /// Short name: key of the result file.
    fn name(&self) -> &'static str;
    /// Heading of the column.
    fn title(&self) -> &'static str;
    /// Version and settings, for the table of versions.
    fn how(&self) -> Result<String>;
    /// Makes its images.
    fn set_up(&mut self) -> Result<()>;
    /// An image in the wanted state, or `None` if it has no such thing.
    fn prepare(&mut self, image: Image) -> Result<Option<Prepared>>;
}

/// What a server serves.
fn served(server: &Server) -> Target {
    Target::Nbd(server.socket().to_owned())
}

/// Writes every block once.
fn fill(target: &Target, bytes: u64) -> Result<()> {
    let job = Job { pattern: Pattern::Write, block: 1 << 20, depth: 4, flush: false, rate: None };
    fio::run(target, job, bytes, End::Pass, 1).map(drop)
}

/// A new file of `bytes`, written with zeroes so that the filesystem below has nothing left to allocate.
fn solid(path: &Path, bytes: u64) -> Result<()> {
    let mut command = process::command("dd");
    command.args(["if=/dev/zero", "bs=1M", "oflag=direct", "conv=fsync", "status=none"]);
    command.arg(format!("of={}", path.display())).arg(format!("count={}", bytes >> 20));
    process::output(&mut command, Duration::from_secs(600)).map(drop)
}

/// A new file of `bytes` without any block.
fn sparse(path: &Path, bytes: u64) -> Result<()> {
    std::fs::File::create(path)
        .and_then(|file| file.set_len(bytes))
        .with_context(|| format!("creating {}", path.display()))
}

/// `qemu-nbd` past the page cache, serving `path`.
fn qemu_nbd(path: &Path, format: &str, socket: &Path) -> Result<Server> {
    let mut command = process::command("qemu-nbd");
    command.args(["--persistent", "--shared=16", "--cache=none", "--aio=io_uring"]);
    command.arg(format!("--format={format}")).arg("--socket").arg(socket).arg(path);
    Server::start(&mut command, socket)
}

fn qemu_img(arguments: &[&str], path: &Path) -> Result<()> {
    let mut command = process::command("qemu-img");
    command.args(arguments).arg(path);
    process::output(&mut command, COMMAND).map(drop)
}

/// First line that a program prints about its version.
fn version(program: &str) -> Result<String> {
    let text = process::output(process::command(program).arg("--version"), COMMAND)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}
