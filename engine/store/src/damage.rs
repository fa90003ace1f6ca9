//! Damages a pool on purpose, so that it can be seen what `check` says of it and what a repair makes of it.
//!
//! Compiled in only with the feature `damage`, which nothing that is shipped asks for. The pool must be at rest.

use crate::{
    NoRuntime,
    disk::Disk,
    pool::read_superblock,
    registry::{self, Area, Known},
    space::read_copies,
    vdi::replay::{self, Slots},
};
use parallax_block::{BLOCK_SIZE, BlockDevice, Buffer, Error, ErrorKind, Result};
use parallax_format::{
    BlockAddress, Entry, ExtentId, Node,
    area::{self, AreaHeader, Packer},
    bitmap::{self, BitmapBlock},
    host,
    node::{self, FANOUT, TABLE_LEVEL},
    record::{ExtentKind, Record, VdiRecord},
    root::{RootSlot, SLOTS, TreeRoot},
    seal::Kind,
    snapshot::{RECORDS_PER_LEAF, SnapshotRecord},
    superblock::Superblock,
};
use std::sync::Arc;

/// A kind of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The superblock at the start does not verify.
    FirstSuperblock,
    /// The superblock at the end does not verify.
    LastSuperblock,
    /// The slot of the host does not verify.
    HostSlot,
    /// One header of the registry's area does not verify.
    AreaHeader,
    /// No header of any area verifies.
    AreaHeaders,
    /// A block of the registry's base does not verify.
    AreaBase,
    /// Two extents lie at the same place of the device.
    ExtentOverlap,
    /// An extent lies behind the end of the device.
    ExtentRange,
    /// An extent belongs to an incarnation that was never handed out.
    ExtentOwner,
    /// One copy of a bitmap does not verify.
    Bitmap,
    /// Both copies of a bitmap do not verify.
    Bitmaps,
    /// The newest root slot of a volume does not verify.
    NewestRoot,
    /// The older root slot of a volume does not verify.
    OlderRoot,
    /// No root slot of a volume verifies.
    Roots,
    /// The first journal block that replay needs does not verify, and later ones do.
    Journal,
    /// The root node of a volume's map does not match its link.
    RootNode,
    /// A leaf of a volume's map does not match its link.
    Leaf,
    /// A leaf of a snapshot table does not match its link.
    TableLeaf,
    /// A link to data leads out of the pool.
    LinkOutside,
    /// A link to data leads to a radix node.
    LinkToNode,
    /// Two links that may be written in place lead to one block.
    LinkTwice,
    /// A link leads behind the end of the volume.
    PastEnd,
    /// A journal begins where a node lies.
    JournalOverNode,
    /// A root slot counts one snapshot too many.
    SnapshotCount,
    /// Root slots say that their epoch followed itself.
    EpochOrder,
    /// A volume has more snapshots than its root slots have given numbers.
    SnapshotNumber,
    /// A volume maps, for reading, what another that it has nothing to do with keeps in a snapshot.
    LinkForeign,
    /// The last superblock is another pool's.
    ForeignSuperblock,
    /// A block in use counts as free.
    Unmarked,
    /// A block that nothing uses counts as allocated.
    Leak,
}

impl Damage {
    /// Every kind.
    pub const ALL: [Self; 30] = [
        Self::FirstSuperblock,
        Self::LastSuperblock,
        Self::HostSlot,
        Self::AreaHeader,
        Self::AreaHeaders,
        Self::AreaBase,
        Self::ExtentOverlap,
        Self::ExtentRange,
        Self::ExtentOwner,
        Self::Bitmap,
        Self::Bitmaps,
        Self::NewestRoot,
        Self::OlderRoot,
        Self::Roots,
        Self::Journal,
        Self::RootNode,
        Self::Leaf,
        Self::TableLeaf,
        Self::LinkOutside,
        Self::LinkToNode,
        Self::LinkTwice,
        Self::PastEnd,
        Self::JournalOverNode,
        Self::SnapshotCount,
        Self::EpochOrder,
        Self::SnapshotNumber,
        Self::LinkForeign,
        Self::ForeignSuperblock,
        Self::Unmarked,
        Self::Leak,
    ];
}

