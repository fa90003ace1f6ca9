//! The tables of docs/benchmarks.md, and the sentences that follow from them alone.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::results::{Cell, Measured, Results};
use super::rows::Part;

const BEGIN: &str = "<!-- written by cargo xtask bench: begin -->";
const END: &str = "<!-- written by cargo xtask bench: end -->";

/// A load before the run that shows in its numbers.
const BUSY: f64 = 0.7;

const RAW: &str = "raw";
const OURS: &str = "parallax";
/// Requests of about 64 KiB and more are shown as throughput: fio rounds.
const LARGE: f64 = 65_000.0;

/// Replaces what lies between the markers of a document.
pub(super) fn write(document: &Path, results: &Results) -> Result<()> {
    let text = fs::read_to_string(document).with_context(|| format!("reading {}", document.display()))?;
    let text = between(&text, &markdown(results))
        .with_context(|| format!("{} has lost its markers", document.display()))?;
    fs::write(document, text).with_context(|| format!("writing {}", document.display()))
}

fn between(text: &str, tables: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", tables.trim()))
}

/// Everything that was measured.
pub(super) fn markdown(results: &Results) -> String {
    let mut parts = vec![circumstances(results)];
    let part = |part: Part| results.rows.iter().filter(move |row| row.part == part).collect::<Vec<_>>();
    let sections = [
        (Part::Plain, "### Reads and writes over NBD".to_owned()),
        (Part::Special, "### Flushes, and writes after a snapshot".to_owned()),
        (
            Part::Many,
            format!("### With {} snapshots in the volume's past", thousands(f64::from(results.many))),
        ),
    ];
    for (which, title) in sections {
        let rows = part(which);
        if !rows.is_empty() {
            parts.push(format!("{title}\n\n{}", shares(results, &rows)));
        }
    }
    if !part(Part::Plain).is_empty() {
        parts.push(notes());
        parts.push(behind(results));
    }
    if let Some(store) = &results.store {
        parts.push(loads(store));
    }
    parts.extend(times(results));
    if !results.idle.is_empty() {
        parts.push(idle(results));
    }
    parts.join("\n\n")
}

fn circumstances(results: &Results) -> String {
    let machine = &results.machine;
    let busy = results.load_before > BUSY;
    let mut text = format!(
        "{}{}Measured {} on {} cores ({}), {} GiB, {}, kernel {}, images of {} MiB on {}. Load before: {:.2}. {} turns \
         of {} s each; the run took {:.0} min.\n\nCommand: `cargo xtask bench{}`\n",
        if results.quick { "**A quick run: these numbers show that it works, nothing else.** " } else { "" },
        if busy {
            "**The machine had other work: shares are rough, and times are those of a busy disk.** "
        } else {
            ""
        },
        machine.date,
        machine.cores,
        machine.processor,
        machine.memory_gib,
        machine.system,
        machine.kernel,
        results.image_bytes >> 20,
        machine.disk,
        results.load_before,
        results.turns,
        results.turn_seconds,
        (results.seconds / 60.0).ceil(),
        if results.quick { " --quick" } else { "" },
    );
    if !results.subjects.is_empty() {
        text += "\n| subject | version and settings |\n|---|---|\n";
        for subject in &results.subjects {
            line(&mut text, &[subject.title.to_owned(), subject.how.clone()]);
        }
    }
    text.trim_end().to_owned()
}

