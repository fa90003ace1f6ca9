//! The raw file, which is 1.00 in every row, and qemu-nbd on the very same file.

use std::path::PathBuf;

use anyhow::Result;

use super::super::fio::Target;
use super::super::rows::Image;
use super::{Ground, Prepared, Scrap, Server, Subject, fill, qemu_nbd, served, solid, sparse, version};

fn path(ground: &Ground) -> PathBuf {
    ground.at("raw.img")
}

/// fio on the file.
pub(crate) struct RawFile {
    pub(crate) ground: Ground,
}

impl Subject for RawFile {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn title(&self) -> &'static str {
        "raw file"
    }

    fn how(&self) -> Result<String> {
        Ok(format!("{}, engine io_uring, direct", super::super::fio::version()?))
    }

    fn set_up(&mut self) -> Result<()> {
        let path = path(&self.ground);
        solid(&path, self.ground.bytes)?;
        fill(&Target::File(path), self.ground.bytes)
    }

    /// Always the filled file: the measure stays the same whatever state a row is about.
    fn prepare(&mut self, _: Image) -> Result<Option<Prepared>> {
        Ok(Some(Prepared::lasting(Target::File(path(&self.ground)))))
    }
}

/// qemu-nbd with a raw image.
pub(crate) struct QemuRaw {
    pub(crate) ground: Ground,
    filled: Option<Server>,
}

impl QemuRaw {
    pub(crate) fn new(ground: Ground) -> Self {
        Self { ground, filled: None }
    }
}

impl Subject for QemuRaw {
    fn name(&self) -> &'static str {
        "qemu-raw"
    }

    fn title(&self) -> &'static str {
        "qemu-nbd raw"
    }

    fn how(&self) -> Result<String> {
        Ok(format!("{}, --cache=none --aio=io_uring, the same file as the raw one", version("qemu-nbd")?))
    }

    /// The raw file's own image is ready.
    fn set_up(&mut self) -> Result<()> {
        self.filled = Some(qemu_nbd(&path(&self.ground), "raw", &self.ground.at("qemu-raw.sock"))?);
        Ok(())
    }

    fn prepare(&mut self, image: Image) -> Result<Option<Prepared>> {
        match image {
            Image::Filled => Ok(self.filled.as_ref().map(|server| Prepared::lasting(served(server)))),
            Image::Empty => {
                let path = self.ground.at("qemu-raw-empty.img");
                sparse(&path, self.ground.bytes)?;
                let server = qemu_nbd(&path, "raw", &self.ground.at("qemu-raw-empty.sock"))?;
                Ok(Some(Prepared::brief(server, vec![Scrap(path)])))
            }
            Image::AfterSnapshot | Image::AfterMany | Image::AfterManyAndOne => Ok(None),
        }
    }
}
