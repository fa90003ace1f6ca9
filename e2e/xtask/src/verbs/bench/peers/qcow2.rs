//! qemu-nbd with qcow2 images: one layer, and a chain of snapshots.
//!
//! A snapshot here is an overlay on what was there, as libvirt and KubeVirt make them outside a guest's memory.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::super::fio::{self, End, Job, Pattern};
use super::super::rows::Image;
use super::{Ground, Prepared, Scrap, Server, Subject, fill, qemu_img, qemu_nbd, served, version};

/// Snapshots in the chain.
const CHAIN: u32 = 10;
/// Blocks that were written between two snapshots of the chain.
const BETWEEN: u64 = 500;

fn create(path: &Path, bytes: u64) -> Result<()> {
    let mut command = parallax_e2e::process::command("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]).arg(path).arg(bytes.to_string());
    parallax_e2e::process::output(&mut command, parallax_e2e::process::COMMAND).map(drop)
}

fn overlay(base: &Path, path: &Path) -> Result<()> {
    let base = base.display().to_string();
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base], path)
}

/// One image with qemu-nbd's default clusters of 64 KiB.
pub(crate) struct Qcow2 {
    ground: Ground,
    filled: Option<Server>,
}

impl Qcow2 {
    pub(crate) fn new(ground: Ground) -> Self {
        Self { ground, filled: None }
    }

    fn path(&self) -> PathBuf {
        self.ground.at("fresh.qcow2")
    }
}

impl Subject for Qcow2 {
    fn name(&self) -> &'static str {
        "qcow2"
    }

    fn title(&self) -> &'static str {
        "qemu-nbd qcow2"
    }

    fn how(&self) -> Result<String> {
        Ok(format!("{}, --cache=none --aio=io_uring, 64 KiB clusters", version("qemu-nbd")?))
    }

    fn set_up(&mut self) -> Result<()> {
        create(&self.path(), self.ground.bytes)?;
        let server = qemu_nbd(&self.path(), "qcow2", &self.ground.at("qcow2.sock"))?;
        fill(&served(&server), self.ground.bytes)?;
        self.filled = Some(server);
        Ok(())
    }

    fn prepare(&mut self, image: Image) -> Result<Option<Prepared>> {
        match image {
            Image::Filled => {
                let server = match self.filled.take() {
                    Some(server) => server,
                    None => qemu_nbd(&self.path(), "qcow2", &self.ground.at("qcow2.sock"))?,
                };
                let target = served(self.filled.insert(server));
                Ok(Some(Prepared::lasting(target)))
            }
            Image::Empty => {
                let path = self.ground.at("empty.qcow2");
                create(&path, self.ground.bytes)?;
                let server = qemu_nbd(&path, "qcow2", &self.ground.at("empty.sock"))?;
                Ok(Some(Prepared::brief(server, vec![Scrap(path)])))
            }
            Image::AfterSnapshot => {
                // Whoever writes the base holds its lock.
                self.filled = None;
                let path = self.ground.at("overlay.qcow2");
                overlay(&self.path(), &path)?;
                let server = qemu_nbd(&path, "qcow2", &self.ground.at("overlay.sock"))?;
                Ok(Some(Prepared::brief(server, vec![Scrap(path)])))
            }
            Image::AfterMany | Image::AfterManyAndOne => Ok(None),
        }
    }
}

/// A chain; its last overlay is new for each run, as after a snapshot.
pub(crate) struct Qcow2Chain {
    ground: Ground,
}

impl Qcow2Chain {
    pub(crate) fn new(ground: Ground) -> Self {
        Self { ground }
    }

    fn layer(&self, number: u32) -> PathBuf {
        self.ground.at(format!("chain-{number}.qcow2"))
    }
}

impl Subject for Qcow2Chain {
    fn name(&self) -> &'static str {
        "qcow2-chain"
    }

    fn title(&self) -> &'static str {
        "qcow2, 10 snapshots ²"
    }

    fn how(&self) -> Result<String> {
        Ok(format!("as above, {CHAIN} overlays, {BETWEEN} blocks written between two of them"))
    }

    fn set_up(&mut self) -> Result<()> {
        create(&self.layer(0), self.ground.bytes)?;
        let server = qemu_nbd(&self.layer(0), "qcow2", &self.ground.at("chain.sock"))?;
        fill(&served(&server), self.ground.bytes)?;
        drop(server);
        let some = Job { pattern: Pattern::RandomWrite, block: 4096, depth: 8, flush: false, rate: None };
        for number in 1..CHAIN {
            overlay(&self.layer(number - 1), &self.layer(number))?;
            let server = qemu_nbd(&self.layer(number), "qcow2", &self.ground.at("chain.sock"))?;
            let bytes = self.ground.bytes;
            fio::run(&served(&server), some, bytes, End::Requests(BETWEEN), u64::from(number))?;
        }
        Ok(())
    }

    fn prepare(&mut self, image: Image) -> Result<Option<Prepared>> {
        match image {
            Image::Filled | Image::AfterSnapshot => {
                let path = self.layer(CHAIN);
                overlay(&self.layer(CHAIN - 1), &path)?;
                let server = qemu_nbd(&path, "qcow2", &self.ground.at("chain.sock"))?;
                Ok(Some(Prepared::brief(server, vec![Scrap(path)])))
            }
            Image::Empty | Image::AfterMany | Image::AfterManyAndOne => Ok(None),
        }
    }
}
