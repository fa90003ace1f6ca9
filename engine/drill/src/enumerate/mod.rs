//! Every crash point of small workloads.
//!
//! A script is a few operations on a pool with one volume that has a snapshot, shared blocks and unflushed writes.
//! Whenever its last operation sends the disk a change or a flush, the power may go: what the disk may then hold is
//! enumerated, every subset of the unflushed changes where there are few, else a sample by seed, whole or torn in
//! sectors; and the process may die there while the machine lives. Each such image must verify, open, and hold what
//! the model allows.

mod point;
mod script;

pub use script::{Op, Script};

use crate::{
    Failure,
    model::Forest,
    run::{Drill, guarded},
    subject::System,
};
use parallax_sim::{SimTails, World};
use point::Recorder;
use std::sync::Arc;

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closeness {
    /// Images of one boundary at most.
    pub images_max: usize,
    /// Decides what is sampled.
    pub seed: u64,
}

/// What was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Scripts.
    pub scripts: u64,
    /// Boundaries at which the power could go.
    pub boundaries: u64,
    /// Images that were opened and compared.
    pub points: u64,
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.scripts += other.scripts;
        self.boundaries += other.boundaries;
        self.points += other.points;
    }
}

/// All scripts of up to `ops` operations: each one after the other, and, from two on, the last two together.
pub fn scripts(ops: usize) -> Vec<Script> {
    let mut all: Vec<Script> = Vec::new();
    let mut longest: Vec<Vec<Op>> = vec![Vec::new()];
    for length in 1..=ops {
        longest = longest
            .iter()
            .flat_map(|before| {
                Op::ALL.into_iter().map(move |op| before.iter().copied().chain([op]).collect())
            })
            .collect();
        all.extend(longest.iter().map(|ops| Script { ops: ops.clone(), together: false }));
        let pair = |ops: &&Vec<Op>| matches!(ops[..], [.., a, b] if a <= b && a.runs_beside_others() && b.runs_beside_others());
        if length >= 2 {
            all.extend(longest.iter().filter(pair).map(|ops| Script { ops: ops.clone(), together: true }));
        }
    }
    all
}

/// Damages every block of metadata that a killed process has left, one after the other, and looks at each copy.
pub fn rot(seed: u64, system: Arc<dyn System>) -> (Tally, Option<Failure>) {
    let world = World::new(seed);
    let drill = Drill::new(&world, script::options(seed), Forest::new(), SimTails::new(&world), system);
    let work = async {
        let disk = script::age(&drill).await?;
        drill.probe_all(&disk, &mut world.prng()).await
    };
    let failure = guarded(&world, work);
    let points = drill.summary.lock().probes;
    (Tally { points, ..Tally::default() }, failure)
}

/// Runs one script and looks at every crash point of its last operation.
pub fn enumerate(script: &Script, closeness: Closeness, system: Arc<dyn System>) -> (Tally, Option<Failure>) {
    let mut tally = Tally { scripts: 1, ..Tally::default() };
    let recorder = match script::play(script, closeness, system) {
        Ok(recorder) => recorder,
        Err(failure) => return (tally, Some(failure)),
    };
    tally.boundaries = recorder.boundaries();
    for point in recorder.points() {
        tally.points += 1;
        if let Some(mut failure) = recorder.verify(&point) {
            failure.message = format!("{script}, {}: {}", point.what(), failure.message);
            return (tally, Some(failure));
        }
    }
    (tally, None)
}
