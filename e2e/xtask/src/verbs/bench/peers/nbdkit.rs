//! nbdkit's file plugin.
//!
//! It has no direct I/O. With `cache=none` it asks the kernel to forget what it read and wrote, so its reads come
//! from the disk; its writes still land in memory first and go out when the kernel likes, or at the flush that ends a
//! run. Its column is marked.

use std::path::Path;

use anyhow::Result;

use super::super::fio::Target;
use super::super::rows::Image;
use super::{Ground, Prepared, Scrap, Server, Subject, fill, served, solid, sparse, version};
use parallax_e2e::process;

pub(crate) struct NbdkitFile {
    ground: Ground,
    filled: Option<Server>,
}

impl NbdkitFile {
    pub(crate) fn new(ground: Ground) -> Self {
        Self { ground, filled: None }
    }

    fn serve(path: &Path, socket: &Path) -> Result<Server> {
        let mut command = process::command("nbdkit");
        command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(socket);
        command.arg("file").arg(path).arg("cache=none");
        Server::start(&mut command, socket)
    }
}

impl Subject for NbdkitFile {
    fn name(&self) -> &'static str {
        "nbdkit"
    }

    fn title(&self) -> &'static str {
        "nbdkit file ¹"
    }

    fn how(&self) -> Result<String> {
        Ok(format!("{}, file plugin, cache=none", version("nbdkit")?))
    }

    fn set_up(&mut self) -> Result<()> {
        let path = self.ground.at("nbdkit.img");
        solid(&path, self.ground.bytes)?;
        fill(&Target::File(path.clone()), self.ground.bytes)?;
        self.filled = Some(Self::serve(&path, &self.ground.at("nbdkit.sock"))?);
        Ok(())
    }

    fn prepare(&mut self, image: Image) -> Result<Option<Prepared>> {
        match image {
            Image::Filled => {
                forget(&self.ground.at("nbdkit.img"))?;
                Ok(self.filled.as_ref().map(|server| Prepared::lasting(served(server))))
            }
            Image::Empty => {
                let path = self.ground.at("nbdkit-empty.img");
                sparse(&path, self.ground.bytes)?;
                let server = Self::serve(&path, &self.ground.at("nbdkit-empty.sock"))?;
                Ok(Some(Prepared::brief(server, vec![Scrap(path)])))
            }
            Image::AfterSnapshot | Image::AfterMany | Image::AfterManyAndOne => Ok(None),
        }
    }
}

/// Drops what the page cache still holds of a file.
fn forget(path: &Path) -> Result<()> {
    let mut command = process::command("dd");
    command.args(["if=/dev/null", "oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"]);
    command.arg(format!("of={}", path.display()));
    process::output(&mut command, process::COMMAND).map(drop)
}
