//! Root slots: where a VDI's durable state begins.
//!
//! Every grant names four slots: two for even opens, two for odd ones. A checkpoint goes into the older of
//! its epoch's two. The block's sequence is the checkpoint's number, which never goes back.

use crate::{
    BlockAddress, Entry, EntryKind, PoolSalt,
    codec::{Reader, SHORT_COUNT_MAX, Writer},
    journal::{self, SEGMENT_BLOCKS},
    node::{DEPTH_MAX, blocks_at_depth},
    seal::{self, Kind},
    snapshot::{SNAPSHOT_MAX, TABLE_DEPTH_MAX},
};
use parallax_block::{BLOCK_SIZE, Buffer, Error, Result};
use std::fmt;
use uuid::Uuid;

/// Slots of a grant.
pub const SLOTS: u32 = 4;

/// One reign of one host over one VDI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch {
    /// Given by the manager.
    pub grant: u32,
    /// Counted by the holder.
    pub open: u32,
}

impl Epoch {
    /// Ordered as a number.
    pub fn to_bits(self) -> u64 {
        u64::from(self.grant) << 32 | u64::from(self.open)
    }

    /// From [`Self::to_bits`].
    pub fn from_bits(bits: u64) -> Self {
        Self { grant: (bits >> 32) as u32, open: bits as u32 }
    }

    /// From [`Self::to_bits`] on disk, where nothing has verified it.
    pub(crate) fn decode(bits: u64) -> Result<Self> {
        let epoch = Self::from_bits(bits);
        if epoch.grant > SHORT_COUNT_MAX || epoch.open > SHORT_COUNT_MAX {
            return Err(Error::corrupt(format!("no volume reaches epoch {epoch}")));
        }
        Ok(epoch)
    }

    /// Slot of checkpoint `number` in this epoch.
    pub fn slot(self, slots: BlockAddress, number: u64) -> BlockAddress {
        let index = (self.open % 2) * 2 + (number % 2) as u32;
        slots.offset(index).expect("a grant's slots lie in one extent")
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.grant, self.open)
    }
}

/// Where in a journal replay begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayPosition {
    /// First block of the segment.
    pub segment: BlockAddress,
    /// First block of the segment after it, if there was one already. Journal blocks name it, too; but replay may begin at
    /// the last one of a segment.
    pub next_segment: Option<BlockAddress>,
    /// Number of the segment in its epoch.
    pub segment_number: u32,
    /// Block of the segment.
    pub index: u32,
    /// Group that begins there.
    pub group: u64,
    /// Number of its first record.
    pub record: u64,
    /// Crc of the journal block before, or 0.
    pub predecessor: u32,
}

/// Why an epoch was allowed to follow the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// There was none before.
    First,
    /// The epoch before ended in order.
    Released,
    /// The device was held exclusively, so that the old process's I/O had finished.
    ExclusiveDevice,
    /// The machine had booted anew over a local device.
    Rebooted,
    /// Nothing proves that the old process's I/O had finished: inherited blocks are treated as shared.
    None,
}

impl Evidence {
    fn from_byte(byte: u8) -> Result<Self> {
        Ok(match byte {
            0 => Self::First,
            1 => Self::Released,
            2 => Self::ExclusiveDevice,
            3 => Self::Rebooted,
            4 => Self::None,
            other => return Err(Error::corrupt(format!("takeover evidence {other} is unknown"))),
        })
    }

    /// Whether inherited blocks may be written in place.
    pub fn proves_quiet(self) -> bool {
        self != Self::None
    }
}

/// A tree: link to its root and its levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeRoot {
    /// Link to the root node, or a hole.
    pub link: Entry,
    /// Levels; a root at level `depth - 1`.
    pub depth: u8,
}

impl TreeRoot {
    /// What a word and a number of levels on disk mean: at most `deepest` levels, and one at least unless it is empty.
    pub(crate) fn decode(word: u64, depth: u8, deepest: u8) -> Result<Self> {
        let link = Entry::from_raw(word);
        let leads = link.address().is_some() && link.kind() == EntryKind::Plain && depth > 0;
        if depth > deepest || !(link.is_hole() || leads) {
            return Err(Error::corrupt(format!("a tree of {depth} levels begins at {link:?}")));
        }
        Ok(Self { link, depth })
    }

    /// As [`Self::decode`], for the block map of a volume of `size` bytes.
    pub(crate) fn decode_map(word: u64, depth: u8, size: u64) -> Result<Self> {
        let map = Self::decode(word, depth, DEPTH_MAX)?;
        if depth == 0 || size.div_ceil(BLOCK_SIZE as u64) > blocks_at_depth(depth) {
            return Err(Error::corrupt(format!("{depth} levels do not map a volume of {size} bytes")));
        }
        Ok(map)
    }
}

