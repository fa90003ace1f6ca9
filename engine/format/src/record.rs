//! Records of catalogue and registry. Each replaces what was known of its subject as a whole.

use crate::{
    BlockAddress, Entry, ExtentId,
    codec::{Reader, Writer},
    node::{BLOCKS_MAX, DEPTH_MAX},
    root::{SLOTS, TreeRoot},
};
use parallax_block::{BLOCK_SIZE, Error, Result};
use std::collections::BTreeMap;
use uuid::Uuid;

/// What an extent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExtentKind {
    /// Blocks of volumes.
    Data,
    /// Radix nodes, root slots, journals.
    Metadata,
    /// Areas of managers.
    System,
}

/// A claimed extent. Extents without a record are free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtentRecord {
    /// Its logical number.
    pub extent: ExtentId,
    /// What it holds.
    pub kind: ExtentKind,
    /// Index in the superblock's device table.
    pub device: u8,
    /// Which extent of that device.
    pub position: u32,
    /// The incarnation that may write it, or 0.
    pub owner: u64,
    /// Number of the claim that took it from the free ones: bitmaps of an earlier life do not count.
    pub birth: u64,
}

/// A grant of one VDI to one incarnation: where its root slots are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// First number of the epochs under this grant.
    pub number: u32,
    /// To whom.
    pub incarnation: u64,
    /// First of four root slots: a pair for even opens, a pair for odd ones.
    pub slots: BlockAddress,
}

/// A tree that a VDI starts from, before it has any root slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitialRoot {
    /// Link to the root node, or a hole.
    pub root: Entry,
    /// Levels of the tree.
    pub depth: u8,
}

impl InitialRoot {
    /// The tree; an empty one has a level, too.
    pub fn tree(self) -> TreeRoot {
        TreeRoot { link: self.root, depth: self.depth.max(1) }
    }
}

/// See `FilesystemState` of the store; the numbers are on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum Filesystem {
    #[default]
    Blank,
    Formatting,
    Formatted,
}

impl Filesystem {
    /// Number on disk.
    pub fn to_byte(self) -> u8 {
        self as u8
    }

    /// From the number on disk.
    pub fn from_byte(byte: u8) -> Result<Self> {
        match byte {
            0 => Ok(Self::Blank),
            1 => Ok(Self::Formatting),
            2 => Ok(Self::Formatted),
            other => Err(Error::corrupt(format!("filesystem state {other} is unknown"))),
        }
    }
}

/// A VDI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VdiRecord {
    /// Identity.
    pub id: Uuid,
    /// Name; empty once headless.
    pub name: String,
    /// Bytes when the record was written; while open, the root slots and the journal know better.
    pub size: u64,
    /// 512 or 4096.
    pub logical_block: u32,
    /// Milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// Snapshot that it was cloned from.
    pub source_snapshot: Option<(Uuid, u64)>,
    /// VDI that was named as its source.
    pub source_vdi: Option<Uuid>,
    /// Filesystem state.
    pub filesystem: Filesystem,
    /// Deleted, but kept because snapshots of it live.
    pub headless: bool,
    /// Live snapshots when it was last released.
    pub snapshots: u64,
    /// Nodes that may use it: name, read-only.
    pub publications: Vec<(String, bool)>,
    /// Free text of the creator.
    pub attributes: BTreeMap<String, String>,
    /// Where it starts before the first grant.
    pub initial: InitialRoot,
    /// The latest grant.
    pub grant: Option<Grant>,
    /// The grant before, whose state counts until an epoch of the latest one has a valid slot.
    pub previous: Option<Grant>,
}

/// A snapshot set that was given an idempotency name, or whose members were taken at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetRecord {
    /// Identity.
    pub id: Uuid,
    /// Idempotency name, or empty.
    pub name: String,
    /// Members: VDI and snapshot number.
    pub members: Vec<(Uuid, u64)>,
}

