//! Garbage collection of a pool that several hosts use, while they go on using it.
//!
//! Three hosts with extents of their own; one volume, and a second one that may be cloned from its snapshot. Blocks
//! are reserved, written, unmapped and reused, checkpoints supersede nodes, volumes move between hosts and are
//! deleted, hosts crash, restart, join and fall silent, all at any step of a collection. A tree is one node that
//! names one data block; what the hosts tell each other and the manager arrives at any time.
//!
//! A cycle, in order:
//!
//! ```text
//! manager   opens the cycle
//! each host starts: replays what it left unclean; in one step returns its unused run and makes all its allocated
//!           blocks candidates, but for those in flight; from now on deletes wait, and superseded nodes are kept
//!           checkpoints its volumes
//! manager   after the last host reads the roots: both slots of every volume, all snapshots
//!           marks: reads node after node
//! each host sweeps: frees the candidates that were not marked, and the nodes that it kept
//! ```
//!
//! What is allocated, freed or reserved meanwhile leaves the candidates.
//!
//! Promises:
//! * No block is free that somebody will read: an open volume, a snapshot, a clone under way, or whoever opens a
//!   volume from either of its slots after a crash. Nor one that a host has reserved.
//! * The manager never reads a node that was reused since its root was read.

mod cycle;
mod host;
mod state;
mod step;
mod volume;

pub use state::State;
pub use step::Step;

use crate::{cases::Size, explore::Model};
use std::fmt;

/// Hosts.
pub const HOSTS: usize = 3;
/// Volumes.
pub const VOLUMES: usize = 2;
/// First block of each host's extents, and the end.
pub const EXTENTS: [u8; HOSTS + 1] = [0, 8, 11, 14];

/// What the model is allowed to leave out, to see whether it is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// 3d: a node superseded by a checkpoint is reused after the next one.
    ReuseAfterNext,
    /// 4f: a block is freed when the record that unmapped it is durable.
    FreeAfterDurable,
    /// 5d: a run is marked on the device before it is used.
    MarkFirst,
    /// 5e: a host returns its unused run when it starts.
    ReturnRuns,
    /// 5e: what is in flight is no candidate.
    InFlight,
    /// 5e: of a volume that was not checkpointed since its host started, closed ones among them, the journal counts
    /// as a root.
    ReplayUnclean,
    /// 5e: a host checkpoints its volumes after it started.
    Checkpoint,
    /// 5e: a checkpoint that began before the start does not count.
    CheckpointBegins,
    /// 5e: roots are read after the last host.
    AfterLastHost,
    /// 5e: deletes wait while a cycle is open.
    DeletesWait,
    /// 5e: superseded nodes are not reused before the cycle ends.
    SupersededWait,
    /// 5e: whatever is allocated or freed leaves the candidates.
    Leaves,
    /// 5e: a block that was cut loose before a start or a sweep is left to the next cycle.
    Stamp,
    /// 5e: a host that joins restarts the cycle.
    JoinRestarts,
    /// 5e: a host that restarts in a cycle knows that it is in one.
    RestartKnows,
    /// 5e: a host that was passed over as silent does nothing before it has joined again.
    SilentStops,
    /// 5e: marks count for the cycle that they were made in.
    CycleNumber,
    /// 5f: a snapshot that is being cloned or read is pinned; its deletion waits.
    Pins,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::ReuseAfterNext,
        Self::FreeAfterDurable,
        Self::MarkFirst,
        Self::ReturnRuns,
        Self::InFlight,
        Self::ReplayUnclean,
        Self::Checkpoint,
        Self::CheckpointBegins,
        Self::AfterLastHost,
        Self::DeletesWait,
        Self::SupersededWait,
        Self::Leaves,
        Self::Stamp,
        Self::JoinRestarts,
        Self::RestartKnows,
        Self::SilentStops,
        Self::CycleNumber,
        Self::Pins,
    ];

    /// In which the loss of this rule shows.
    pub fn budget(self) -> Budget {
        let base = Budget { writes: 1, cycles: 1, ..Budget::NOTHING };
        let cloned = Budget { writes: 0, snapshots: 1, clones: 1, ..base };
        match self {
            Self::ReuseAfterNext => Budget { discards: 1, ..base },
            Self::FreeAfterDurable => Budget { discards: 1, crashes: 1, ..base },
            Self::MarkFirst => Budget { snapshots: 1, crashes: 1, ..base },
            Self::ReplayUnclean => Budget { snapshots: 1, crashes: 1, ..base },
            Self::AfterLastHost => Budget { snapshots: 1, moves: 1, ..base },
            Self::Pins => Budget { deletes: 1, ..cloned },
            Self::DeletesWait => Budget { deletes: 1, discards: 1, ..cloned },
            Self::SupersededWait => Budget { discards: 1, writes: 2, ..base },
            Self::Leaves | Self::Stamp => Budget { discards: 1, writes: 2, ..base },
            Self::JoinRestarts => Budget { deletes: 1, discards: 1, moves: 1, joins: 1, ..cloned },
            Self::RestartKnows => Budget { deletes: 1, crashes: 1, ..cloned },
            Self::SilentStops => Budget { deletes: 1, discards: 1, silences: 1, ..cloned },
            Self::CycleNumber => Budget { writes: 2, snapshots: 1, aborts: 1, cycles: 2, ..base },
            _ => Budget { snapshots: 1, ..base },
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReuseAfterNext => "3d-reuse-after-next",
            Self::FreeAfterDurable => "4f-free-after-durable",
            Self::MarkFirst => "5d-mark-first",
            Self::ReturnRuns => "5e-return-runs",
            Self::InFlight => "5e-in-flight",
            Self::ReplayUnclean => "5e-replay-unclean",
            Self::Checkpoint => "5e-checkpoint",
            Self::CheckpointBegins => "5e-checkpoint-begins",
            Self::AfterLastHost => "5e-after-last-host",
            Self::DeletesWait => "5e-deletes-wait",
            Self::SupersededWait => "5e-superseded-wait",
            Self::Leaves => "5e-leaves",
            Self::Stamp => "5e-stamp",
            Self::JoinRestarts => "5e-join-restarts",
            Self::RestartKnows => "5e-restart-knows",
            Self::SilentStops => "5e-silent-stops",
            Self::CycleNumber => "5e-cycle-number",
            Self::Pins => "5f-pins",
        })
    }
}

