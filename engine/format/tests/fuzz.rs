//! Bad bytes for every structure on disk: `tests/corpus/` keeps them, with what must come of each.
//!
//! The seeds are the golden files. Nearly every input is sealed again, so that it passes the checksum and reaches what
//! is behind: whatever decodes is used as the store uses it, and none of that may panic either.

use parallax_format::{
    BlockAddress, Entry, EntryKind, ExtentId, Node, PoolSalt,
    area::{self, AreaHeader, AreaId},
    bitmap::{self, BitmapBlock},
    host::{Ballot, HostSlot},
    journal::{self, JournalRecord},
    node,
    record::{Grant, Record},
    root::{Epoch, RootSlot, SLOTS},
    seal::{self, HEADER, Kind, crc32c},
    snapshot::{RECORDS_PER_LEAF, SnapshotRecord},
    superblock::Superblock,
    tail::{self, TailHeader},
};
use parallax_fuzz::{Bound, Outcome, Sealer, Seed, Target, explore, replay};
use std::{fs, ops::Range, path::PathBuf, time::Duration};

const SALT: PoolSalt = PoolSalt(0x5a17_5a17_0123_4567);
const EPOCH: Epoch = Epoch { grant: 3, open: 2 };
const AREA: AreaId = AreaId { epoch: 4, generation: 9 };
/// A block is 4 KiB; what is made of it may be a few times as much.
const BOUND: Bound = Bound { memory: 128 << 10, time: Duration::from_secs(20) };

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn address(extent: u32, block: u32) -> BlockAddress {
    BlockAddress::new(ExtentId::new(extent).unwrap(), block).unwrap()
}

/// The bytes of a golden file.
fn golden(name: &str) -> Vec<u8> {
    let text = fs::read_to_string(folder("golden").join(format!("{name}.hex"))).unwrap();
    let (length, lines) = text.split_once('\n').unwrap();
    let mut bytes = vec![0; length.strip_prefix("length ").unwrap().parse().unwrap()];
    for line in lines.lines() {
        let (offset, rest) = line.split_once("  ").unwrap();
        let offset = usize::from_str_radix(offset, 16).unwrap();
        for (index, byte) in rest.split(' ').enumerate() {
            bytes[offset + index] = u8::from_str_radix(byte, 16).unwrap();
        }
    }
    bytes
}

/// Header and payload of a sealed block; the rest is padding.
fn payload(bytes: &[u8]) -> Vec<Range<usize>> {
    let length = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
    vec![0..HEADER, HEADER..HEADER + length, HEADER..HEADER + length]
}

/// Writes the checksum of a block anew.
fn sealer(salt: PoolSalt) -> Option<Sealer<'static>> {
    Some(Box::new(move |_, bytes: &mut Vec<u8>| {
        if bytes.len() >= HEADER {
            bytes[8..12].fill(0);
            let crc = crc32c(salt, &[bytes]);
            bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        }
    }))
}

fn block(
    name: &'static str,
    salt: PoolSalt,
    run: impl Fn(&[u8]) -> parallax_block::Result<()> + 'static,
) -> Target<'static> {
    let bytes = golden(name);
    let focus = payload(&bytes);
    Target {
        name,
        folder: folder("corpus"),
        seeds: vec![Seed { name, bytes, focus }],
        seal: sealer(salt),
        moves: true,
        bound: BOUND,
        cases: 1000,
        run: Box::new(move |bytes| outcome(run(bytes))),
    }
}

fn outcome<T>(result: parallax_block::Result<T>) -> Outcome {
    Outcome::of(result.map_err(|error| format!("{:?}: {error}", error.kind())))
}

fn tried(target: Target<'_>) {
    replay(&target);
    explore(&target);
}

/// Every number that the store adds to must leave room above it.
fn far_from_the_end(numbers: &[u64]) {
    for number in numbers {
        assert!(*number < 1 << 63, "{number:#x} was taken for a count");
    }
}

