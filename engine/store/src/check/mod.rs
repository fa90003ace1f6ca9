//! Verifies a whole pool: everything that is reachable, and that nothing else is allocated. Writes nothing; what can be
//! proved to be safe is mended in `repair`, when somebody asks for it.
//!
//! | finding | severity | meaning |
//! |---|---|---|
//! | `superblock-copy` | damage | one of the two superblocks does not verify |
//! | `superblock-twins` | damage | both verify and tell of different pools or shapes |
//! | `registry` | damage | catalogue and registry cannot be read |
//! | `extent-overlap`, `extent-range` | damage | the catalogue contradicts itself, or the device |
//! | `extent-owner` | damage | an extent was claimed by nobody who was ever handed out, or by no claim that was counted |
//! | `epoch` | damage | grants, epochs or checkpoints of a VDI are not in an order in which they can have been written |
//! | `lineage` | damage | a snapshot or a clone comes before what it descends from |
//! | `root-slot`, `journal` | damage | a VDI's durable state cannot be found or replayed |
//! | `node` | damage | a radix node cannot be read or does not match its link |
//! | `block-kind` | damage | a link names a block of the wrong kind of extent, or none |
//! | `block-unmarked` | damage | a reachable block counts as free: it may be overwritten |
//! | `block-shared` | damage | a block may be written in place although something else uses it |
//! | `block-foreign` | damage | VDIs that have no source in common use one block |
//! | `block-range` | damage | a block is mapped behind the end of its VDI or snapshot |
//! | `snapshot-table` | damage | a snapshot's record cannot be read, or there are not as many as the root slot says |
//! | `host-slot` | leak | a host's slot does not verify: nobody can tell whose it was |
//! | `area-header-copy`, `root-slot-copy` | leak | one of two copies does not verify; opening writes both anew |
//! | `bitmap-copy` | leak | a copy of a bitmap is torn; opening the pool rebuilds it |
//! | `unreachable` | leak | allocated blocks that nothing reaches; `parallax gc` frees them |
//!
//! | invariant | proved by | findings |
//! |---|---|---|
//! | 1 superblocks agree | `superblocks` | `superblock-*` |
//! | 2 one claim an extent | `extents` | `extent-*` |
//! | 3 epochs rise, with evidence | `slots` | `epoch`, `root-slot*` |
//! | 4 blocks are what links say | `tree` | `node` |
//! | 5 blocks lie where their kind may | `Check::reach` | `block-kind` |
//! | 6 shape of trees, owners of blocks | `tree`, `families` | `block-range`, `block-shared`, `block-foreign` |
//! | 7 snapshots and their lineage | `tree`, `slots`, `families` | `snapshot-table`, `lineage` |
//! | 8 allocated is reached | `extents`, `Check::reach` | `block-unmarked`, `unreachable` |
//! | 9 quarantine | nothing: it is in the memory of hosts | |
//! | 10 journals continue | `vdi::replay` | `journal` |
//!
//! `docs/check.md` says what of them the format cannot tell. Whatever is damaged, `users` names every VDI that reaches it.

mod extents;
mod families;
mod overlay;
mod repair;
mod slots;
mod tree;
mod users;
mod volume;

pub use repair::{Repaired, repair};

