//! Nodes: every tree of every VDI, read from the device and compared with the check in the link to it.

use super::{Scrub, ScrubProgress, go_on};
use crate::{
    Severity, VdiId,
    space::BlockSet,
    walk::{Place, Roots, Through, Visit, walk},
};
use parallax_block::{BLOCK_SIZE, Error, ErrorKind, Result};
use parallax_format::{BlockAddress, Entry, Node};
use std::ops::ControlFlow;

/// How often a VDI is walked again because the pool needed the space that was held for the walk.
const TRIES: u32 = 8;

impl Scrub<'_> {
    pub(super) async fn trees(&mut self) -> Result<()> {
        let volumes = self.volumes();
        let (mut done, mut again) = (0, 0);
        // As long as the same hold stands, what several volumes share is read once.
        let mut hold = self.core.space.hold_nodes();
        let mut visited = self.block_set();
        while let Some(id) = volumes.get(done) {
            self.step("trees", done as u64, volumes.len() as u64)?;
            let found = self.tree(*id, &mut visited).await?;
            let stands = hold.stands();
            if stands || found.is_empty() {
                (done, again) = (done + 1, 0);
                for (address, error) in found {
                    self.note(address, "node", error);
                }
            }
            if !stands {
                again += 1;
                if again > TRIES {
                    let text =
                        "the pool is too full to be scrubbed while it is written; free some space first";
                    return Err(Error::new(ErrorKind::Busy, text));
                }
                hold = self.core.space.hold_nodes();
                visited = self.block_set();
            }
        }
        Ok(())
    }

    /// Nodes of a VDI that do not verify, unless they were met before.
    async fn tree(&mut self, id: VdiId, visited: &mut BlockSet) -> Result<Vec<(BlockAddress, Error)>> {
        let Some((name, roots)) = self.roots(id).await else { return Ok(Vec::new()) };
        let roots = match roots {
            Ok(roots) => roots,
            Err(error) => {
                let detail = format!("the state of volume '{name}' cannot be found: {error}");
                self.find(Severity::Damage, "root-slot", detail, &[&name]);
                return Ok(Vec::new());
            }
        };
        let mut verify = Verify { visited, now: self.now, progress: self.progress, bad: Vec::new() };
        walk(&self.core.disk, roots, Through::Device(&mut self.pace), &mut verify).await?;
        let Verify { now, bad, .. } = verify;
        self.now.nodes = now.nodes;
        Ok(bad)
    }

    /// Name and roots of a VDI; `None` if it has been deleted.
    pub(super) async fn roots(&self, id: VdiId) -> Option<(String, Result<Roots>)> {
        let name = self.core.record(id).ok()?.name;
        match self.core.durable_roots(id).await {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            roots => Some((name, roots)),
        }
    }
}

struct Verify<'a> {
    visited: &'a mut BlockSet,
    now: ScrubProgress,
    progress: &'a (dyn Fn(ScrubProgress) -> ControlFlow<()> + Send + Sync),
    bad: Vec<(BlockAddress, Error)>,
}

impl Visit for Verify<'_> {
    fn enter(&mut self, address: BlockAddress, _place: Place) -> bool {
        let first = self.visited.insert(address);
        if first {
            self.now.nodes += 1;
            self.now.bytes += BLOCK_SIZE as u64;
        }
        first
    }

    fn leaf(&mut self, _node: &Node, _place: Place) -> Result<()> {
        Ok(())
    }

    fn damaged(&mut self, link: Entry, error: Error) -> Result<()> {
        if let Some(address) = link.address()
            && self.bad.len() < super::BAD_MAX
        {
            self.bad.push((address, error));
        }
        Ok(())
    }

    fn go_on(&mut self) -> Result<()> {
        go_on((self.progress)(self.now))
    }
}
