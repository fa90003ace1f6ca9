//! Journal blocks and the records in them.
//!
//! A segment is [`SEGMENT_BLOCKS`] neighbouring blocks. A group of records is one commit; it fills one block or
//! several, and its last block says so. Every block names the segment that follows, which was allocated before
//! this one was begun, so that replay never has to search.
//!
//! ```text
//!  0  vdi          u128
//! 16  epoch        u64
//! 24  group        u64
//! 32  durable      u64   last group known durable when this was written
//! 40  record       u64   number of the first record here
//! 48  next segment u64   bits of its address, or 0
//! 56  segment      u32   number of this segment in its epoch
//! 60  index        u16   block of the segment
//! 62  flags        u16   bit 0: the group ends here
//! 64  predecessor  u32   crc of the journal block before, or 0
//! 68  count        u32   records here
//! 72  records
//! ```

use crate::{
    BlockAddress, PoolSalt,
    codec::{Reader, Writer},
    node::BLOCKS_MAX,
    record::Filesystem,
    root::Epoch,
    seal::{self, Kind, PAYLOAD},
    snapshot::SNAPSHOT_MAX,
};
use parallax_block::{BLOCK_SIZE, Buffer, Error, Result};
use uuid::Uuid;

/// Blocks of a segment: 64 KiB.
pub const SEGMENT_BLOCKS: u32 = 16;

/// Bytes of records in one block.
pub const RECORD_BYTES: usize = PAYLOAD - 72;

/// Most bytes of a snapshot's label.
pub const LABEL_MAX: usize = 64;

/// The segment that bits on disk name; `None` for zero.
pub(crate) fn segment_from_bits(bits: u64) -> Result<Option<BlockAddress>> {
    let segment = BlockAddress::from_bits(bits);
    if bits != 0 && segment.and_then(|segment| segment.offset(SEGMENT_BLOCKS - 1)).is_none() {
        return Err(Error::corrupt(format!("no journal segment can be at {bits:#x}")));
    }
    Ok(segment)
}

/// What a journal block says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHeader {
    /// Whose journal.
    pub vdi: Uuid,
    /// Which epoch's.
    pub epoch: Epoch,
    /// Which commit.
    pub group: u64,
    /// Last group known durable when this was written.
    pub durable: u64,
    /// Number of the first record here.
    pub record: u64,
    /// The segment after this one.
    pub next_segment: Option<BlockAddress>,
    /// Number of this segment in its epoch.
    pub segment: u32,
    /// Block of the segment.
    pub index: u16,
    /// Whether the group ends here.
    pub last: bool,
    /// Crc of the journal block before, or 0.
    pub predecessor: u32,
}

/// A change of a VDI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalRecord {
    /// Blocks `lba ..` now lie at `address ..`.
    Map {
        /// First block of the VDI.
        lba: u64,
        /// How many.
        count: u32,
        /// Where the first lies; the others follow in the same extent.
        address: BlockAddress,
    },
    /// Blocks `lba ..` are holes.
    Unmap {
        /// First block of the VDI.
        lba: u64,
        /// How many.
        count: u64,
    },
    /// A snapshot was cut here.
    Snapshot {
        /// Its number.
        number: u64,
        /// When, in milliseconds since the Unix epoch.
        taken_ms: i64,
        /// Filesystem state at that moment.
        filesystem: Filesystem,
        /// The set it belongs to, or nil.
        set: Uuid,
        /// Text for people.
        label: String,
    },
    /// A snapshot was deleted.
    SnapshotDeleted {
        /// Its number.
        number: u64,
    },
    /// A snapshot was given another label.
    SnapshotLabel {
        /// Its number.
        number: u64,
        /// The new text.
        label: String,
    },
    /// The VDI has grown.
    Resize {
        /// Bytes.
        size: u64,
    },
}

mod tag {
    pub(super) const MAP: u8 = 1;
    pub(super) const UNMAP: u8 = 2;
    pub(super) const SNAPSHOT: u8 = 3;
    pub(super) const SNAPSHOT_DELETED: u8 = 4;
    pub(super) const SNAPSHOT_LABEL: u8 = 5;
    pub(super) const RESIZE: u8 = 6;
}

impl JournalRecord {
    /// `tag u8`, then the fields.
    pub fn encode(&self, w: &mut Writer) {
        match self {
            Self::Map { lba, count, address } => {
                w.u8(tag::MAP);
                w.u64(*lba);
                w.u32(*count);
                w.u64(address.to_bits());
            }
            Self::Unmap { lba, count } => {
                w.u8(tag::UNMAP);
                w.u64(*lba);
                w.u64(*count);
            }
            Self::Snapshot { number, taken_ms, filesystem, set, label } => {
                w.u8(tag::SNAPSHOT);
                w.u64(*number);
                w.i64(*taken_ms);
                w.u8(filesystem.to_byte());
                w.u128(set.as_u128());
                w.text(label);
            }
            Self::SnapshotDeleted { number } => {
                w.u8(tag::SNAPSHOT_DELETED);
                w.u64(*number);
            }
            Self::SnapshotLabel { number, label } => {
                w.u8(tag::SNAPSHOT_LABEL);
                w.u64(*number);
                w.text(label);
            }
            Self::Resize { size } => {
                w.u8(tag::RESIZE);
                w.u64(*size);
            }
        }
    }

