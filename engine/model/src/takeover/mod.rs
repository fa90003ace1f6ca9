//! One volume passes from owner to owner, while writes of former owners are still under way.
//!
//! Up to three epochs, on three hosts or by restarts on one. One block of the volume is written, flushed and
//! snapshotted; another volume waits to use whatever blocks come free. Hosts die at any step or are cut off from
//! the device, writes time out, land late or never, the device loses power, a root slot goes bad. How the manager
//! makes a grant durable is the matter of [`crate::manager`]; here a grant is one step.
//!
//! An epoch, in order:
//!
//! ```text
//! granted    the registry names the grant, and still the one before
//! reads      newest valid root slot of the grant, else of the one before
//! replays    journal behind it
//! adopts     writes what it found to both of its slots, one after the other, durable
//! released   the registry forgets the grant before; older slots and journal are free
//! open       writes in place where the path is writable, else to a new block
//!            flush: device flush, then a journal record if the mapping changed, durable
//!            checkpoint: root slot, the older one
//! over       released in order; or the host died, or was fenced
//! ```
//!
//! Promises:
//! * *1*: a write of an older epoch never lands on metadata or on a block that a newer epoch wrote.
//! * *2*: what was flushed, and acknowledged, is what the next epoch reads, or something newer; whenever the
//!   acknowledgement came.
//! * *3*: no block that another volume uses is written by a former owner. It follows from 1 that its former blocks
//!   were not reused too early.
//! * A volume always opens. A snapshot that was called stable never changes.

mod adopt;
mod own;
mod state;
mod step;

pub use state::{Broken, Data, Phase, Record, Reign, Slot, State};
pub use step::Step;

use crate::{cases::Size, explore::Model};
use std::fmt;

/// Epochs that a run has room for.
pub const EPOCHS: usize = 3;
/// Data blocks that a run has room for.
pub const BLOCKS: usize = 5;
/// Journal blocks of an epoch.
pub const JOURNAL: usize = 2;

/// What the model is allowed to leave out, to see whether it is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// 4b: the device is flushed before the journal record that names the data.
    DataBeforeRecord,
    /// 4f: a block is reused when the record that unmapped it is durable.
    ReuseAfterDurable,
    /// 4h: a write that ended nobody knows how is not followed by another to the same block.
    UnknownWrite,
    /// 3d: a checkpoint goes to the older slot.
    OlderSlot,
    /// 5a: an incarnation allocates in extents that no other has.
    OwnExtents,
    /// 6a, 6e: an incarnation, with its slots and blocks, is kept only if its earlier I/O has finished.
    QuietRestart,
    /// 6d: the adopted state is in a slot of the epoch before its first I/O.
    SlotsFirst,
    /// 6d: in both of them.
    BothSlots,
    /// 6d: a grant that has no valid slot does not push out the one before.
    KeepPrevious,
    /// 6e: after an end that was not clean the opener writes to new blocks only.
    MarkShared,
    /// 6e: an end is clean only if no write timed out.
    CleanRelease,
    /// 6e: what is proved quiet is the epoch whose state is adopted, not merely the process before.
    EvidenceOfAdopted,
    /// 6f: a snapshot of inherited blocks is provisional until the fence is proved.
    Provisional,
    /// 6i: no takeover without evidence.
    Evidence,
    /// 6i: what a fenced host has under way is aborted before the takeover reads.
    Abort,
    /// 6j, promise 3: blocks of a fenced epoch are reused when its fence is proved.
    Quarantine,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::DataBeforeRecord,
        Self::ReuseAfterDurable,
        Self::UnknownWrite,
        Self::OlderSlot,
        Self::OwnExtents,
        Self::QuietRestart,
        Self::SlotsFirst,
        Self::BothSlots,
        Self::KeepPrevious,
        Self::MarkShared,
        Self::CleanRelease,
        Self::EvidenceOfAdopted,
        Self::Provisional,
        Self::Evidence,
        Self::Abort,
        Self::Quarantine,
    ];

    /// In which the loss of this rule shows.
    pub fn budget(self) -> Budget {
        let base = Budget { epochs: 2, writes: 2, ..Budget::NOTHING };
        match self {
            Self::DataBeforeRecord => Budget { cuts: 1, snapshots: 1, ..base },
            Self::ReuseAfterDurable => Budget { epochs: 3, reuses: 1, ..base },
            Self::Quarantine => Budget { reuses: 1, ..base },
            Self::UnknownWrite => Budget { timeouts: 1, ..base },
            Self::OlderSlot => {
                Budget { writes: 1, snapshots: 1, checkpoints: 2, reuses: 1, damages: 1, ..base }
            }
            Self::SlotsFirst => Budget { epochs: 3, ..base },
            Self::QuietRestart => Budget { epochs: 3, reuses: 1, ..base },
            Self::BothSlots => Budget { epochs: 3, damages: 1, ..base },
            Self::KeepPrevious | Self::EvidenceOfAdopted => Budget { epochs: 3, ..base },
            Self::CleanRelease => Budget { timeouts: 1, reuses: 1, ..base },
            Self::Provisional | Self::Abort | Self::OwnExtents => Budget { snapshots: 1, ..base },
            _ => base,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DataBeforeRecord => "4b-data-before-record",
            Self::ReuseAfterDurable => "4f-reuse-after-durable",
            Self::UnknownWrite => "4h-unknown-write",
            Self::OlderSlot => "3d-older-slot",
            Self::OwnExtents => "5a-own-extents",
            Self::QuietRestart => "6a-quiet-restart",
            Self::SlotsFirst => "6d-slots-first",
            Self::BothSlots => "6d-both-slots",
            Self::KeepPrevious => "6d-keep-previous",
            Self::MarkShared => "6e-mark-shared",
            Self::CleanRelease => "6e-clean-release",
            Self::EvidenceOfAdopted => "6e-evidence-of-adopted",
            Self::Provisional => "6f-provisional",
            Self::Evidence => "6i-evidence",
            Self::Abort => "6i-abort",
            Self::Quarantine => "6j-quarantine",
        })
    }
}

