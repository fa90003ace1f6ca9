//! Blocks, volumes, hosts and the cycle.

use super::{EXTENTS, HOSTS, VOLUMES};

/// No block; in a mapping, a hole.
pub(super) const NONE: u8 = 255;

/// Blocks, a bit each.
pub(super) type Blocks = u16;

/// The set of one block; of none for [`NONE`].
pub(super) fn one(block: u8) -> Blocks {
    if block == NONE { 0 } else { 1 << block }
}

/// The blocks of a host's extents.
pub(super) fn extents(host: usize) -> Blocks {
    (one(EXTENTS[host + 1]) - 1) & !(one(EXTENTS[host]) - 1)
}

/// A root slot: names two trees of one node each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The map's node.
    pub node: u8,
    /// The snapshot's node, or none.
    pub snapshot: u8,
}

impl Slot {
    pub(super) const EMPTY: Self = Self { node: NONE, snapshot: NONE };
}

/// Something cut loose that will be freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Loose {
    /// Which block.
    pub block: u8,
    /// It is a node, that a collection may be about to read.
    pub node: bool,
    /// A collection has started or swept since.
    pub stale: bool,
}

impl Loose {
    pub(super) const NOTHING: Self = Self { block: NONE, node: false, stale: false };
}

/// An open volume, in the memory of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Memory {
    /// Its data block.
    pub map: u8,
    /// No snapshot and no other volume shares it.
    pub writable: bool,
    /// The mapping is in no durable record or slot.
    pub dirty: bool,
    /// A new block that is being written.
    pub flight: u8,
    /// Unmapped; freed when that is durable.
    pub freed: Loose,
    /// Data block of a snapshot that was cut and is in no slot yet.
    pub pending: u8,
    /// The snapshot's node.
    pub snapshot: u8,
    /// A checkpoint on its way.
    pub checkpoint: Option<Slot>,
    /// It began after its host had started in this cycle.
    pub checkpoint_in_cycle: bool,
    /// Superseded by the last checkpoint.
    pub waiting: Loose,
}

impl Memory {
    pub(super) const NOTHING: Self = Self {
        map: NONE,
        writable: false,
        dirty: false,
        flight: NONE,
        freed: Loose::NOTHING,
        pending: NONE,
        snapshot: NONE,
        checkpoint: None,
        checkpoint_in_cycle: false,
        waiting: Loose::NOTHING,
    };
}

/// A volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Volume {
    /// In the registry.
    pub registered: bool,
    /// Which node it was cloned from.
    pub initial: u8,
    /// Who has it open.
    pub owner: Option<u8>,
    /// Who had it open last.
    pub last: u8,
    /// The newer slot, then the older.
    pub slots: [Slot; 2],
    /// Journal behind the newer slot: the last durable mapping.
    pub record: Option<u8>,
    /// Checkpointed since its host started in this cycle.
    pub done: bool,
    /// While it is open.
    pub memory: Memory,
}

/// A host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Host {
    /// Runs.
    pub alive: bool,
    /// Takes part in the cycle, from its start to its sweep.
    pub started: bool,
    /// Has swept in this cycle.
    pub swept: bool,
    /// Reserved and not used.
    pub run: u8,
    /// The run was reserved in a cycle, before the roots were read.
    pub run_early: bool,
    /// Not needed any more, once I/O that began before has finished.
    pub releasing: Loose,
    /// The manager opened the cycle without it.
    pub skipped: bool,
}

