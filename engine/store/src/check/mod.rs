//! Verifies a whole pool: everything that is reachable, and that nothing else is allocated. Writes nothing; what can be
//! proved to be safe is mended in `repair`, when somebody asks for it.
//!
//! | finding | severity | meaning |
//! |---|---|---|
//! | `superblock-copy` | damage | one of the two superblocks does not verify |
//! | `superblock-twins` | damage | both verify and tell of different pools or shapes |
//! | `registry` | damage | catalogue and registry cannot be read |
//! | `extent-overlap`, `extent-range` | damage | the catalogue contradicts itself |
//! | `root-slot`, `journal` | damage | a VDI's durable state cannot be found or replayed |
//! | `node` | damage | a radix node cannot be read or does not match its link |
//! | `block-kind` | damage | a link names a block of the wrong kind of extent, or none |
//! | `block-unmarked` | damage | a reachable block counts as free: it may be overwritten |
//! | `block-shared` | damage | a block may be written in place although something else uses it |
//! | `block-range` | damage | a block is mapped behind the end of its VDI or snapshot |
//! | `snapshot-table` | damage | a snapshot's record cannot be read, or there are not as many as the root slot says |
//! | `host-slot` | leak | a host's slot does not verify: nobody can tell whose it was |
//! | `area-header-copy`, `root-slot-copy` | leak | one of two copies does not verify; opening writes both anew |
//! | `bitmap-copy` | leak | a copy of a bitmap is torn; opening the pool rebuilds it |
//! | `unreachable` | leak | allocated blocks that nothing reaches; `parallax gc` frees them |

mod extents;
mod overlay;
mod repair;
mod tree;

pub use repair::{Repaired, repair};

use crate::{
    Finding, NoRuntime, Severity,
    disk::Disk,
    findings::{Findings, finding},
    pool::read_superblock,
    registry::{Area, Known},
    vdi::replay,
};
use extents::Extent;
use overlay::Overlay;
use parallax_block::{BlockDevice, ErrorKind, Result};
use parallax_format::{
    BlockAddress, ExtentId,
    area::AreaHeader,
    bitmap,
    host::{self, HostSlot},
    journal::SEGMENT_BLOCKS,
    node::TABLE_LEVEL,
    record::{ExtentKind, VdiRecord},
    root::{RootSlot, SLOTS},
    superblock::Superblock,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tree::Walk;

const REACHED: u8 = 1;
const WRITABLE: u8 = 2;
const NODE: u8 = 4;
const PRIVATE: u8 = 8;

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
    known: Option<Known>,
    extents: BTreeMap<ExtentId, Extent>,
    /// Root slots and journal of the VDI that is looked at.
    own: BTreeSet<BlockAddress>,
    /// Snapshots met in the table that is walked.
    records: u64,
    findings: Findings,
}

impl<'a> Check<'a> {
    pub(crate) fn new(disk: &'a Disk) -> Self {
        let superblock = &disk.superblock;
        Self {
            disk,
            superblock,
            known: None,
            extents: BTreeMap::new(),
            own: BTreeSet::new(),
            records: 0,
            findings: Findings::default(),
        }
    }

    async fn run(&mut self, progress: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<()> {
        self.superblocks().await;
        let (header, known) = match Area::find(self.disk).await {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                self.find(Severity::Damage, "registry", error.to_string(), &[]);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.host_groups(&header).await;
        self.catalogue(&known).await?;
        let total = known.vdis.len() as u64;
        for (done, record) in known.vdis.values().enumerate() {
            progress(done as u64, total);
            self.vdi(record).await?;
        }
        self.unreachable();
        progress(total, total);
        self.known = Some(known);
        Ok(())
    }

    /// What was found, and how much more there was than is listed.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        self.findings.told()
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

    async fn vdi(&mut self, record: &VdiRecord) -> Result<()> {
        self.own.clear();
        let name = if record.headless { record.id.to_string() } else { record.name.clone() };
        let state = match replay::state(self.disk, record).await {
            Ok(state) => state,
            Err(error) => {
                self.find(Severity::Damage, "root-slot", error.to_string(), &[&name]);
                return Ok(());
            }
        };
        if let Some(grant) = record.grant {
            self.private(grant.slots, SLOTS, &name);
        }
        let Some(slots) = state else {
            return self
                .tree(record.initial.tree(), 0, Walk { size: record.size, strict: true, gone: &[] }, &name)
                .await;
        };
        self.private(slots.grant.slots, SLOTS, &name);
        if slots.older.is_none() && record.previous.is_none() {
            let detail = format!("one of the root slots at {} does not verify", slots.grant.slots);
            self.find(Severity::Leak, "root-slot-copy", detail, &[&name]);
        }
        self.slot(&slots.newest, slots.durable_group, true, &name).await?;
        if let Some(older) = &slots.older {
            // Shares everything with the newest, so it is walked for reach, not for sharing.
            self.slot(older, slots.durable_group, false, &name).await?;
        }
        Ok(())
    }

    async fn slot(&mut self, slot: &RootSlot, durable: u64, newest: bool, name: &str) -> Result<()> {
        let mut overlay = Overlay::default();
        if !slot.released {
            match replay::replay(self.disk, slot.vdi, slot.epoch, slot.replay, durable).await {
                Ok(journal) => {
                    for segment in &journal.segments {
                        self.private(*segment, SEGMENT_BLOCKS, name);
                    }
                    journal.records.iter().for_each(|record| overlay.apply(record));
                }
                Err(error) => self.find(Severity::Damage, "journal", error.to_string(), &[name]),
            }
        }
        let walk = Walk { size: slot.size, strict: newest, gone: &overlay.gone };
        let before = self.findings.listed().len();
        self.records = 0;
        self.tree(slot.table, TABLE_LEVEL, walk, name).await?;
        if newest && self.findings.listed().len() == before && self.records != slot.snapshots {
            let detail =
                format!("the table has {} snapshots, the root slot says {}", self.records, slot.snapshots);
            self.find(Severity::Damage, "snapshot-table", detail, &[name]);
        }
        self.tree(slot.map, 0, walk, name).await?;
        if newest {
            for address in overlay.used() {
                self.reach(address, ExtentKind::Data, 0, name);
            }
        }
        Ok(())
    }

    fn private(&mut self, start: BlockAddress, count: u32, name: &str) {
        for at in 0..count {
            if let Some(address) = start.offset(at)
                && self.own.insert(address)
                && let Some(before) = self.reach(address, ExtentKind::Metadata, PRIVATE, name)
                && before & REACHED != 0
            {
                let detail = format!("block {address} is one volume's own, and something else uses it");
                self.find(Severity::Damage, "block-shared", detail, &[name]);
            }
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
                self.find(Severity::Damage, "block-kind", detail, &[name]);
                return None;
            }
        };
        if !marked && known & REACHED == 0 {
            let detail = format!("block {address} is used and counts as free");
            self.find(Severity::Damage, "block-unmarked", detail, &[name]);
        }
        Some(known)
    }
}
