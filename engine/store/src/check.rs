//! Verifies a whole pool without writing: everything that is reachable, and that nothing else is allocated.
//!
//! | finding | severity | meaning |
//! |---|---|---|
//! | `superblock-copy` | damage | one of the two superblocks does not verify |
//! | `extent-overlap`, `extent-range` | damage | the catalogue contradicts itself |
//! | `root-slot`, `journal` | damage | a VDI's durable state cannot be found or replayed |
//! | `node` | damage | a radix node cannot be read or does not match its link |
//! | `block-kind` | damage | a link names a block of the wrong kind of extent, or none |
//! | `block-unmarked` | damage | a reachable block counts as free: it may be overwritten |
//! | `block-shared` | damage | a block may be written in place although something else uses it |
//! | `snapshot-table` | damage | a snapshot's record cannot be read |
//! | `bitmap-copy` | leak | a copy of a bitmap is torn; opening the pool rebuilds it |
//! | `unreachable` | leak | allocated blocks that nothing reaches; `parallax gc` frees them |

use crate::{
    Finding, NoRuntime, Severity,
    disk::Disk,
    pool::read_superblock,
    registry::{Area, Known},
    vdi::replay,
};
use parallax_block::{BLOCK_SIZE, BlockDevice, BoxFuture, Buffer, Error, ErrorKind, Result, join_all};
use parallax_format::{
    BlockAddress, Entry, EntryKind, ExtentId, Node,
    bitmap::{self, BitmapBlock},
    journal::{JournalRecord, SEGMENT_BLOCKS},
    node::TABLE_LEVEL,
    record::{ExtentKind, VdiRecord},
    root::{RootSlot, SLOTS, TreeRoot},
    snapshot::{RECORDS_PER_LEAF, SnapshotRecord},
    superblock::Superblock,
};
use std::{collections::BTreeMap, ops::Range, sync::Arc};

/// Findings that are listed; more are counted.
const FINDINGS_MAX: usize = 1000;
/// Nodes read at a time.
const READS_MAX: usize = 64;

const REACHED: u8 = 1;
const WRITABLE: u8 = 2;
const NODE: u8 = 4;

/// Verifies a whole pool. Reads only. `progress` is told how many VDIs of how many are done.
///
/// Fails only where nothing can be checked: no pool is there, its format is unknown, or the device cannot be read.
/// While the pool is open and busy elsewhere, findings mean nothing: blocks change hands between two reads.
pub async fn check(
    device: Arc<dyn BlockDevice>,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Vec<Finding>> {
    let superblock = read_superblock(&*device).await?;
    let disk = Disk::new(device, superblock.clone(), Arc::new(NoRuntime), 4096);
    let mut check = Check::new(&disk, &superblock);
    check.superblocks().await?;
    let known = match Area::find(&disk).await {
        Ok((_, known)) => known,
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            check.find(Severity::Damage, "registry", error.to_string(), &[]);
            return Ok(check.findings);
        }
        Err(error) => return Err(error),
    };
    check.catalogue(&known).await?;
    let total = known.vdis.len() as u64;
    for (done, record) in known.vdis.values().enumerate() {
        progress(done as u64, total);
        check.vdi(record).await?;
    }
    check.unreachable();
    progress(total, total);
    Ok(check.findings)
}

struct Check<'a> {
    disk: &'a Disk,
    superblock: &'a Superblock,
    extents: BTreeMap<ExtentId, Extent>,
    findings: Vec<Finding>,
}

struct Extent {
    kind: ExtentKind,
    /// The bitmap, newest copies; a set bit is an allocated block.
    allocated: Vec<u64>,
    /// What was found about each block.
    seen: Vec<u8>,
    /// A bitmap copy is torn: what it would say is not known.
    unsure: bool,
}

/// A link that is still to be followed.
struct Link {
    entry: Entry,
    level: u8,
    shared: bool,
    /// First block of the VDI below it.
    lba: u64,
}

