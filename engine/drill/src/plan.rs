//! What a run is asked for: a seed, and how much of what it decides is to be done. A plan prints the arguments that run it
//! again.

use std::{collections::BTreeSet, fmt};

/// Something that a plan may leave out, to see whether a failure needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Feature {
    Tight,
    SlowReads,
    SmallLimits,
    LargeSectors,
    Flushes,
    Fua,
    Discards,
    Zeroing,
    Snapshots,
    Clones,
    Deletions,
    Reverts,
    Growth,
    Collections,
    Sharing,
    Faults,
    Probes,
    DeathsWhileOpening,
    Ghosts,
    Lies,
    Accounts,
}

impl Feature {
    /// All of them, in the order in which shrinking tries to do without.
    pub const ALL: [Self; 21] = [
        Self::Lies,
        Self::Ghosts,
        Self::Accounts,
        Self::Faults,
        Self::Probes,
        Self::DeathsWhileOpening,
        Self::Sharing,
        Self::SmallLimits,
        Self::LargeSectors,
        Self::SlowReads,
        Self::Tight,
        Self::Reverts,
        Self::Growth,
        Self::Clones,
        Self::Deletions,
        Self::Collections,
        Self::Zeroing,
        Self::Discards,
        Self::Fua,
        Self::Snapshots,
        Self::Flushes,
    ];
}

/// A seed, and how much of what it decides is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Another course of events with the same options.
    pub course: u64,
    /// Requests to volumes, about.
    pub ops: u64,
    /// Lanes at most.
    pub lanes: Option<usize>,
    /// Managers at most.
    pub managers: Option<usize>,
    /// Lives at most.
    pub lives: Option<usize>,
    /// Volumes at most.
    pub volumes: Option<usize>,
    /// What is left out.
    pub without: BTreeSet<Feature>,
    /// A flush that fails may lose what it was to write.
    pub forgetful: bool,
    /// Writes that fail land late, those of metadata above all, whatever the seed says.
    pub haunted: bool,
    /// The pool is small, whatever the seed says.
    pub tight: bool,
    /// Reads are slow, whatever the seed says.
    pub slow: bool,
}

impl Plan {
    /// Everything that `seed` decides.
    pub fn new(seed: u64, ops: u64) -> Self {
        Self {
            seed,
            course: 0,
            ops,
            lanes: None,
            managers: None,
            lives: None,
            volumes: None,
            without: BTreeSet::new(),
            forgetful: false,
            haunted: false,
            tight: false,
            slow: false,
        }
    }

    /// The arguments that run it again.
    pub fn arguments(&self) -> String {
        let mut text = format!("--seed {} --ops {}", self.seed, self.ops);
        if self.course > 0 {
            text += &format!(" --course {}", self.course);
        }
        let bounds = [
            ("lanes", self.lanes),
            ("managers", self.managers),
            ("lives", self.lives),
            ("volumes", self.volumes),
        ];
        for (name, bound) in bounds {
            text.extend(bound.map(|bound| format!(" --{name} {bound}")));
        }
        let names: Vec<String> = self.without.iter().map(Feature::to_string).collect();
        if !names.is_empty() {
            text += &format!(" --without {}", names.join(","));
        }
        let manners = [
            ("forgetful", self.forgetful),
            ("haunted", self.haunted),
            ("tight", self.tight),
            ("slow", self.slow),
        ];
        for (name, on) in manners {
            text += &if on { format!(" --{name}") } else { String::new() };
        }
        text
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = clap::ValueEnum::to_possible_value(self).expect("no feature is hidden");
        f.write_str(value.get_name())
    }
}
