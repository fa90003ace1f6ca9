//! The catalogue and the registry: what is known, and the area on the device that says so.
//!
//! Invariants:
//! * A record counts once its log block is durable (FUA); only then is it applied to what is known.
//! * An area is written by one manager epoch. When its log is full, everything known is compacted into a new
//!   area beside it; the header that names the new one is written last, with FUA after a flush, in two copies.
//! * Blocks of the area that the newest valid header names are never written by a compaction.

use crate::disk::Disk;
use parallax_block::{BLOCK_SIZE, Buffer, Error, ErrorKind, Result, ResultExt};
use parallax_format::{
    ExtentId,
    area::{self, AreaHeader, AreaId, Packer, Run},
    host,
    record::{ExtentKind, ExtentRecord, Record, SetRecord, VdiRecord},
    seal::Kind,
};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Everything that the area says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub(crate) extents: BTreeMap<ExtentId, ExtentRecord>,
    pub(crate) vdis: BTreeMap<Uuid, VdiRecord>,
    pub(crate) names: BTreeMap<String, Uuid>,
    pub(crate) sets: BTreeMap<Uuid, SetRecord>,
    pub(crate) set_names: BTreeMap<String, Uuid>,
    pub(crate) birth: u64,
    pub(crate) incarnation: u64,
    /// Positions that no extent gets while this process lives: a write that failed there may land yet.
    avoided: BTreeSet<u32>,
}

impl Known {
    pub(crate) fn apply(&mut self, record: &Record) {
        match record {
            Record::Extent(extent) => {
                self.extents.insert(extent.extent, *extent);
            }
            Record::ExtentFreed(extent) => {
                self.extents.remove(extent);
            }
            Record::Vdi(vdi) => {
                self.forget_vdi(vdi.id);
                if !vdi.headless {
                    self.names.insert(vdi.name.clone(), vdi.id);
                }
                self.vdis.insert(vdi.id, (**vdi).clone());
            }
            Record::VdiDeleted(id) => self.forget_vdi(*id),
            Record::Set(set) => {
                self.forget_set(set.id);
                if !set.name.is_empty() {
                    self.set_names.insert(set.name.clone(), set.id);
                }
                self.sets.insert(set.id, set.clone());
            }
            Record::SetDeleted(id) => self.forget_set(*id),
            Record::Counters { birth, incarnation } => {
                self.birth = self.birth.max(*birth);
                self.incarnation = self.incarnation.max(*incarnation);
            }
        }
    }

    fn forget_vdi(&mut self, id: Uuid) {
        if let Some(old) = self.vdis.remove(&id)
            && self.names.get(&old.name) == Some(&id)
        {
            self.names.remove(&old.name);
        }
    }

    fn forget_set(&mut self, id: Uuid) {
        if let Some(old) = self.sets.remove(&id) {
            self.set_names.remove(&old.name);
        }
    }