    /// Takes one record.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let blocks = |lba: u64, count: u64| {
            if lba > BLOCKS_MAX || count > BLOCKS_MAX - lba {
                return Err(Error::corrupt("a journal record is about blocks that no volume has"));
            }
            Ok(())
        };
        let label = |text: String| {
            if text.len() > LABEL_MAX {
                return Err(Error::corrupt("a snapshot's label is too long"));
            }
            Ok(text)
        };
        Ok(match r.u8()? {
            tag::MAP => {
                let (lba, count) = (r.u64()?, r.u32()?);
                blocks(lba, u64::from(count))?;
                let address = BlockAddress::from_bits(r.u64()?)
                    .filter(|first| count > 0 && first.offset(count - 1).is_some())
                    .ok_or_else(|| Error::corrupt("a journal record maps to no block"))?;
                Self::Map { lba, count, address }
            }
            tag::UNMAP => {
                let (lba, count) = (r.u64()?, r.u64()?);
                blocks(lba, count)?;
                Self::Unmap { lba, count }
            }
            tag::SNAPSHOT => Self::Snapshot {
                number: snapshot(r)?,
                taken_ms: r.i64()?,
                filesystem: Filesystem::from_byte(r.u8()?)?,
                set: Uuid::from_u128(r.u128()?),
                label: label(r.text()?)?,
            },
            tag::SNAPSHOT_DELETED => Self::SnapshotDeleted { number: snapshot(r)? },
            tag::SNAPSHOT_LABEL => Self::SnapshotLabel { number: snapshot(r)?, label: label(r.text()?)? },
            tag::RESIZE => {
                let size = r.u64()?;
                Self::Resize { size: r.within(size, BLOCKS_MAX * BLOCK_SIZE as u64)? }
            }
            other => return Err(Error::corrupt(format!("journal record {other} is unknown"))),
        })
    }
}

fn snapshot(r: &mut Reader<'_>) -> Result<u64> {
    let number = r.u64()?;
    r.within(number, SNAPSHOT_MAX)
}

/// The block at `at`. Returns it with its crc, the predecessor of the next.
pub fn encode_block(
    header: &BlockHeader,
    count: u32,
    records: &[u8],
    at: BlockAddress,
    salt: PoolSalt,
) -> (Buffer, u32) {
    let mut w = Writer::default();
    w.u128(header.vdi.as_u128());
    w.u64(header.epoch.to_bits());
    w.u64(header.group);
    w.u64(header.durable);
    w.u64(header.record);
    w.u64(header.next_segment.map_or(0, BlockAddress::to_bits));
    w.u32(header.segment);
    w.u16(header.index);
    w.u16(u16::from(header.last));
    w.u32(header.predecessor);
    w.u32(count);
    w.raw(records);
    let block = seal::seal(Kind::Journal, at.to_bits(), header.group, salt, &w.0);
    let crc = u32::from_le_bytes([block[8], block[9], block[10], block[11]]);
    (block, crc)
}

/// Verifies the block at `at`; returns its header, its records and its crc.
pub fn decode_block(
    bytes: &[u8],
    at: BlockAddress,
    salt: PoolSalt,
) -> Result<(BlockHeader, Vec<JournalRecord>, u32)> {
    let sealed = seal::open(bytes, Kind::Journal, at.to_bits(), salt)?;
    let mut r = Reader::new(sealed.payload, "journal block");
    let vdi = Uuid::from_u128(r.u128()?);
    let epoch = Epoch::decode(r.u64()?)?;
    let (group, durable, record) = (r.count()?, r.count()?, r.count()?);
    let next_segment = segment_from_bits(r.u64()?)?;
    let (segment, index, flags) = (r.short_count()?, r.u16()?, r.u16()?);
    let (predecessor, count) = (r.u32()?, r.u32()?);
    if sealed.sequence != group || count as usize > RECORD_BYTES {
        return Err(Error::corrupt("a journal block contradicts itself"));
    }
    let records = (0..count).map(|_| JournalRecord::decode(&mut r)).collect::<Result<Vec<_>>>()?;
    if r.remaining() != 0 {
        return Err(Error::corrupt("a journal block is longer than its records"));
    }
    let last = flags & 1 != 0;
    let header =
        BlockHeader { vdi, epoch, group, durable, record, next_segment, segment, index, last, predecessor };
    Ok((header, records, sealed.crc))
}
