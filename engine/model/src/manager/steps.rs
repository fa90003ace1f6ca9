//! What can happen next.
//!
//! A step reads or changes one block, or one process's memory. A process that submits a write does so together with
//! the step before: nobody sees a write before it lands, and landing is a step of its own.

use super::{
    CANDIDATES, GRANTEES, ManagerModel, PROCESSES, REJOINED, Rule,
    state::{Area, Broken, Claim, Grant, Holder, Known, Manager, State, fold},
};
use std::fmt;

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Who acts, or whose block it is.
    who: usize,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    BeginsToCount,
    ReadsBallot { of: usize, found: u8 },
    Stands { ballot: u8 },
    BallotLands { ballot: u8 },
    ReadsArea { of: usize, found: Area },
    ReadsClaim { of: usize, found: Claim },
    Publishes { known: Known },
    AreaLands { area: Area },
    Grants { grant: Grant },
    AddsRecord { record: u8 },
    RecordCounts,
    RecordIsVoid { seen: u8 },
    Claims { grant: Grant },
    ClaimLands { claim: Claim },
    ClaimIsVoid { seen: u8 },
    Holds { number: u8 },
    GivesBack { number: u8 },
    CrashesAndRejoins { group: usize },
    GhostBallotLands { ballot: u8 },
    GhostClaimLands { claim: Claim },
    GhostAreaLands { area: Area },
}

/// Process 3 is the second incarnation of host 0.
fn name(process: usize) -> &'static str {
    ["host 0", "host 1", "host 2", "host 0 (second incarnation)"][process]
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.number, self.owner) {
            (0, _) => write!(f, "extent never granted")?,
            (number, Some(owner)) => write!(f, "grant {number} to {}", name(usize::from(owner)))?,
            (number, None) => write!(f, "grant {number} given back")?,
        }
        write!(f, ", records {:#b}", self.records)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = name(self.who);
        match self.what {
            What::BeginsToCount => write!(f, "{who} wants to be manager"),
            What::ReadsBallot { of, found } => write!(f, "{who} reads the ballot of group {of}: {found}"),
            What::Stands { ballot } => write!(f, "{who} has read all ballots and submits its own: {ballot}"),
            What::BallotLands { ballot } => write!(f, "{who}: ballot {ballot} is durable"),
            What::ReadsArea { of, found } => {
                write!(f, "{who} reads the area of group {of}: epoch {}, {}", found.epoch, found.known)
            }
            What::ReadsClaim { of, found } => write!(
                f,
                "{who} reads the claims of group {of}: grant {} under ballot {}",
                found.number, found.ballot
            ),
            What::Publishes { known } => write!(f, "{who} has read all claims and submits its area: {known}"),
            What::AreaLands { area } => {
                write!(f, "{who}: area of epoch {} is durable: {}", area.epoch, area.known)
            }
            What::Grants { grant } => write!(
                f,
                "{who} sends grant {} to {} under ballot {}",
                grant.number,
                name(usize::from(grant.to)),
                grant.ballot
            ),
            What::AddsRecord { record } => write!(f, "{who} submits record {record} to the log of its area"),
            What::RecordCounts => write!(f, "{who} finds its ballot the highest and acknowledges the record"),
            What::RecordIsVoid { seen } => write!(f, "{who} sees ballot {seen}: its record is void"),
            What::Claims { grant } => {
                write!(f, "{who} receives grant {} of ballot {}", grant.number, grant.ballot)
            }
            What::ClaimLands { claim } => {
                write!(f, "{who}: claim of grant {} under ballot {} is durable", claim.number, claim.ballot)
            }
            What::ClaimIsVoid { seen } => write!(f, "{who} sees ballot {seen}: its claim is void"),
            What::Holds { number } => write!(f, "{who} holds the extent by grant {number}"),
            What::GivesBack { number } => write!(f, "{who} gives grant {number} back"),
            What::CrashesAndRejoins { group } => write!(f, "{who} crashes and rejoins, in group {group}"),
            What::GhostBallotLands { ballot } => {
                write!(f, "late in group {}: ballot {ballot} lands", self.who)
            }
            What::GhostClaimLands { claim } => {
                write!(f, "late in group {}: claim of grant {} lands", self.who, claim.number)
            }
            What::GhostAreaLands { area } => {
                write!(f, "late in group {}: area of epoch {} lands", self.who, area.epoch)
            }
        }
    }
}