    fn records(&self) -> impl Iterator<Item = Record> + '_ {
        std::iter::once(Record::Counters { birth: self.birth, incarnation: self.incarnation })
            .chain(self.extents.values().map(|extent| Record::Extent(*extent)))
            .chain(self.vdis.values().map(|vdi| Record::Vdi(Box::new(vdi.clone()))))
            .chain(self.sets.values().map(|set| Record::Set(set.clone())))
    }

    /// Positions of the device that no extent uses, in order.
    fn free_positions(&self, extents: u32) -> impl Iterator<Item = u32> {
        let used: BTreeSet<u32> = self.extents.values().map(|extent| extent.position).collect();
        (0..extents).filter(move |position| !used.contains(position) && !self.avoided.contains(position))
    }

    /// Gives a position to nobody while this process lives.
    pub(crate) fn avoid(&mut self, position: u32) {
        self.avoided.insert(position);
    }

    /// The lowest logical number that no extent uses.
    fn free_number(&self) -> Option<ExtentId> {
        let mut number = 1;
        for used in self.extents.keys() {
            if used.get() != number {
                break;
            }
            number += 1;
        }
        ExtentId::new(number)
    }

    /// The record of one more extent, born after all others; `None` if the pool has none left.
    pub(crate) fn another_extent(&self, extents: u32, kind: ExtentKind, owner: u64) -> Option<ExtentRecord> {
        let position = self.free_positions(extents).next()?;
        let extent = self.free_number()?;
        Some(ExtentRecord { extent, kind, device: 0, position, owner, birth: self.birth + 1 })
    }

    /// What makes such an extent known, and its birth the last.
    pub(crate) fn claiming(&self, extent: ExtentRecord) -> [Record; 2] {
        let counters = Record::Counters { birth: extent.birth, incarnation: self.incarnation };
        [counters, Record::Extent(extent)]
    }

    fn pack(&self) -> Result<Vec<Vec<u8>>> {
        let mut packer = Packer::default();
        self.records().try_for_each(|record| packer.push(&record))?;
        Ok(packer.finish())
    }

    /// Blocks of system extents: what areas may take.
    fn system_blocks(&self, disk: &Disk) -> u32 {
        let system = self.extents.values().filter(|extent| extent.kind == ExtentKind::System).count() as u32;
        system.saturating_mul(disk.superblock.extent_blocks)
    }
}

/// The area that the manager writes.
pub(crate) struct Area {
    header: AreaHeader,
    /// Area index of the next log block.
    next: u32,
    predecessor: u32,
    /// First block of the manager's host group.
    group: u64,
    /// Why nothing is recorded any more: a write failed and may land yet, over a newer one.
    failed: Option<Error>,
}

/// Fewest blocks of a log.
const LOG_MIN: u32 = 16;

impl Area {
    /// The newest valid area of the pool, and what it says.
    pub(crate) async fn find(disk: &Disk) -> Result<(AreaHeader, Known)> {
        let mut headers = Vec::new();
        for slot in 0..disk.superblock.host_slots {
            let (before, mut unreadable) = (headers.len(), None);
            for copy in 0..2 {
                let at = disk.superblock.host_group(slot) + host::AREA_HEADER + copy;
                match disk.read_physical(at).await {
                    Ok(bytes) => headers.extend(AreaHeader::decode(&bytes, at, disk.salt()).ok()),
                    Err(error) => unreadable = Some(error),
                }
            }
            // Its copy may do instead. If that does not either, the newest header of all may have been here.
            if headers.len() == before
                && let Some(error) = unreadable
            {
                return Err(error);
            }
        }
        headers.sort_by_key(|header| header.id);
        let Some(header) = headers.pop() else {
            return Err(Error::corrupt(
                "no area header of the pool verifies: the registry cannot be found; run `parallax check`",
            ));
        };
        let (known, ..) = load(disk, &header).await?;
        Ok((header, known))
    }

