//! What can be asked of this program, one command a file.

pub(crate) mod database;
pub(crate) mod filesystems;
pub(crate) mod kills;
pub(crate) mod mutants;
pub(crate) mod point;
mod rounds;

use anyhow::{Result, bail};
use parallax_store::mutants::Mutant;

/// A bug by its name.
fn mutant(name: &str) -> Result<Mutant, String> {
    let found = Mutant::ALL.into_iter().find(|mutant| format!("{mutant:?}") == name);
    found.ok_or_else(|| format!("'{name}' is no mutant of the store"))
}

/// The kernel's devices and the right to use them.
fn prepare() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("block devices and mounts need root");
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if let Err(error) = std::fs::File::options().read(true).write(true).open(device) {
            bail!("{device} is needed: {error}");
        }
    }
    Ok(())
}
