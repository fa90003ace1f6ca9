//! Reads the durable snapshot table.

use crate::disk::Disk;
use parallax_block::{Error, Result};
use parallax_format::{
    Entry,
    node::{FANOUT, TABLE_LEVEL, blocks_at_depth},
    root::TreeRoot,
    snapshot::{RECORDS_PER_LEAF, SnapshotRecord},
};

/// Records with numbers above `after`, in order, at most `limit`.
pub(crate) async fn records(
    disk: &Disk,
    table: TreeRoot,
    after: u64,
    limit: usize,
) -> Result<Vec<SnapshotRecord>> {
    let mut out = Vec::new();
    let Some(first) = after.checked_add(1) else { return Ok(out) };
    let mut key = first / RECORDS_PER_LEAF;
    let end = table.depth.checked_sub(1).map_or(0, blocks_at_depth);
    while key < end && out.len() < limit {
        match leaf(disk, table, key).await? {
            Err(next) => key = next,
            Ok(node) => {
                for at in 0..RECORDS_PER_LEAF {
                    let number = key * RECORDS_PER_LEAF + at;
                    if number < first || out.len() == limit {
                        continue;
                    }
                    if let Some(record) = SnapshotRecord::get(&node, at as usize)? {
                        if record.number != number {
                            return Err(Error::corrupt(format!(
                                "snapshot record {} lies at the place of {number}",
                                record.number
                            )));
                        }
                        out.push(record);
                    }
                }
                key += 1;
            }
        }
    }
    Ok(out)
}

/// The leaf at `key`, or the next key that may have one.
async fn leaf(
    disk: &Disk,
    table: TreeRoot,
    key: u64,
) -> Result<std::result::Result<std::sync::Arc<parallax_format::Node>, u64>> {
    let mut link: Entry = table.link;
    let mut level = table.depth - 1;
    loop {
        if link.is_hole() {
            let span = (FANOUT as u64) << (9 * u32::from(level));
            // A hole where a node of this level would be spans all that the node would.
            let span = span / FANOUT as u64;
            return Ok(Err((key / span + 1) * span));
        }
        let node = disk.node(link, level + TABLE_LEVEL).await?;
        if level == 0 {
            return Ok(Ok(node));
        }
        level -= 1;
        link = node.entry(((key >> (9 * u32::from(level))) & 511) as usize);
    }
}
