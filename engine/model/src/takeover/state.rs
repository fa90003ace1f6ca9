//! What is on the device, on its way, and in the memory of each epoch's owner.

use super::{BLOCKS, EPOCHS, JOURNAL};
use crate::device::Block;

/// Epochs count from 1; 0 is what was there before.
pub(super) type Epoch = u8;
/// Number of a data block; or `OTHER`.
pub(super) type Address = u8;

/// Content that belongs to another volume.
pub(super) const OTHER: u8 = 255;

/// Content of a data block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Data {
    /// Who wrote it.
    pub epoch: Epoch,
    /// Which of the client's writes, or `OTHER`.
    pub version: u8,
}

/// Content of a root slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Slot {
    /// Who wrote it.
    pub epoch: Epoch,
    /// Of the checkpoint; 0: not a root slot.
    pub number: u8,
    /// Where the volume's block is.
    pub block: Address,
    /// Journal records before this one are in the mapping.
    pub from: u8,
    /// The link to the block is read-only: the next write goes elsewhere.
    pub shared: bool,
    /// The epoch ended in order.
    pub released: bool,
}

impl Slot {
    /// Whether it verifies as a root slot.
    pub fn valid(self) -> bool {
        self.number > 0
    }
}

/// Content of a journal block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Record {
    /// Who wrote it.
    pub epoch: Epoch,
    /// Where the volume's block is from now on; `OTHER`: not a journal block.
    pub block: Address,
}

/// How far an owner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Does not exist yet.
    None,
    /// The registry names the grant.
    Granted,
    /// Found this slot.
    Read(Slot),
    /// Its first slot is on its way.
    Adopts,
    /// Its second slot is on its way.
    AdoptsAgain,
    /// Does I/O.
    Open,
    /// Says *released* in one slot.
    Releases,
    /// Says *released* in the other slot.
    ReleasesAgain,
    /// Ended in order.
    Released,
}

/// A client's write that the owner waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pending {
    /// Where.
    pub block: Address,
    /// Which.
    pub version: u8,
    /// Not mapped before.
    pub fresh: bool,
}

/// A group on its way to the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Commit {
    /// What its record says.
    pub block: Address,
    /// The newest version that the flush covers.
    pub covers: u8,
}

/// One epoch's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reign {
    /// How far it is.
    pub phase: Phase,
    /// Its process runs.
    pub alive: bool,
    /// The device refuses what it submits.
    pub fenced: bool,
    /// It is proved that nothing of it lands any more.
    pub quiet: bool,
    /// Which grant; restarts keep it.
    pub grant: u8,
    /// Which pair of root slots.
    pub pair: u8,
    /// It may take inherited blocks as its own.
    pub clean: bool,
    /// Where the volume's block is.
    pub block: Address,
    /// May be written in place.
    pub writable: bool,
    /// The mapping is not in a durable record or slot.
    pub dirty: bool,
    /// The newest write that was acknowledged.
    pub acknowledged: u8,
    /// At most one write: its block is locked.
    pub pending: Option<Pending>,
    /// At most one.
    pub commit: Option<Commit>,
    /// A checkpoint is on its way.
    pub checkpoint: bool,
    /// Journal records that are durable.
    pub records: u8,
    /// Of the last checkpoint.
    pub number: u8,
    /// Journal records that the last checkpoint, and the one before, have no need of.
    pub trimmed: [u8; 2],
    /// Blocks, a bit each, to which a write ended nobody knows how.
    pub unknown: u8,
}

impl Reign {
    pub(super) const NONE: Self = Self {
        phase: Phase::None,
        alive: false,
        fenced: false,
        quiet: false,
        grant: 0,
        pair: 0,
        clean: false,
        block: 0,
        writable: false,
        dirty: false,
        acknowledged: 0,
        pending: None,
        commit: None,
        checkpoint: false,
        records: 0,
        number: 0,
        trimmed: [0; 2],
        unknown: 0,
    };

    /// May submit.
    pub fn acts(&self) -> bool {
        self.alive && !self.fenced
    }
}

/// A snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Snapshot {
    /// Which block it holds.
    pub block: Address,
    /// What it was.
    pub content: Data,
    /// It was promised not to change.
    pub stable: bool,
}

/// What came up in this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Saw {
    /// A late write landed on an inherited block.
    pub inherited_ghost: bool,
    /// An epoch began clean.
    pub clean_in_place: bool,
    /// The last epoch flushed.
    pub last_flush: bool,
    /// A block of an epoch before was reused.
    pub reused: bool,
}

/// The promise that a step broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broken {
    /// Promise 1, data.
    OverNewerData,
    /// Promise 1, metadata.
    OverNewerMetadata,
    /// Nothing to open.
    DoesNotOpen,
}

