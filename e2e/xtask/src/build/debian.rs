//! Debian packages that a fresh machine lacks.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, bail};

use parallax_e2e::process::{self, BUILD};
use parallax_e2e::say;

/// Makes sure that each program is on PATH; `wanted` pairs a program with the package that has it.
///
/// As root the packages are installed; otherwise the error is the one command that installs them.
pub(crate) fn install(wanted: &[(&str, &str)]) -> Result<()> {
    let mut packages: Vec<&str> =
        wanted.iter().filter(|(program, _)| !on_path(program)).map(|(_, package)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !rustix::process::geteuid().is_root() {
        bail!("some programs are missing; run: sudo apt-get install -y --no-install-recommends {list}");
    }
    say::step(format!("installing Debian packages: {list}"), || {
        apt(&["update", "-qq"])?;
        let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
        arguments.extend(&packages);
        apt(&arguments)
    })
}

/// Unpacks one package into `folder` without installing it.
pub(crate) fn unpack(package: &str, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let download = |_: ()| {
        process::output(
            process::command("apt-get").args(["download", "-qq", package]).current_dir(folder),
            BUILD,
        )
    };
    if download(()).is_err() {
        // A fresh machine has no package lists yet.
        apt(&["update", "-qq"])?;
        download(())?;
    }
    let archive = fs::read_dir(folder)
        .with_context(|| format!("reading {}", folder.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get left no package {package} in {}", folder.display()))?;
    process::output(process::command("dpkg-deb").arg("-x").args([&archive, &folder.to_path_buf()]), BUILD)?;
    fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))
}

/// Whether a program can be started by its name. System folders count even when PATH lacks them.
pub(crate) fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|folder| folder.join(program).is_file())
}

fn apt(arguments: &[&str]) -> Result<()> {
    process::output(
        process::command("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"),
        BUILD,
    )
    .map(drop)
}