/// Does it. `NotFound` if the pool has nothing of that kind: it wants an attached volume's state (not closed in order)
/// for [`Damage::Journal`], a snapshot for [`Damage::TableLeaf`], a second volume with one for [`Damage::LinkForeign`],
/// and a volume with data for most.
pub async fn damage(device: Arc<dyn BlockDevice>, what: Damage) -> Result<()> {
    let superblock = read_superblock(&*device).await?;
    let last = superblock.devices[0].blocks - 1;
    let disk = Disk::new(device, superblock, Arc::new(NoRuntime), 64);
    let (header, known) = Area::find(&disk).await?;
    for extent in known.extents.values() {
        disk.map_extent(extent.extent, extent.position);
    }
    let tool = Tool { disk: &disk, known: &known };
    match what {
        Damage::FirstSuperblock => tool.rot_physical(0).await,
        Damage::LastSuperblock => tool.rot_physical(last).await,
        Damage::ForeignSuperblock => {
            let bytes = disk.read_physical(last).await?;
            let (mut twin, sequence) = Superblock::decode(&bytes, last)?;
            twin.uuid = uuid::Uuid::from_u128(!twin.uuid.as_u128());
            // Older than the first, which therefore counts.
            let twin = twin.encode(last, sequence.saturating_sub(1));
            disk.write_physical(last, twin, true).await
        }
        Damage::HostSlot => tool.rot_physical(disk.superblock.host_group(0) + host::SLOT).await,
        Damage::AreaHeader => {
            let copies = tool.headers(&header).await?;
            tool.rot_physical(*copies.first().ok_or_else(nothing)?).await
        }
        Damage::AreaHeaders => {
            for slot in 0..disk.superblock.host_slots {
                for copy in 0..2 {
                    tool.rot_physical(disk.superblock.host_group(slot) + host::AREA_HEADER + copy).await?;
                }
            }
            Ok(())
        }
        Damage::ExtentOverlap | Damage::ExtentRange | Damage::ExtentOwner => {
            tool.reclaim(&header, what).await
        }
        Damage::AreaBase => tool.rot_physical(header.block(0).ok_or_else(nothing)?).await,
        Damage::Bitmap | Damage::Bitmaps => {
            let (extent, ..) = tool.extent(ExtentKind::Data)?;
            let copies = if what == Damage::Bitmap { 1 } else { 2 };
            for copy in 0..copies {
                tool.rot(bitmap::location(extent, disk.superblock.extent_blocks, 0, copy)).await?;
            }
            Ok(())
        }
        Damage::Unmarked => {
            let (.., slots) = tool.volume().await?;
            let leaf = tool.leaf(&slots).await?;
            let address = leaf.first_data().ok_or_else(nothing)?;
            tool.mark(address, false).await
        }
        Damage::Leak => {
            let usable = bitmap::first_usable(disk.superblock.extent_blocks)..disk.superblock.extent_blocks;
            let mut free = None;
            for extent in known.extents.values().filter(|extent| extent.kind != ExtentKind::System) {
                let words = tool.bitmap(extent.extent, extent.birth).await?.0.words;
                let is_free = |block: &u32| words[*block as usize / 64] & (1 << (block % 64)) == 0;
                let block = usable.clone().find(is_free);
                free = free.or(block.and_then(|block| BlockAddress::new(extent.extent, block)));
            }
            let address = free.ok_or_else(nothing)?;
            tool.mark(address, true).await
        }
        _ => tool.in_volume(what).await,
    }
}

fn nothing() -> Error {
    Error::new(ErrorKind::NotFound, "the pool has nothing that could be damaged so")
}

struct Tool<'a> {
    disk: &'a Disk,
    known: &'a Known,
}

