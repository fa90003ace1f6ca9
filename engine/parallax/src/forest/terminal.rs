//! A forest as text.
//!
//! ```text
//! db  10 GiB  attached
//! ├─● @1  2026-11-20 18:20  before upgrade
//! │  └─ db-test  10 GiB
//! │     └─● @1  2026-11-20 19:10  seeded
//! └─● @2  2026-11-20 19:00  after upgrade
//! ```

use super::{Forest, Lane};
use crate::{output::size, time};

/// The text; empty for an empty forest.
pub(crate) fn draw(forest: &Forest) -> String {
    let mut text = String::new();
    for (number, lane) in forest.lanes.iter().enumerate() {
        if lane.origin.is_none() {
            text.push_str(&title(lane));
            text.push('\n');
            below(forest, number, "", &mut text);
        }
    }
    text
}

/// Everything that hangs below the title of a lane.
fn below(forest: &Forest, number: usize, indent: &str, text: &mut String) {
    enum Entry {
        Snapshot(usize),
        Branch(usize),
    }
    let lane = &forest.lanes[number];
    let mut branches = forest.branches(number);
    let mut entries: Vec<Entry> = (0..lane.snapshots.len()).map(Entry::Snapshot).collect();
    entries.extend(branches.remove(&None).unwrap_or_default().into_iter().map(Entry::Branch));
    let count = entries.len();
    for (place, entry) in entries.into_iter().enumerate() {
        let (joint, rail) = if place + 1 == count { ("└─", "   ") } else { ("├─", "│  ") };
        match entry {
            Entry::Snapshot(snapshot) => {
                let found = &lane.snapshots[snapshot];
                let when = time::plain(found.created_at_ms);
                let mut line =
                    format!("{indent}{joint}● @{}  {}  {}", found.number, &when[..16], found.label);
                line.truncate(line.trim_end().len());
                text.push_str(&line);
                text.push('\n');
                let clones = branches.remove(&Some(snapshot)).unwrap_or_default();
                let last = clones.len();
                for (place, clone) in clones.into_iter().enumerate() {
                    let (joint, inner) =
                        if place + 1 == last { ("└─", "   ") } else { ("├─", "│  ") };
                    branch(forest, clone, &format!("{indent}{rail}"), joint, inner, text);
                }
            }
            Entry::Branch(clone) => branch(forest, clone, indent, joint, rail, text),
        }
    }
}

fn branch(forest: &Forest, number: usize, indent: &str, joint: &str, rail: &str, text: &mut String) {
    text.push_str(&format!("{indent}{joint} {}\n", title(&forest.lanes[number])));
    below(forest, number, &format!("{indent}{rail}"), text);
}

fn title(lane: &Lane) -> String {
    let mut line =
        format!("{}  {}  {}", lane.volume.shown(), size(lane.volume.size_bytes), lane.volume.state());
    line.truncate(line.trim_end().len());
    line
}