#[test]
fn superblock() {
    tried(block("superblock", PoolSalt(0), |bytes| {
        let (superblock, sequence) = Superblock::decode(bytes, 0)?;
        far_from_the_end(&[sequence]);
        let end = superblock.devices[0].blocks;
        assert!(superblock.host_group(superblock.host_slots) <= superblock.extents_start);
        assert!(superblock.extent_start(superblock.extents) < end);
        assert!(bitmap::first_usable(superblock.extent_blocks) < superblock.extent_blocks);
        assert_eq!(Superblock::decode(&superblock.encode(0, sequence), 0)?, (superblock, sequence));
        Ok(())
    }));
}

#[test]
fn host_slot() {
    tried(block("host-slot", SALT, |bytes| {
        let (slot, sequence) = HostSlot::decode(bytes, 9, SALT)?;
        far_from_the_end(&[sequence, slot.incarnation]);
        assert_eq!(HostSlot::decode(&slot.encode(9, sequence, SALT), 9, SALT)?, (slot, sequence));
        Ok(())
    }));
}

#[test]
fn ballot() {
    tried(block("ballot", SALT, |bytes| {
        let ballot = Ballot::decode(bytes, 10, SALT)?;
        far_from_the_end(&[ballot.incarnation, ballot.epoch]);
        Ok(())
    }));
}

#[test]
fn area_header() {
    tried(block("area-header", SALT, |bytes| {
        let header = AreaHeader::decode(bytes, 11, SALT)?;
        far_from_the_end(&[header.id.epoch, header.id.generation]);
        let total = header.base_blocks + header.log_blocks();
        for index in [0, header.base_blocks, total.saturating_sub(1), total, u32::MAX] {
            assert_eq!(header.block(index).is_some(), index < total);
        }
        assert_eq!(AreaHeader::decode(&header.encode(11, SALT), 11, SALT)?, header);
        Ok(())
    }));
}

/// A grant's slots lie where they can be read.
fn granted(grant: Option<Grant>) {
    for grant in grant.iter() {
        assert!(grant.slots.offset(SLOTS - 1).is_some());
        far_from_the_end(&[grant.incarnation]);
        assert!(grant.number < u32::MAX);
    }
}

#[test]
fn registry_and_catalogue_records() {
    tried(block("area-block", SALT, |bytes| {
        let (records, _) = area::decode_block(bytes, Kind::AreaLog, 531, AREA, 3, 0xcafe_f00d, SALT)?;
        for record in &records {
            match record {
                Record::Vdi(vdi) => {
                    granted(vdi.grant);
                    granted(vdi.previous);
                    tree(vdi.initial.root, vdi.initial.depth);
                    far_from_the_end(&[vdi.size, vdi.snapshots]);
                    assert!([512, 4096].contains(&vdi.logical_block));
                }
                Record::Extent(extent) => far_from_the_end(&[extent.owner, extent.birth]),
                Record::Counters { birth, incarnation } => far_from_the_end(&[*birth, *incarnation]),
                _ => {}
            }
            record.encode();
        }
        let body: Vec<u8> = records.iter().flat_map(Record::encode).collect();
        if body.len() <= area::RECORD_BYTES {
            let (again, _) = area::encode_block(Kind::AreaLog, 531, AREA, 3, 0xcafe_f00d, &body, SALT);
            let again = area::decode_block(&again, Kind::AreaLog, 531, AREA, 3, 0xcafe_f00d, SALT)?;
            assert_eq!(again.0, records);
        }
        Ok(())
    }));
}

#[test]
fn bitmaps() {
    let at = bitmap::location(ExtentId::new(5).unwrap(), 1 << 16, 2, 1);
    tried(block("bitmap", SALT, move |bytes| {
        let (bitmap, sequence) = BitmapBlock::decode(bytes, at, SALT)?;
        far_from_the_end(&[sequence, bitmap.incarnation, bitmap.birth]);
        assert_eq!(bitmap.words.len(), bitmap::WORDS);
        Ok(())
    }));
}

