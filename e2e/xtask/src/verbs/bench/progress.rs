//! One line that tells what is measured now and about how long the rest takes.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use super::{Plan, Selection};
use parallax_e2e::say;

/// Subjects of an average row.
const SUBJECTS: u64 = 5;
/// What starting fio and a server adds to a turn.
const AROUND: Duration = Duration::from_millis(700);
/// Making the images.
const SET_UP: Duration = Duration::from_secs(60);
/// Everything of the store, and the idle daemon, beside their turns.
const STORE: Duration = Duration::from_secs(120);
const IDLE: Duration = Duration::from_secs(40);

/// Time that is left is what was expected minus what has passed; it is never shown below zero.
pub(super) struct Progress {
    begun: Instant,
    expected: Duration,
    terminal: bool,
    /// What the last line was about, when lines cannot be written over.
    last: String,
}

impl Progress {
    pub(super) fn of(plan: Plan, selected: &Selection) -> Self {
        let rows = selected.rows.len() as u64;
        let turns = u32::try_from(rows * SUBJECTS).unwrap_or(u32::MAX).saturating_mul(plan.turns);
        let mut expected = (plan.turn + AROUND).saturating_mul(turns);
        if rows > 0 {
            expected += SET_UP;
        }
        if selected.store {
            expected += plan.turn * plan.turns * 18 + STORE;
        }
        if selected.idle {
            expected += IDLE;
        }
        Self {
            begun: Instant::now(),
            expected,
            terminal: std::io::stderr().is_terminal(),
            last: String::new(),
        }
    }

    /// A turn of a row.
    pub(super) fn turn(&mut self, title: &str, subject: &str, turn: u32, turns: u32) {
        if self.terminal {
            self.line(&format!("{title} · {subject} · {}/{turns}", turn + 1));
        } else {
            self.says(title);
        }
    }

    /// A step without turns.
    pub(super) fn says(&mut self, what: &str) {
        if self.terminal {
            self.line(what);
        } else if self.last != what {
            self.last = what.to_owned();
            let passed = self.begun.elapsed().as_secs();
            eprintln!("[{:>2}:{:02}, {}] {what}", passed / 60, passed % 60, self.left());
        }
    }

    /// Ends the line.
    pub(super) fn end(&mut self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
        eprintln!("measured in {}", say::seconds(self.begun.elapsed()));
    }

    fn left(&self) -> String {
        let left = self.expected.saturating_sub(self.begun.elapsed()).as_secs();
        if left >= 90 { format!("about {} min left", left.div_ceil(60)) } else { "soon done".into() }
    }

    fn line(&mut self, what: &str) {
        let passed = self.begun.elapsed().as_secs();
        let mut out = std::io::stderr().lock();
        // A progress line that cannot be written is no reason to stop measuring.
        write!(out, "\r\x1b[K[{:>2}:{:02}, {}] {what}", passed / 60, passed % 60, self.left())
            .and_then(|()| out.flush())
            .ok();
    }
}