    /// Compacts `known` into a new area. `old` is the area that counts until then.
    pub(crate) async fn compact(
        disk: &Disk,
        id: AreaId,
        group: u64,
        old: &[Run],
        known: &mut Known,
    ) -> Result<Self> {
        let (bodies, runs) = loop {
            let bodies = known.pack()?;
            let base = bodies.len() as u32;
            let least = base + LOG_MIN;
            // The other half is the next area's.
            let most = least.max(known.system_blocks(disk) / 2);
            let want = base + LOG_MIN.max(base).max(disk.superblock.extent_blocks.min(1024) / 4);
            if let Some(runs) = allocate(disk, known, old, want.min(most), least) {
                break (bodies, runs);
            }
            // One more system extent; it is part of what is compacted.
            let Some(extent) = known.another_extent(disk.superblock.extents, ExtentKind::System, 0) else {
                return Err(Error::new(
                    ErrorKind::OutOfSpace,
                    "the registry needs another extent and the pool has none left; delete volumes or enlarge the pool",
                ));
            };
            known.claiming(extent).iter().for_each(|record| known.apply(record));
        };
        let mut header = AreaHeader { id, base_blocks: bodies.len() as u32, base_crc: 0, runs };
        for (index, body) in bodies.iter().enumerate() {
            let at = header.block(index as u32).ok_or_else(|| Error::corrupt("area run"))?;
            let (block, crc) =
                area::encode_block(Kind::AreaBase, at, id, index as u32, header.base_crc, body, disk.salt());
            disk.write_physical(at, block, false).await?;
            header.base_crc = crc;
        }
        disk.flush().await?;
        // One after the other, so that a crash tears one at the most; two, so that a header which is lost later does
        // not bring the area before back to life.
        let mut counts = false;
        for copy in [id.generation % 2, (id.generation + 1) % 2] {
            let at = group + host::AREA_HEADER + copy;
            let written = disk.write_physical(at, header.encode(at, disk.salt()), true).await;
            written.map_err(|error| if counts { half_written(error) } else { error })?;
            counts = true;
        }
        let (next, predecessor) = (header.base_blocks, header.base_crc);
        Ok(Self { header, next, predecessor, group, failed: None })
    }

    /// Whether every compaction to come finds room when `records` are known, too: half of the system extents hold all of
    /// it, half as much again (what is known of a volume grows as it is used), and a log.
    pub(crate) fn has_room(&self, disk: &Disk, known: &Known, records: &[Record]) -> Result<bool> {
        let half = known.system_blocks(disk) / 2;
        let fits = |base: u32| base + base / 2 + LOG_MIN <= half;
        // What the area has, each block of its log counted as a whole one, is more than it says.
        if fits(self.next + records.len() as u32) {
            return Ok(true);
        }
        let mut next = known.clone();
        records.iter().for_each(|record| next.apply(record));
        Ok(fits(next.pack()?.len() as u32))
    }

    /// Makes records durable and applies them. All of them are in one block, or in several that are written in
    /// order, or in a new area: callers that need all or nothing keep to one block's worth.
    /// After a write that failed nothing is recorded any more.
    pub(crate) async fn commit(&mut self, disk: &Disk, known: &mut Known, records: &[Record]) -> Result<()> {
        self.check()?;
        let result = self.append(disk, known, records).await;
        // Want of room, in the pool or on a thin device, and a record that does not fit leave nothing under way.
        if let Err(error) = &result
            && ![ErrorKind::OutOfSpace, ErrorKind::InvalidArgument].contains(&error.kind())
        {
            tracing::error!(%error, "the registry could not be written: the pool records no more changes");
            self.failed = Some(Error::new(
                ErrorKind::Fenced,
                format!(
                    "the pool has stopped recording changes after a failed write; restart parallaxd ({error})"
                ),
            ));
        }
        result
    }

    async fn append(&mut self, disk: &Disk, known: &mut Known, records: &[Record]) -> Result<()> {
        let mut packer = Packer::default();
        for record in records {
            packer.push(record)?;
        }
        let bodies = packer.finish();
        if bodies.len() > (self.header.log_blocks() - (self.next - self.header.base_blocks)) as usize {
            // The new area says all of it at once: what the compaction takes for itself is none of what the records
            // take, and may be what they give back.
            let id = AreaId { generation: self.header.id.generation + 1, ..self.header.id };
            let mut next = known.clone();
            records.iter().for_each(|record| next.apply(record));
            *self = Self::compact(disk, id, self.group, &self.header.runs, &mut next).await?;
            *known = next;
            return Ok(());
        }
        let first = self.next;
        for body in bodies {
            let at = self
                .header
                .block(self.next)
                .ok_or_else(|| Error::corrupt("the registry's log has outgrown its area"))?;
            let (block, crc) = area::encode_block(
                Kind::AreaLog,
                at,
                self.header.id,
                self.next,
                self.predecessor,
                &body,
                disk.salt(),
            );
            let written = disk.write_physical(at, block, true).await.context(|| "writing the registry's log");
            written.map_err(|error| if self.next > first { half_written(error) } else { error })?;
            self.predecessor = crc;
            self.next += 1;
        }
        for record in records {
            known.apply(record);
        }
        Ok(())
    }

