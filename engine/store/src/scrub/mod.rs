//! Scrubbing: reads everything that is in use while volumes are attached and busy, verifies what carries a check, and
//! tells which volumes and bytes are hit where something cannot be read. Writes nothing.
//!
//! 1. *Pool*: superblocks, host slots, the registry from its header on.
//! 2. *Trees*: root slots of each VDI, then every node of its map, its table and its snapshots, read from the device
//!    whatever the cache holds, each once.
//! 3. *Surface*: every allocated block, so that a sector that cannot be read is found while a copy may still exist
//!    elsewhere. Both copies of each bitmap are verified on the way.
//! 4. *Users*: only where something was found: all trees again, to name who uses the blocks.
//!
//! Data has no checksums: of data a scrub shows that it can be read, not that it is what was written.
//!
//! Invariants:
//! * A volume that changes meanwhile is no damage: a node counts as damaged only while a hold kept nodes from being
//!   used again, a block as unreadable only if it is still allocated after it was read.
//! * Bounded: of bad blocks [`BAD_MAX`] are looked into, findings are listed as far as [`Findings`] goes, the
//!   rest is counted.

mod pace;
mod surface;
mod trees;
mod users;

pub(crate) use pace::Pace;

use crate::{
    Finding, Pool, Severity, VdiId,
    check::Check,
    findings::{Findings, finding},
    pool::PoolCore,
    registry::Area,
    space::BlockSet,
};
use parallax_block::{Error, ErrorKind, Result};
use parallax_format::BlockAddress;
use std::{collections::BTreeMap, num::NonZeroU64, ops::ControlFlow, sync::Arc};

/// Bad blocks whose users are looked for.
const BAD_MAX: usize = 4096;

/// How to scrub.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScrubOptions {
    /// Reads at most so much a second; `None` reads as fast as the device does.
    pub bytes_per_second: Option<NonZeroU64>,
}

/// Steps of a scrub, for progress bars.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    /// `pool`, `trees`, `surface`, `users` or `done`.
    pub phase: &'static str,
    /// Of `total`.
    pub done: u64,
    /// Volumes in `trees` and `users`, bytes in `surface`.
    pub total: u64,
    /// Bytes read so far.
    pub bytes: u64,
    /// Radix nodes verified so far.
    pub nodes: u64,
    /// Blocks found bad so far.
    pub bad: u64,
}

/// What a scrub came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubReport {
    /// In order of address; leaks are what a restart or `check --repair` mends.
    pub findings: Vec<Finding>,
    /// Bytes read.
    pub bytes: u64,
    /// Radix nodes verified.
    pub nodes: u64,
}

impl ScrubReport {
    /// Whether nothing was found that a user could miss.
    pub fn is_clean(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity != Severity::Damage)
    }
}

impl Pool {
    /// Reads everything that is in use. `progress` says whether to go on; `Cancelled` if not. `Busy` if a scrub is
    /// under way.
    pub async fn scrub(
        &self,
        options: ScrubOptions,
        progress: &(dyn Fn(ScrubProgress) -> ControlFlow<()> + Send + Sync),
    ) -> Result<ScrubReport> {
        let _alone = self
            .core
            .scrubbing
            .try_lock()
            .map_err(|_| Error::new(ErrorKind::Busy, "a scrub of this pool is under way"))?;
        let mut scrub = Scrub {
            core: &self.core,
            pace: Pace::new(self.core.disk.runtime.clone(), options.bytes_per_second),
            now: ScrubProgress::default(),
            progress,
            findings: Findings::default(),
            bad: BTreeMap::new(),
        };
        scrub.pool().await?;
        scrub.trees().await?;
        scrub.surface().await?;
        if !scrub.bad.is_empty() {
            scrub.users().await?;
        }
        Ok(scrub.report())
    }
}

fn go_on(answer: ControlFlow<()>) -> Result<()> {
    match answer {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::new(ErrorKind::Cancelled, "the scrub was stopped")),
    }
}

struct Scrub<'a> {
    core: &'a Arc<PoolCore>,
    pace: Pace,
    now: ScrubProgress,
    progress: &'a (dyn Fn(ScrubProgress) -> ControlFlow<()> + Send + Sync),
    findings: Findings,
    /// Blocks that cannot be read or do not verify, and why.
    bad: BTreeMap<BlockAddress, Bad>,
}

/// What is wrong with a block.
struct Bad {
    kind: &'static str,
    why: Error,
}

impl Scrub<'_> {
    /// Superblocks, host slots, registry.
    async fn pool(&mut self) -> Result<()> {
        self.step("pool", 0, 1)?;
        let disk = &self.core.disk;
        let mut check = Check::new(disk);
        check.superblocks().await;
        {
            let _still = self.core.hold_registry().await;
            match Area::find(disk).await {
                Ok((header, _)) => check.host_groups(&header).await,
                Err(error) => self.find(Severity::Damage, "registry", error.to_string(), &[]),
            }
        }
        for finding in check.findings() {
            self.add(finding);
        }
        Ok(())
    }

    fn report(mut self) -> ScrubReport {
        self.now.phase = "done";
        // Nobody is asked any more whether to go on.
        let _ = (self.progress)(self.now);
        ScrubReport { findings: self.findings.told(), bytes: self.now.bytes, nodes: self.now.nodes }
    }

    fn step(&mut self, phase: &'static str, done: u64, total: u64) -> Result<()> {
        self.now = ScrubProgress { phase, done, total, bytes: self.pace.spent(), ..self.now };
        go_on((self.progress)(self.now))
    }

    fn find(&mut self, severity: Severity, kind: &'static str, detail: String, volumes: &[&str]) {
        self.add(finding(severity, kind, detail, volumes));
    }

    fn add(&mut self, finding: Finding) {
        tracing::error!(kind = finding.kind, volumes = ?finding.volumes, "scrub: {}", finding.detail);
        self.findings.add(finding);
    }

    /// Notes a bad block; its users are looked for in the end.
    fn note(&mut self, address: BlockAddress, kind: &'static str, why: Error) {
        if self.bad.len() < BAD_MAX {
            if self.bad.insert(address, Bad { kind, why }).is_none() {
                self.now.bad += 1;
            }
        } else if !self.bad.contains_key(&address) {
            self.findings.leave_out();
        }
    }

    fn volumes(&self) -> Vec<VdiId> {
        self.core.known().vdis.keys().map(|id| VdiId(*id)).collect()
    }

    fn block_set(&self) -> BlockSet {
        BlockSet::new(self.core.disk.superblock.extent_blocks)
    }
}
