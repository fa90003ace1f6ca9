//! The project's own programs, as the images and the tests want them.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::world::World;
use parallax_e2e::process::{self, BUILD};
use parallax_e2e::say;

/// How the project's programs are compiled.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Profile {
    /// Fast to build; what the tests of the workspace already compiled.
    Dev,
    /// What is shipped.
    Release,
}

/// Paths of what `project_binaries` built.
#[derive(Clone, Debug)]
pub(crate) struct ProjectBinaries {
    /// The node daemon.
    pub(crate) parallaxd: PathBuf,
    /// The command line.
    pub(crate) parallax: PathBuf,
    /// The CSI driver.
    pub(crate) parallax_csi: PathBuf,
}

/// Builds the daemon, the command line and the CSI driver; or takes those in the folder `PARALLAX_BINARIES`.
pub(crate) fn project_binaries(world: &World, profile: Profile) -> Result<ProjectBinaries> {
    if let Some(folder) = std::env::var_os("PARALLAX_BINARIES") {
        return found(&PathBuf::from(folder));
    }
    let mut command = process::command(env!("CARGO"));
    command.current_dir(&world.repo).args(["build", "--quiet", "--locked"]);
    command.args(["--bin", "parallaxd", "--bin", "parallax", "--bin", "parallax-csi"]);
    let folder = match profile {
        Profile::Dev => "debug",
        Profile::Release => {
            command.arg("--release");
            "release"
        }
    };
    say::step("building parallaxd, parallax and parallax-csi", || process::shown(&mut command, BUILD))?;
    found(&world.target().join(folder))
}

fn found(folder: &Path) -> Result<ProjectBinaries> {
    let binaries = ProjectBinaries {
        parallaxd: folder.join("parallaxd"),
        parallax: folder.join("parallax"),
        parallax_csi: folder.join("parallax-csi"),
    };
    for path in [&binaries.parallaxd, &binaries.parallax, &binaries.parallax_csi] {
        if !path.is_file() {
            bail!("there is no program {}", path.display());
        }
    }
    Ok(binaries)
}