    /// Records nothing any more: the pool has been closed, and may be another process's.
    pub(crate) fn close(&mut self) {
        let error = Error::new(ErrorKind::FailedPrecondition, "the pool has been closed");
        self.failed.get_or_insert(error);
    }

    /// Whether anything is recorded still.
    pub(crate) fn check(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    pub(crate) fn id(&self) -> AreaId {
        self.header.id
    }
}

/// A part counts already: nobody may go on as if nothing had been written, even if the device has refused the rest.
fn half_written(error: Error) -> Error {
    Error::new(ErrorKind::Io, "what the registry was to say is written in part").with_source(error)
}

/// Everything that an area says, the index of its next log block and that block's predecessor.
pub(crate) async fn load(disk: &Disk, header: &AreaHeader) -> Result<(Known, u32, u32)> {
    let mut known = Known::default();
    let mut predecessor = 0;
    let total = header.base_blocks + header.log_blocks();
    let mut index = 0;
    while index < total {
        let kind = if index < header.base_blocks { Kind::AreaBase } else { Kind::AreaLog };
        let at = header.block(index).ok_or_else(|| Error::corrupt("area run"))?;
        let bytes: Buffer = disk.read_physical(at).await?;
        debug_assert_eq!(bytes.len(), BLOCK_SIZE, "whole blocks are read");
        match area::decode_block(&bytes, kind, at, header.id, index, predecessor, disk.salt()) {
            Ok((records, crc)) => {
                records.iter().for_each(|record| known.apply(record));
                predecessor = crc;
            }
            Err(error) if index < header.base_blocks => {
                return Err(error.context("reading the registry's base"));
            }
            Err(_) => break,
        }
        index += 1;
    }
    // Log blocks are written one after the other, each durable before the next is begun: a valid block behind
    // an invalid one means that the invalid one was durable.
    for later in index + 1..(index + 3).min(total) {
        let at = header.block(later).ok_or_else(|| Error::corrupt("area run"))?;
        let bytes = disk.read_physical(at).await?;
        if let Ok(sealed) = parallax_format::seal::open(&bytes, Kind::AreaLog, at, disk.salt())
            && sealed.sequence == u64::from(later)
            && sealed.payload.get(..8) == Some(&header.id.epoch.to_le_bytes()[..])
            && sealed.payload.get(8..16) == Some(&header.id.generation.to_le_bytes()[..])
        {
            return Err(Error::corrupt(format!(
                "block {index} of the registry's log is damaged: a later one proves that it was written; run `parallax check`"
            )));
        }
    }
    Ok((known, index, predecessor))
}

/// Finds `want` blocks (at least `least`) in system extents outside of `old`.
fn allocate(disk: &Disk, known: &Known, old: &[Run], want: u32, least: u32) -> Option<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    let mut got = 0;
    for extent in known.extents.values().filter(|extent| extent.kind == ExtentKind::System) {
        let start = disk.superblock.extent_start(extent.position);
        let end = start + u64::from(disk.superblock.extent_blocks);
        let mut at = start;
        while at < end && got < want && runs.len() < area::RUNS_MAX {
            if let Some(taken) =
                old.iter().find(|run| run.start <= at && at < run.start + u64::from(run.blocks))
            {
                at = taken.start + u64::from(taken.blocks);
                continue;
            }
            let limit = old.iter().map(|run| run.start).filter(|run| *run > at).min().unwrap_or(end).min(end);
            let blocks = (limit - at).min(u64::from(want - got)) as u32;
            runs.push(Run { start: at, blocks });
            got += blocks;
            at += u64::from(blocks);
        }
    }
    (got >= least).then_some(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parallax_block::ByteRange;
    use parallax_format::{Entry, PoolSalt, record::InitialRoot, superblock::Superblock};
    use parallax_sim::{Asks, DiskOptions, Fault, FaultPlan, SimDisk, World, Zone};
    use std::sync::Arc;

    /// A registry of more than half of a system extent: the next compaction needs another one.
    async fn large(disk: &Disk) -> (Area, Known) {
        let mut known = Known { incarnation: 1, ..Known::default() };
        for id in 0..30u128 {
            let record = VdiRecord {
                id: Uuid::from_u128(id),
                name: format!("volume-{id}"),
                size: 4096,
                logical_block: 4096,
                created_ms: 0,
                source_snapshot: None,
                source_vdi: None,
                filesystem: parallax_format::record::Filesystem::Blank,
                headless: false,
                snapshots: 0,
                publications: Vec::new(),
                attributes: [("text".to_owned(), "x".repeat(2100))].into(),
                initial: InitialRoot { root: Entry::HOLE, depth: 1 },
                grant: None,
                previous: None,
            };
            known.apply(&Record::Vdi(Box::new(record)));
        }
        let group = disk.superblock.host_group(0);
        let area = Area::compact(disk, AreaId { epoch: 1, generation: 1 }, group, &[], &mut known).await;
        (area.unwrap(), known)
    }

    fn with_disk<F: Future<Output = ()> + 'static>(work: impl FnOnce(Disk) -> F) {
        let world = World::new(1);
        let device = SimDisk::new(&world, DiskOptions::new(16 << 20));
        let superblock = Superblock::lay_out(Uuid::nil(), PoolSalt(1), 4096, Some(64)).unwrap();
        let disk = Disk::new(Arc::new(device), superblock, Arc::new(world.process("daemon")), 64);
        world.run(work(disk));
    }

