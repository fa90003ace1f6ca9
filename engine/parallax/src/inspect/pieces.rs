//! The pieces that can be looked at, as trees of names and values.

use super::medium::{Medium, salt, text};
use crate::{
    failure::{Failure, Outcome},
    time,
};
use parallax_block::BLOCK_SIZE;
use parallax_format::{
    BlockAddress, Entry, ExtentId, Node,
    bitmap::{self, BitmapBlock},
    journal::{self, JournalRecord},
    node::FANOUT,
    record::{Grant, VdiRecord},
    root::{RootSlot, SLOTS},
    superblock::{Superblock, incompat},
};
use serde_json::{Value, json};

/// Nodes that one look shows at most.
const NODES_MAX: usize = 4096;

/// Journal blocks that one look shows at most.
const JOURNAL_MAX: usize = 4096;

pub(super) fn superblocks(medium: &Medium) -> Value {
    let copies: Vec<Value> = medium
        .superblocks()
        .into_iter()
        .map(|(at, copy)| match copy {
            Ok((superblock, sequence)) => {
                let mut shown = superblock_fields(&superblock);
                shown["at_block"] = at.into();
                shown["sequence"] = sequence.into();
                shown
            }
            Err(error) => json!({ "at_block": at, "error": error }),
        })
        .collect();
    json!({ "device_blocks": medium.blocks(), "superblocks": copies })
}

fn superblock_fields(superblock: &Superblock) -> Value {
    json!({
        "uuid": superblock.uuid.to_string(),
        "compat": format!("{:#x}", superblock.compat),
        "ro_compat": format!("{:#x}", superblock.ro_compat),
        "incompat": incompat::names(superblock.incompat),
        "extent_blocks": superblock.extent_blocks,
        "extents": superblock.extents,
        "host_slots": superblock.host_slots,
        "hosts_start": superblock.hosts_start,
        "extents_start": superblock.extents_start,
        "devices": superblock
            .devices
            .iter()
            .map(|device| json!({ "uuid": device.uuid.to_string(), "blocks": device.blocks }))
            .collect::<Vec<_>>(),
    })
}

pub(super) fn extent(medium: &Medium, number: u32) -> Outcome<Value> {
    let superblock = medium.superblock()?;
    let registry = medium.registry(&superblock);
    let id =
        ExtentId::new(number).ok_or_else(|| Failure::new(format!("{number} is no number of an extent")))?;
    let area = registry.area.as_ref().map(|(header, end)| {
        json!({
            "epoch": header.id.epoch,
            "generation": header.id.generation,
            "base_blocks": header.base_blocks,
            "log_blocks_used": end.saturating_sub(header.base_blocks),
            "log_blocks": header.log_blocks(),
        })
    });
    let Some(record) = registry.extents.get(&id) else {
        return Ok(
            json!({ "extent": number, "claimed": false, "registry": area, "errors": registry.errors }),
        );
    };
    let copies = bitmap::blocks_per_copy(superblock.extent_blocks);
    let bitmaps: Vec<Value> = (0..2)
        .flat_map(|copy| (0..copies).map(move |index| (copy, index)))
        .map(|(copy, index)| {
            let at = bitmap::location(id, superblock.extent_blocks, index, copy);
            let decoded = medium
                .logical(&superblock, at)
                .map_err(|failure| failure.message().to_owned())
                .and_then(|bytes| BitmapBlock::decode(&bytes, at, salt(&superblock)).map_err(text));
            match decoded {
                Ok((block, sequence)) => json!({
                    "copy": copy,
                    "index": index,
                    "sequence": sequence,
                    "incarnation": block.incarnation,
                    "birth": block.birth,
                    "of_this_life": block.birth == record.birth,
                    "allocated": block.words.iter().map(|word| word.count_ones()).sum::<u32>(),
                }),
                Err(error) => json!({ "copy": copy, "index": index, "error": error }),
            }
        })
        .collect();
    Ok(json!({
        "extent": number,
        "claimed": true,
        "kind": format!("{:?}", record.kind).to_lowercase(),
        "device": record.device,
        "position": record.position,
        "first_block": superblock.extent_start(record.position),
        "owner_incarnation": record.owner,
        "birth": record.birth,
        "bitmaps": bitmaps,
        "registry": area,
        "errors": registry.errors,
    }))
}