/// How much may happen.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Writes that need a new block.
    pub writes: u8,
    /// Discards of the whole block.
    pub discards: u8,
    /// Snapshots.
    pub snapshots: u8,
    /// Deletions, of a snapshot or of a volume.
    pub deletes: u8,
    /// Clones.
    pub clones: u8,
    /// Times that a volume is closed in order.
    pub moves: u8,
    /// Crashes of a host, which may restart.
    pub crashes: u8,
    /// Hosts that join: host 2, which is not there at first.
    pub joins: u8,
    /// Hosts that are passed over as silent, and are not dead.
    pub silences: u8,
    /// Cycles that are given up, as by a change of managers.
    pub aborts: u8,
    /// Cycles.
    pub cycles: u8,
}

impl Budget {
    const NOTHING: Self = Self {
        writes: 0,
        discards: 0,
        snapshots: 0,
        deletes: 0,
        clones: 0,
        moves: 0,
        crashes: 0,
        joins: 0,
        silences: 0,
        aborts: 0,
        cycles: 0,
    };

    /// The runs of a size.
    pub fn of(size: Size) -> Vec<Self> {
        let base = Self { cycles: 1, snapshots: 1, ..Self::NOTHING };
        match size {
            Size::Quick => vec![
                Self { writes: 1, discards: 1, ..base },
                Self { discards: 1, deletes: 1, clones: 1, ..base },
                Self { deletes: 1, clones: 1, moves: 1, joins: 1, ..base },
                Self { crashes: 1, deletes: 1, clones: 1, ..base },
            ],
            Size::Full => vec![
                Self { writes: 2, discards: 1, snapshots: 0, ..base },
                Self { writes: 1, deletes: 1, clones: 1, ..base },
                Self { writes: 1, crashes: 1, moves: 1, ..base },
                Self { deletes: 1, clones: 1, crashes: 1, moves: 1, ..base },
                Self { discards: 1, deletes: 1, clones: 1, silences: 1, ..base },
                Self { writes: 1, cycles: 2, aborts: 1, ..base },
            ],
        }
    }
}

/// The model.
#[derive(Debug, Clone, Copy)]
pub struct GcModel {
    /// How much may happen.
    pub budget: Budget,
    /// The rule that nobody keeps, if any.
    pub dropped: Option<Rule>,
}

impl GcModel {
    fn keeps(&self, rule: Rule) -> bool {
        self.dropped != Some(rule)
    }
}

impl Model for GcModel {
    type State = State;
    type Step = Step;

    fn start(&self) -> State {
        State::new()
    }

    fn steps(&self, state: &State, next: &mut Vec<(Step, State)>) {
        volume::steps(self, state, next);
        host::steps(self, state, next);
        cycle::steps(self, state, next);
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        if state.reused_unread {
            return Some("the manager reads a node that was reused since its root was read");
        }
        (state.needed() & !state.allocated != 0).then_some("a block is free that is still needed")
    }

    fn sights(&self) -> &'static [&'static str] {
        &[
            "a cycle freed something",
            "a block was freed and reallocated in one cycle",
            "a clone was made and its source deleted in one cycle",
            "a volume moved in a cycle",
            "a superseded node was kept until the end",
            "a run was reserved in a cycle before the roots were read, and used after",
        ]
    }

    fn seen(&self, state: &State) -> u32 {
        u32::from(state.saw)
    }
}
