//! Walks the trees of a VDI.

use super::{Check, NODE, PRIVATE, WRITABLE};
use crate::{Severity, disk::Disk};
use parallax_block::{BLOCK_SIZE, BoxFuture, Buffer, Error, Result, join_all};
use parallax_format::{
    BlockAddress, Entry, EntryKind, Node,
    node::{FANOUT, TABLE_LEVEL},
    record::ExtentKind,
    root::TreeRoot,
    snapshot::{RECORDS_PER_LEAF, SnapshotRecord},
};
use std::ops::Range;

/// Nodes read at a time.
const READS_MAX: usize = 64;

/// A link that is still to be followed.
struct Link {
    entry: Entry,
    level: u8,
    shared: bool,
    /// First block of the VDI below it; in a table the first word of its leaves.
    lba: u64,
    /// Blocks of the VDI or snapshot.
    end: u64,
}

/// How a tree is looked at.
#[derive(Clone, Copy)]
pub(super) struct Walk<'b> {
    /// Bytes of the VDI.
    pub(super) size: u64,
    /// Whether data counts as used, and every link as a use of its own. The older of two root slots shares all
    /// with the newer, and may name data that was freed since.
    pub(super) strict: bool,
    /// Blocks of the VDI that the journal has unmapped since: their space may be somebody else's by now.
    pub(super) gone: &'b [Range<u64>],
    /// Number of the VDI's next snapshot.
    pub(super) next_snapshot: u64,
}

impl Check<'_> {
    /// Walks a tree.
    pub(super) async fn tree(&mut self, root: TreeRoot, base: u8, walk: Walk<'_>, name: &str) -> Result<()> {
        if root.depth == 0 || root.depth > 8 {
            let detail = format!("a tree of {} levels cannot be", root.depth);
            self.find(Severity::Damage, "root-slot", detail, &[name]);
            return Ok(());
        }
        let mut stack = vec![Link {
            entry: root.link,
            level: root.depth - 1 + base,
            shared: root.link.is_ro(),
            lba: 0,
            end: walk.size.div_ceil(BLOCK_SIZE as u64),
        }];
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
                    Err(error) => self.find_below(&link, "node", error.to_string(), name),
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
        if before & PRIVATE != 0 {
            let detail = format!("node {address} lies where a volume has its root slots or its journal");
            self.find_at(Severity::Damage, "block-shared", address, detail, name);
        }
        if strict {
            self.claim(address, name);
        }
        if before & NODE == 0 {
            self.is_same_link(link, address);
            return true;
        }
        if strict && (before | writable) & WRITABLE != 0 {
            let detail = format!("node {address} may be changed although something else uses it");
            self.find_at(Severity::Damage, "block-shared", address, detail, name);
        }
        // One of two links that disagree does not match the node.
        !self.is_same_link(link, address)
    }

    /// What the content of a node says: whoever reaches the node is named.
    fn find_below(&mut self, link: &Link, kind: &'static str, detail: String, name: &str) {
        match link.entry.address() {
            Some(at) => self.find_at(Severity::Damage, kind, at, detail, name),
            None => self.find(Severity::Damage, kind, detail, &[name]),
        }
    }

    /// Whether a link says the same as the one before to that node, and notes what it says.
    fn is_same_link(&mut self, link: &Link, address: BlockAddress) -> bool {
        let says = link.entry.check() << 8 | u32::from(link.level);
        let Some(extent) = self.extents.get_mut(&address.extent()) else { return true };
        let blocks = extent.seen.len();
        extent.links.resize(blocks, 0);
        extent
            .links
            .get_mut(address.block() as usize)
            .is_none_or(|said| std::mem::replace(said, says) == says)
    }

    fn below(&mut self, node: &Node, link: &Link, walk: Walk<'_>, stack: &mut Vec<Link>, name: &str) {
        if link.level == TABLE_LEVEL {
            for at in 0..RECORDS_PER_LEAF as usize {
                match SnapshotRecord::get(node, at) {
                    Ok(Some(record)) => {
                        self.records += 1;
                        let leaf = link.lba / FANOUT as u64;
                        if record.number >= walk.next_snapshot
                            || record.parent >= record.number
                            || record.number / RECORDS_PER_LEAF != leaf
                        {
                            let detail = format!(
                                "{}, leaf {leaf}: snapshot {}, after {}, and the next is {}",
                                place(link),
                                record.number,
                                record.parent,
                                walk.next_snapshot
                            );
                            self.find(Severity::Damage, "lineage", detail, &[name]);
                        }
                        stack.push(Link {
                            entry: record.map.link,
                            level: record.map.depth.max(1) - 1,
                            // A snapshot shares all it has.
                            shared: true,
                            lba: 0,
                            end: record.size.div_ceil(BLOCK_SIZE as u64),
                        });
                    }
                    Ok(None) => {}
                    Err(error) => {
                        let detail = format!("{}: {error}", place(link));
                        self.find(Severity::Damage, "snapshot-table", detail, &[name]);
                    }
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
            if lba >= link.end && link.level < TABLE_LEVEL {
                let detail = format!(
                    "{}: block {lba} is mapped to {entry:?}, and the volume or snapshot has {}",
                    place(link),
                    link.end
                );
                self.find_below(link, "block-range", detail, name);
                continue;
            }
            if link.level != 0 {
                stack.push(Link { entry, level: link.level - 1, shared, lba, end: link.end });
                continue;
            }
            if !walk.strict || (!shared && walk.gone.iter().any(|gone| gone.contains(&lba))) {
                continue;
            }
            let address = entry.address().filter(|_| entry.kind() == EntryKind::Plain);
            let Some(address) = address else {
                let detail = format!("{}: {entry:?} is no link to data", place(link));
                self.find_below(link, "block-kind", detail, name);
                continue;
            };
            let writable = if shared { 0 } else { WRITABLE };
            self.claim(address, name);
            if let Some(before) = self.reach(address, ExtentKind::Data, NODE | writable, name)
                && before & NODE != 0
                && (before | writable) & WRITABLE != 0
            {
                let detail =
                    format!("block {address} may be written in place although something else uses it");
                self.find_at(Severity::Damage, "block-shared", address, detail, name);
            }
        }
    }
}

/// The node that a link leads to.
fn place(link: &Link) -> String {
    link.entry.address().map_or_else(|| format!("{:?}", link.entry), |at| format!("node {at}"))
}

async fn read(disk: &Disk, link: &Link) -> Result<Node> {
    let address = link.entry.address().ok_or_else(|| Error::corrupt("a hole has no node"))?;
    let bytes: Buffer = disk.read_block(address).await?;
    Node::open(&bytes, link.entry, link.level, disk.salt())
}