use crate::{
    Finding, NoRuntime, Severity,
    disk::Disk,
    findings::{Findings, finding},
    pool::read_superblock,
    registry::Area,
};
use extents::Extent;
use families::Families;
use parallax_block::{BlockDevice, ErrorKind, Result};
use parallax_format::{
    BlockAddress, ExtentId,
    area::AreaHeader,
    bitmap,
    host::{self, HostSlot},
    record::{ExtentKind, VdiRecord},
    superblock::Superblock,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use users::{Spot, Spots};
use uuid::Uuid;

const REACHED: u8 = 1;
const WRITABLE: u8 = 2;
const NODE: u8 = 4;
const PRIVATE: u8 = 8;
const CLAIMED: u8 = 16;

/// Verifies a whole pool. Reads only. `progress` is told how many VDIs of how many are done.
///
/// Fails only where nothing can be checked: no pool is there, its format is unknown, or the device cannot be read.
/// While the pool is open and busy elsewhere, findings mean nothing: blocks change hands between two reads.
pub async fn check(
    device: Arc<dyn BlockDevice>,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Vec<Finding>> {
    let superblock = read_superblock(&*device).await?;
    let disk = Disk::new(device, superblock, Arc::new(NoRuntime), 4096);
    let mut check = Check::new(&disk);
    check.run(progress).await?;
    Ok(check.findings())
}

pub(crate) struct Check<'a> {
    disk: &'a Disk,
    superblock: &'a Superblock,
    extents: BTreeMap<ExtentId, Extent>,
    /// Root slots and journal of the VDI that is looked at.
    own: BTreeSet<BlockAddress>,
    /// Snapshots met in the table that is walked.
    records: u64,
    families: Families,
    /// Family of the VDI that is looked at.
    of_family: u32,
    /// Number of the next snapshot of each VDI.
    next_snapshots: BTreeMap<Uuid, u64>,
    spots: Spots,
    findings: Findings,
}

/// What a VDI is called in a finding.
fn called(record: &VdiRecord) -> String {
    if record.headless { record.id.to_string() } else { record.name.clone() }
}

impl<'a> Check<'a> {
    pub(crate) fn new(disk: &'a Disk) -> Self {
        let superblock = &disk.superblock;
        Self {
            disk,
            superblock,
            extents: BTreeMap::new(),
            own: BTreeSet::new(),
            records: 0,
            families: Families::default(),
            of_family: families::UNKNOWN,
            next_snapshots: BTreeMap::new(),
            spots: Spots::default(),
            findings: Findings::default(),
        }
    }

    async fn run(&mut self, progress: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<()> {
        self.superblocks().await;
        let (header, known) = match Area::find(self.disk).await {
            Ok(found) => found,
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Io) => {
                self.find(Severity::Damage, "registry", error.to_string(), &[]);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.host_groups(&header).await;
        self.catalogue(&known, &header).await?;
        self.families(&known);
        let total = known.vdis.len() as u64;
        for (done, record) in known.vdis.values().enumerate() {
            progress(done as u64, total);
            self.grants(record, &known);
            self.vdi(record).await?;
        }
        self.sources(&known);
        self.unreachable();
        self.users(&known).await?;
        progress(total, total);
        Ok(())
    }

    /// What was found, and how much more there was than is listed.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let mut told = self.findings.told();
        for (index, users) in self.spots.names() {
            if let Some(finding) = told.get_mut(index) {
                let names: BTreeSet<&String> = finding.volumes.iter().chain(users).collect();
                finding.volumes = names.into_iter().cloned().collect();
            }
        }
        told
    }

    /// Of a place that others may share: in the end all of them are named.
    fn find_in(
        &mut self,
        severity: Severity,
        kind: &'static str,
        spot: Spot,
        detail: String,
        names: &[&str],
    ) {
        let before = self.findings.listed().len();
        self.find(severity, kind, detail, names);
        if self.findings.listed().len() > before {
            self.spots.note(before, spot);
        }
    }

    fn find_at(
        &mut self,
        severity: Severity,
        kind: &'static str,
        at: BlockAddress,
        detail: String,
        name: &str,
    ) {
        self.find_in(severity, kind, Spot::Block(at), detail, &[name]);
    }

    fn find(&mut self, severity: Severity, kind: &'static str, detail: String, volumes: &[&str]) {
        self.findings.add(finding(severity, kind, detail, volumes));
    }

    pub(crate) async fn superblocks(&mut self) {
        let last = self.superblock.devices[0].blocks - 1;
        for at in [0, last] {
            let copy = self.disk.read_physical(at).await.and_then(|bytes| Superblock::decode(&bytes, at));
            match copy {
                Ok((copy, _)) if copy == *self.superblock => {}
                Ok((copy, _)) => {
                    let detail = format!(
                        "block #{at} is the superblock of {}, and this is {}: another pool or another shape",
                        copy.uuid, self.superblock.uuid
                    );
                    self.find(Severity::Damage, "superblock-twins", detail, &[]);
                }
                Err(error) => {
                    self.find(Severity::Damage, "superblock-copy", format!("block #{at}: {error}"), &[]);
                }
            }
        }
    }

    /// Slots verify or were never used; the group of the manager holds the header of its area twice.
    pub(crate) async fn host_groups(&mut self, newest: &AreaHeader) {
        let mut copies = 0;
        for slot in 0..self.superblock.host_slots {
            let at = self.superblock.host_group(slot) + host::SLOT;
            match self.disk.read_physical(at).await {
                Ok(bytes) => {
                    if let Err(error) = HostSlot::decode(&bytes, at, self.disk.salt())
                        && bytes.iter().any(|byte| *byte != 0)
                    {
                        self.find(Severity::Leak, "host-slot", format!("slot {slot}: {error}"), &[]);
                    }
                }
                Err(error) => {
                    self.find(Severity::Damage, "host-slot", format!("slot {slot}: {error}"), &[]);
                }
            }
            for copy in 0..2 {
                let at = self.superblock.host_group(slot) + host::AREA_HEADER + copy;
                let bytes = self.disk.read_physical(at).await;
                let decoded = bytes.and_then(|bytes| AreaHeader::decode(&bytes, at, self.disk.salt()));
                copies += u32::from(decoded.is_ok_and(|header| header.id == newest.id));
            }
        }
        if copies < 2 {
            let detail = format!("the registry's area {:?} has one header", newest.id);
            self.find(Severity::Leak, "area-header-copy", detail, &[]);
        }
    }

    /// Notes that a block is in use; returns what was known of it, or `None` if nothing can be there.
    fn reach(&mut self, address: BlockAddress, kind: ExtentKind, flags: u8, name: &str) -> Option<u8> {
        let blocks = self.superblock.extent_blocks;
        let (known, marked) = match self.extents.get_mut(&address.extent()) {
            Some(extent)
                if extent.kind == kind
                    && (bitmap::first_usable(blocks)..blocks).contains(&address.block()) =>
            {
                let block = address.block() as usize;
                let before = extent.seen[block];
                extent.seen[block] |= REACHED | flags;
                (before, extent.is_allocated(address.block()) != Some(false))
            }
            _ => {
                let detail = format!("block {address} is used and lies in no {kind:?} extent");
                self.find_at(Severity::Damage, "block-kind", address, detail, name);
                return None;
            }
        };
        if !marked && known & REACHED == 0 {
            let detail = format!("block {address} is used and counts as free");
            self.find_at(Severity::Damage, "block-unmarked", address, detail, name);
        }
        Some(known)
    }
}
