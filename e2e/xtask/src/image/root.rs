//! Debian root file systems, made once and kept by their packages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::archive::{digest_of, hex};
use crate::build;
use crate::world::World;
use parallax_e2e::process::{self, BUILD};
use parallax_e2e::say;

/// A root file system as a tar file with its digest.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    tar: PathBuf,
    digest: String,
}

/// What goes into a root.
#[derive(Debug)]
pub(crate) struct Packages<'a> {
    /// First part of the cache's directory name.
    pub(crate) name: &'a str,
    /// Debian packages beside the essential ones.
    pub(crate) include: &'a [&'a str],
    /// Commands that mmdebstrap runs on the finished root, `$1`.
    pub(crate) hooks: &'a [&'a str],
}

/// Files that no container reads.
const LEFT_OUT: &[&str] =
    &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];

impl Root {
    /// Makes the root with mmdebstrap unless it is in the cache.
    pub(crate) fn debian(world: &World, packages: &Packages<'_>) -> Result<Self> {
        let suite = suite()?;
        let inputs = format!("{suite} {:?} {:?}", packages.include, packages.hooks);
        let version = &hex(&Sha256::digest(inputs))[..12];
        let folder = world.cache.join(format!("debian-{}-{suite}-{version}", packages.name));
        let tar = folder.join("root.tar");
        let digest_file = folder.join("root.sha256");
        if !digest_file.exists() {
            build::install(&[("mmdebstrap", "mmdebstrap")])?;
            fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
            say::step(format!("making a Debian {suite} root for {}", packages.name), || {
                make(&suite, packages, &tar, &folder.join("build.log"))?;
                fs::write(&digest_file, digest_of(&tar)?).context("noting a root's digest")
            })?;
        }
        let digest = fs::read_to_string(&digest_file).context("reading a root's digest")?;
        Ok(Self { tar, digest })
    }

    /// Path of the tar file.
    pub(crate) fn tar(&self) -> &Path {
        &self.tar
    }

    /// SHA-256 of the tar file, in hexadecimal.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }
}

fn make(suite: &str, packages: &Packages<'_>, tar: &Path, log: &Path) -> Result<()> {
    let mut command = process::command("mmdebstrap");
    command.args(["--variant=minbase", "--mode=root"]);
    command.arg(format!("--include={}", packages.include.join(",")));
    for pattern in LEFT_OUT {
        command.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    for hook in packages.hooks {
        command.arg(format!("--customize-hook={hook}"));
    }
    let partial = tar.with_extension("partial.tar");
    command.arg(suite).arg(&partial);
    process::logged(&mut command, log, BUILD)?;
    fs::rename(&partial, tar).with_context(|| format!("naming {}", tar.display()))
}

/// The machine's own release: programs that are built here need its C library or a newer one.
fn suite() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(line.context("this machine names no Debian release in /etc/os-release")?.trim_matches('"').to_owned())
}