    /// Leaves room for `blocks` in the log.
    async fn fill(area: &mut Area, disk: &Disk, known: &mut Known, blocks: u32) {
        while area.header.log_blocks() - (area.next - area.header.base_blocks) > blocks {
            let nothing = Record::Counters { birth: 0, incarnation: 0 };
            area.commit(disk, known, &[nothing]).await.unwrap();
        }
    }

    /// An extent was claimed at the moment at which the log was full. The compaction took the same extent for the
    /// registry, which then lay where data was about to be written.
    #[test]
    fn an_extent_that_is_claimed_when_the_log_is_full_is_not_the_registrys() {
        with_disk(|disk| async move {
            let (mut area, mut known) = large(&disk).await;
            fill(&mut area, &disk, &mut known, 0).await;
            let claimed = known.another_extent(63, ExtentKind::Data, 1).unwrap();
            area.commit(&disk, &mut known, &[Record::Extent(claimed)]).await.unwrap();
            assert_eq!(known.extents.get(&claimed.extent), Some(&claimed));
            let positions: BTreeSet<u32> = known.extents.values().map(|extent| extent.position).collect();
            assert_eq!(positions.len(), known.extents.len(), "{:?}", known.extents);
            let first = disk.superblock.extent_start(claimed.position);
            let claimed_blocks = first..first + u64::from(disk.superblock.extent_blocks);
            assert!(area.header.runs.iter().all(|run| !claimed_blocks.contains(&run.start)));
            let (found, ..) = load(&disk, &area.header).await.unwrap();
            assert_eq!(found.extents, known.extents);
        });
    }