/// How a tree is looked at.
#[derive(Clone, Copy)]
struct Walk<'b> {
    /// Whether data counts as used, and every link as a use of its own. The older of two root slots shares all
    /// with the newer, and may name data that was freed since.
    strict: bool,
    /// Blocks of the VDI that the journal has unmapped since: their space may be somebody else's by now.
    gone: &'b [Range<u64>],
}

/// What a journal changes about the blocks that a VDI uses.
#[derive(Default)]
struct Overlay {
    used: Vec<BlockAddress>,
    mapped: BTreeMap<u64, BlockAddress>,
    gone: Vec<Range<u64>>,
    /// A snapshot was cut: what was mapped before stays in use whatever follows.
    cut: bool,
}

impl Overlay {
    fn apply(&mut self, record: &JournalRecord) {
        match record {
            JournalRecord::Map { lba, count, address } => {
                for at in 0..*count {
                    if let Some(address) = address.offset(at) {
                        self.mapped.insert(lba + u64::from(at), address);
                    }
                }
            }
            JournalRecord::Unmap { lba, count } => {
                let range = *lba..lba.saturating_add(*count);
                let mapped: Vec<u64> = self.mapped.range(range.clone()).map(|(lba, _)| *lba).collect();
                for lba in mapped {
                    self.mapped.remove(&lba);
                }
                if !self.cut {
                    self.gone.push(range);
                }
            }
            JournalRecord::Snapshot { .. } => {
                self.cut = true;
                self.used.extend(self.mapped.values());
            }
            _ => {}
        }
    }

    fn used(&self) -> impl Iterator<Item = BlockAddress> {
        self.used.iter().chain(self.mapped.values()).copied()
    }
}

impl<'a> Check<'a> {
    fn new(disk: &'a Disk, superblock: &'a Superblock) -> Self {
        Self { disk, superblock, extents: BTreeMap::new(), findings: Vec::new() }
    }

    fn find(&mut self, severity: Severity, kind: &'static str, detail: String, volumes: &[&str]) {
        if self.findings.len() < FINDINGS_MAX {
            let volumes = volumes.iter().map(|name| (*name).to_owned()).collect();
            self.findings.push(Finding { severity, kind, detail, volumes });
        }
    }

    async fn superblocks(&mut self) -> Result<()> {
        let last = self.superblock.devices[0].blocks - 1;
        for at in [0, last] {
            let bytes = self.disk.read_physical(at).await?;
            if let Err(error) = Superblock::decode(&bytes, at) {
                self.find(Severity::Damage, "superblock-copy", format!("block #{at}: {error}"), &[]);
            }
        }
        Ok(())
    }

    async fn catalogue(&mut self, known: &Known) -> Result<()> {
        let mut positions: BTreeMap<u32, ExtentId> = BTreeMap::new();
        for record in known.extents.values() {
            if record.position >= self.superblock.extents || record.device != 0 {
                let detail = format!("extent {} lies outside of the pool's device", record.extent);
                self.find(Severity::Damage, "extent-range", detail, &[]);
                continue;
            }
            if let Some(other) = positions.insert(record.position, record.extent) {
                let detail = format!("extents {other} and {} lie at the same place", record.extent);
                self.find(Severity::Damage, "extent-overlap", detail, &[]);
            }
            self.disk.map_extent(record.extent, record.position);
            let blocks = self.superblock.extent_blocks;
            let mut extent = Extent {
                kind: record.kind,
                allocated: Vec::new(),
                seen: vec![0; blocks as usize],
                unsure: false,
            };
            if record.kind != ExtentKind::System {
                for index in 0..bitmap::blocks_per_copy(blocks) {
                    let words = self.bitmap(record.extent, record.birth, index, &mut extent.unsure).await?;
                    extent.allocated.extend(words);
                }
            }
            self.extents.insert(record.extent, extent);
        }
        Ok(())
    }