/// How far the manager is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No cycle.
    Idle,
    /// Hosts start and checkpoint; where a rule was dropped, roots are read already.
    Opened,
    /// Marks are complete.
    Sweep,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// In the memory of their hosts.
    pub allocated: Blocks,
    /// In the bitmaps on the device.
    pub marked_durable: Blocks,
    /// Which data block a node names.
    pub content: [u8; EXTENTS[HOSTS] as usize],
    /// Volumes.
    pub volumes: [Volume; VOLUMES],
    /// Hosts.
    pub hosts: [Host; HOSTS],
    /// A snapshot's node that a clone is being made of.
    pub cloning: u8,
    /// Of the cycle.
    pub phase: Phase,
    /// What may be freed.
    pub candidates: Blocks,
    /// Superseded nodes that are kept until the cycle ends.
    pub kept: Blocks,
    /// Volumes whose roots were read, a bit each.
    pub roots: u8,
    /// Nodes that the manager has yet to read.
    pub to_read: Blocks,
    /// Of those, reused since.
    pub reused: Blocks,
    /// Reached.
    pub marks: Blocks,
    /// Marks of a cycle that was given up, in a message on its way.
    pub old_marks: Option<Blocks>,
    /// One of the nodes that the manager read had been reused.
    pub reused_unread: bool,
    /// Freed in this cycle: for the sights.
    pub freed_in_cycle: Blocks,
    /// Cloned in this cycle: for the sights.
    pub cloned_in_cycle: bool,
    /// Spent of the budget, in its order.
    pub spent: [u8; 11],
    /// Sights.
    pub saw: u8,
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// Host 0 has volume 0 open: block 0, named by node 1.
    pub fn new() -> Self {
        let volume = Volume {
            registered: false,
            initial: NONE,
            owner: None,
            last: 0,
            slots: [Slot::EMPTY; 2],
            record: None,
            done: false,
            memory: Memory::NOTHING,
        };
        let host = Host {
            alive: true,
            started: false,
            swept: false,
            run: NONE,
            run_early: false,
            releasing: Loose::NOTHING,
            skipped: false,
        };
        let mut content = [NONE; EXTENTS[HOSTS] as usize];
        content[1] = 0;
        let root = Slot { node: 1, snapshot: NONE };
        let first = Volume {
            registered: true,
            owner: Some(0),
            slots: [root; 2],
            memory: Memory { map: 0, writable: true, ..Memory::NOTHING },
            ..volume
        };
        Self {
            allocated: 0b11,
            marked_durable: 0b11,
            content,
            volumes: [first, volume],
            hosts: [host, host, Host { alive: false, ..host }],
            cloning: NONE,
            phase: Phase::Idle,
            candidates: 0,
            kept: 0,
            roots: 0,
            to_read: 0,
            reused: 0,
            marks: 0,
            old_marks: None,
            reused_unread: false,
            freed_in_cycle: 0,
            cloned_in_cycle: false,
            spent: [0; 11],
            saw: 0,
        }
    }

    /// A node with the block that it names.
    pub(super) fn tree(&self, node: u8) -> Blocks {
        if node == NONE { 0 } else { one(node) | one(self.content[usize::from(node)]) }
    }

    /// Where an opener finds the volume's block: the journal, else the newer slot, else what it was cloned from.
    pub(super) fn recovered(&self, volume: &Volume) -> u8 {
        let node = if volume.slots[0].node == NONE { volume.initial } else { volume.slots[0].node };
        volume.record.unwrap_or(if node == NONE { NONE } else { self.content[usize::from(node)] })
    }

    /// Blocks that somebody will read or write.
    pub(super) fn needed(&self) -> Blocks {
        let mut needed = self.tree(self.cloning);
        for host in &self.hosts {
            needed |= one(host.run);
        }
        for volume in self.volumes.iter().filter(|volume| volume.registered) {
            needed |= one(self.recovered(volume));
            if volume.slots[0].node == NONE {
                needed |= self.tree(volume.initial);
            }
            for slot in volume.slots {
                // Of the older slot's map only the node: its journal leads to the same block.
                needed |= one(slot.node);
            }
            // A snapshot counts until its deletion is in the newer slot.
            needed |= self.tree(volume.slots[0].snapshot);
            if volume.owner.is_some() {
                let memory = &volume.memory;
                needed |=
                    one(memory.map) | one(memory.flight) | one(memory.freed.block) | one(memory.pending);
                needed |= self.tree(memory.snapshot);
                if let Some(slot) = memory.checkpoint {
                    needed |= self.tree(slot.node) | self.tree(slot.snapshot);
                }
            }
        }
        needed
    }
}
