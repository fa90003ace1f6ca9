//! Where blocks of a VDI are: from memory, reading missing nodes as needed.

use super::{Mapping, VdiCore};
use crate::{
    disk::Disk,
    generation::Ticket,
    tree::{Leaf, Missing, Tree, locate},
};
use parallax_block::{Error, ErrorKind, Result, ResultExt};
use parallax_format::{BlockAddress, Entry, EntryKind, Node, node::FANOUT};
use std::{cell::RefCell, ops::Range, sync::Arc};

/// What is behind some neighbouring blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Hole,
    /// Neighbouring blocks on disk; `writable` if they are this VDI's alone.
    Blocks {
        start: BlockAddress,
        writable: bool,
    },
}

impl Target {
    pub(crate) fn is_writable(self) -> bool {
        matches!(self, Self::Blocks { writable: true, .. })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) lba: u64,
    pub(crate) count: u64,
    pub(crate) target: Target,
}

/// Finds nodes in memory, and holds on to those it was given, so that a small cache cannot make a look-up run
/// in circles.
pub(crate) struct Finder<'a> {
    disk: &'a Disk,
    held: RefCell<Vec<(Entry, Arc<Node>)>>,
    /// Hold on to every node that was found, not only to those that were read.
    hold_all: bool,
}

impl<'a> Finder<'a> {
    pub(crate) fn new(disk: &'a Disk, held: Vec<(Entry, Arc<Node>)>, hold_all: bool) -> Self {
        Self { disk, held: RefCell::new(held), hold_all }
    }

    pub(crate) fn find(&self, link: Entry) -> Option<Arc<Node>> {
        let node = locate(self.disk, &self.held.borrow(), link)?;
        if self.hold_all {
            let mut held = self.held.borrow_mut();
            if !held.iter().any(|(held, _)| held.same_target(link)) {
                held.push((link, node.clone()));
            }
        }
        Some(node)
    }

    pub(crate) fn into_held(self) -> Vec<(Entry, Arc<Node>)> {
        self.held.into_inner()
    }
}

/// The block that a data entry names; refuses kinds that this version does not know.
pub(crate) fn data_block(entry: Entry, lba: u64) -> Result<BlockAddress> {
    match (entry.kind(), entry.address()) {
        (EntryKind::Plain, Some(address)) => Ok(address),
        (EntryKind::Poison, _) => {
            Err(Error::corrupt(format!("block {lba} was lost earlier and is marked so")))
        }
        (EntryKind::Plain, None) => Err(Error::corrupt(format!("block {lba} is mapped into extent 0"))),
        (kind, _) => Err(Error::new(
            ErrorKind::Incompatible,
            format!("block {lba} is mapped by a {kind:?} entry, which this version does not know"),
        )),
    }
}

/// Why a look-up stopped.
pub(crate) enum Stop {
    Missing(Missing),
    Error(Error),
}

/// Pieces of `blocks` in order, merged where they are neighbours; at most `pieces_max`.
pub(crate) fn pieces(
    tree: &Tree,
    blocks: Range<u64>,
    pieces_max: usize,
    find: &dyn Fn(Entry) -> Option<Arc<Node>>,
) -> std::result::Result<Vec<Piece>, Stop> {
    let mut out: Vec<Piece> = Vec::with_capacity(1);
    let mut lba = blocks.start;
    while lba < blocks.end {
        match tree.leaf(lba, find).map_err(Stop::Missing)? {
            Leaf::Hole { end } => {
                let end = end.min(blocks.end);
                push(&mut out, Piece { lba, count: end - lba, target: Target::Hole });
                lba = end;
            }
            Leaf::Node { node, shared } => {
                let first = (lba % FANOUT as u64) as usize;
                let last = (first as u64 + (blocks.end - lba)).min(FANOUT as u64) as usize;
                for at in first..last {
                    let entry = node.entry(at);
                    let target = if entry.is_hole() {
                        Target::Hole
                    } else {
                        let start = data_block(entry, lba).map_err(Stop::Error)?;
                        Target::Blocks { start, writable: !shared && !entry.is_ro() }
                    };
                    push(&mut out, Piece { lba, count: 1, target });
                    lba += 1;
                    if out.len() > pieces_max {
                        out.pop();
                        return Ok(out);
                    }
                }
            }
        }
        if out.len() > pieces_max {
            out.pop();
            return Ok(out);
        }
    }
    Ok(out)
}