type Next = Vec<(Step, State)>;

/// All steps from `state`.
pub(super) fn all(model: &ManagerModel, state: &State, next: &mut Next) {
    for process in 0..PROCESSES {
        if state.processes[process].alive {
            manage(model, state, process, next);
            hold(model, state, process, next);
        }
    }
    let spare = state.processes[REJOINED];
    if model.budget.rejoin && !spare.alive && state.processes[0].alive {
        next.push(rejoin(model, state));
    }
    ghosts(state, next);
}

fn step(who: usize, what: What, state: State) -> (Step, State) {
    (Step { who, what }, state)
}

impl ManagerModel {
    /// A ballot higher than `max`. The last two bits are the incarnation's own, so no other chooses the same.
    fn ballot(&self, process: usize, max: u8) -> u8 {
        if self.keeps(Rule::UniqueBallot) { (max / 4 + 1) * 4 + process as u8 } else { max + 1 }
    }
}

fn manage(model: &ManagerModel, state: &State, process: usize, next: &mut Next) {
    let group = usize::from(state.processes[process].group);
    let mut after = state.clone();
    // The write of a ballot or an area that nobody waits for: only where a rule was dropped.
    match state.processes[process].manager {
        Manager::Stands { .. } | Manager::Publishes { .. } | Manager::Logs { .. } => {}
        _ => {
            if let Some(ballot) = state.groups[group].ballot.flight {
                let mut after = state.clone();
                after.groups[group].ballot.land_durable();
                next.push(step(process, What::BallotLands { ballot }, after));
            }
            if let Some(area) = state.groups[group].area.flight {
                let mut after = state.clone();
                after.groups[group].area.land_durable();
                next.push(step(process, What::AreaLands { area }, after));
            }
        }
    }
    let what = match state.processes[process].manager {
        Manager::Follows => return stand(model, state, process, next),
        Manager::Counts { next: at, max } => {
            let of = CANDIDATES[usize::from(at)];
            let found = state.groups[of].ballot.landed;
            let max = max.max(found);
            if usize::from(at) + 1 < CANDIDATES.len() {
                after.processes[process].manager = Manager::Counts { next: at + 1, max };
                What::ReadsBallot { of, found }
            } else {
                if after.group(process).ballot.flight.is_some() {
                    return;
                }
                let ballot = model.ballot(process, max);
                after.group(process).ballot.submit(ballot);
                after.processes[process].manager = match model.keeps(Rule::BallotFirst) {
                    true => Manager::Stands { ballot },
                    false => Manager::ReadsAreas { ballot, next: 0, best: Area::default() },
                };
                What::Stands { ballot }
            }
        }
        Manager::Stands { ballot } => {
            after.group(process).ballot.land_durable();
            after.processes[process].manager = Manager::ReadsAreas { ballot, next: 0, best: Area::default() };
            What::BallotLands { ballot }
        }
        Manager::ReadsAreas { ballot, next: at, best } => {
            let of = CANDIDATES[usize::from(at)];
            let found = state.groups[of].area.landed;
            let better = match model.keeps(Rule::HighestArea) {
                true => found.epoch > best.epoch,
                false => best.epoch == 0,
            };
            let best = if better { found } else { best };
            after.processes[process].manager = if usize::from(at) + 1 < CANDIDATES.len() {
                Manager::ReadsAreas { ballot, next: at + 1, best }
            } else {
                Manager::ReadsClaims { ballot, next: 0, base: best, best: Claim::default() }
            };
            What::ReadsArea { of, found }
        }
        Manager::ReadsClaims { ballot, next: at, base, best } => {
            let of = GRANTEES[usize::from(at)];
            let found = state.groups[of].claim.landed;
            let best = if model.better(base, best, found) { found } else { best };
            if usize::from(at) + 1 < GRANTEES.len() {
                after.processes[process].manager = Manager::ReadsClaims { ballot, next: at + 1, base, best };
                What::ReadsClaim { of, found }
            } else {
                if after.group(process).area.flight.is_some() {
                    return;
                }
                let known = fold(base, best);
                after.group(process).area.submit(Area { epoch: ballot, known });
                after.processes[process].manager = match model.keeps(Rule::AreaFirst) {
                    true => Manager::Publishes { ballot, known },
                    false => Manager::Reigns { ballot, known },
                };
                What::Publishes { known }
            }
        }
        Manager::Publishes { ballot, known } => {
            after.group(process).area.land_durable();
            after.processes[process].manager = Manager::Reigns { ballot, known };
            What::AreaLands { area: Area { epoch: ballot, known } }
        }
        Manager::Reigns { ballot, known } => return reign(model, state, process, (ballot, known), next),
        Manager::Logs { ballot, known } => {
            after.group(process).area.land_durable();
            after.processes[process].manager = Manager::Checks { ballot, known, next: 0 };
            if !model.keeps(Rule::RereadRecord) {
                acknowledge(&mut after, process, ballot, known);
            }
            What::AreaLands { area: Area { epoch: ballot, known } }
        }
        Manager::Checks { ballot, known, next: at } => {
            let of = CANDIDATES[usize::from(at)];
            let seen = state.groups[of].ballot.landed;
            if seen > ballot {
                after.processes[process].manager = Manager::Follows;
                after.void_record = true;
                What::RecordIsVoid { seen }
            } else if usize::from(at) + 1 < CANDIDATES.len() {
                after.processes[process].manager = Manager::Checks { ballot, known, next: at + 1 };
                What::ReadsBallot { of, found: seen }
            } else {
                acknowledge(&mut after, process, ballot, known);
                What::RecordCounts
            }
        }
    };
    next.push(step(process, what, after));
}