pub(super) fn roots(medium: &Medium, volume: &str) -> Outcome<Value> {
    let superblock = medium.superblock()?;
    let vdi = medium.volume(&superblock, volume)?;
    let grants: Vec<Value> = [("latest", vdi.grant), ("previous", vdi.previous)]
        .into_iter()
        .filter_map(|(which, grant)| Some((which, grant?)))
        .map(|(which, grant)| {
            let slots: Vec<Value> = slots(medium, &superblock, &grant)
                .into_iter()
                .map(|(at, slot)| match slot {
                    Ok(slot) => root_fields(at, &slot),
                    Err(error) => json!({ "at": at.to_string(), "never_written_or_damaged": error }),
                })
                .collect();
            json!({
                "grant": which,
                "number": grant.number,
                "incarnation": grant.incarnation,
                "slots": slots,
            })
        })
        .collect();
    Ok(json!({
        "volume": vdi.name,
        "id": vdi.id.to_string(),
        "size": vdi.size,
        "headless": vdi.headless,
        "filesystem": format!("{:?}", vdi.filesystem).to_lowercase(),
        "initial_root": entry(vdi.initial.root),
        "initial_depth": vdi.initial.depth,
        "grants": grants,
    }))
}

type Slot = (BlockAddress, Result<RootSlot, String>);

fn slots(medium: &Medium, superblock: &Superblock, grant: &Grant) -> Vec<Slot> {
    (0..SLOTS)
        .filter_map(|number| grant.slots.offset(number))
        .map(|at| {
            let decoded = medium
                .logical(superblock, at)
                .map_err(|failure| failure.message().to_owned())
                .and_then(|bytes| RootSlot::decode(&bytes, at, salt(superblock)).map_err(text));
            (at, decoded)
        })
        .collect()
}

fn root_fields(at: BlockAddress, slot: &RootSlot) -> Value {
    json!({
        "at": at.to_string(),
        "volume_id": slot.vdi.to_string(),
        "epoch": slot.epoch.to_string(),
        "checkpoint": slot.number,
        "size": slot.size,
        "map": entry(slot.map.link),
        "map_depth": slot.map.depth,
        "table": entry(slot.table.link),
        "table_depth": slot.table.depth,
        "snapshots": slot.snapshots,
        "next_snapshot": slot.next_snapshot,
        "parent_snapshot": slot.parent_snapshot,
        "replay_segment": slot.replay.segment.to_string(),
        "replay_index": slot.replay.index,
        "replay_group": slot.replay.group,
        "replay_record": slot.replay.record,
        "durable_group": slot.durable_group,
        "evidence": format!("{:?}", slot.evidence),
        "released": slot.released,
    })
}

/// The newest valid root of a volume.
fn newest(medium: &Medium, superblock: &Superblock, vdi: &VdiRecord) -> Option<RootSlot> {
    [vdi.grant, vdi.previous]
        .into_iter()
        .flatten()
        .flat_map(|grant| slots(medium, superblock, &grant))
        .filter_map(|(_, slot)| slot.ok().filter(|slot| slot.vdi == vdi.id))
        .max_by_key(|slot| (slot.epoch, slot.number))
}

pub(super) fn radix(medium: &Medium, volume: &str, depth: u8) -> Outcome<Value> {
    let superblock = medium.superblock()?;
    let vdi = medium.volume(&superblock, volume)?;
    let root = newest(medium, &superblock, vdi);
    let (link, levels) =
        root.as_ref().map_or((vdi.initial.root, vdi.initial.depth), |slot| (slot.map.link, slot.map.depth));
    let mut nodes = Vec::new();
    let mut level = vec![(link, 0u64)];
    for height in (0..levels).rev().take(usize::from(depth)) {
        let mut below = Vec::new();
        for (link, first) in level {
            if link.is_hole() || nodes.len() >= NODES_MAX {
                continue;
            }
            let opened = match link.address() {
                None => Err("the link names no block".to_owned()),
                Some(address) => medium
                    .logical(&superblock, address)
                    .map_err(|failure| failure.message().to_owned())
                    .and_then(|bytes| Node::open(&bytes, link, height, salt(&superblock)).map_err(text)),
            };
            // Blocks of the volume that one entry at this height covers.
            let span = (FANOUT as u64).pow(u32::from(height));
            match opened {
                Ok(node) => {
                    let used = (0..FANOUT).map(|index| node.entry(index)).filter(|entry| !entry.is_hole());
                    let (mut count, mut shared) = (0, 0);
                    for entry in used {
                        count += 1;
                        shared += u32::from(entry.is_ro());
                    }
                    nodes.push(json!({
                        "level": height,
                        "first_block": first,
                        "link": entry(link),
                        "entries": count,
                        "shared_entries": shared,
                    }));
                    if height > 0 {
                        below.extend(
                            (0..FANOUT).map(|index| (node.entry(index), first + index as u64 * span)),
                        );
                    }
                }
                Err(error) => nodes.push(json!({
                    "level": height,
                    "first_block": first,
                    "link": entry(link),
                    "error": error,
                })),
            }
        }
        level = below;
    }
    Ok(json!({
        "volume": vdi.name,
        "checkpoint": root.as_ref().map(|slot| slot.number),
        "epoch": root.as_ref().map(|slot| slot.epoch.to_string()),
        "levels": levels,
        "nodes": nodes,
        "more": nodes.len() >= NODES_MAX,
    }))
}

