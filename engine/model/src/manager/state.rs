//! What is on the device, on its way, and in the memory of each process.

use super::{CANDIDATES, ManagerModel, PROCESSES, Rule};
use crate::device::Block;

/// What a manager knows: the whole registry and catalogue, of one extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Known {
    /// Of the latest grant of the extent; 0: it was never granted.
    pub number: u8,
    /// Who was granted it; nobody if it was given back.
    pub owner: Option<u8>,
    /// Records in the registry, a bit each.
    pub records: u8,
}

/// An area: base and log together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Area {
    /// Ballot of its manager; 0 is what formatting wrote.
    pub epoch: u8,
    /// Its content.
    pub known: Known,
}

/// A grant: in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// Who is granted the extent.
    pub to: u8,
    /// By which manager.
    pub ballot: u8,
    /// Rises with every grant of the extent.
    pub number: u8,
}

/// The last entry of a claim log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Claim {
    /// Which incarnation claims.
    pub by: u8,
    /// Under which manager; 0: nothing was claimed.
    pub ballot: u8,
    /// Which grant.
    pub number: u8,
}

/// The blocks of one host group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group {
    /// The ballot block.
    pub ballot: Block<u8>,
    /// The claim log.
    pub claim: Block<Claim>,
    /// Header, base and log of the area of this group's manager.
    pub area: Block<Area>,
}

/// What a process does for the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Manager {
    /// Nothing.
    Follows,
    /// Reads ballots.
    Counts {
        /// Which is read next.
        next: u8,
        /// The highest so far.
        max: u8,
    },
    /// Its ballot is on its way.
    Stands {
        /// Its own.
        ballot: u8,
    },
    /// Reads areas.
    ReadsAreas {
        /// Its own.
        ballot: u8,
        /// Which is read next.
        next: u8,
        /// The best so far.
        best: Area,
    },
    /// Reads claims.
    ReadsClaims {
        /// Its own.
        ballot: u8,
        /// Which is read next.
        next: u8,
        /// The area that was adopted.
        base: Area,
        /// The best so far.
        best: Claim,
    },
    /// The header of its area is on its way.
    Publishes {
        /// Its own.
        ballot: u8,
        /// What it knows.
        known: Known,
    },
    /// May grant.
    Reigns {
        /// Its own.
        ballot: u8,
        /// What it knows.
        known: Known,
    },
    /// A record is on its way.
    Logs {
        /// Its own.
        ballot: u8,
        /// What it knows.
        known: Known,
    },
    /// Reads ballots again: does the record count?
    Checks {
        /// Its own.
        ballot: u8,
        /// What it knows.
        known: Known,
        /// Which is read next.
        next: u8,
    },
}

/// What a process has of the extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holder {
    /// Nothing.
    Nothing,
    /// Its claim is on its way.
    Claims {
        /// Which.
        grant: Grant,
    },
    /// Reads ballots again: does the claim count?
    Rereads {
        /// Which.
        grant: Grant,
        /// Which is read next.
        next: u8,
    },
    /// The extent.
    Holds {
        /// Of its grant.
        number: u8,
    },
}

/// One incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    /// Runs.
    pub alive: bool,
    /// Which group it writes.
    pub group: u8,
    /// As a manager.
    pub manager: Manager,
    /// As a host.
    pub holder: Holder,
    /// The last number that it gave back.
    pub returned: u8,
}

/// The promise that a step broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broken {
    /// Two hold the extent.
    HeldTwice,
    /// A number came again.
    Number,
}

impl Broken {
    pub(super) fn promise(self) -> &'static str {
        match self {
            Self::HeldTwice => "an extent is held by two",
            Self::Number => "an extent is held under a number that was used before",
        }
    }
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// Host groups; the last is empty until host 0 rejoins.
    pub groups: [Group; PROCESSES],
    /// Incarnations.
    pub processes: [Process; PROCESSES],
    /// Grants that were sent and not yet delivered, in order.
    pub messages: [Option<Grant>; 3],
    /// Spent of the budget.
    pub terms: u8,
    /// Spent of the budget.
    pub grants: u8,
    /// Spent of the budget.
    pub records: u8,
    /// Records whose caller was told that they count.
    pub acknowledged: u8,
    /// The highest number under which the extent was held.
    pub held_max: u8,
    /// Host 0 held the extent before it crashed.
    pub first_held: bool,
    /// Sights.
    pub void_claim: bool,
    /// Sights.
    pub void_record: bool,
    /// Sights.
    pub ghost_ballot: bool,
    /// What went wrong.
    pub broken: Option<Broken>,
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// A pool that was just made; three hosts have joined.
    pub fn new() -> Self {
        let group = Group {
            ballot: Block::new(0),
            claim: Block::new(Claim::default()),
            area: Block::new(Area::default()),
        };
        let process = |group| Process {
            alive: group < 3,
            group,
            manager: Manager::Follows,
            holder: Holder::Nothing,
            returned: 0,
        };
        Self {
            groups: [group; PROCESSES],
            processes: [process(0), process(1), process(2), process(3)],
            messages: [None; 3],
            terms: 0,
            grants: 0,
            records: 0,
            acknowledged: 0,
            held_max: 0,
            first_held: false,
            void_claim: false,
            void_record: false,
            ghost_ballot: false,
            broken: None,
        }
    }

    /// The group of a process.
    pub(super) fn group(&mut self, process: usize) -> &mut Group {
        &mut self.groups[usize::from(self.processes[process].group)]
    }

    /// The highest ballot on the device.
    pub(super) fn highest_ballot(&self) -> u8 {
        CANDIDATES.iter().map(|group| self.groups[*group].ballot.landed).max().unwrap_or(0)
    }
}

/// What `base` and the claims say together.
pub(super) fn fold(base: Area, best: Claim) -> Known {
    if best.number > base.known.number {
        Known { number: best.number, owner: Some(best.by), ..base.known }
    } else {
        base.known
    }
}

impl ManagerModel {
    /// Whether `claim` says more than `best` to somebody who adopted `base`.
    pub(super) fn better(&self, base: Area, best: Claim, claim: Claim) -> bool {
        let counts = claim.ballot > 0 && (claim.ballot == base.epoch || !self.keeps(Rule::ClaimsOfTheArea));
        self.keeps(Rule::ReadClaims) && counts && claim.number > best.number
    }

    /// What a new manager would find, against what others rely on.
    pub(super) fn contradiction(&self, state: &State) -> Option<&'static str> {
        let mut base = Area::default();
        for group in &state.groups {
            base = base.max(group.area.landed);
        }
        if state.acknowledged & !base.known.records != 0 {
            return Some("a record that was acknowledged is not in the area that counts");
        }
        let mut best = Claim::default();
        for group in &state.groups {
            let claim = group.claim.landed;
            if claim.ballot == base.epoch && claim.ballot > 0 && claim.number > best.number {
                best = claim;
            }
        }
        let known = fold(base, best);
        for (process, holds) in state.processes.iter().enumerate() {
            if let Holder::Holds { number } = holds.holder
                && known.number == number
                && known.owner != Some(process as u8)
            {
                return Some("the device names another holder than the one who holds the extent");
            }
            if let Holder::Holds { number } = holds.holder
                && known.number < number
            {
                return Some("the device does not know who holds the extent");
            }
        }
        None
    }
}
