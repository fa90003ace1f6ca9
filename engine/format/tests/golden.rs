//! Golden bytes: what each structure looks like on disk, held against the files in `tests/golden/`.
//!
//! Each test encodes a fixed value, compares the bytes with the committed file, and decodes *the file* back to
//! the value. A test that fails here means that pools written before can no longer be read. A change that is
//! meant edits `docs/on-disk-format.md` and the version or a feature flag too, and writes the files anew:
//! `GOLDEN=write cargo test -p parallax-format --test golden`.
//!
//! The tables of that page are compared with the same files, so it cannot drift from the code either.
//!
//! A file names its length, then lists sixteen bytes a line behind their offset. Lines of zeroes are left out.

use parallax_format::{
    BlockAddress, Entry, ExtentId, Node, PoolSalt,
    area::{self, AreaHeader, AreaId, Run},
    bitmap::{self, BitmapBlock},
    codec::Writer,
    host::{Ballot, HostSlot, Standing},
    journal::{self, BlockHeader, JournalRecord},
    node,
    record::{ExtentKind, ExtentRecord, Filesystem, Grant, InitialRoot, Record, SetRecord, VdiRecord},
    root::{Epoch, Evidence, ReplayPosition, RootSlot, TreeRoot},
    seal::Kind,
    snapshot::{RECORDS_PER_LEAF, SnapshotRecord},
    superblock::{DeviceEntry, Superblock},
    tail::{self, TailHeader},
};
use std::{collections::BTreeMap, fmt::Write, fs, path::PathBuf};
use uuid::Uuid;

const SALT: PoolSalt = PoolSalt(0x5a17_5a17_0123_4567);
const VDI: Uuid = Uuid::from_u128(0x1111_2222_3333_4444_5555_6666_7777_8888);
const OTHER_VDI: Uuid = Uuid::from_u128(0x9999_aaaa_bbbb_cccc_dddd_eeee_ffff_0000);
const SET: Uuid = Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
const BOOT: u128 = 0xb007_b007_b007_b007_b007_b007_b007_b007;
const TAKEN_MS: i64 = 1_700_000_000_123;
const EPOCH: Epoch = Epoch { grant: 3, open: 2 };

/// The text of a golden file.
fn render(bytes: &[u8]) -> String {
    let mut text = format!("length {}\n", bytes.len());
    for (line, chunk) in bytes.chunks(16).enumerate() {
        if chunk.iter().any(|byte| *byte != 0) {
            write!(text, "{:08x} ", line * 16).unwrap();
            for byte in chunk {
                write!(text, " {byte:02x}").unwrap();
            }
            text.push('\n');
        }
    }
    text
}

/// The bytes of a golden file; every byte is read, nothing is taken from the code under test.
fn parse(text: &str) -> Vec<u8> {
    let mut lines = text.lines();
    let length = lines.next().and_then(|line| line.strip_prefix("length ")).expect("a first line `length N`");
    let mut bytes = vec![0; length.parse().expect("a length")];
    for line in lines {
        let (offset, rest) = line.split_once("  ").expect("offset, two spaces, bytes");
        let offset = usize::from_str_radix(offset, 16).expect("a hexadecimal offset");
        for (index, byte) in rest.split(' ').enumerate() {
            bytes[offset + index] = u8::from_str_radix(byte, 16).expect("a hexadecimal byte");
        }
    }
    bytes
}

/// Compares `bytes` with the golden file `name` and returns the bytes of the file.
fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.hex"));
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        fs::write(&path, render(bytes)).unwrap();
    }
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let expected = parse(&text);
    assert_eq!(bytes.len(), expected.len(), "{name}: the length has changed");
    let changed: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != expected[*at]).collect();
    assert!(
        changed.is_empty(),
        "{name}: {} bytes differ from the golden file, the first at offset {}:\n{}",
        changed.len(),
        changed[0],
        render(bytes)
    );
    expected
}

fn address(extent: u32, block: u32) -> BlockAddress {
    BlockAddress::new(ExtentId::new(extent).unwrap(), block).unwrap()
}