    /// Records of several blocks met a log with room for fewer. Those that had been written into it already were not
    /// in the new area.
    #[test]
    fn records_of_several_blocks_survive_a_log_that_is_full_after_the_first() {
        with_disk(|disk| async move {
            let (mut area, mut known) = large(&disk).await;
            let birth = known.birth;
            for number in 1000..3000 {
                let extent = ExtentId::new(number).unwrap();
                let (device, position) = (0, number);
                let kind = ExtentKind::Data;
                known.apply(&Record::Extent(ExtentRecord {
                    extent,
                    kind,
                    device,
                    position,
                    owner: 1,
                    birth,
                }));
            }
            let freed: Vec<Record> =
                (1000..3000).map(|number| Record::ExtentFreed(ExtentId::new(number).unwrap())).collect();
            fill(&mut area, &disk, &mut known, 1).await;
            area.commit(&disk, &mut known, &freed).await.unwrap();
            let (found, ..) = load(&disk, &area.header).await.unwrap();
            assert_eq!(found.extents, known.extents);
        });
    }

    /// In a full pool the log had no room, and a new area none either: what gives extents back could not be recorded,
    /// and the compaction that failed had eaten up what was left in memory.
    #[test]
    fn what_gives_extents_back_can_be_recorded_in_a_full_pool() {
        with_disk(|disk| async move {
            let (mut area, mut known) = large(&disk).await;
            while let Some(full) = known.another_extent(63, ExtentKind::Data, 1) {
                known.apply(&Record::Extent(full));
            }
            fill(&mut area, &disk, &mut known, 0).await;
            let before = known.extents.clone();
            let rename = Record::Counters { birth: 0, incarnation: 7 };
            let refused = area.commit(&disk, &mut known, &[rename]).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::OutOfSpace);
            assert_eq!(known.extents, before);
            let last = *before.keys().next_back().unwrap();
            area.commit(&disk, &mut known, &[Record::ExtentFreed(last)]).await.unwrap();
            let (found, ..) = load(&disk, &area.header).await.unwrap();
            assert_eq!(found.extents, known.extents);
        });
    }

    /// A thin device took the first block of what was to be recorded, and refused the second. It was said that nothing had
    /// been written: extents stayed in use that the registry had given back, and the log went on behind them. The same with
    /// a new area of which one of the two headers was written: whatever came later went into the old one.
    #[test]
    fn what_is_written_in_part_is_the_last_that_is_written() {
        for in_log in [true, false] {
            let world = World::new(1);
            let device = SimDisk::new(&world, DiskOptions::new(64 << 20));
            let superblock = Superblock::lay_out(Uuid::nil(), PoolSalt(1), 4096, Some(64)).unwrap();
            let disk = Disk::new(Arc::new(device.clone()), superblock, Arc::new(world.process("daemon")), 64);
            world.run(async {
                let (mut area, mut known) = large(&disk).await;
                let freed: Vec<Record> =
                    (1000..3000).map(|number| Record::ExtentFreed(ExtentId::new(number).unwrap())).collect();
                fill(&mut area, &disk, &mut known, if in_log { 10 } else { 0 }).await;
                let start = if in_log {
                    area.header.block(area.next + 1).unwrap()
                } else {
                    // The header that the next generation writes last.
                    area.group + host::AREA_HEADER + area.header.id.generation % 2
                };
                let range = ByteRange::new(start * BLOCK_SIZE as u64, BLOCK_SIZE as u64).unwrap();
                let fault = Fault::Fails(ErrorKind::OutOfSpace);
                let (asks, per_mille, times_max) = (Asks::Changes, 1000, 1);
                let zone = Zone { content: None, range, asks, fault, per_mille, times_max };
                device.set_faults(FaultPlan { zones: vec![zone], ..FaultPlan::default() });
                let failed = area.commit(&disk, &mut known, &freed).await.unwrap_err();
                assert_eq!(failed.kind(), ErrorKind::Io, "{failed}");
                let nothing = Record::Counters { birth: 0, incarnation: 0 };
                let refused = area.commit(&disk, &mut known, &[nothing]).await.unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::Fenced, "{refused}");
            });
        }
    }
}