/// Shares of the raw file, with the lowest and highest turn.
fn shares(results: &Results, rows: &[&Measured]) -> String {
    // A subject that none of these rows measured has no column here.
    let subjects: Vec<_> = results
        .subjects
        .iter()
        .filter(|subject| rows.iter().any(|row| row.cells.contains_key(subject.name)))
        .collect();
    let mut text = String::new();
    let mut head = vec!["row".to_owned()];
    head.extend(subjects.iter().map(|subject| subject.title.to_owned()));
    line(&mut text, &head);
    text += &format!("|---|{}\n", "---:|".repeat(subjects.len()));
    for row in rows {
        let mut cells = vec![row.title.to_owned()];
        for subject in &subjects {
            cells.push(match row.cells.get(subject.name) {
                None => "–".into(),
                Some(cell) if subject.name == RAW => rate(cell.iops, cell.bytes_per_second),
                Some(cell) => share(cell),
            });
        }
        line(&mut text, &cells);
    }
    text.trim_end().to_owned()
}

fn share(cell: &Cell) -> String {
    let ratio = &cell.ratio;
    format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.lowest, ratio.highest)
}

fn rate(iops: f64, bytes_per_second: f64) -> String {
    if bytes_per_second / iops >= LARGE {
        format!("{} MiB/s", thousands(bytes_per_second / 1_048_576.0))
    } else {
        format!("{} IOPS", thousands(iops))
    }
}

fn notes() -> String {
    "¹ nbdkit has no direct I/O: its writes land in memory first. Every run of writes ends with a flush that counts \
     into its time, but what a disk does with small writes that were merged in memory is not what it does with each \
     of them alone.\n\n² The last overlay is new for each turn, so its writes are those after a snapshot: compare \
     them with Parallax's row after a snapshot, its reads with the plain rows."
        .to_owned()
}

/// Where a peer is ahead, and what became of the targets.
fn behind(results: &Results) -> String {
    let mut ahead = String::new();
    for row in &results.rows {
        let Some(ours) = row.ratio(OURS) else { continue };
        let better: Vec<String> = results
            .subjects
            .iter()
            .filter(|subject| subject.name != RAW && subject.name != OURS)
            .filter_map(|subject| Some((subject.title, row.ratio(subject.name).filter(|peer| *peer > ours)?)))
            .map(|(title, peer)| format!("{} {peer:.2}", title.trim_end_matches([' ', '¹', '²'])))
            .collect();
        if !better.is_empty() {
            // Writing to a string cannot fail.
            writeln!(ahead, "- {}: Parallax {ours:.2}, {}", row.title, better.join(", ")).ok();
        }
    }
    let ahead = if ahead.is_empty() { "- nowhere in this run".into() } else { ahead.trim_end().to_owned() };
    let mut targets = String::new();
    for name in ["read-4k-q32", "write-4k-q32"] {
        if let Some((row, ours)) = find(results, name).and_then(|row| Some((row, row.ratio(OURS)?))) {
            let met = if ours >= 0.85 { "reached" } else { "missed" };
            writeln!(targets, "- {}, at least 0.85 of the raw file: {met}, {ours:.2}", row.title).ok();
        }
    }
    for (name, before) in [("many-read", "read-4k-q32"), ("many-write", "write-4k-q32")] {
        let both = find(results, name).and_then(|row| row.ratio(OURS));
        let both = both.zip(find(results, before).and_then(|row| row.ratio(OURS)));
        if let Some((row, (after, before))) = find(results, name).zip(both) {
            let change = (after / before - 1.0) * 100.0;
            let met = if change >= -5.0 { "reached" } else { "missed" };
            let many = thousands(f64::from(results.many));
            writeln!(
                targets,
                "- {}, at most 5 % less after {many} snapshots: {met}, {change:+.0} %",
                row.title
            )
            .ok();
        }
    }
    format!("### Where a peer is ahead\n\n{ahead}\n\n### Targets\n\n{}", targets.trim_end())
}

fn find<'a>(results: &'a Results, name: &str) -> Option<&'a Measured> {
    results.rows.iter().find(|row| row.name == name)
}