/// Any of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An extent was claimed or changed hands.
    Extent(ExtentRecord),
    /// An extent became free.
    ExtentFreed(ExtentId),
    /// A VDI came to be or changed.
    Vdi(Box<VdiRecord>),
    /// A VDI is gone.
    VdiDeleted(Uuid),
    /// A snapshot set exists.
    Set(SetRecord),
    /// A snapshot set is gone.
    SetDeleted(Uuid),
    /// Numbers that never go back: next claim, next incarnation.
    Counters {
        /// Next [`ExtentRecord::birth`].
        birth: u64,
        /// Next incarnation.
        incarnation: u64,
    },
}

mod tag {
    pub(super) const EXTENT: u8 = 1;
    pub(super) const EXTENT_FREED: u8 = 2;
    pub(super) const VDI: u8 = 3;
    pub(super) const VDI_DELETED: u8 = 4;
    pub(super) const SET: u8 = 5;
    pub(super) const SET_DELETED: u8 = 6;
    pub(super) const COUNTERS: u8 = 7;
}

impl Record {
    /// `tag u8 | length u16 | body`.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        let tag = match self {
            Self::Extent(extent) => {
                w.u32(extent.extent.get());
                w.u8(match extent.kind {
                    ExtentKind::Data => 1,
                    ExtentKind::Metadata => 2,
                    ExtentKind::System => 3,
                });
                w.u8(extent.device);
                w.u32(extent.position);
                w.u64(extent.owner);
                w.u64(extent.birth);
                tag::EXTENT
            }
            Self::ExtentFreed(extent) => {
                w.u32(extent.get());
                tag::EXTENT_FREED
            }
            Self::Vdi(vdi) => {
                vdi.encode(&mut w);
                tag::VDI
            }
            Self::VdiDeleted(id) => {
                w.u128(id.as_u128());
                tag::VDI_DELETED
            }
            Self::Set(set) => {
                w.u128(set.id.as_u128());
                w.text(&set.name);
                w.u16(set.members.len() as u16);
                for (vdi, number) in &set.members {
                    w.u128(vdi.as_u128());
                    w.u64(*number);
                }
                tag::SET
            }
            Self::SetDeleted(id) => {
                w.u128(id.as_u128());
                tag::SET_DELETED
            }
            Self::Counters { birth, incarnation } => {
                w.u64(*birth);
                w.u64(*incarnation);
                tag::COUNTERS
            }
        };
        let mut framed = Writer::default();
        framed.u8(tag);
        framed.u16(w.0.len() as u16);
        framed.raw(&w.0);
        framed.0
    }

    /// Takes one record from `outer`.
    pub fn decode(outer: &mut Reader<'_>) -> Result<Self> {
        let tag = outer.u8()?;
        let length = usize::from(outer.u16()?);
        let mut r = Reader::new(outer.take(length)?, "registry record");
        let record = match tag {
            tag::EXTENT => Self::Extent(ExtentRecord {
                extent: extent(&mut r)?,
                kind: match r.u8()? {
                    1 => ExtentKind::Data,
                    2 => ExtentKind::Metadata,
                    3 => ExtentKind::System,
                    other => return Err(Error::corrupt(format!("extent kind {other} is unknown"))),
                },
                device: r.u8()?,
                position: r.u32()?,
                owner: r.count()?,
                birth: r.count()?,
            }),
            tag::EXTENT_FREED => Self::ExtentFreed(extent(&mut r)?),
            tag::VDI => Self::Vdi(Box::new(VdiRecord::decode(&mut r)?)),
            tag::VDI_DELETED => Self::VdiDeleted(Uuid::from_u128(r.u128()?)),
            tag::SET => {
                let (id, name, members) = (Uuid::from_u128(r.u128()?), r.text()?, r.u16()?);
                let members = (0..members)
                    .map(|_| Ok((Uuid::from_u128(r.u128()?), r.u64()?)))
                    .collect::<Result<Vec<_>>>()?;
                Self::Set(SetRecord { id, name, members })
            }
            tag::SET_DELETED => Self::SetDeleted(Uuid::from_u128(r.u128()?)),
            tag::COUNTERS => Self::Counters { birth: r.count()?, incarnation: r.count()? },
            other => return Err(Error::corrupt(format!("registry record {other} is unknown"))),
        };
        if r.remaining() != 0 {
            return Err(Error::corrupt("a registry record is longer than its content"));
        }
        Ok(record)
    }
}