fn push(out: &mut Vec<Piece>, piece: Piece) {
    if let Some(last) = out.last_mut() {
        let joins = match (last.target, piece.target) {
            (Target::Hole, Target::Hole) => true,
            (Target::Blocks { start: a, writable: x }, Target::Blocks { start: b, writable: y }) => {
                x == y && u32::try_from(last.count).ok().and_then(|count| a.offset(count)) == Some(b)
            }
            _ => false,
        };
        if joins {
            last.count += piece.count;
            return;
        }
    }
    out.push(piece);
}

impl VdiCore {
    /// Looks blocks up and enters the current generation at the same instant.
    pub(crate) async fn look_up(
        &self,
        blocks: Range<u64>,
        pieces_max: usize,
    ) -> Result<(Vec<Piece>, Ticket)> {
        let disk = &*self.pool.disk;
        let place = || format!("volume {}, blocks {blocks:?}", self.id);
        let mut held = Vec::new();
        loop {
            // The ticket keeps the node from being used again while it is read.
            let (missing, _ticket) = {
                let finder = Finder::new(disk, std::mem::take(&mut held), false);
                let mapping = self.mapping.read();
                mapping.check()?;
                let found = pieces(&mapping.map, blocks.clone(), pieces_max, &|link| finder.find(link));
                match found {
                    Ok(pieces) => return Ok((pieces, mapping.generations.enter())),
                    Err(Stop::Error(error)) => return Err(error.context(place())),
                    Err(Stop::Missing(missing)) => {
                        held = finder.into_held();
                        (missing, mapping.generations.enter())
                    }
                }
            };
            let node = missing.load(disk).await.context(place)?;
            held.push((missing.link, node));
        }
    }

    /// Changes the mapping: `change` runs under the lock with everything it needs in memory, or not at all.
    ///
    /// `blocks` are those whose leaves it may touch.
    pub(crate) async fn change<T>(
        &self,
        blocks: Range<u64>,
        records: &[Vec<u8>],
        mut change: impl FnMut(
            &mut Mapping,
            &dyn Fn(Entry) -> Option<Arc<Node>>,
        ) -> std::result::Result<T, Missing>,
    ) -> Result<T> {
        let disk = &*self.pool.disk;
        let mut held: Vec<(Entry, Arc<Node>)> = Vec::new();
        loop {
            let missing = {
                // The finder must not live across an await: it is a cell.
                let finder = Finder::new(disk, std::mem::take(&mut held), true);
                let find = |link| finder.find(link);
                let mut mapping = self.mapping.write();
                mapping.check()?;
                if mapping.has_room(records) {
                    let ready = edges(&mapping.map, &blocks, &find);
                    match ready.and_then(|()| change(&mut mapping, &find)) {
                        Ok(value) => {
                            if let Err(error) = mapping.append(records.to_vec()) {
                                drop(mapping);
                                return Err(self.fail(&error.context("writing the tail")));
                            }
                            return Ok(value);
                        }
                        Err(missing) => {
                            // As in a look-up.
                            let ticket = mapping.generations.enter();
                            drop(mapping);
                            held = finder.into_held();
                            Some((missing, ticket))
                        }
                    }
                } else {
                    None
                }
            };
            match missing {
                Some((missing, _ticket)) => {
                    let node = missing
                        .load(disk)
                        .await
                        .map_err(|error| error.context(format!("volume {}", self.id)))?;
                    held.push((missing.link, node));
                }
                // The tail is full: a commit empties it.
                None => self.commit().await?,
            }
        }
    }
}

/// Whether every leaf that `blocks` touches is in memory. Large ranges look at their two ends only: those are
/// cleared, not set, and clearing reads no more.
fn edges(
    tree: &Tree,
    blocks: &Range<u64>,
    find: &dyn Fn(Entry) -> Option<Arc<Node>>,
) -> std::result::Result<(), Missing> {
    const LEAVES_MAX: u64 = 64;
    if blocks.is_empty() {
        return Ok(());
    }
    let leaves = blocks.start / FANOUT as u64..=(blocks.end - 1) / FANOUT as u64;
    if leaves.end() - leaves.start() > LEAVES_MAX {
        return Ok(());
    }
    for leaf in leaves {
        tree.leaf(leaf * FANOUT as u64, find)?;
    }
    Ok(())
}
