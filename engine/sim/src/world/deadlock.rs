//! The report of a world that can never go on.

use std::{fmt, time::Duration};

/// Nothing is ready, no timer runs, and yet somebody waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadlock {
    /// Seed of the world.
    pub seed: u64,
    /// When.
    pub now: Duration,
    /// Tasks that wait, with their process.
    pub tasks: Vec<String>,
    /// Requests that a test holds back.
    pub held: Vec<String>,
}

impl fmt::Display for Deadlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "deadlock at {:?} with seed {}: nothing can happen any more", self.now, self.seed)?;
        for task in &self.tasks {
            write!(f, "\n  waiting: {task}")?;
        }
        for request in &self.held {
            write!(f, "\n  held back: {request}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Deadlock {}
