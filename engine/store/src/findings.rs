//! What a check or a scrub has found, and how much more there was than is listed.

use crate::{Finding, Severity};

/// Findings that are listed; more are counted.
const LISTED_MAX: usize = 1000;

#[derive(Default)]
pub(crate) struct Findings {
    listed: Vec<Finding>,
    left_out: u64,
}

impl Findings {
    pub(crate) fn add(&mut self, finding: Finding) {
        if self.listed.len() < LISTED_MAX {
            self.listed.push(finding);
        } else {
            self.left_out += 1;
        }
    }

    /// Counts something that is not looked into.
    pub(crate) fn leave_out(&mut self) {
        self.left_out += 1;
    }

    pub(crate) fn listed(&self) -> &[Finding] {
        &self.listed
    }

    /// All that is listed, and how much more there was.
    pub(crate) fn told(&self) -> Vec<Finding> {
        let mut told = self.listed.clone();
        if self.left_out > 0 {
            let detail = format!("{} findings more are not listed", self.left_out);
            told.push(finding(Severity::Damage, "more", detail, &[]));
        }
        told
    }
}

pub(crate) fn finding(severity: Severity, kind: &'static str, detail: String, volumes: &[&str]) -> Finding {
    Finding { severity, kind, detail, volumes: volumes.iter().map(|name| (*name).to_owned()).collect() }
}
