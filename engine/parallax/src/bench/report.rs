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
    pub(super) figures: Vec<(String, f64)>,
}

/// One load.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    load: String,
    bare_iops: f64,
    bare_bytes_per_second: f64,
    store_iops: Option<f64>,
    store_bytes_per_second: Option<f64>,
    ratio: Option<f64>,
}

impl Row {
    pub(super) fn new(load: &str, bare: Sample, store: Option<Sample>) -> Self {
        Self {
            load: load.to_owned(),
            bare_iops: bare.iops,
            bare_bytes_per_second: bare.bandwidth,
            store_iops: store.map(|store| store.iops),
            store_bytes_per_second: store.map(|store| store.bandwidth),
            ratio: store.map(|store| store.iops / bare.iops),
        }
    }
}

/// Times of one kind of operation, in microseconds.
#[derive(Debug, Serialize)]
pub(super) struct Latencies {
    operation: String,
    count: usize,
    median_us: f64,
    p99_us: f64,
    max_us: f64,
}

impl Latencies {
    pub(super) fn new(operation: &str, mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |share: f64| {
            let place = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len().max(1)) - 1;
            times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        Self {
            operation: operation.to_owned(),
            count: times.len(),
            median_us: at(0.5),
            p99_us: at(0.99),
            max_us: at(1.0),
        }
    }
}

impl Report {
    pub(super) fn text(&self) -> String {
        let rate = |iops: f64, bandwidth: f64| {
            if bandwidth / iops >= 65_536.0 {
                format!("{:.0} MiB/s", bandwidth / 1_048_576.0)
            } else {
                format!("{iops:.0} IOPS")
            }
        };
        let rows = self.rows.iter().map(|row| {
            vec![
                row.load.clone(),
                rate(row.bare_iops, row.bare_bytes_per_second),
                row.store_iops
                    .zip(row.store_bytes_per_second)
                    .map_or("-".into(), |(iops, bytes)| rate(iops, bytes)),
                row.ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")),
            ]
        });
        let loads = table(&["load", "bare file>", "store>", "ratio>"], rows);
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
        let figures: String =
            self.figures.iter().map(|(name, value)| format!("{name}: {value:.0}\n")).collect();
        format!("{loads}\n{times}\n{figures}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let times = (1..=100).rev().map(Duration::from_micros).collect();
        let latencies = Latencies::new("x", times);
        assert_eq!(
            (latencies.median_us.round(), latencies.p99_us.round(), latencies.max_us.round()),
            (50.0, 99.0, 100.0)
        );
        assert_eq!(Latencies::new("nothing", vec![]).max_us, 0.0);
    }
}
