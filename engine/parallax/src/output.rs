//! Text for people, JSON for programs.
//!
//! Invariants:
//! * Results go to standard output, everything else to standard error.
//! * Fields of JSON are never renamed or removed: sizes are bytes, times are both milliseconds and text.

use crate::{failure::Outcome, time};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parallax_api::{units::ByteSize, v1};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    time::Duration,
};

/// How results are shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// JSON instead of text.
    pub(crate) json: bool,
}

impl Output {
    /// Shows a result one way or the other.
    pub(crate) fn show<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Outcome {
        let text = if self.json { serde_json::to_string_pretty(value)? } else { text(value) };
        let mut out = std::io::stdout().lock();
        match writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush()) {
            // Whoever read has read enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    /// A bar of bytes on the terminal; invisible when nobody watches or a program reads.
    pub(crate) fn bytes_bar(self, total: u64) -> ProgressBar {
        let bar = self.bar(total);
        bar.set_style(style(
            "{msg:10} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        ));
        bar
    }

    /// A bar of steps.
    pub(crate) fn steps_bar(self) -> ProgressBar {
        let bar = self.bar(0);
        bar.set_style(style("{msg:10} {wide_bar} {pos}/{len} {elapsed}"));
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    fn bar(self, total: u64) -> ProgressBar {
        let visible = !self.json && std::io::stderr().is_terminal();
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        ProgressBar::with_draw_target(Some(total), target)
    }
}

fn style(template: &str) -> ProgressStyle {
    // A template that does not parse would show a plain bar, which is no reason to stop.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
}

/// A table; columns whose title ends in `>` are numbers and end at the right.
pub(crate) fn table(titles: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(titles.iter().map(|title| title.trim_end_matches('>').to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    for (number, title) in titles.iter().enumerate() {
        if let Some(column) = table.column_mut(number) {
            column.set_padding((0, 2));
            if title.ends_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Titles and values below each other.
pub(crate) fn facts(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(title, _)| title.len()).max().unwrap_or(0);
    rows.iter().map(|(title, value)| format!("{title:width$}  {value}\n")).collect()
}

/// A volume.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct VolumeView {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) logical_block_bytes: u32,
    pub(crate) created_at: String,
    pub(crate) created_at_ms: i64,
    pub(crate) source_snapshot: Option<String>,
    pub(crate) source_volume: Option<String>,
    pub(crate) filesystem: &'static str,
    pub(crate) attached: bool,
    pub(crate) deleted: bool,
    pub(crate) fault: Option<String>,
    pub(crate) snapshots: u64,
    pub(crate) published_to: Vec<String>,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) usage: Option<UsageView>,
}

/// Space of a volume.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct UsageView {
    pub(crate) mapped_bytes: u64,
    pub(crate) shared_bytes: u64,
    pub(crate) metadata_bytes: u64,
}

impl From<v1::Volume> for VolumeView {
    fn from(volume: v1::Volume) -> Self {
        let filesystem = filesystem(volume.filesystem_state());
        Self {
            id: volume.id,
            name: volume.name,
            size_bytes: volume.size_bytes,
            logical_block_bytes: volume.logical_block_bytes,
            created_at: time::iso(volume.created_at_ms),
            created_at_ms: volume.created_at_ms,
            source_snapshot: some(volume.source_snapshot_id),
            source_volume: some(volume.source_volume_id),
            filesystem,
            attached: volume.attached,
            deleted: volume.headless,
            fault: some(volume.fault),
            snapshots: volume.snapshot_count,
            published_to: volume.publications.into_iter().map(|publication| publication.node).collect(),
            attributes: volume.attributes.into_iter().collect(),
            usage: volume.usage.map(|usage| UsageView {
                mapped_bytes: usage.mapped_bytes,
                shared_bytes: usage.shared_bytes,
                metadata_bytes: usage.metadata_bytes,
            }),
        }
    }
}

impl VolumeView {
    /// What people call it; a deleted one has no name any more.
    pub(crate) fn shown(&self) -> String {
        if self.deleted {
            format!("({})", self.id.chars().take(8).collect::<String>())
        } else {
            self.name.clone()
        }
    }

    /// What is worth knowing about it now, in a few words.
    pub(crate) fn state(&self) -> String {
        let mut words: Vec<String> = Vec::new();
        if self.fault.is_some() {
            words.push("FAILED".into());
        }
        if self.deleted {
            words.push("deleted".into());
        }
        if self.attached {
            words.push("attached".into());
        }
        if !self.published_to.is_empty() {
            words.push(format!("published to {}", self.published_to.join(", ")));
        }
        words.join(", ")
    }
}

/// A snapshot.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SnapshotView {
    pub(crate) id: String,
    pub(crate) volume: String,
    pub(crate) volume_id: String,
    pub(crate) number: u64,
    pub(crate) name: Option<String>,
    pub(crate) label: String,
    pub(crate) created_at: String,
    pub(crate) created_at_ms: i64,
    pub(crate) size_bytes: u64,
    pub(crate) ready: bool,
    pub(crate) filesystem: &'static str,
    pub(crate) set: Option<String>,
    pub(crate) exclusive_bytes: u64,
}

impl From<v1::Snapshot> for SnapshotView {
    fn from(snapshot: v1::Snapshot) -> Self {
        let filesystem = filesystem(snapshot.filesystem_state());
        let number = snapshot.id.rsplit_once('@').and_then(|(_, number)| number.parse().ok()).unwrap_or(0);
        Self {
            id: snapshot.id,
            volume: snapshot.volume_name,
            volume_id: snapshot.volume_id,
            number,
            name: some(snapshot.name),
            label: snapshot.label,
            created_at: time::iso(snapshot.created_at_ms),
            created_at_ms: snapshot.created_at_ms,
            size_bytes: snapshot.size_bytes,
            ready: snapshot.ready,
            filesystem,
            set: some(snapshot.set_id),
            exclusive_bytes: snapshot.exclusive_bytes,
        }
    }
}

impl SnapshotView {
    /// How a person writes it.
    pub(crate) fn short(&self) -> String {
        format!("{}@{}", if self.volume.is_empty() { &self.volume_id } else { &self.volume }, self.number)
    }
}

fn filesystem(state: v1::FilesystemState) -> &'static str {
    match state {
        v1::FilesystemState::Unspecified => "unknown",
        v1::FilesystemState::Blank => "blank",
        v1::FilesystemState::Formatting => "formatting",
        v1::FilesystemState::Formatted => "formatted",
    }
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// A size for the eye.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_end_at_the_right_and_lines_have_no_tail() {
        let rows =
            [vec!["a".into(), "10 GiB".into(), String::new()], vec!["bb".into(), "1 B".into(), "x".into()]];
        let text = table(&["name", "size>", "state"], rows);
        assert_eq!(text, "NAME    SIZE  STATE\na     10 GiB\nbb       1 B  x\n");
    }

    #[test]
    fn facts_are_aligned() {
        assert_eq!(facts(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2\n");
    }
}