impl Broken {
    pub(super) fn promise(self) -> &'static str {
        match self {
            Self::OverNewerData => "promise 1: a stale write landed on a block that a newer epoch wrote",
            Self::OverNewerMetadata => "promise 1: a stale write landed on metadata of a newer epoch",
            Self::DoesNotOpen => "the volume does not open: no root slot is left",
        }
    }
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// Data blocks; 0 is mapped at the start.
    pub data: [Block<Data>; BLOCKS],
    /// The next that was never used.
    pub fresh: u8,
    /// Pairs of root slots, by the epoch that used them first.
    pub pairs: [[Block<Slot>; 2]; EPOCHS],
    /// Journals, by epoch.
    pub journals: [[Block<Record>; JOURNAL]; EPOCHS],
    /// Owners, by epoch less one.
    pub reigns: [Reign; EPOCHS],
    /// Epochs that were granted.
    pub epochs: u8,
    /// The registry: grant before the latest, while it counts.
    pub previous: Option<u8>,
    /// At most one.
    pub snapshot: Option<Snapshot>,
    /// The newest write that an acknowledged flush covers.
    pub flushed: u8,
    /// Spent of the budget: writes, timeouts, checkpoints, snapshots, reuses, cuts, damages.
    pub spent: [u8; 7],
    /// Sights.
    pub saw: Saw,
    /// What went wrong.
    pub broken: Option<Broken>,
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// A volume that host 0 has open, in epoch 1, flushed.
    pub fn new() -> Self {
        let mut pairs = [[Block::new(Slot::default()); 2]; EPOCHS];
        for number in [1, 2] {
            pairs[0][usize::from(number) % 2] = Block::new(Slot { epoch: 1, number, ..Slot::default() });
        }
        let mut reigns = [Reign::NONE; EPOCHS];
        reigns[0] =
            Reign { phase: Phase::Open, alive: true, clean: true, writable: true, number: 2, ..Reign::NONE };
        Self {
            data: [Block::new(Data::default()); BLOCKS],
            fresh: 1,
            pairs,
            journals: [[Block::new(Record::default()); JOURNAL]; EPOCHS],
            reigns,
            epochs: 1,
            previous: None,
            snapshot: None,
            flushed: 0,
            spent: [0; 7],
            saw: Saw::default(),
            broken: None,
        }
    }

    /// The owner of `epoch`.
    pub(super) fn reign(&mut self, epoch: Epoch) -> &mut Reign {
        &mut self.reigns[usize::from(epoch) - 1]
    }

    /// The epoch that was granted last.
    pub(super) fn latest(&self) -> &Reign {
        &self.reigns[usize::from(self.epochs) - 1]
    }

    /// It is known that nothing of `epoch` lands any more.
    pub(super) fn quiet(&mut self, epoch: Epoch) {
        self.data.iter_mut().for_each(|block| block.forget_ghosts(|data| data.epoch == epoch));
        self.pairs.iter_mut().flatten().for_each(|block| block.forget_ghosts(|slot| slot.epoch == epoch));
        self.journals
            .iter_mut()
            .flatten()
            .for_each(|block| block.forget_ghosts(|record| record.epoch == epoch));
        self.reign(epoch).quiet = true;
    }

    /// The process of `epoch` is gone, its writes are ghosts.
    pub(super) fn dies(&mut self, epoch: Epoch) {
        let of = |writer: Epoch| writer == epoch;
        self.data.iter_mut().filter(|b| b.flight.is_some_and(|d| of(d.epoch))).for_each(Block::abandon);
        self.pairs
            .iter_mut()
            .flatten()
            .filter(|b| b.flight.is_some_and(|s| of(s.epoch)))
            .for_each(Block::abandon);
        self.journals
            .iter_mut()
            .flatten()
            .filter(|b| b.flight.is_some_and(|r| of(r.epoch)))
            .for_each(Block::abandon);
        let reign = self.reign(epoch);
        reign.alive = false;
        reign.pending = None;
        reign.commit = None;
        reign.checkpoint = false;
        // It was in memory, or at best in a record that a snapshot's promise waits for.
        self.snapshot = None;
    }

    /// The newest valid root slot of a grant.
    pub(super) fn newest(&self, grant: u8) -> Option<Slot> {
        let of_grant = |slot: &Slot| slot.valid() && self.reigns[usize::from(slot.epoch) - 1].grant == grant;
        self.pairs
            .iter()
            .flatten()
            .map(|block| block.landed)
            .filter(of_grant)
            .max_by_key(|slot| (slot.epoch, slot.number))
    }

    /// What a reader finds, against what was promised.
    pub(super) fn contradiction(&self) -> Option<&'static str> {
        if let Some(snapshot) = self.snapshot
            && snapshot.stable
            && self.data[usize::from(snapshot.block)].landed != snapshot.content
        {
            return Some("a snapshot that was called stable has changed");
        }
        let reign = self.latest();
        if !matches!(reign.phase, Phase::Open) || !reign.alive {
            return None;
        }
        let found = self.data[usize::from(reign.block)].landed;
        if found.version == OTHER {
            return Some("promise 3: the volume reads a block that another volume uses");
        }
        (found.version < self.flushed)
            .then_some("promise 2: a flush was acknowledged and its write is not there")
    }
}