/// How much may happen.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Epochs, the first included.
    pub epochs: u8,
    /// Writes of clients.
    pub writes: u8,
    /// Writes that time out.
    pub timeouts: u8,
    /// Checkpoints beyond those of adoption and release.
    pub checkpoints: u8,
    /// Snapshots.
    pub snapshots: u8,
    /// Blocks that come free and are used by the other volume.
    pub reuses: u8,
    /// Power losses of the device.
    pub cuts: u8,
    /// Root slots that go bad.
    pub damages: u8,
}

impl Budget {
    const NOTHING: Self = Self {
        epochs: 1,
        writes: 0,
        timeouts: 0,
        checkpoints: 0,
        snapshots: 0,
        reuses: 0,
        cuts: 0,
        damages: 0,
    };

    /// The runs of a size.
    pub fn of(size: Size) -> Vec<Self> {
        let chain = Self { epochs: 3, writes: 2, ..Self::NOTHING };
        let pair = Self { epochs: 2, writes: 2, ..Self::NOTHING };
        match size {
            Size::Quick => vec![
                Self { epochs: 3, writes: 1, reuses: 1, ..chain },
                Self { timeouts: 1, snapshots: 1, ..pair },
                Self { checkpoints: 1, snapshots: 1, reuses: 1, ..pair },
                Self { cuts: 1, damages: 1, ..pair },
            ],
            Size::Full => vec![
                Self { snapshots: 1, reuses: 1, ..chain },
                Self { cuts: 1, damages: 1, ..chain },
                Self { timeouts: 1, snapshots: 1, reuses: 1, ..pair },
                Self { writes: 1, checkpoints: 2, snapshots: 1, reuses: 1, damages: 1, ..pair },
                Self { writes: 1, checkpoints: 1, cuts: 1, snapshots: 1, reuses: 1, ..pair },
            ],
        }
    }
}

/// The model.
#[derive(Debug, Clone, Copy)]
pub struct TakeoverModel {
    /// How much may happen.
    pub budget: Budget,
    /// The rule that nobody keeps, if any.
    pub dropped: Option<Rule>,
}

impl TakeoverModel {
    pub(crate) fn keeps(&self, rule: Rule) -> bool {
        self.dropped != Some(rule)
    }
}

impl Model for TakeoverModel {
    type State = State;
    type Step = Step;

    fn start(&self) -> State {
        State::new()
    }

    fn steps(&self, state: &State, next: &mut Vec<(Step, State)>) {
        adopt::steps(self, state, next);
        own::steps(self, state, next);
        step::world(self, state, next);
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        state.broken.map(Broken::promise).or_else(|| state.contradiction())
    }

    fn sights(&self) -> &'static [&'static str] {
        &[
            "the last epoch is open",
            "a ghost landed on an inherited block after a takeover",
            "an epoch without a slot was passed over",
            "three epochs on one host, the first one's slots used again",
            "an epoch began in place after an orderly release",
            "a flush was acknowledged by the last epoch",
            "a block of a fenced epoch was reused",
        ]
    }

    fn seen(&self, state: &State) -> u32 {
        let last = &state.reigns[usize::from(self.budget.epochs) - 1];
        let open = last.phase == Phase::Open;
        let sights = [
            open,
            state.saw.inherited_ghost,
            open && state.reigns[1].grant != last.grant
                && !state.pairs[1].iter().any(|slot| slot.landed.valid()),
            open && self.budget.epochs == 3 && last.pair == state.reigns[0].pair,
            state.saw.clean_in_place,
            state.saw.last_flush,
            state.saw.reused,
        ];
        sights.iter().enumerate().fold(0, |bits, (bit, seen)| bits | u32::from(*seen) << bit)
    }
}