fn entry(entry: Entry) -> Value {
    match entry.address() {
        None if entry.is_hole() => Value::Null,
        None => json!({ "raw": format!("{:#018x}", entry.raw()), "error": "extent 0 is never mapped" }),
        Some(address) => json!({
            "address": address.to_string(),
            "kind": format!("{:?}", entry.kind()).to_lowercase(),
            "shared": entry.is_ro(),
            "check": format!("{:#08x}", entry.check()),
        }),
    }
}

pub(super) fn journal(medium: &Medium, volume: &str) -> Outcome<Value> {
    let superblock = medium.superblock()?;
    let vdi = medium.volume(&superblock, volume)?;
    let Some(root) = newest(medium, &superblock, vdi) else {
        return Ok(json!({ "volume": vdi.name, "blocks": [], "end": "the volume has never been open" }));
    };
    let mut blocks = Vec::new();
    let (mut segment, mut index) = (Some(root.replay.segment), root.replay.index);
    let mut next = None;
    let end = loop {
        if blocks.len() >= JOURNAL_MAX {
            break "more follows".to_owned();
        }
        if index == journal::SEGMENT_BLOCKS {
            (segment, index) = (next, 0);
        }
        let Some(at) = segment.and_then(|segment| segment.offset(index)) else {
            break "no further segment".to_owned();
        };
        let decoded = medium
            .logical(&superblock, at)
            .map_err(|failure| failure.message().to_owned())
            .and_then(|bytes| journal::decode_block(&bytes, at, salt(&superblock)).map_err(text));
        match decoded {
            Ok((header, records, _)) if header.vdi == vdi.id && header.epoch == root.epoch => {
                next = header.next_segment;
                blocks.push(json!({
                    "at": at.to_string(),
                    "group": header.group,
                    "group_ends": header.last,
                    "durable_group": header.durable,
                    "first_record": header.record,
                    "records": records.iter().map(record).collect::<Vec<_>>(),
                }));
            }
            Ok(_) => break "a block of another epoch".to_owned(),
            Err(error) => break error,
        }
        index += 1;
    };
    Ok(json!({
        "volume": vdi.name,
        "epoch": root.epoch.to_string(),
        "from_checkpoint": root.number,
        "released": root.released,
        "blocks": blocks,
        "end": end,
    }))
}

fn record(record: &JournalRecord) -> Value {
    Value::String(match record {
        JournalRecord::Map { lba, count, address } => format!("map {count} blocks at {lba} to {address}"),
        JournalRecord::Unmap { lba, count } => format!("unmap {count} blocks at {lba}"),
        JournalRecord::Snapshot { number, taken_ms, label, .. } => {
            format!("snapshot {number} of {} {label:?}", time::iso(*taken_ms))
        }
        JournalRecord::SnapshotDeleted { number } => format!("delete snapshot {number}"),
        JournalRecord::SnapshotLabel { number, label } => format!("label snapshot {number} {label:?}"),
        JournalRecord::Resize { size } => format!("resize to {size} bytes"),
    })
}

pub(super) fn block(medium: &Medium, offset: u64) -> Outcome<Value> {
    let at = offset / BLOCK_SIZE as u64;
    let bytes = medium.physical(at)?;
    let mut lines = Vec::new();
    let mut zeroes = 0;
    for (number, row) in bytes.chunks(16).enumerate() {
        if row.iter().all(|byte| *byte == 0) {
            zeroes += row.len();
            continue;
        }
        let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        let letters: String = row
            .iter()
            .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' })
            .collect();
        lines.push(format!("{:#06x}  {}  {letters}", number * 16, hex.join(" ")));
    }
    Ok(json!({
        "block": at,
        "offset": at * BLOCK_SIZE as u64,
        "sealed": parallax_format::seal::looks_sealed(&bytes),
        "zero_bytes_left_out": zeroes,
        "bytes": lines,
    }))
}