/// The newest record in `known` is this manager's own: numbers of records rise.
fn acknowledge(after: &mut State, process: usize, ballot: u8, known: Known) {
    after.acknowledged |= 1 << known.records.ilog2();
    after.processes[process].manager = Manager::Reigns { ballot, known };
}

fn stand(model: &ManagerModel, state: &State, process: usize, next: &mut Next) {
    if !CANDIDATES.contains(&process) || state.terms == model.budget.terms {
        return;
    }
    let mut after = state.clone();
    after.terms += 1;
    after.processes[process].manager = Manager::Counts { next: 0, max: 0 };
    next.push(step(process, What::BeginsToCount, after));
}

fn reign(model: &ManagerModel, state: &State, process: usize, (ballot, known): (u8, Known), next: &mut Next) {
    let free = known.owner.is_none_or(|owner| {
        let owner = &state.processes[usize::from(owner)];
        // Dead, with evidence; or it said itself that it gave the extent back.
        !owner.alive || owner.returned >= known.number
    });
    for to in GRANTEES {
        if !free || state.grants == model.budget.grants || !state.processes[to].alive {
            continue;
        }
        let mut after = state.clone();
        let Some(place) = after.messages.iter_mut().find(|message| message.is_none()) else { continue };
        let grant = Grant { to: to as u8, ballot, number: known.number + 1 };
        *place = Some(grant);
        after.messages.sort_unstable();
        after.grants += 1;
        let known = Known { number: grant.number, owner: Some(grant.to), ..known };
        after.processes[process].manager = Manager::Reigns { ballot, known };
        next.push(step(process, What::Grants { grant }, after));
    }
    let group = usize::from(state.processes[process].group);
    if state.records < model.budget.records && state.groups[group].area.flight.is_none() {
        let mut after = state.clone();
        let known = Known { records: known.records | 1 << state.records, ..known };
        after.records += 1;
        after.groups[group].area.submit(Area { epoch: ballot, known });
        after.processes[process].manager = Manager::Logs { ballot, known };
        next.push(step(process, What::AddsRecord { record: state.records }, after));
    }
    stand(model, state, process, next);
}