/// A tree whose root can be looked for.
fn tree(link: Entry, depth: u8) {
    assert!(node::blocks_at_depth(depth) >= 1 && (depth >= 1 || link.is_hole()));
    assert!(link.is_hole() || (link.address().is_some() && link.kind() == EntryKind::Plain), "{link:?}");
}

#[test]
fn root_slots() {
    let at = EPOCH.slot(address(2, 100), 41);
    tried(block("root-slot", SALT, move |bytes| {
        let root = RootSlot::decode(bytes, at, SALT)?;
        tree(root.map.link, root.map.depth);
        tree(root.table.link, root.table.depth);
        assert!(root.size <= node::blocks_at_depth(node::DEPTH_MAX) * 4096);
        assert!(root.replay.group >= 1 && root.replay.record >= 1, "replay begins behind the last of both");
        assert!(root.replay.index <= journal::SEGMENT_BLOCKS && root.replay.segment_number < u32::MAX);
        assert!(root.replay.segment.offset(journal::SEGMENT_BLOCKS - 1).is_some());
        assert!(root.epoch.open < u32::MAX && root.epoch.grant < u32::MAX);
        let numbers =
            [root.number, root.next_snapshot, root.snapshots, root.parent_snapshot, root.unnamed_from];
        far_from_the_end(&numbers);
        far_from_the_end(&[root.replay.group, root.replay.record, root.durable_group]);
        assert_eq!(RootSlot::decode(&root.encode(at, SALT), at, SALT)?, root);
        Ok(())
    }));
}

#[test]
fn journal_groups_and_records() {
    let at = address(2, 269);
    tried(block("journal-block", SALT, move |bytes| {
        let (header, records, _) = journal::decode_block(bytes, at, SALT)?;
        let segment = header.next_segment;
        assert!(segment.is_none_or(|segment| segment.offset(journal::SEGMENT_BLOCKS - 1).is_some()));
        far_from_the_end(&[header.group, header.durable, header.record]);
        assert!(header.segment < u32::MAX);
        for record in records {
            match record {
                JournalRecord::Map { lba, count, address } => {
                    assert!(
                        count > 0 && address.offset(count - 1).is_some(),
                        "{count} blocks from {address}"
                    );
                    far_from_the_end(&[lba, lba + u64::from(count)]);
                }
                JournalRecord::Unmap { lba, count } => far_from_the_end(&[lba, count]),
                JournalRecord::Snapshot { number, .. }
                | JournalRecord::SnapshotDeleted { number }
                | JournalRecord::SnapshotLabel { number, .. } => far_from_the_end(&[number]),
                JournalRecord::Resize { size } => far_from_the_end(&[size]),
            }
        }
        Ok(())
    }));
}

/// A target whose bytes are a node's, behind the link that names it.
fn linked(
    name: &'static str,
    at: BlockAddress,
    level: u8,
    run: impl Fn(&Node) -> parallax_block::Result<()> + 'static,
) -> Target<'static> {
    let bytes = golden(name);
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    let check = |bytes: &[u8]| Entry::node(at, node::check(bytes, at, level, SALT), false).raw();
    let seed = [&check(&bytes).to_le_bytes()[..], &bytes].concat();
    Target {
        name,
        folder: folder("corpus"),
        seeds: vec![Seed { name, bytes: seed, focus: vec![0..8, 8..used + 9, 8..8 + 4096] }],
        // The check in the link; its other bits stay as they were made.
        seal: Some(Box::new(move |_, bytes: &mut Vec<u8>| {
            if let Some((link, node)) = bytes.split_first_chunk_mut::<8>() {
                let word = u64::from_le_bytes(*link);
                let mask = ((1 << 21) - 1) << 39;
                let address = Entry::from_raw(word).address().unwrap_or(at);
                let check = u64::from(node::check(node, address, level, SALT)) << 39;
                *link = (word & !mask | check).to_le_bytes();
            }
        })),
        moves: true,
        bound: BOUND,
        cases: 1000,
        run: Box::new(move |bytes| {
            let Some((link, bytes)) = bytes.split_first_chunk::<8>() else {
                return Outcome::Refused("there is no link".into());
            };
            let link = Entry::from_raw(u64::from_le_bytes(*link));
            outcome(Node::open(bytes, link, level, SALT).and_then(|node| run(&node)))
        }),
    }
}

