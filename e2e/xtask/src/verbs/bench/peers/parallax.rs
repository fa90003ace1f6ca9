//! Parallax: one daemon over a pool in a plain file, its volumes served by `parallax serve`.
//!
//! The pool's file is written with zeroes first: as on a device, nothing below the pool has to be allocated while
//! something is measured. Garbage is collected between rows, never during one.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::super::fio::{self, End, Job, Pattern, Target};
use super::super::rows::Image;
use super::{Ground, Prepared, Server, Subject, fill, served, solid};
use crate::build::ProjectBinaries;
use crate::node::Node;
use parallax_e2e::{process, wait};

/// The pool holds this many images: what snapshots keep is not small.
const POOL_IMAGES: u64 = 6;
/// Name of the filled volume.
const FILLED: &str = "filled";
/// Writes a second while many snapshots are taken.
const WRITES: u32 = 2000;
/// Longest time for taking many snapshots.
const MANY: Duration = Duration::from_secs(300);

/// What taking many snapshots through the daemon gave.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Taken {
    pub(crate) count: u64,
    pub(crate) seconds: f64,
    pub(crate) median_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
}

pub(crate) struct Parallax {
    ground: Ground,
    /// Snapshots for the rows that have many.
    snapshots: u32,
    /// Before the daemon: they end first.
    served: Vec<Server>,
    node: Node,
    empty: Option<String>,
    emptied: u32,
    taken: Option<Taken>,
}

impl Parallax {
    pub(crate) fn new(ground: Ground, binaries: &ProjectBinaries, snapshots: u32) -> Self {
        let node = Node::new(&ground.folder, binaries);
        Self { ground, snapshots, served: Vec::new(), node, empty: None, emptied: 0, taken: None }
    }

    /// Snapshots that were taken under load for the rows that have many.
    pub(crate) fn taken(&self) -> Option<&Taken> {
        self.taken.as_ref()
    }

    /// Process of the daemon.
    pub(crate) fn pid(&self) -> Result<u32> {
        self.node.pid()
    }

    fn filled(&self) -> Result<Target> {
        Ok(served(self.served.first().context("the filled volume is not served")?))
    }

    fn snapshot(&self) -> Result<()> {
        self.node.cli(&["snapshot", FILLED]).map(drop)
    }

    /// A new volume, served. The one before is deleted.
    fn empty_one(&mut self) -> Result<Prepared> {
        self.drop_empty()?;
        self.emptied += 1;
        let name = format!("empty-{}", self.emptied);
        self.node.cli(&["create", &name, "--size", &self.ground.bytes.to_string()])?;
        self.empty = Some(name.clone());
        Ok(Prepared::brief(self.node.serve(&name)?, Vec::new()))
    }

    fn drop_empty(&mut self) -> Result<()> {
        let Some(name) = self.empty.take() else { return Ok(()) };
        // Its server has ended; the daemon closes it a moment later.
        wait::until(&format!("{name} to be closed"), Duration::from_secs(10), || {
            self.node.cli(&["delete", &name]).map(Some)
        })
        .map(drop)
    }

    /// Deletes the filled volume's snapshots and collects what they kept.
    fn forget_snapshots(&self) -> Result<()> {
        let list = self.node.cli(&["--json", "snap-list", FILLED])?;
        let list: serde_json::Value = serde_json::from_str(&list).context("reading the list of snapshots")?;
        let all = list.get("snapshots").and_then(|all| all.as_array()).context("no list of snapshots")?;
        for snapshot in all {
            let id = snapshot.get("id").and_then(|id| id.as_str()).context("a snapshot without id")?;
            self.node.cli(&["snap-delete", id])?;
        }
        self.node.cli(&["gc"]).map(drop)
    }

    /// Takes thousands of snapshots while something writes, then writes every block once.
    fn many(&mut self) -> Result<()> {
        self.forget_snapshots()?;
        let target = self.filled()?;
        let job =
            Job { pattern: Pattern::RandomWrite, block: 4096, depth: 4, flush: false, rate: Some(WRITES) };
        let mut load = fio::command(&target, job, self.ground.bytes, End::Time(MANY), 99);
        let load = Server::aside(&mut load, &self.ground.at("many.log"))?;
        let mut command = self.node.command();
        command.args(["--json", "bench", "snapshots", FILLED, "--count", &self.snapshots.to_string()]);
        let taken = process::output(&mut command, MANY)?;
        drop(load);
        self.taken = Some(serde_json::from_str(&taken).context("reading what taking snapshots gave")?);
        fill(&target, self.ground.bytes)
    }

    /// Ends the daemon and starts it again, with the filled volume served.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.served.clear();
        self.node.stop();
        self.node.start(None)?;
        let server = self.node.serve(FILLED)?;
        self.served.push(server);
        Ok(())
    }

    /// Verifies the whole pool after the daemon has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.served.clear();
        self.node.check()
    }

    /// Serves `count` further volumes, empty ones.
    pub(crate) fn serve_more(&mut self, count: u32) -> Result<()> {
        let mut begun = Vec::new();
        for number in 0..count {
            let name = format!("idle-{number}");
            self.node.cli(&["create", &name, "--size", "64M"])?;
            begun.push(self.node.begin_serving(&name)?);
        }
        for server in begun {
            server.accepts()?;
            self.served.push(server);
        }
        Ok(())
    }
}

impl Subject for Parallax {
    fn name(&self) -> &'static str {
        "parallax"
    }

    fn title(&self) -> &'static str {
        "**Parallax**"
    }

    fn how(&self) -> Result<String> {
        Ok(format!("{}, pool in a file, io_uring, direct", self.node.version()?))
    }

    fn set_up(&mut self) -> Result<()> {
        solid(&self.node.pool(), self.ground.bytes * POOL_IMAGES)?;
        self.node.start(None)?;
        self.node.cli(&["create", FILLED, "--size", &self.ground.bytes.to_string()])?;
        let server = self.node.serve(FILLED)?;
        fill(&served(&server), self.ground.bytes)?;
        self.served.push(server);
        Ok(())
    }

    fn prepare(&mut self, image: Image) -> Result<Option<Prepared>> {
        match image {
            Image::Filled => {}
            Image::Empty => return self.empty_one().map(Some),
            Image::AfterSnapshot => self.snapshot()?,
            Image::AfterMany if self.taken.is_none() => self.many()?,
            Image::AfterMany => {}
            Image::AfterManyAndOne => {
                if self.taken.is_none() {
                    self.many()?;
                }
                self.snapshot()?;
            }
        }
        Ok(Some(Prepared::lasting(self.filled()?)))
    }
}
