//! Drills the store with one of its own bugs switched on, until somebody notices.

use crate::{Failure, options::Plan, run_plan, store::Store};
pub use parallax_store::mutants::Mutant;
use parallax_store::mutants::set;
use std::{sync::Arc, time::Duration, time::Instant};

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
    /// Who noticed: a command line, and the failure. `None`: nobody.
    pub found: Option<(String, Failure)>,
    /// Seeds that were run.
    pub seeds: u64,
    /// How often the store came past the bug.
    pub met: u64,
    /// Time that it took.
    pub took: Duration,
}

/// Hunts `mutant`: seeds first, then crash points of small workloads.
pub fn hunt(mutant: Mutant, budget: Budget) -> Catch {
    let begun = Instant::now();
    let mut catch = Catch { mutant, found: None, seeds: 0, met: 0, took: Duration::ZERO };
    for seed in 0..budget.seeds {
        if begun.elapsed() > budget.time {
            break;
        }
        let plan = Plan::new(seed, budget.ops);
        set(Some(mutant));
        let report = run_plan(&plan, Arc::new(Store));
        catch.met += set(None);
        catch.seeds += 1;
        let Some(failure) = report.failure else { continue };
        // A seed that fails by itself has not found the mutant.
        if run_plan(&plan, Arc::new(Store)).failure.is_none() {
            catch.found = Some((plan.arguments(), failure));
            break;
        }
    }
    catch.took = begun.elapsed();
    catch
}
