//! Whose bad blocks are: all trees once more, to name the volumes, snapshots and bytes behind them.

use super::{Bad, Scrub};
use crate::{
    Severity,
    space::BlockSet,
    walk::{Place, Roots, Through, Visit, walk},
};
use parallax_block::{BLOCK_SIZE, ByteRange, Error, Result};
use parallax_format::{BlockAddress, Entry, Node, node::FANOUT, record::ExtentKind};
use std::collections::{BTreeMap, BTreeSet};

/// Uses that are remembered, of all blocks.
const USES_MAX: usize = 65_536;

impl Scrub<'_> {
    pub(super) async fn users(&mut self) -> Result<()> {
        let volumes = self.volumes();
        let bad = std::mem::take(&mut self.bad);
        let mut known: BTreeSet<BlockAddress> = BTreeSet::new();
        for (done, id) in volumes.iter().enumerate() {
            self.step("users", done as u64, volumes.len() as u64)?;
            let _hold = self.core.space.hold_nodes();
            let Some((name, Ok(roots))) = self.roots(*id).await else { continue };
            let mut uses = Uses { bad: &bad, visited: self.block_set(), found: Vec::new() };
            // The volume's own map first: what it shares with its snapshots is the volume's.
            let Roots { maps, tables } = roots;
            for roots in [Roots { maps, tables: Vec::new() }, Roots { maps: Vec::new(), tables }] {
                walk(&self.core.disk, roots, Through::Device(&mut self.pace), &mut uses).await?;
            }
            known.extend(uses.found.iter().map(|found| found.address));
            for range in merge(uses.found) {
                let Some(Bad { kind, why }) = bad.get(&range.address) else { continue };
                let of = match range.place {
                    Whose::Table => format!("the snapshot table of volume '{name}'"),
                    Whose::Volume => format!("{} of volume '{name}'", range.bytes()),
                    Whose::Snapshot(number) => {
                        format!("{} of snapshot {number} of volume '{name}'", range.bytes())
                    }
                };
                let detail = format!("{of} cannot be read: block {}: {why}", range.address);
                self.find(Severity::Damage, kind, detail, &[&name]);
            }
        }
        for (address, Bad { kind, why }) in bad.iter().filter(|(address, _)| !known.contains(address)) {
            if !self.core.space.is_allocated(*address) {
                continue;
            }
            let what = match self.core.known().extents.get(&address.extent()).map(|extent| extent.kind) {
                Some(ExtentKind::Data) => "no volume uses it; `parallax gc` may bring it back",
                Some(ExtentKind::Metadata) => "it belongs to a journal, a root slot, or nothing",
                Some(ExtentKind::System) | None => "it belongs to the registry",
            };
            self.find(Severity::Damage, kind, format!("block {address}: {why}; {what}"), &[]);
        }
        self.now.bad = bad.len() as u64;
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    Volume,
    Snapshot(u64),
    Table,
}

/// A place of a VDI that a bad block stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    place: Whose,
    /// First block of the VDI.
    block: u64,
    blocks: u64,
    address: BlockAddress,
}

impl Use {
    fn bytes(&self) -> String {
        let size = BLOCK_SIZE as u64;
        // A node may stand for more than any VDI has.
        match ByteRange::new(self.block.saturating_mul(size), self.blocks.saturating_mul(size)) {
            Ok(range) => range.to_string(),
            Err(_) => format!("bytes from {} on", self.block.saturating_mul(size)),
        }
    }
}

/// Neighbours become one.
fn merge(mut uses: Vec<Use>) -> Vec<Use> {
    uses.sort_unstable();
    let mut merged: Vec<Use> = Vec::new();
    for found in uses {
        match merged.last_mut() {
            Some(last) if last.place == found.place && last.block + last.blocks >= found.block => {
                last.blocks = last.blocks.max(found.block + found.blocks - last.block);
            }
            _ => merged.push(found),
        }
    }
    merged
}

struct Uses<'a> {
    bad: &'a BTreeMap<BlockAddress, Bad>,
    /// Of this VDI: others use the same blocks on their own account.
    visited: BlockSet,
    found: Vec<Use>,
}

impl Uses<'_> {
    fn found(&mut self, address: BlockAddress, place: Place, block: u64, blocks: u64) {
        let whose = match place.snapshot {
            _ if place.is_table() => Whose::Table,
            Some(number) => Whose::Snapshot(number),
            None => Whose::Volume,
        };
        if self.found.len() < USES_MAX {
            self.found.push(Use { place: whose, block, blocks, address });
        }
    }
}

impl Visit for Uses<'_> {
    fn enter(&mut self, address: BlockAddress, place: Place) -> bool {
        if !self.visited.insert(address) {
            return false;
        }
        if self.bad.contains_key(&address) {
            let blocks = place.span().saturating_mul(FANOUT as u64);
            self.found(address, place, place.block, blocks);
            return false;
        }
        true
    }

    fn leaf(&mut self, node: &Node, place: Place) -> Result<()> {
        for (at, word) in node.words().iter().enumerate() {
            if let Some(address) = Entry::from_raw(*word).address()
                && self.bad.contains_key(&address)
            {
                self.found(address, place, place.block + at as u64, 1);
            }
        }
        Ok(())
    }

    fn damaged(&mut self, _link: Entry, _error: Error) -> Result<()> {
        // Found bad since, or used again: the next scrub tells.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parallax_format::ExtentId;

    fn use_of(place: Whose, block: u64, blocks: u64) -> Use {
        Use { place, block, blocks, address: BlockAddress::new(ExtentId::new(1).unwrap(), 100).unwrap() }
    }

    #[test]
    fn neighbours_are_one_range_and_owners_stay_apart() {
        let merged = merge(vec![
            use_of(Whose::Snapshot(2), 7, 1),
            use_of(Whose::Volume, 6, 1),
            use_of(Whose::Volume, 5, 1),
            use_of(Whose::Volume, 9, 1),
        ]);
        let told: Vec<(Whose, u64, u64)> = merged.iter().map(|u| (u.place, u.block, u.blocks)).collect();
        assert_eq!(told, [(Whose::Volume, 5, 2), (Whose::Volume, 9, 1), (Whose::Snapshot(2), 7, 1)]);
    }
}