#[test]
fn radix_nodes() {
    tried(linked("node", address(2, 30), 1, |node| {
        let mut copy = node.clone();
        copy.mark_ro();
        for index in 0..node::FANOUT {
            let entry = node.entry(index);
            // Whatever a word says, it can be looked at.
            let _ = (entry.kind(), entry.address(), entry.check(), format!("{entry:?}"));
            assert_eq!(copy.entry(index).is_hole(), entry.is_hole());
        }
        assert_eq!(node.to_buffer().len(), 4096);
        Ok(())
    }));
}

#[test]
fn snapshot_table() {
    tried(linked("snapshot-leaf", address(2, 40), node::TABLE_LEVEL, |leaf| {
        for index in 0..RECORDS_PER_LEAF as usize {
            if let Some(record) = SnapshotRecord::get(leaf, index)? {
                assert_eq!(record.number % RECORDS_PER_LEAF, index as u64, "a record lies at its number");
                tree(record.map.link, record.map.depth);
                far_from_the_end(&[record.number, record.parent, record.size]);
                let mut again = Node::empty();
                SnapshotRecord::put(&mut again, index, Some(&record));
                assert_eq!(SnapshotRecord::get(&again, index)?, Some(record));
            }
        }
        Ok(())
    }));
}

#[test]
fn tail_header() {
    let bytes = golden("tail-header");
    let mut target = block("tail-header", SALT, |bytes| {
        let header = TailHeader::decode(bytes, SALT)?;
        far_from_the_end(&[header.start, header.record]);
        Ok(())
    });
    target.seeds[0].focus = Seed::new("", bytes).focus;
    target.seal = Some(Box::new(|_, bytes| {
        if bytes.len() >= 64 {
            let crc = crc32c(SALT, &[&bytes[8..64]]);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        }
    }));
    tried(target);
}

#[test]
fn tail_entries() {
    let bytes = golden("tail-entry");
    let mut target = block("tail-entry", SALT, |bytes| {
        let (body, length) = tail::decode_entry(bytes, 9_001, EPOCH, SALT)
            .ok_or_else(|| parallax_block::Error::corrupt("the tail ends here"))?;
        assert!(length >= tail::ENTRY_HEADER + body.len() && length.is_multiple_of(8));
        JournalRecord::decode(&mut parallax_format::codec::Reader::new(body, "tail entry")).map(drop)
    });
    target.seeds[0].focus = Seed::new("", bytes).focus;
    target.seal = Some(Box::new(|_, bytes| {
        let Some(length) = bytes.first_chunk::<2>().map(|length| usize::from(u16::from_le_bytes(*length)))
        else {
            return;
        };
        if let Some(body) = bytes.get(16..16 + length) {
            let crc = crc32c(SALT, &[&9_001_u64.to_le_bytes(), &EPOCH.to_bits().to_le_bytes(), body]);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        }
    }));
    tried(target);
}

/// What every sealed block has in common, with a payload of any kind.
#[test]
fn block_headers() {
    let mut target = block("root-slot", SALT, |bytes| {
        let sealed = seal::open(bytes, Kind::Root, address(2, 101).to_bits(), SALT)?;
        assert!(sealed.payload.len() <= seal::PAYLOAD);
        Ok(())
    });
    target.name = "block-header";
    target.seeds[0] = Seed::within("root-slot", golden("root-slot"), 0..HEADER);
    tried(target);
}
