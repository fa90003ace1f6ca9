//! What was measured: the JSON file has exactly this.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::Plan;
use super::fio::Sample;
use super::idle::Idle;
use super::machine::{self, Machine};
use super::peers::Taken;
use super::rows::Part;

/// A whole run.
#[derive(Serialize)]
pub(super) struct Results {
    pub(super) quick: bool,
    pub(super) machine: Machine,
    /// Load of the machine before the run, over one minute. Above one the numbers are worth little.
    pub(super) load_before: f64,
    pub(super) seconds: f64,
    pub(super) image_bytes: u64,
    pub(super) turn_seconds: f64,
    pub(super) turns: u32,
    pub(super) many: u32,
    pub(super) subjects: Vec<SubjectFacts>,
    pub(super) rows: Vec<Measured>,
    /// Snapshots that were taken through the daemon while something wrote.
    pub(super) taken: Option<Taken>,
    /// The report of `parallax bench`.
    pub(super) store: Option<Value>,
    pub(super) idle: Vec<Idle>,
}

/// Who was measured, and how it was set.
#[derive(Serialize)]
pub(super) struct SubjectFacts {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) how: String,
}

/// A row.
#[derive(Serialize)]
pub(super) struct Measured {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    #[serde(skip)]
    pub(super) part: Part,
    pub(super) cells: BTreeMap<&'static str, Cell>,
}

impl Measured {
    /// The share of the raw file that a subject reached.
    pub(super) fn ratio(&self, subject: &str) -> Option<f64> {
        self.cells.get(subject).map(|cell| cell.ratio.median)
    }
}

/// One subject in one row.
#[derive(Serialize)]
pub(super) struct Cell {
    pub(super) iops: f64,
    pub(super) bytes_per_second: f64,
    /// Against the raw file in the same turn.
    pub(super) ratio: Spread,
    pub(super) samples: Vec<Sample>,
}

/// A median with the ends of what it is the median of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) lowest: f64,
    pub(super) highest: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut all: Vec<f64> = values.collect();
        all.sort_unstable_by(f64::total_cmp);
        let at = |place: usize| all.get(place).copied().unwrap_or_default();
        let half = all.len() / 2;
        let median =
            if all.len() % 2 == 1 { at(half) } else { (at(half.saturating_sub(1)) + at(half)) / 2.0 };
        Self { median, lowest: at(0), highest: at(all.len().saturating_sub(1)) }
    }
}

impl Cell {
    /// `own` and `raw` hold one sample for each turn.
    pub(super) fn of(own: &[Sample], raw: &[Sample]) -> Self {
        Self {
            iops: Spread::of(own.iter().map(|sample| sample.iops)).median,
            bytes_per_second: Spread::of(own.iter().map(|sample| sample.bytes_per_second)).median,
            ratio: Spread::of(own.iter().zip(raw).map(|(own, raw)| own.iops / raw.iops)),
            samples: own.to_vec(),
        }
    }
}

impl Results {
    pub(super) fn begin(plan: Plan, quick: bool, folder: &Path) -> Result<Self> {
        Ok(Self {
            quick,
            machine: Machine::look(folder)?,
            load_before: machine::load()?,
            seconds: 0.0,
            image_bytes: plan.image_bytes,
            turn_seconds: plan.turn.as_secs_f64(),
            turns: plan.turns,
            many: plan.many,
            subjects: Vec::new(),
            rows: Vec::new(),
            taken: None,
            store: None,
            idle: Vec::new(),
        })
    }

    pub(super) fn end(&mut self, took: Duration) {
        self.seconds = took.as_secs_f64();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(iops: f64) -> Sample {
        Sample { iops, bytes_per_second: iops * 4096.0, mean_us: 1.0, p99_us: 2.0 }
    }

    #[test]
    fn a_ratio_compares_samples_of_the_same_turn() {
        let raw = [100.0, 10.0, 50.0].map(sample);
        let own = [50.0, 9.0, 30.0].map(sample);
        let cell = Cell::of(&own, &raw);
        assert_eq!(cell.ratio, Spread { median: 0.6, lowest: 0.5, highest: 0.9 });
        assert_eq!(cell.iops, 30.0);
    }

    #[test]
    fn the_median_of_two_lies_between_them_and_of_none_is_nothing() {
        assert_eq!(Spread::of([1.0, 2.0].into_iter()).median, 1.5);
        assert_eq!(Spread::of([].into_iter()), Spread { median: 0.0, lowest: 0.0, highest: 0.0 });
    }
}