#[test]
fn superblock() {
    let value = Superblock {
        uuid: Uuid::from_u128(0xdead_beef_0000_1111_2222_3333_4444_5555),
        salt: SALT,
        compat: 0x0a,
        ro_compat: 0x0b,
        incompat: 1,
        extent_blocks: 1 << 16,
        extents: 300,
        host_slots: 64,
        hosts_start: 1,
        extents_start: 528,
        devices: vec![
            DeviceEntry { uuid: VDI, blocks: 20_000_000 },
            DeviceEntry { uuid: OTHER_VDI, blocks: 30_000_000 },
        ],
    };
    let bytes = golden("superblock", &value.encode(0, 5));
    assert_eq!(Superblock::decode(&bytes, 0).unwrap(), (value, 5));
}

#[test]
fn host_slot() {
    let value = HostSlot {
        name: "node-1".to_owned(),
        incarnation: 7,
        boot_id: BOOT,
        renewed_ms: 123_456,
        standing: Standing::Released,
    };
    let bytes = golden("host-slot", &value.encode(9, 77, SALT));
    assert_eq!(HostSlot::decode(&bytes, 9, SALT).unwrap(), (value, 77));
}

#[test]
fn ballot() {
    let value = Ballot { incarnation: 7, epoch: 12 };
    let bytes = golden("ballot", &value.encode(10, SALT));
    assert_eq!(Ballot::decode(&bytes, 10, SALT).unwrap(), value);
}

const AREA: AreaId = AreaId { epoch: 4, generation: 9 };

#[test]
fn area_header() {
    let value = AreaHeader {
        id: AREA,
        base_blocks: 3,
        base_crc: 0xcafe_f00d,
        runs: vec![Run { start: 528, blocks: 8 }, Run { start: 9_000, blocks: 16 }],
    };
    let bytes = golden("area-header", &value.encode(11, SALT));
    assert_eq!(AreaHeader::decode(&bytes, 11, SALT).unwrap(), value);
}

/// One record of each kind, with every optional field present.
fn registry_records() -> Vec<Record> {
    let vdi = VdiRecord {
        id: VDI,
        name: "data".to_owned(),
        size: 10 << 30,
        logical_block: 512,
        created_ms: TAKEN_MS,
        source_snapshot: Some((OTHER_VDI, 6)),
        source_vdi: Some(OTHER_VDI),
        filesystem: Filesystem::Formatted,
        headless: true,
        snapshots: 2,
        publications: vec![("node-1".to_owned(), false), ("node-2".to_owned(), true)],
        attributes: BTreeMap::from([("class".to_owned(), "fast".to_owned())]),
        initial: InitialRoot { root: Entry::node(address(2, 30), 0x1_2345, true), depth: 3 },
        grant: Some(Grant { number: 3, incarnation: 7, slots: address(2, 100) }),
        previous: Some(Grant { number: 2, incarnation: 6, slots: address(2, 104) }),
    };
    let extent = |number: u32, kind: ExtentKind| {
        Record::Extent(ExtentRecord {
            extent: ExtentId::new(number).unwrap(),
            kind,
            device: 1,
            position: number + 40,
            owner: 7,
            birth: u64::from(number) + 90,
        })
    };
    vec![
        extent(1, ExtentKind::Data),
        extent(2, ExtentKind::Metadata),
        extent(3, ExtentKind::System),
        Record::ExtentFreed(ExtentId::new(4).unwrap()),
        Record::Vdi(Box::new(vdi)),
        Record::VdiDeleted(OTHER_VDI),
        Record::Set(SetRecord {
            id: SET,
            name: "nightly".to_owned(),
            members: vec![(VDI, 5), (OTHER_VDI, 6)],
        }),
        Record::SetDeleted(SET),
        Record::Counters { birth: 94, incarnation: 8 },
    ]
}

#[test]
fn area_block_with_a_record_of_each_kind() {
    let records = registry_records();
    let body: Vec<u8> = records.iter().flat_map(Record::encode).collect();
    let (block, crc) = area::encode_block(Kind::AreaLog, 531, AREA, 3, 0xcafe_f00d, &body, SALT);
    let bytes = golden("area-block", &block);
    let decoded = area::decode_block(&bytes, Kind::AreaLog, 531, AREA, 3, 0xcafe_f00d, SALT).unwrap();
    assert_eq!(decoded, (records, crc));
}