/// The store's own loads.
fn loads(store: &Value) -> String {
    let mut text = String::from(
        "### The store without NBD\n\nIn one process, against the bare file by the same io_uring reactor.\n\n\
         | load | bare file | store | share |\n|---|---:|---:|---:|\n",
    );
    for row in array(store, "rows") {
        let number = |key: &str| row.get(key).and_then(Value::as_f64).unwrap_or_default();
        let bytes = number("bytes");
        let ratio =
            format!("{:.2} ({:.2}–{:.2})", number("ratio"), number("ratio_lowest"), number("ratio_highest"));
        let (bare, own) = (number("bare_iops"), number("store_iops"));
        line(&mut text, &[word(row, "load"), rate(bare, bare * bytes), rate(own, own * bytes), ratio]);
    }
    text.trim_end().to_owned()
}

/// Times of single operations, and single numbers.
fn times(results: &Results) -> Option<String> {
    let mut text = String::from(
        "### Snapshots, clones, opening\n\n| operation | count | median | p99 | longest |\n|---|---:|---:|---:|---:|\n",
    );
    let mut any = false;
    if let Some(taken) = &results.taken {
        any = true;
        let times = [taken.median_us, taken.p99_us, taken.max_us].map(time);
        let [median, p99, longest] = times;
        let title = "snapshot, durable; through the daemon, under 2,000 writes a second".to_owned();
        line(&mut text, &[title, thousands(taken.count as f64), median, p99, longest]);
    }
    for row in results.store.iter().flat_map(|store| array(store, "latencies")) {
        any = true;
        let number = |key: &str| row.get(key).and_then(Value::as_f64).unwrap_or_default();
        let times = ["median_us", "p99_us", "max_us"].map(|key| time(number(key)));
        let [median, p99, longest] = times;
        line(&mut text, &[word(row, "operation"), thousands(number("count")), median, p99, longest]);
    }
    let figures: Vec<_> = results.store.iter().flat_map(|store| array(store, "figures")).collect();
    if !figures.is_empty() {
        text += "\n| figure | value |\n|---|---:|\n";
    }
    for row in figures {
        let value = row.get("value").and_then(Value::as_f64).unwrap_or_default();
        let unit = word(row, "unit").replace("1/s", "");
        line(&mut text, &[word(row, "title"), format!("{} {unit}", thousands(value)).trim().to_owned()]);
    }
    any.then(|| text.trim_end().to_owned())
}

fn idle(results: &Results) -> String {
    let mut text = String::from(
        "### An idle daemon\n\n| volumes served | own memory | program's pages | CPU | threads |\n\
         |---:|---:|---:|---:|---:|\n",
    );
    for idle in &results.idle {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / 1_048_576.0);
        line(
            &mut text,
            &[
                idle.volumes.to_string(),
                mib(idle.private_bytes),
                mib(idle.file_bytes),
                format!("{:.1} %", idle.cpu_percent),
                idle.threads.to_string(),
            ],
        );
    }
    text.trim_end().to_owned()
}

fn array<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn word(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn line(text: &mut String, cells: &[String]) {
    text.push_str(&format!("| {} |\n", cells.join(" | ")));
}

/// Microseconds, or milliseconds when there are many.
fn time(us: f64) -> String {
    if us < 1000.0 { format!("{us:.0} µs") } else { format!("{:.1} ms", us / 1000.0) }
}

/// `12,345`.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        let left = digits.len() - at;
        if at > 0 && left % 3 == 0 && out != "-" {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_between_the_markers_changes() {
        let text = format!("above\n{BEGIN}\nold\n{END}\nbelow\n");
        let text = between(&text, "new").unwrap();
        assert_eq!(text, format!("above\n{BEGIN}\n\nnew\n\n{END}\nbelow\n"));
        assert!(between("no markers", "new").is_none());
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0.4, 999.0, 1000.0, 1_234_567.0].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn requests_of_64_kib_are_shown_as_throughput() {
        assert_eq!(rate(16.0, 1_048_576.0), "1 MiB/s");
        assert_eq!(rate(1000.0, 4_096_000.0), "1,000 IOPS");
    }
}
