//! What was measured, as a table or as JSON.

use super::load::Sample;
use crate::output::table;
use serde::Serialize;
use std::time::Duration;

/// Everything.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Loads on both.
    pub(super) rows: Vec<Row>,
    /// Times of single operations.
    pub(super) latencies: Vec<Latencies>,
    /// The rest.
    pub(super) figures: Vec<Figure>,
}

/// One load: medians over the turns that bare file and store took.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    load: String,
    bare_iops: f64,
    store_iops: f64,
    /// Bytes of a request.
    bytes: f64,
    /// Store by bare file, turn by turn.
    ratio: f64,
    ratio_lowest: f64,
    ratio_highest: f64,
}

impl Row {
    /// `turns` holds what the bare file and the store gave, at least once.
    pub(super) fn new(load: &str, turns: &[(Sample, Sample)]) -> Self {
        let sorted = |number: fn(&(Sample, Sample)) -> f64| {
            let mut all: Vec<f64> = turns.iter().map(number).collect();
            all.sort_unstable_by(f64::total_cmp);
            all
        };
        let ratios = sorted(|(bare, store)| store.iops / bare.iops);
        Self {
            load: load.to_owned(),
            bare_iops: middle(&sorted(|(bare, _)| bare.iops)),
            store_iops: middle(&sorted(|(_, store)| store.iops)),
            bytes: turns.first().map_or(0.0, |(bare, _)| bare.bandwidth / bare.iops),
            ratio: middle(&ratios),
            ratio_lowest: ratios.first().copied().unwrap_or_default(),
            ratio_highest: ratios.last().copied().unwrap_or_default(),
        }
    }
}

/// Median of what is sorted.
fn middle(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => (sorted[even / 2 - 1] + sorted[even / 2]) / 2.0,
    }
}

/// A single number.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    name: String,
    title: String,
    unit: String,
    value: f64,
}

/// Times of one kind of operation, in microseconds.
#[derive(Debug, Serialize)]
pub(super) struct Latencies {
    name: String,
    operation: String,
    pub(super) count: usize,
    pub(super) median_us: f64,
    pub(super) p99_us: f64,
    pub(super) max_us: f64,
}

impl Latencies {
    pub(super) fn new(name: &str, operation: &str, mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |share: f64| {
            let place = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len().max(1)) - 1;
            times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        Self {
            name: name.to_owned(),
            operation: operation.to_owned(),
            count: times.len(),
            median_us: at(0.5),
            p99_us: at(0.99),
            max_us: at(1.0),
        }
    }
}

impl Report {
    /// Adds a single number.
    pub(super) fn figure(&mut self, name: &str, title: &str, unit: &str, value: f64) {
        self.figures.push(Figure { name: name.into(), title: title.into(), unit: unit.into(), value });
    }

    pub(super) fn text(&self) -> String {
        let rate = |iops: f64, bytes: f64| {
            if bytes >= 65_536.0 {
                format!("{:.0} MiB/s", iops * bytes / 1_048_576.0)
            } else {
                format!("{iops:.0} IOPS")
            }
        };
        let rows = self.rows.iter().map(|row| {
            vec![
                row.load.clone(),
                rate(row.bare_iops, row.bytes),
                rate(row.store_iops, row.bytes),
                format!("{:.2}", row.ratio),
                format!("{:.2} to {:.2}", row.ratio_lowest, row.ratio_highest),
            ]
        });
        let loads = table(&["load", "bare file>", "store>", "ratio>", "spread>"], rows);
        let times = table(
            &["operation", "count>", "median us>", "p99 us>", "max us>"],
            self.latencies.iter().map(|times| {
                vec![
                    times.operation.clone(),
                    times.count.to_string(),
                    format!("{:.0}", times.median_us),
                    format!("{:.0}", times.p99_us),
                    format!("{:.0}", times.max_us),
                ]
            }),
        );
        let figures: String = self
            .figures
            .iter()
            .map(|one| format!("{}: {:.0} {}\n", one.title, one.value, one.unit))
            .collect();
        format!("{loads}\n{times}\n{figures}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let times = (1..=100).rev().map(Duration::from_micros).collect();
        let latencies = Latencies::new("x", "x", times);
        assert_eq!(
            (latencies.median_us.round(), latencies.p99_us.round(), latencies.max_us.round()),
            (50.0, 99.0, 100.0)
        );
        assert_eq!(Latencies::new("nothing", "", vec![]).max_us, 0.0);
    }

    #[test]
    fn the_ratio_is_the_median_of_the_turns_and_not_that_of_the_sums() {
        let sample = |iops| Sample { iops, bandwidth: iops * 4096.0 };
        let turns = [(100.0, 50.0), (10.0, 9.0), (100.0, 60.0)].map(|(a, b)| (sample(a), sample(b)));
        let row = Row::new("x", &turns);
        assert_eq!((row.ratio, row.ratio_lowest, row.ratio_highest, row.bytes), (0.6, 0.5, 0.9, 4096.0));
    }
}