/// One checkpoint of one VDI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootSlot {
    /// Whose.
    pub vdi: Uuid,
    /// In which epoch.
    pub epoch: Epoch,
    /// Checkpoint number: the block's sequence.
    pub number: u64,
    /// Bytes of the VDI.
    pub size: u64,
    /// The block map.
    pub map: TreeRoot,
    /// The snapshot table.
    pub table: TreeRoot,
    /// Number of the next snapshot.
    pub next_snapshot: u64,
    /// Live snapshots in the table.
    pub snapshots: u64,
    /// The snapshot that the block map descends from, or 0.
    pub parent_snapshot: u64,
    /// Lowest number of a snapshot in the table whose set was not named when this was written, or 0.
    pub unnamed_from: u64,
    /// Where replay begins.
    pub replay: ReplayPosition,
    /// Last group known durable when this was written.
    pub durable_group: u64,
    /// Epoch before this one, and its last adopted group.
    pub previous: Option<(Epoch, u64)>,
    /// Why this epoch was allowed to begin.
    pub evidence: Evidence,
    /// Whether the epoch has ended in order: nothing follows in its journal.
    pub released: bool,
}

impl RootSlot {
    /// The block.
    pub fn encode(&self, at: BlockAddress, salt: PoolSalt) -> Buffer {
        let mut w = Writer::default();
        w.u128(self.vdi.as_u128());
        w.u64(self.epoch.to_bits());
        w.u64(self.size);
        w.u64(self.map.link.raw());
        w.u64(self.table.link.raw());
        w.u8(self.map.depth);
        w.u8(self.table.depth);
        w.u8(self.evidence as u8);
        w.u8(u8::from(self.released));
        w.u64(self.next_snapshot);
        w.u64(self.snapshots);
        w.u64(self.parent_snapshot);
        w.u64(self.unnamed_from);
        w.u64(self.replay.segment.to_bits());
        w.u64(self.replay.next_segment.map_or(0, BlockAddress::to_bits));
        w.u32(self.replay.segment_number);
        w.u32(self.replay.index);
        w.u64(self.replay.group);
        w.u64(self.replay.record);
        w.u32(self.replay.predecessor);
        w.u64(self.durable_group);
        let (epoch, group) = self.previous.map_or((0, 0), |(epoch, group)| (epoch.to_bits(), group));
        w.u64(epoch);
        w.u64(group);
        seal::seal(Kind::Root, at.to_bits(), self.number, salt, &w.0)
    }

    /// Verifies.
    pub fn decode(bytes: &[u8], at: BlockAddress, salt: PoolSalt) -> Result<Self> {
        let sealed = seal::open(bytes, Kind::Root, at.to_bits(), salt)?;
        let mut r = Reader::new(sealed.payload, "root slot");
        let vdi = Uuid::from_u128(r.u128()?);
        let epoch = Epoch::decode(r.u64()?)?;
        let size = r.u64()?;
        let (map, table) = (r.u64()?, r.u64()?);
        let (map_depth, table_depth) = (r.u8()?, r.u8()?);
        let map = TreeRoot::decode_map(map, map_depth, size)?;
        let table = TreeRoot::decode(table, table_depth, TABLE_DEPTH_MAX)?;
        let evidence = Evidence::from_byte(r.u8()?)?;
        let released = r.u8()? != 0;
        let (next_snapshot, snapshots, parent_snapshot, unnamed_from) =
            (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
        for number in [next_snapshot, snapshots, parent_snapshot, unnamed_from] {
            r.within(number, SNAPSHOT_MAX)?;
        }
        let segment = journal::segment_from_bits(r.u64()?)?
            .ok_or_else(|| Error::corrupt("a root slot names no journal segment"))?;
        let replay = ReplayPosition {
            segment,
            next_segment: journal::segment_from_bits(r.u64()?)?,
            segment_number: r.short_count()?,
            index: r.u32()?,
            group: r.count()?,
            record: r.count()?,
            predecessor: r.u32()?,
        };
        if replay.index > SEGMENT_BLOCKS || replay.group == 0 || replay.record == 0 {
            return Err(Error::corrupt("a root slot names no place in a journal"));
        }
        let durable_group = r.count()?;
        let (previous, adopted) = (r.u64()?, r.count()?);
        Ok(Self {
            vdi,
            epoch,
            number: sealed.sequence,
            size,
            map,
            table,
            next_snapshot,
            snapshots,
            parent_snapshot,
            unnamed_from,
            replay,
            durable_group,
            previous: (previous != 0)
                .then(|| Epoch::decode(previous).map(|epoch| (epoch, adopted)))
                .transpose()?,
            evidence,
            released,
        })
    }
}