#[test]
fn bitmap_block() {
    let mut words = vec![0; bitmap::WORDS];
    words[0] = 0x0123_4567_89ab_cdef;
    words[7] = u64::MAX;
    words[bitmap::WORDS - 1] = 1 << 63;
    let value = BitmapBlock { incarnation: 7, birth: 91, words };
    let at = bitmap::location(ExtentId::new(5).unwrap(), 1 << 16, 2, 1);
    let bytes = golden("bitmap", &value.encode(at, 31, SALT));
    assert_eq!(BitmapBlock::decode(&bytes, at, SALT).unwrap(), (value, 31));
}

#[test]
fn root_slot() {
    let value = RootSlot {
        vdi: VDI,
        epoch: EPOCH,
        number: 41,
        size: 10 << 30,
        map: TreeRoot { link: Entry::node(address(2, 30), 0x1_2345, false), depth: 3 },
        table: TreeRoot { link: Entry::node(address(2, 31), 0x0_5432, true), depth: 1 },
        next_snapshot: 6,
        snapshots: 4,
        parent_snapshot: 5,
        unnamed_from: 3,
        replay: ReplayPosition {
            segment: address(2, 256),
            next_segment: Some(address(2, 512)),
            segment_number: 8,
            index: 13,
            group: 500,
            record: 9_001,
            predecessor: 0xfeed_beef,
        },
        durable_group: 499,
        previous: Some((Epoch { grant: 3, open: 1 }, 480)),
        evidence: Evidence::ExclusiveDevice,
        released: true,
    };
    let at = EPOCH.slot(address(2, 100), 41);
    assert_eq!(at, address(2, 101), "an even open and an odd checkpoint take the second slot");
    let bytes = golden("root-slot", &value.encode(at, SALT));
    assert_eq!(RootSlot::decode(&bytes, at, SALT).unwrap(), value);
}

/// One record of each kind.
fn journal_records() -> Vec<JournalRecord> {
    vec![
        JournalRecord::Map { lba: 1_000, count: 16, address: address(1, 77) },
        JournalRecord::Unmap { lba: 2_000, count: 1 << 33 },
        JournalRecord::Snapshot {
            number: 6,
            taken_ms: TAKEN_MS,
            filesystem: Filesystem::Formatting,
            set: SET,
            label: "before the upgrade".to_owned(),
        },
        JournalRecord::SnapshotDeleted { number: 2 },
        JournalRecord::SnapshotLabel { number: 5, label: "keep".to_owned() },
        JournalRecord::Resize { size: 20 << 30 },
    ]
}

#[test]
fn journal_block_with_a_record_of_each_kind() {
    let header = BlockHeader {
        vdi: VDI,
        epoch: EPOCH,
        group: 500,
        durable: 499,
        record: 9_001,
        next_segment: Some(address(2, 512)),
        segment: 8,
        index: 13,
        last: true,
        predecessor: 0xfeed_beef,
    };
    let records = journal_records();
    let mut body = Writer::default();
    records.iter().for_each(|record| record.encode(&mut body));
    let at = address(2, 269);
    let (block, crc) = journal::encode_block(&header, records.len() as u32, &body.0, at, SALT);
    let bytes = golden("journal-block", &block);
    assert_eq!(journal::decode_block(&bytes, at, SALT).unwrap(), (header, records, crc));
}