    async fn bitmap(
        &mut self,
        extent: ExtentId,
        birth: u64,
        index: u32,
        unsure: &mut bool,
    ) -> Result<Vec<u64>> {
        let mut newest: Option<(BitmapBlock, u64)> = None;
        for copy in 0..2 {
            let at = bitmap::location(extent, self.superblock.extent_blocks, index, copy);
            let bytes = self.disk.read_block(at).await?;
            match BitmapBlock::decode(&bytes, at, self.disk.salt()) {
                Ok((block, sequence)) if block.birth == birth => {
                    if newest
                        .as_ref()
                        .is_none_or(|(old, s)| (old.incarnation, *s) < (block.incarnation, sequence))
                    {
                        newest = Some((block, sequence));
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    *unsure = true;
                    self.find(Severity::Leak, "bitmap-copy", format!("extent {extent}: {error}"), &[]);
                }
            }
        }
        Ok(newest.map_or_else(|| vec![0; bitmap::WORDS], |(block, _)| block.words))
    }

    async fn vdi(&mut self, record: &VdiRecord) -> Result<()> {
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
            let root = TreeRoot { link: record.initial.root, depth: record.initial.depth.max(1) };
            return self.tree(root, 0, Walk { strict: true, gone: &[] }, &name).await;
        };
        self.private(slots.grant.slots, SLOTS, &name);
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
        let walk = Walk { strict: newest, gone: &overlay.gone };
        self.tree(slot.table, TABLE_LEVEL, walk, name).await?;
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
            if let Some(address) = start.offset(at) {
                self.reach(address, ExtentKind::Metadata, 0, name);
            }
        }
    }

    /// Notes that a block is in use; returns what was known of it, or `None` if nothing can be there.
    fn reach(&mut self, address: BlockAddress, kind: ExtentKind, flags: u8, name: &str) -> Option<u8> {
        let blocks = self.superblock.extent_blocks;
        let (known, marked, unsure) = match self.extents.get_mut(&address.extent()) {
            Some(extent)
                if extent.kind == kind
                    && (bitmap::first_usable(blocks)..blocks).contains(&address.block()) =>
            {
                let block = address.block() as usize;
                let before = extent.seen[block];
                extent.seen[block] |= REACHED | flags;
                let marked =
                    extent.allocated.get(block / 64).is_some_and(|word| word & (1 << (block % 64)) != 0);
                (before, marked, extent.unsure)
            }
            _ => {
                let detail = format!("block {address} is used and lies in no {kind:?} extent");
                self.find(Severity::Damage, "block-kind", detail, &[name]);
                return None;
            }
        };
        if !marked && !unsure && known & REACHED == 0 {
            let detail = format!("block {address} is used and counts as free");
            self.find(Severity::Damage, "block-unmarked", detail, &[name]);
        }
        Some(known)
    }

    /// Walks a tree.
    async fn tree(&mut self, root: TreeRoot, base: u8, walk: Walk<'_>, name: &str) -> Result<()> {
        if root.depth == 0 || root.depth > 8 {
            let detail = format!("a tree of {} levels cannot be", root.depth);
            self.find(Severity::Damage, "root-slot", detail, &[name]);
            return Ok(());
        }
        let mut stack =
            vec![Link { entry: root.link, level: root.depth - 1 + base, shared: root.link.is_ro(), lba: 0 }];
        while !stack.is_empty() {
            let batch = stack.split_off(stack.len().saturating_sub(READS_MAX));
            let batch: Vec<Link> =
                batch.into_iter().filter(|link| self.enter(link, walk.strict, name)).collect();
            let reads: Vec<BoxFuture<'_, Result<Node>>> = batch
                .iter()
                .map(|link| -> BoxFuture<'_, Result<Node>> { Box::pin(read(self.disk, link)) })
                .collect();
            let nodes = join_all(reads).await;
            for (link, node) in batch.into_iter().zip(nodes) {
                match node {
                    Ok(node) => self.below(&node, &link, walk, &mut stack, name),
                    Err(error) => self.find(Severity::Damage, "node", error.to_string(), &[name]),
                }
            }
        }
        Ok(())
    }

    /// Whether to go on below a link to a node.
    fn enter(&mut self, link: &Link, strict: bool, name: &str) -> bool {
        if link.entry.is_hole() {
            return false;
        }
        let Some(address) = link.entry.address() else {
            self.find(
                Severity::Damage,
                "block-kind",
                format!("{:?} is no link to a node", link.entry),
                &[name],
            );
            return false;
        };
        let writable = if link.shared || !strict { 0 } else { WRITABLE };
        let Some(before) = self.reach(address, ExtentKind::Metadata, NODE | writable, name) else {
            return false;
        };
        if before & NODE == 0 {
            return true;
        }
        if strict && (before | writable) & WRITABLE != 0 {
            let detail = format!("node {address} may be changed although something else uses it");
            self.find(Severity::Damage, "block-shared", detail, &[name]);
        }
        false
    }

    fn below(&mut self, node: &Node, link: &Link, walk: Walk<'_>, stack: &mut Vec<Link>, name: &str) {
        if link.level == TABLE_LEVEL {
            for at in 0..RECORDS_PER_LEAF as usize {
                match SnapshotRecord::get(node, at) {
                    Ok(Some(record)) => stack.push(Link {
                        entry: record.map.link,
                        level: record.map.depth.max(1) - 1,
                        // A snapshot shares all it has.
                        shared: true,
                        lba: 0,
                    }),
                    Ok(None) => {}
                    Err(error) => self.find(Severity::Damage, "snapshot-table", error.to_string(), &[name]),
                }
            }
            return;
        }
        for (at, word) in node.words().iter().enumerate() {
            let entry = Entry::from_raw(*word);
            if entry.is_hole() {
                continue;
            }
            let shared = link.shared || entry.is_ro();
            let lba = link.lba + ((at as u64) << (9 * u32::from(link.level % TABLE_LEVEL)));
            if link.level != 0 {
                stack.push(Link { entry, level: link.level - 1, shared, lba });
                continue;
            }
            if !walk.strict || (!shared && walk.gone.iter().any(|gone| gone.contains(&lba))) {
                continue;
            }
            let address = entry.address().filter(|_| entry.kind() == EntryKind::Plain);
            let Some(address) = address else {
                self.find(Severity::Damage, "block-kind", format!("{entry:?} is no link to data"), &[name]);
                continue;
            };
            let writable = if shared { 0 } else { WRITABLE };
            if let Some(before) = self.reach(address, ExtentKind::Data, NODE | writable, name)
                && before & NODE != 0
                && (before | writable) & WRITABLE != 0
            {
                let detail =
                    format!("block {address} may be written in place although something else uses it");
                self.find(Severity::Damage, "block-shared", detail, &[name]);
            }
        }
    }

    fn unreachable(&mut self) {
        let usable = bitmap::first_usable(self.superblock.extent_blocks);
        let mut leaks = Vec::new();
        for (id, extent) in &self.extents {
            let lost = (usable..self.superblock.extent_blocks)
                .filter(|block| {
                    let block = *block as usize;
                    let marked =
                        extent.allocated.get(block / 64).is_some_and(|word| word & (1 << (block % 64)) != 0);
                    marked && extent.seen[block] & REACHED == 0
                })
                .count();
            if lost > 0 && extent.kind != ExtentKind::System {
                leaks.push(format!("extent {id} ({:?}): {} KiB", extent.kind, lost * BLOCK_SIZE / 1024));
            }
        }
        for leak in leaks {
            self.find(Severity::Leak, "unreachable", leak, &[]);
        }
    }
}

async fn read(disk: &Disk, link: &Link) -> Result<Node> {
    let address = link.entry.address().ok_or_else(|| Error::corrupt("a hole has no node"))?;
    let bytes: Buffer = disk.read_block(address).await?;
    Node::open(&bytes, link.entry, link.level, disk.salt())
}
