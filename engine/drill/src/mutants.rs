//! Drills the store with one of its own bugs switched on, until somebody notices.

use crate::{
    Failure,
    enumerate::{Closeness, Op, Script, enumerate, rot, scripts},
    plan::{Feature, Plan},
    run_plan,
    store::Store,
};
pub use parallax_store::mutants::{Mutant, set};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Bugs that only writes show which fail and land late.
const LATE: [Mutant; 2] = [Mutant::LateBlocksReused, Mutant::LateRootForgotten];

/// How far to go for one mutant.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Seeds at most.
    pub seeds: u64,
    /// Requests to volumes in each, about.
    pub ops: u64,
    /// Begin nothing new after this.
    pub time: Duration,
}

/// What came of hunting one mutant.
#[derive(Debug, Clone)]
pub struct Catch {
    /// Which.
    pub mutant: Mutant,
    /// Who noticed: the arguments to see it again, and the failure. `None`: nobody.
    pub found: Option<(String, Failure)>,
    /// Runs that were made.
    pub runs: u64,
    /// How often the store came past the bug.
    pub met: u64,
    /// Time that it took.
    pub took: Duration,
}

/// Hunts `mutant`: by seeds, and every few seeds by the crash points of a small workload.
pub fn hunt(mutant: Mutant, budget: Budget) -> Catch {
    /// Seeds between two workloads.
    const SEEDS_EACH: u64 = 4;
    let begun = Instant::now();
    let mut catch = Catch { mutant, found: None, runs: 0, met: 0, took: Duration::ZERO };
    let scripts = scripts(2);
    for seed in 0..budget.seeds {
        if catch.found.is_some() || begun.elapsed() > budget.time {
            break;
        }
        let plan = match seed % 4 {
            _ if LATE.contains(&mutant) => haunted(seed, budget.ops),
            3 => forgetful(seed, budget.ops),
            turn => Plan { tight: turn == 1, slow: turn == 2, ..Plan::new(seed, budget.ops) },
        };
        catch.attempt(plan.arguments(), || run_plan(&plan, Arc::new(Store)).failure);
        if catch.found.is_none() && seed % (SEEDS_EACH * 10) == 0 {
            catch.attempt(format!("enumerate --rot --seed {seed}"), || rot(seed, Arc::new(Store)).1);
        }
        if catch.found.is_none() && seed % SEEDS_EACH == 2 {
            let script = Script { ops: vec![Op::FlushFails, Op::Flush], together: false };
            let closeness = Closeness { images_max: 4, seed };
            let arguments = format!("enumerate --seed {seed} {script}");
            catch.attempt(arguments, || enumerate(&script, closeness, Arc::new(Store)).1);
        }
        if catch.found.is_none() && seed % SEEDS_EACH == 0 {
            // All of one operation first, then others from all over the list.
            let turn = (seed / SEEDS_EACH) as usize;
            let script = &scripts[if turn < 20 { turn } else { turn * 131 % scripts.len() }];
            let closeness = Closeness { images_max: 4, seed };
            let arguments = format!("enumerate --seed {seed} {script}");
            catch.attempt(arguments, || enumerate(script, closeness, Arc::new(Store)).1);
        }
    }
    catch.took = begun.elapsed();
    catch
}

/// One volume whose failed flushes lose what they were to write.
fn forgetful(seed: u64, ops: u64) -> Plan {
    let without = [Feature::Snapshots, Feature::Clones, Feature::Deletions, Feature::Growth, Feature::Probes];
    let without = without.into_iter().chain([Feature::Collections, Feature::DeathsWhileOpening]).collect();
    Plan { forgetful: true, volumes: Some(1), without, ..Plan::new(seed, ops) }
}

/// Longer than others: a late write harms what has been used again since.
fn haunted(seed: u64, ops: u64) -> Plan {
    Plan { haunted: true, ..Plan::new(seed, ops * 5 / 2) }
}

impl Catch {
    fn attempt(&mut self, arguments: String, run: impl Fn() -> Option<Failure>) {
        set(Some(self.mutant));
        let failure = run();
        self.met += set(None);
        self.runs += 1;
        // A run that fails by itself has not found the mutant.
        self.found = failure.filter(|_| run().is_none()).map(|failure| (arguments, failure));
    }
}