#[test]
fn snapshot_record() {
    let value = SnapshotRecord {
        number: 6,
        taken_ms: TAKEN_MS,
        map: TreeRoot { link: Entry::node(address(2, 33), 0x0_7777, true), depth: 3 },
        size: 10 << 30,
        set: SET,
        parent: 5,
        filesystem: Filesystem::Formatted,
        label: "before the upgrade".to_owned(),
    };
    let index = (value.number % RECORDS_PER_LEAF) as usize;
    let mut leaf = Node::empty();
    SnapshotRecord::put(&mut leaf, index, Some(&value));
    let at = address(2, 40);
    let buffer = leaf.to_buffer();
    let bytes = golden("snapshot-leaf", &buffer);
    let link = Entry::node(at, node::check(&bytes, at, node::TABLE_LEVEL, SALT), false);
    let read = Node::open(&bytes, link, node::TABLE_LEVEL, SALT).unwrap();
    assert_eq!(SnapshotRecord::get(&read, index).unwrap(), Some(value));
    assert_eq!(SnapshotRecord::get(&read, index + 1).unwrap(), None);
}

#[test]
fn radix_node_and_the_check_in_its_link() {
    let mut value = Node::empty();
    value.set(0, Entry::data(address(1, 77), false));
    value.set(1, Entry::data(address(1, 78), true));
    value.set(511, Entry::node(address(0xf_ffff, 0x7_ffff), 0x1f_ffff, true));
    let at = address(2, 30);
    let bytes = golden("node", &value.to_buffer());
    let check = node::check(&bytes, at, 1, SALT);
    let link = Entry::node(at, check, true);
    let word = golden("node-link", &link.raw().to_le_bytes());
    let link = Entry::from_raw(u64::from_le_bytes(word.try_into().unwrap()));
    assert_eq!(Node::open(&bytes, link, 1, SALT).unwrap(), value);
}

#[test]
fn tail_header_and_entry() {
    let header =
        TailHeader { boot: BOOT, vdi: VDI, epoch: EPOCH, start: 4_096, record: 9_001, doubtful: false };
    let bytes = golden("tail-header", &header.encode(SALT));
    assert_eq!(TailHeader::decode(&bytes, SALT).unwrap(), header);
    let doubtful = TailHeader { doubtful: true, ..header };
    assert_eq!(TailHeader::decode(&doubtful.encode(SALT), SALT).unwrap(), doubtful);

    let mut record = Writer::default();
    journal_records()[0].encode(&mut record);
    let bytes = golden("tail-entry", &tail::encode_entry(9_001, EPOCH, &record.0, SALT));
    let (body, length) = tail::decode_entry(&bytes, 9_001, EPOCH, SALT).unwrap();
    assert_eq!((body, length), (&record.0[..], bytes.len()));
    assert!(tail::decode_entry(&bytes, 9_002, EPOCH, SALT).is_none());
}

/// Whether `shown` (a hexadecimal number or a quoted text) is what `bytes` say.
fn shows(shown: &str, bytes: &[u8]) -> bool {
    match shown.strip_prefix("0x") {
        Some(digits) => {
            let mut number = [0; 16];
            number[..bytes.len()].copy_from_slice(bytes);
            u128::from_str_radix(digits, 16) == Ok(u128::from_le_bytes(number))
        }
        None => shown.trim_matches('"').as_bytes() == bytes,
    }
}

#[test]
fn the_page_about_the_format_shows_what_the_golden_files_hold() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(folder.join("../../docs/on-disk-format.md")).unwrap();
    let mut file: Option<(String, Vec<u8>)> = None;
    let (mut tables, mut next) = (0, None);
    for line in page.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", at, length, field, shown, ..] = cells[..] else {
            (file, next) = (None, None);
            continue;
        };
        if let Some(name) = shown.strip_prefix("in `").and_then(|name| name.strip_suffix(".hex`")) {
            let text = fs::read_to_string(folder.join(format!("tests/golden/{name}.hex"))).unwrap();
            file = Some((name.to_owned(), parse(&text)));
            tables += 1;
        } else if let (Some((name, bytes)), Ok(at)) = (&file, at.parse::<usize>()) {
            let end = at + length.parse::<usize>().unwrap();
            assert!(next.is_none_or(|next| next == at), "{name}: {field} leaves a gap or overlaps");
            assert!(
                shows(shown, &bytes[at..end]),
                "{name}: {field} is {:02x?}, not {shown}",
                &bytes[at..end]
            );
            next = Some(end);
        }
    }
    assert_eq!(tables, 12, "every structure of the page has its table");
}