/// The way to one leaf: each node with its link and the index of the next one below.
struct Way {
    nodes: Vec<(Entry, Node, usize)>,
}

impl Way {
    fn leaf(&mut self) -> Option<&mut Node> {
        self.nodes.last_mut().map(|(_, node, _)| node)
    }

    fn first_data(&self) -> Option<BlockAddress> {
        let (_, node, _) = self.nodes.last()?;
        node.words().iter().find_map(|word| Entry::from_raw(*word).address())
    }
}

impl Tool<'_> {
    async fn rot_physical(&self, block: u64) -> Result<()> {
        let mut bytes = self.disk.read_physical(block).await?;
        bytes[BLOCK_SIZE / 2] ^= 1;
        self.disk.write_physical(block, bytes, true).await
    }

    async fn rot(&self, address: BlockAddress) -> Result<()> {
        let mut bytes = self.disk.read_block(address).await?;
        bytes[BLOCK_SIZE / 2] ^= 1;
        self.disk.write_blocks(address, bytes, true).await
    }

    async fn headers(&self, newest: &AreaHeader) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        for slot in 0..self.disk.superblock.host_slots {
            for copy in 0..2 {
                let at = self.disk.superblock.host_group(slot) + host::AREA_HEADER + copy;
                let bytes = self.disk.read_physical(at).await?;
                if AreaHeader::decode(&bytes, at, self.disk.salt()).is_ok_and(|header| header.id == newest.id)
                {
                    found.push(at);
                }
            }
        }
        Ok(found)
    }

    /// The first extent of a kind, with its birth.
    fn extent(&self, kind: ExtentKind) -> Result<(ExtentId, u64)> {
        let extent = self.known.extents.values().find(|extent| extent.kind == kind).ok_or_else(nothing)?;
        Ok((extent.extent, extent.birth))
    }

    /// Records something else of the last extent of data.
    async fn reclaim(&self, header: &AreaHeader, what: Damage) -> Result<()> {
        let mut data = self.known.extents.values().filter(|extent| extent.kind == ExtentKind::Data);
        let (first, last) = (data.next().ok_or_else(nothing)?, data.next_back().ok_or_else(nothing)?);
        let mut record = *last;
        match what {
            Damage::ExtentOverlap => record.position = first.position,
            Damage::ExtentRange => record.position = self.disk.superblock.extents,
            _ => record.owner = self.known.incarnation,
        }
        let (_, index, predecessor) = registry::load(self.disk, header).await?;
        let mut packer = Packer::default();
        packer.push(&Record::Extent(record))?;
        let (bodies, at) = (packer.finish(), header.block(index).ok_or_else(nothing)?);
        let body = bodies.first().ok_or_else(nothing)?;
        let (block, _) =
            area::encode_block(Kind::AreaLog, at, header.id, index, predecessor, body, self.disk.salt());
        self.disk.write_physical(at, block, true).await
    }

    /// The newest copy of an extent's first bitmap block.
    async fn bitmap(&self, extent: ExtentId, birth: u64) -> Result<(BitmapBlock, u64)> {
        read_copies(self.disk, extent, birth, 0).await?.newest.ok_or_else(nothing)
    }

    /// Changes one bit of a bitmap that goes on to verify.
    async fn mark(&self, address: BlockAddress, allocated: bool) -> Result<()> {
        let extent = self.known.extents.get(&address.extent()).ok_or_else(nothing)?;
        let (mut block, sequence) = self.bitmap(extent.extent, extent.birth).await?;
        let (word, bit) = (address.block() as usize / 64, 1 << (address.block() % 64));
        match allocated {
            true => block.words[word] |= bit,
            false => block.words[word] &= !bit,
        }
        for sequence in [sequence + 1, sequence + 2] {
            let at =
                bitmap::location(extent.extent, self.disk.superblock.extent_blocks, 0, (sequence % 2) as u32);
            self.disk.write_blocks(at, block.encode(at, sequence, self.disk.salt()), true).await?;
        }
        Ok(())
    }

    /// The first volume that has a root with something below it.
    async fn volume(&self) -> Result<(&VdiRecord, Slots)> {
        for record in self.known.vdis.values().filter(|record| !record.headless) {
            if let Some(slots) = replay::state(self.disk, record).await?
                && !slots.newest.map.link.is_hole()
            {
                return Ok((record, slots));
            }
        }
        Err(nothing())
    }

    /// A block of data in a snapshot of a volume that was not cloned, and is not this one.
    async fn foreign(&self, own: &VdiRecord) -> Result<BlockAddress> {
        let is_foreign = |record: &&VdiRecord| {
            record.id != own.id && record.source_snapshot.is_none() && record.source_vdi.is_none()
        };
        for record in self.known.vdis.values().filter(is_foreign) {
            let Some(slots) = replay::state(self.disk, record).await? else { continue };
            let table = self.way(slots.newest.table, TABLE_LEVEL).await?;
            let Some((_, leaf, _)) = table.nodes.last() else { continue };
            for at in 0..RECORDS_PER_LEAF as usize {
                if let Some(snapshot) = SnapshotRecord::get(leaf, at)?
                    && let Some(address) = self.way(snapshot.map, 0).await?.first_data()
                {
                    return Ok(address);
                }
            }
        }
        Err(nothing())
    }

    async fn in_volume(&self, what: Damage) -> Result<()> {
        let (record, slots) = self.volume().await?;
        match what {
            Damage::NewestRoot | Damage::OlderRoot | Damage::Roots => {
                for index in 0..SLOTS {
                    let at = slots.grant.slots.offset(index).ok_or_else(nothing)?;
                    let bytes = self.disk.read_block(at).await?;
                    let Ok(slot) = RootSlot::decode(&bytes, at, self.disk.salt()) else { continue };
                    if slot.epoch != slots.newest.epoch && what != Damage::Roots {
                        continue;
                    }
                    let newest = slot.number == slots.newest.number;
                    if what == Damage::Roots || newest == (what == Damage::NewestRoot) {
                        self.rot(at).await?;
                    }
                }
                Ok(())
            }
            Damage::Journal => {
                let slot = &slots.newest;
                let journal =
                    replay::replay(self.disk, slot.vdi, slot.epoch, slot.replay, slots.durable_group).await?;
                if slot.released || journal.last_group < slot.replay.group + 1 {
                    return Err(nothing());
                }
                self.rot(slot.replay.segment.offset(slot.replay.index).ok_or_else(nothing)?).await
            }
            // The first leaf has more than one block.
            Damage::PastEnd => self.reroot(&slots, |slot| slot.size = BLOCK_SIZE as u64).await,
            Damage::JournalOverNode => {
                let node = slots.newest.map.link.address().ok_or_else(nothing)?;
                self.reroot(&slots, |slot| slot.replay.segment = node).await
            }
            Damage::SnapshotCount => self.reroot(&slots, |slot| slot.snapshots += 1).await,
            Damage::EpochOrder => {
                self.reroot(&slots, |slot| {
                    slot.previous = Some((slot.epoch, slot.replay.group - 1));
                })
                .await
            }
            Damage::SnapshotNumber => self.reroot(&slots, |slot| slot.next_snapshot = 1).await,
            Damage::LinkForeign => {
                let foreign = self.foreign(record).await?;
                self.relink(&slots, |_| Some(Entry::data(foreign, true))).await
            }
            Damage::RootNode => self.rot(slots.newest.map.link.address().ok_or_else(nothing)?).await,
            Damage::Leaf => {
                let way = self.leaf(&slots).await?;
                let (link, ..) = way.nodes.last().ok_or_else(nothing)?;
                self.rot(link.address().ok_or_else(nothing)?).await
            }
            Damage::TableLeaf => {
                for record in self.known.vdis.values() {
                    let Some(slots) = replay::state(self.disk, record).await? else { continue };
                    let way = self.way(slots.newest.table, TABLE_LEVEL).await?;
                    if let Some((link, ..)) = way.nodes.last() {
                        return self.rot(link.address().ok_or_else(nothing)?).await;
                    }
                }
                Err(nothing())
            }
            Damage::LinkOutside => {
                let outside = BlockAddress::new(ExtentId::new(0xf_0000).ok_or_else(nothing)?, 5);
                self.relink(&slots, |_| outside.map(|at| Entry::data(at, false))).await
            }
            Damage::LinkToNode => {
                let node = slots.newest.map.link.address();
                self.relink(&slots, |_| node.map(|at| Entry::data(at, false))).await
            }
            _ => {
                self.relink(&slots, |leaf| {
                    let first = leaf.words().iter().find_map(|word| Entry::from_raw(*word).address());
                    first.map(|at| Entry::data(at, false))
                })
                .await
            }
        }
    }

    /// Writes both root slots with a change, so that they go on to verify.
    async fn reroot(&self, slots: &Slots, change: impl Fn(&mut RootSlot)) -> Result<()> {
        for index in 0..SLOTS {
            let at = slots.grant.slots.offset(index).ok_or_else(nothing)?;
            let bytes = self.disk.read_block(at).await?;
            let Ok(mut slot) = RootSlot::decode(&bytes, at, self.disk.salt()) else { continue };
            change(&mut slot);
            self.disk.write_blocks(at, slot.encode(at, self.disk.salt()), true).await?;
        }
        Ok(())
    }

    async fn leaf(&self, slots: &Slots) -> Result<Way> {
        self.way(slots.newest.map, 0).await
    }

    /// The way to the first leaf of a tree.
    async fn way(&self, root: TreeRoot, base: u8) -> Result<Way> {
        let mut nodes = Vec::new();
        let (mut link, mut level) = (root.link, root.depth);
        while level > 0 && !link.is_hole() {
            level -= 1;
            let node = Node::clone(&*self.disk.node(link, level + base).await?);
            let index = node.words().iter().position(|word| !Entry::from_raw(*word).is_hole()).unwrap_or(0);
            let below = node.entry(index);
            nodes.push((link, node, index));
            link = below;
        }
        Ok(Way { nodes })
    }

    /// Gives an empty place in a leaf a link to data, so that every check on the way goes on to hold.
    async fn relink(&self, slots: &Slots, to: impl Fn(&Node) -> Option<Entry>) -> Result<()> {
        let mut way = self.leaf(slots).await?;
        let leaf = way.leaf().ok_or_else(nothing)?;
        let place = (0..FANOUT).rev().find(|at| leaf.entry(*at).is_hole()).ok_or_else(nothing)?;
        let target = to(leaf).ok_or_else(nothing)?;
        leaf.set(place, target);
        let mut below: Option<Entry> = None;
        for (level, (link, mut node, index)) in way.nodes.into_iter().rev().enumerate() {
            if let Some(below) = below {
                node.set(index, below);
            }
            let at = link.address().ok_or_else(nothing)?;
            let buffer: Buffer = node.to_buffer();
            let check = node::check(&buffer, at, level as u8, self.disk.salt());
            self.disk.write_blocks(at, buffer, false).await?;
            below = Some(Entry::node(at, check, link.is_ro()));
        }
        let root = below.ok_or_else(nothing)?;
        for index in 0..SLOTS {
            let at = slots.grant.slots.offset(index).ok_or_else(nothing)?;
            let bytes = self.disk.read_block(at).await?;
            let Ok(mut slot) = RootSlot::decode(&bytes, at, self.disk.salt()) else { continue };
            if slot.map.link.same_target(slots.newest.map.link) {
                slot.map.link = root;
                self.disk.write_blocks(at, slot.encode(at, self.disk.salt()), true).await?;
            }
        }
        Ok(())
    }
}
