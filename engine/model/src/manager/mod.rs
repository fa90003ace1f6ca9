//! Who may change the registry and the catalogue: ballots, claims and areas.
//!
//! Three hosts, two of which stand for manager. One extent is granted, given back and granted again; records are
//! added to the registry. Every write may take any time; a daemon may crash at any step, its last write may land
//! later, and it may rejoin as a new incarnation.
//!
//! The protocol, in the order in which it happens:
//!
//! ```text
//! would-be manager                                      host that is granted the extent
//!   counts ballots   reads all, one by one
//!   stands           writes a higher one, durable
//!   reads areas      takes the one of the highest epoch
//!   reads claims     takes those of that epoch
//!   publishes        header of its own area, durable
//!   reigns           sends a grant ────────────────────►  claims    writes it to its log, durable
//!                    adds a record to its area, durable   re-reads  all ballots, one by one
//!                    re-reads all ballots                 holds     if its grant's is still the highest
//!                    acknowledges, if its own is
//!                    still the highest
//! ```
//!
//! A manager never knows that it is one: it learns only that it was one, when a change is found to count. What a
//! deposed manager does meanwhile has no effect, and that is what is proved here.
//!
//! Promises:
//! * The extent is held by one incarnation at a time, and the numbers under which it is held rise.
//! * What a new manager would read tells who holds it.
//! * A record that was acknowledged is in the area that counts.

mod state;
mod steps;

pub use state::{Area, Broken, Claim, Grant, Group, Holder, Known, Manager, Process, State};

use crate::{cases::Size, explore::Model};
use std::fmt;

/// Processes, in order of their start: three hosts, and the second incarnation of the first.
pub const PROCESSES: usize = 4;
/// The second incarnation of host 0.
const REJOINED: usize = 3;
/// Who may stand for manager.
const CANDIDATES: [usize; 3] = [0, 1, REJOINED];
/// To whom the extent may be granted.
const GRANTEES: [usize; 3] = [0, 2, REJOINED];

/// What the model is allowed to leave out, to see whether it is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// 6a: a new incarnation does not use the group of an old one whose writes may still land.
    OwnGroup,
    /// 6b: no two incarnations ever choose the same ballot.
    UniqueBallot,
    /// 6c: a candidate's ballot is durable before it reads areas and claims.
    BallotFirst,
    /// 6c: a host logs a claim before it uses what it was granted.
    Claim,
    /// 6c: the claim is durable before the ballots are read again.
    ClaimFirst,
    /// 6c: a host reads the ballots again after its claim.
    Reread,
    /// 6c: a new manager reads all claims.
    ReadClaims,
    /// 6c: claims count that were made under the manager whose area was adopted, and no others.
    ClaimsOfTheArea,
    /// 6c: a manager reads the ballots again before it acknowledges a record.
    RereadRecord,
    /// 5b: of several areas the one of the highest epoch counts.
    HighestArea,
    /// 5b: a manager grants and records nothing before its own area is durable.
    AreaFirst,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::OwnGroup,
        Self::UniqueBallot,
        Self::BallotFirst,
        Self::Claim,
        Self::ClaimFirst,
        Self::Reread,
        Self::ReadClaims,
        Self::ClaimsOfTheArea,
        Self::RereadRecord,
        Self::HighestArea,
        Self::AreaFirst,
    ];
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnGroup => "6a-own-group",
            Self::UniqueBallot => "6b-unique-ballot",
            Self::BallotFirst => "6c-ballot-first",
            Self::Claim => "6c-claim",
            Self::ClaimFirst => "6c-claim-first",
            Self::Reread => "6c-reread",
            Self::ReadClaims => "6c-read-claims",
            Self::ClaimsOfTheArea => "6c-claims-of-the-area",
            Self::RereadRecord => "6c-reread-record",
            Self::HighestArea => "5b-highest-area",
            Self::AreaFirst => "5b-area-first",
        })
    }
}

/// How much may happen.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// How often somebody stands for manager.
    pub terms: u8,
    /// Grants that are sent.
    pub grants: u8,
    /// Records that are added to the registry.
    pub records: u8,
    /// Whether host 0 may crash and rejoin.
    pub rejoin: bool,
}

impl Budget {
    const SMALL: Self = Self { terms: 2, grants: 2, records: 1, rejoin: true };

    /// The runs of a size.
    pub fn of(size: Size) -> Vec<Self> {
        match size {
            Size::Quick => vec![Self::SMALL],
            Size::Full => {
                vec![Self { terms: 3, ..Self::SMALL }, Self { grants: 3, records: 2, ..Self::SMALL }]
            }
        }
    }
}

impl Rule {
    /// In which the loss of this rule shows.
    pub fn budget(self) -> Budget {
        match self {
            // It takes a third manager to be misled by what the first has left.
            Self::ClaimsOfTheArea => Budget { terms: 3, records: 0, rejoin: false, ..Budget::SMALL },
            Self::HighestArea => Budget { terms: 3, grants: 0, rejoin: false, ..Budget::SMALL },
            _ => Budget::SMALL,
        }
    }
}

/// The model.
#[derive(Debug, Clone, Copy)]
pub struct ManagerModel {
    /// How much may happen.
    pub budget: Budget,
    /// The rule that nobody keeps, if any.
    pub dropped: Option<Rule>,
}

impl ManagerModel {
    fn keeps(&self, rule: Rule) -> bool {
        self.dropped != Some(rule)
    }
}

impl Model for ManagerModel {
    type State = State;
    type Step = steps::Step;

    fn start(&self) -> State {
        State::new()
    }

    fn steps(&self, state: &State, next: &mut Vec<(steps::Step, State)>) {
        steps::all(self, state, next);
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        state.broken.map(Broken::promise).or_else(|| self.contradiction(state))
    }

    fn sights(&self) -> &'static [&'static str] {
        &[
            "the extent is held",
            "it is held by another after it was given back",
            "two managers reign at once",
            "a claim came too late and is void",
            "a record of a deposed manager is void",
            "a second incarnation holds what the first held",
            "a ghost of a ballot is the highest",
        ]
    }

    fn seen(&self, state: &State) -> u32 {
        let held = state.processes.iter().any(|process| matches!(process.holder, Holder::Holds { .. }));
        let reigning = state.processes.iter().filter(|p| matches!(p.manager, Manager::Reigns { .. })).count();
        let again = matches!(state.processes[REJOINED].holder, Holder::Holds { .. });
        let sights = [
            held,
            held && state.held_max > 1,
            reigning > 1,
            state.void_claim,
            state.void_record,
            again && state.first_held,
            state.ghost_ballot,
        ];
        sights.iter().enumerate().fold(0, |bits, (bit, seen)| bits | u32::from(*seen) << bit)
    }
}