fn hold(model: &ManagerModel, state: &State, process: usize, next: &mut Next) {
    let group = usize::from(state.processes[process].group);
    let mut after = state.clone();
    let what = match state.processes[process].holder {
        Holder::Nothing => {
            if let Some(claim) = state.groups[group].claim.flight {
                after.groups[group].claim.land_durable();
                next.push(step(process, What::ClaimLands { claim }, after));
                return;
            }
            for (at, message) in state.messages.iter().enumerate() {
                let Some(grant) = message.filter(|grant| usize::from(grant.to) == process) else { continue };
                let mut after = state.clone();
                after.messages[at] = None;
                after.messages.sort_unstable();
                if !model.keeps(Rule::Claim) {
                    takes_hold(&mut after, process, grant.number);
                } else {
                    let claim = Claim { by: process as u8, ballot: grant.ballot, number: grant.number };
                    after.group(process).claim.submit(claim);
                    after.processes[process].holder = match model.keeps(Rule::ClaimFirst) {
                        true => Holder::Claims { grant },
                        false => Holder::Rereads { grant, next: 0 },
                    };
                }
                next.push(step(process, What::Claims { grant }, after));
            }
            return;
        }
        Holder::Claims { grant } => {
            let claim =
                state.groups[group].claim.flight.expect("a process that claims has submitted its claim");
            after.groups[group].claim.land_durable();
            after.processes[process].holder = Holder::Rereads { grant, next: 0 };
            if !model.keeps(Rule::Reread) {
                takes_hold(&mut after, process, grant.number);
            }
            What::ClaimLands { claim }
        }
        Holder::Rereads { grant, next: at } => {
            let of = CANDIDATES[usize::from(at)];
            let seen = state.groups[of].ballot.landed;
            if seen > grant.ballot {
                after.processes[process].holder = Holder::Nothing;
                after.void_claim = true;
                What::ClaimIsVoid { seen }
            } else if usize::from(at) + 1 < CANDIDATES.len() {
                after.processes[process].holder = Holder::Rereads { grant, next: at + 1 };
                What::ReadsBallot { of, found: seen }
            } else {
                takes_hold(&mut after, process, grant.number);
                What::Holds { number: grant.number }
            }
        }
        Holder::Holds { number } => {
            after.processes[process].holder = Holder::Nothing;
            after.processes[process].returned = number;
            What::GivesBack { number }
        }
    };
    next.push(step(process, what, after));
}

fn takes_hold(after: &mut State, process: usize, number: u8) {
    let others = after.processes.iter().any(|other| matches!(other.holder, Holder::Holds { .. }));
    if others {
        after.broken = Some(Broken::HeldTwice);
    } else if number <= after.held_max {
        after.broken = Some(Broken::Number);
    }
    after.held_max = after.held_max.max(number);
    after.first_held |= process == 0;
    after.processes[process].holder = Holder::Holds { number };
}

fn rejoin(model: &ManagerModel, state: &State) -> (Step, State) {
    let mut after = state.clone();
    let group = &mut after.groups[0];
    group.ballot.abandon();
    group.claim.abandon();
    group.area.abandon();
    let first = &mut after.processes[0];
    first.alive = false;
    first.manager = Manager::Follows;
    first.holder = Holder::Nothing;
    let own = if model.keeps(Rule::OwnGroup) { REJOINED } else { 0 };
    after.processes[REJOINED].alive = true;
    after.processes[REJOINED].group = own as u8;
    step(0, What::CrashesAndRejoins { group: own }, after)
}

fn ghosts(state: &State, next: &mut Next) {
    for (index, group) in state.groups.iter().enumerate() {
        for (number, ballot) in group.ballot.ghosts() {
            let mut after = state.clone();
            after.groups[index].ballot.ghost_lands(number);
            after.groups[index].ballot.flush();
            after.ghost_ballot |= after.highest_ballot() == ballot;
            next.push(step(index, What::GhostBallotLands { ballot }, after));
        }
        for (number, claim) in group.claim.ghosts() {
            let mut after = state.clone();
            after.groups[index].claim.ghost_lands(number);
            after.groups[index].claim.flush();
            next.push(step(index, What::GhostClaimLands { claim }, after));
        }
        for (number, area) in group.area.ghosts() {
            let mut after = state.clone();
            after.groups[index].area.ghost_lands(number);
            after.groups[index].area.flush();
            next.push(step(index, What::GhostAreaLands { area }, after));
        }
    }
}
