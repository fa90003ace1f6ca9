//! Steps in words.

use super::state::{NONE, Slot, State};
use std::fmt;

/// Indices of [`State::spent`].
pub(super) const WRITES: usize = 0;
pub(super) const DISCARDS: usize = 1;
pub(super) const SNAPSHOTS: usize = 2;
pub(super) const DELETES: usize = 3;
pub(super) const CLONES: usize = 4;
pub(super) const MOVES: usize = 5;
pub(super) const CRASHES: usize = 6;
pub(super) const JOINS: usize = 7;
pub(super) const SILENCES: usize = 8;
pub(super) const ABORTS: usize = 9;
pub(super) const CYCLES: usize = 10;

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    who: Who,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum Who {
    Manager,
    Host(usize),
    Volume(usize),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    Writes { block: u8 },
    Publishes { block: u8 },
    Discards,
    Commits,
    Checkpoints { slot: Slot },
    Checkpointed { slot: Slot },
    Snapshots,
    DeletesSnapshot,
    Closes,
    Opens,
    OpensOn { host: usize },
    DeletesVolume,
    BeginsToClone { node: u8 },
    IsCloned,
    Reserves { block: u8 },
    Releases { block: u8 },
    Crashes,
    Restarts,
    Joins,
    JoinsAgain,
    OpensWithout { host: usize },
    Starts,
    ReadsRoots { volume: usize },
    ReadsNode { node: u8 },
    HasMarked,
    Sweeps,
    SweepsLate,
    GivesUp,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.snapshot {
            NONE => write!(f, "node {}", self.node),
            snapshot => write!(f, "node {}, and of the snapshot node {snapshot}", self.node),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.who {
            Who::Manager => write!(f, "manager: ")?,
            Who::Host(host) => write!(f, "host {host}: ")?,
            Who::Volume(volume) => write!(f, "volume {volume}: ")?,
        }
        match self.what {
            What::Writes { block } => write!(f, "a write to new block {block} begins"),
            What::Publishes { block } => {
                write!(f, "it has landed; the volume's data is in block {block} now")
            }
            What::Discards => write!(f, "its block is discarded"),
            What::Commits => write!(f, "the mapping is in a durable record"),
            What::Checkpoints { slot } => write!(f, "a checkpoint begins: {slot}"),
            What::Checkpointed { slot } => write!(f, "the checkpoint's root slot is durable: {slot}"),
            What::Snapshots => write!(f, "a snapshot is cut"),
            What::DeletesSnapshot => write!(f, "its snapshot is deleted"),
            What::Closes => write!(f, "is closed in order"),
            What::OpensOn { host } => write!(f, "is opened on host {host}"),
            What::DeletesVolume => write!(f, "is deleted"),
            What::BeginsToClone { node } => write!(f, "is to be a clone: the snapshot's root is node {node}"),
            What::IsCloned => write!(f, "the registry names it"),
            What::Reserves { block } => write!(f, "reserves block {block}"),
            What::Releases { block } => {
                write!(f, "I/O that began before has finished; block {block} is let go")
            }
            What::Crashes => write!(f, "crashes"),
            What::Restarts => write!(f, "restarts"),
            What::Joins => write!(f, "joins the pool"),
            What::JoinsAgain => write!(f, "finds that it was passed over, and joins again"),
            What::Opens => write!(f, "opens a cycle"),
            What::OpensWithout { host } => {
                write!(f, "opens a cycle, passing over host {host}, which is silent")
            }
            What::Starts => write!(f, "starts: all its blocks are candidates, but for those in flight"),
            What::ReadsRoots { volume } => write!(f, "reads the roots of volume {volume}"),
            What::ReadsNode { node } => write!(f, "reads node {node}"),
            What::HasMarked => write!(f, "has marked everything"),
            What::Sweeps => write!(f, "sweeps: frees the candidates that were not marked"),
            What::SweepsLate => write!(f, "sweeps with marks of the cycle before"),
            What::GivesUp => write!(f, "gives the cycle up"),
        }
    }
}

pub(super) type Next = Vec<(Step, State)>;

impl Step {
    pub(super) fn of_manager(what: What, after: State) -> (Self, State) {
        (Self { who: Who::Manager, what }, after)
    }

    pub(super) fn of_host(host: usize, what: What, after: State) -> (Self, State) {
        (Self { who: Who::Host(host), what }, after)
    }

    pub(super) fn of_volume(volume: usize, what: What, after: State) -> (Self, State) {
        (Self { who: Who::Volume(volume), what }, after)
    }
}