fn extent(r: &mut Reader<'_>) -> Result<ExtentId> {
    ExtentId::new(r.u32()?).ok_or_else(|| Error::corrupt("a record names an extent out of range"))
}

impl VdiRecord {
    fn encode(&self, w: &mut Writer) {
        w.u128(self.id.as_u128());
        w.text(&self.name);
        w.u64(self.size);
        w.u32(self.logical_block);
        w.i64(self.created_ms);
        let (vdi, number) = self.source_snapshot.unwrap_or_default();
        w.u128(vdi.as_u128());
        w.u64(number);
        w.u128(self.source_vdi.unwrap_or_default().as_u128());
        w.u8(self.filesystem.to_byte());
        w.u8(u8::from(self.headless));
        w.u64(self.snapshots);
        w.u64(self.initial.root.raw());
        w.u8(self.initial.depth);
        for grant in [self.grant, self.previous] {
            w.u32(grant.map_or(0, |grant| grant.number));
            w.u64(grant.map_or(0, |grant| grant.incarnation));
            w.u64(grant.map_or(0, |grant| grant.slots.to_bits()));
        }
        w.u8(self.publications.len() as u8);
        for (node, read_only) in &self.publications {
            w.text(node);
            w.u8(u8::from(*read_only));
        }
        w.u16(self.attributes.len() as u16);
        for (key, value) in &self.attributes {
            w.text(key);
            w.text(value);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let id = Uuid::from_u128(r.u128()?);
        let name = r.text()?;
        let (size, logical_block, created_ms) = (r.u64()?, r.u32()?, r.i64()?);
        if size > BLOCKS_MAX * BLOCK_SIZE as u64 || ![512, 4096].contains(&logical_block) {
            return Err(Error::corrupt(format!(
                "no volume has {size} bytes in logical blocks of {logical_block} bytes"
            )));
        }
        let (source, number) = (Uuid::from_u128(r.u128()?), r.u64()?);
        let source_vdi = Uuid::from_u128(r.u128()?);
        let filesystem = Filesystem::from_byte(r.u8()?)?;
        let headless = r.u8()? != 0;
        let snapshots = r.count()?;
        let (root, depth) = (r.u64()?, r.u8()?);
        let initial = TreeRoot::decode(root, depth, DEPTH_MAX)?;
        let initial = InitialRoot { root: initial.link, depth: initial.depth };
        let mut grant = || -> Result<Option<Grant>> {
            let (number, incarnation, bits) = (r.short_count()?, r.count()?, r.u64()?);
            let slots = BlockAddress::from_bits(bits);
            if bits != 0 && slots.and_then(|slots| slots.offset(SLOTS - 1)).is_none() {
                return Err(Error::corrupt(format!("no root slots can be at {bits:#x}")));
            }
            Ok(slots.map(|slots| Grant { number, incarnation, slots }))
        };
        let (grant, previous) = (grant()?, grant()?);
        let publications = (0..r.u8()?).map(|_| Ok((r.text()?, r.u8()? != 0))).collect::<Result<Vec<_>>>()?;
        let attributes =
            (0..r.u16()?).map(|_| Ok((r.text()?, r.text()?))).collect::<Result<BTreeMap<_, _>>>()?;
        Ok(Self {
            id,
            name,
            size,
            logical_block,
            created_ms,
            source_snapshot: (number != 0).then_some((source, number)),
            source_vdi: (!source_vdi.is_nil()).then_some(source_vdi),
            filesystem,
            headless,
            snapshots,
            publications,
            attributes,
            initial,
            grant,
            previous,
        })
    }
}
