//! Who may use which block: claimed extents, their bitmaps, runs taken from them.
//!
//! Lifecycle of a block:
//!
//! ```text
//! free -> taken (bit set in memory) -> marked (bitmap written) -> used -> durable (a flush, then a record names it)
//!      <- given back (never named) ------------------------------'
//!      <- freed (no durable tree, root slot, journal or reader names it any more) <-------------------'
//! ```
//!
//! Invariants:
//! * A run is marked on the device before the first write to it begins; the flush before the record that names
//!   it makes the mark durable.
//! * Bits go back to free only through [`Space::give_back`] (never named) and [`Space::free`] (proved unnamed).
//! * Data never takes the last extents: a reserve stays for metadata, so that deletes, checkpoints and
//!   garbage collection always find room.

mod blocks;
mod candidates;
mod copies;
mod extent;
mod hold;
mod inner;

pub(crate) use blocks::BlockSet;
pub(crate) use candidates::Candidates;
pub(crate) use copies::read_copies;
pub(crate) use extent::ExtentMap;
use inner::{Inner, Look};

use crate::{
    disk::Disk,
    mutants::{self, Mutant},
};
use parallax_block::{Error, ErrorKind, Result};
use parallax_format::{
    BlockAddress, ExtentId, bitmap,
    journal::{JournalRecord, SEGMENT_BLOCKS},
    record::ExtentKind,
    root::SLOTS,
};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::Mutex as AsyncMutex;

/// Runs that are put aside after failed writes, before the device counts as broken.
const QUARANTINED_MAX: usize = 4096;

/// A run that is reserved is at most this part of an extent.
const SHARES: u32 = 4;

/// Neighbouring blocks of one extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run {
    pub(crate) start: BlockAddress,
    pub(crate) count: u32,
}

impl Run {
    /// The slots of a grant.
    pub(crate) fn slots(start: BlockAddress) -> Self {
        Self { start, count: SLOTS }
    }

    /// A segment of a journal.
    pub(crate) fn segment(start: BlockAddress) -> Self {
        Self { start, count: SEGMENT_BLOCKS }
    }

    /// What a record maps.
    pub(crate) fn mapped(record: &JournalRecord) -> Option<Self> {
        match record {
            JournalRecord::Map { count, address, .. } => Some(Self { start: *address, count: *count }),
            _ => None,
        }
    }

    fn overlaps(self, other: Self) -> bool {
        let (a, b) = (self.start, other.start);
        a.extent() == b.extent() && a.block() < b.block() + other.count && b.block() < a.block() + self.count
    }

    /// Takes up to `count` blocks from the front.
    pub(crate) fn split_front(&mut self, count: u32) -> Option<Self> {
        let count = count.min(self.count);
        if count == 0 {
            return None;
        }
        let front = Self { start: self.start, count };
        self.count -= count;
        // The last block of an extent has no successor; an empty run keeps its start.
        if let Some(next) = self.start.offset(count) {
            self.start = next;
        }
        Some(front)
    }
}

/// Claims extents from the catalogue; given by the pool.
pub(crate) trait Claim: Send + Sync {
    /// Claims a free extent for `kind`; `OutOfSpace` if there is none to be had.
    fn claim(&self, kind: ExtentKind) -> parallax_block::BoxFuture<'_, Result<()>>;
}

pub(crate) struct Space {
    disk: Arc<Disk>,
    incarnation: u64,
    inner: Mutex<Inner>,
    /// One writer of bitmap blocks at a time.
    writing: AsyncMutex<()>,
}

/// When a block was cut loose, in terms of garbage collections. Whoever frees a block proves with its stamp that
/// no sweep can have freed it already; otherwise the block is left to garbage collection, which alone knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp(u64);

/// Blocks, by kind.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Totals {
    pub(crate) data_free: u64,
    pub(crate) data_used: u64,
    pub(crate) metadata_free: u64,
    pub(crate) metadata_used: u64,
}

impl Space {
    pub(crate) fn new(disk: Arc<Disk>, incarnation: u64) -> Self {
        Self { disk, incarnation, inner: Mutex::default(), writing: AsyncMutex::default() }
    }

    /// Takes charge of an extent.
    pub(crate) fn add(&self, map: ExtentMap) {
        let mut inner = self.inner.lock();
        inner.count(&map, true);
        inner.extents.insert(map.extent, map);
    }

    /// Lets go of extents in which nothing is allocated, keeping `keep` of each kind; returns them.
    pub(crate) fn release_empty(&self, keep: usize) -> Vec<ExtentMap> {
        let mut inner = self.inner.lock();
        let mut released = Vec::new();
        if inner.broken.is_some() {
            // A bitmap of one of them may land yet, on whatever is there then.
            return Vec::new();
        }
        for kind in [ExtentKind::Data, ExtentKind::Metadata] {
            let empty: Vec<ExtentId> = inner
                .extents
                .values()
                .filter(|map| map.kind == kind && map.free() == map.usable())
                .map(|map| map.extent)
                .collect();
            released.extend(empty.into_iter().skip(keep));
        }
        let mut maps = Vec::new();
        for extent in &released {
            if let Some(map) = inner.extents.remove(extent) {
                inner.count(&map, false);
                maps.push(map);
            }
        }
        maps
    }

    pub(crate) fn totals(&self) -> Totals {
        self.inner.lock().totals
    }

    /// Takes `least` to `want` neighbouring blocks of `kind` from claimed extents; marks them in memory only.
    fn try_take(&self, kind: ExtentKind, want: u32, least: u32, near: Option<BlockAddress>) -> Option<Run> {
        let mut inner = self.inner.lock();
        let near_extent = near
            .map(BlockAddress::extent)
            .filter(|near| inner.extents.get(near).is_some_and(|map| map.kind == kind));
        for (goal, look_at) in [(want, Look::Some), (least, Look::Some), (least, Look::All)] {
            let order: Vec<ExtentId> =
                near_extent.into_iter().chain(inner.shelf(kind, goal, look_at)).collect();
            for extent in order {
                let from = near.filter(|near| near.extent() == extent).map(BlockAddress::block);
                if let Some((begin, count)) = inner.edit(extent, |map| map.take(want, goal, from)).flatten() {
                    let start = BlockAddress::new(extent, begin).expect("bitmaps cover their extent");
                    if let Some(candidates) = &mut inner.candidates
                        && !mutants::on(Mutant::GcFreesNewBlocks)
                    {
                        candidates.clear(start, count);
                    }
                    return Some(Run { start, count });
                }
            }
        }
        None
    }

    /// Takes `least` to `want` neighbouring blocks and marks them on the device. Of small extents it never takes more
    /// than a share: others want some, too.
    ///
    /// Fails with `OutOfSpace` if neither the claimed extents nor the pool have room.
    pub(crate) async fn take(
        &self,
        claim: &dyn Claim,
        kind: ExtentKind,
        want: u32,
        least: u32,
        near: Option<BlockAddress>,
    ) -> Result<Run> {
        let blocks = self.disk.superblock.extent_blocks;
        let want = want.min((blocks - bitmap::first_usable(blocks)) / SHARES).max(least);
        // Another may take what was claimed, many times where many write at once. But then the pool has shrunk for all.
        for _ in 0..=self.disk.superblock.extents {
            if let Some(run) = self.try_take(kind, want, least, near) {
                self.mark(&[run]).await?;
                return Ok(run);
            }
            self.make_room(claim, kind).await?;
        }
        Err(Error::new(
            ErrorKind::OutOfSpace,
            "the pool has no room left; delete volumes or snapshots, run `parallax gc`, or enlarge the pool",
        ))
    }

    /// Takes `count` single blocks of metadata, in as few runs as possible, and marks them on the device.
    pub(crate) async fn take_nodes(&self, claim: &dyn Claim, count: usize) -> Result<Vec<BlockAddress>> {
        let mut runs = Vec::new();
        let mut left = count as u32;
        while left > 0 {
            match self.try_take(ExtentKind::Metadata, left, 1, None) {
                Some(run) => {
                    left -= run.count;
                    runs.push(run);
                }
                None => {
                    if let Err(error) = self.make_room(claim, ExtentKind::Metadata).await {
                        self.give_back(&runs);
                        return Err(error);
                    }
                }
            }
        }
        self.mark(&runs).await?;
        Ok(runs.iter().flat_map(|run| (0..run.count).filter_map(|at| run.start.offset(at))).collect())
    }

    /// Gives back what is held only for the sake of walks, because room is short. Whether there was anything.
    pub(crate) fn revoke_holds(&self) -> bool {
        self.inner.lock().revoke_holds()
    }

    /// Claims an extent. What is held for the sake of walks is given back before metadata grows for it, or data finds
    /// no room.
    async fn make_room(&self, claim: &dyn Claim, kind: ExtentKind) -> Result<()> {
        if kind == ExtentKind::Metadata && self.inner.lock().revoke_holds() {
            return Ok(());
        }
        match claim.claim(kind).await {
            Err(error) if error.kind() == ErrorKind::OutOfSpace => {
                if self.inner.lock().revoke_holds() {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            other => other,
        }
    }

    /// Writes the bitmap blocks that cover `runs`, unless a copy on the device already shows them.
    async fn mark(&self, runs: &[Run]) -> Result<()> {
        if mutants::on(Mutant::MarksSkipped) {
            return Ok(());
        }
        let mut wanted: Vec<(ExtentId, u32)> = runs
            .iter()
            .flat_map(|run| {
                let last = run.start.block() + run.count - 1;
                (run.start.block() / bitmap::BITS..=last / bitmap::BITS)
                    .map(|part| (run.start.extent(), part))
            })
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        self.write_parts(wanted).await
    }

    /// Writes every bitmap block that lags behind.
    pub(crate) async fn write_lagging(&self) -> Result<()> {
        let wanted = {
            let inner = self.inner.lock();
            inner.extents.values().flat_map(|map| map.lagging().map(|part| (map.extent, part))).collect()
        };
        self.write_parts(wanted).await
    }

    async fn write_parts(&self, wanted: Vec<(ExtentId, u32)>) -> Result<()> {
        let versions: Vec<u64> = {
            let inner = self.inner.lock();
            let version = |(extent, part): &(ExtentId, u32)| {
                inner.extents.get(extent).map_or(0, |map| map.parts[*part as usize].version)
            };
            wanted.iter().map(version).collect()
        };
        let _writing = self.writing.lock().await;
        self.inner.lock().broken.clone().map_or(Ok(()), Err)?;
        for ((extent, part), version) in wanted.into_iter().zip(versions) {
            let next = {
                let inner = self.inner.lock();
                inner
                    .extents
                    .get(&extent)
                    .filter(|map| map.parts[part as usize].written < version)
                    .map(|map| map.snapshot(part, self.incarnation))
            };
            let Some((at, block, sequence, version)) = next else { continue };
            let written =
                self.disk.write_blocks(at, block.encode(at, sequence, self.disk.salt()), false).await;
            written.map_err(|cause| self.break_off(cause))?;
            if let Some(map) = self.inner.lock().extents.get_mut(&extent) {
                let part = &mut map.parts[part as usize];
                part.sequence = sequence;
                part.written = version;
            }
        }
        Ok(())
    }

    /// Extents, in order.
    pub(crate) fn extents(&self) -> Vec<ExtentId> {
        self.inner.lock().extents.keys().copied().collect()
    }

    /// Allocated runs of an extent, its bitmaps included, of up to `longest` blocks each. Empty if it is gone.
    pub(crate) fn allocated(&self, extent: ExtentId, longest: u32) -> Vec<Run> {
        self.inner.lock().extents.get(&extent).map_or(Vec::new(), |map| map.allocated(longest))
    }

    /// Whether a block is allocated.
    pub(crate) fn is_allocated(&self, address: BlockAddress) -> bool {
        self.inner.lock().extents.get(&address.extent()).is_some_and(|map| map.is_set(address.block()))
    }

    /// Marks blocks that an opening found in use, whatever the bitmaps say. Marks that a bitmap did not show are written:
    /// once the journal is gone which told of them, nobody else would tell. What the journal maps and then unmaps stays
    /// marked until the next garbage collection.
    pub(crate) async fn adopt(&self, used: &[Run]) -> Result<()> {
        let unmarked: Vec<Run> = {
            let mut inner = self.inner.lock();
            let mut adopt = |run: &Run| {
                let marked = inner.edit(run.start.extent(), |map| map.set(run.start.block(), run.count));
                marked.is_some_and(|marked| marked > 0)
            };
            used.iter().copied().filter(|run| adopt(run)).collect()
        };
        self.mark(&unmarked).await
    }

    /// Returns blocks that nothing on the device has ever named.
    pub(crate) fn give_back(&self, runs: &[Run]) {
        self.inner.lock().release(runs);
    }

    /// After a bitmap could not be written: gives out nothing any more, unless the write was refused.
    pub(crate) fn break_off(&self, cause: Error) -> Error {
        // A thin device that is full has refused the write: nothing is under way.
        if cause.kind() == ErrorKind::OutOfSpace { cause } else { self.inner.lock().break_off(&cause) }
    }

    /// Whether a write of this process has failed and may land yet.
    pub(crate) fn has_doubts(&self) -> bool {
        self.inner.lock().doubts
    }

    /// Notes that the write of a root into `slot` failed and may land yet, with nodes that no other root names. The slot
    /// is put aside: an epoch that ended in order with its other slot would let it go.
    pub(crate) fn doubt_root(&self, slot: Run) {
        let mut inner = self.inner.lock();
        inner.doubts = true;
        inner.quarantined.push(slot);
        if !mutants::on(Mutant::LateRootForgotten) {
            inner.late_root = true;
            inner.candidates.iter_mut().for_each(Candidates::keep_all);
        }
    }

    /// Notes that the write of a record of the registry failed and may land yet, with a volume whose blocks no other names.
    pub(crate) fn doubt_record(&self) {
        let mut inner = self.inner.lock();
        inner.late_record = true;
        inner.candidates.iter_mut().for_each(Candidates::keep_all);
    }

    /// Whether the registry may come to say what it was refused to say.
    pub(crate) fn has_late_record(&self) -> bool {
        self.inner.lock().late_record
    }

    /// Puts blocks aside until the pool is opened again. `false` if there are too many.
    pub(crate) fn quarantine(&self, runs: &[Run]) -> bool {
        let mut inner = self.inner.lock();
        inner.doubts = true;
        if mutants::on(Mutant::LateBlocksReused) {
            return true;
        }
        if let Some(candidates) = &mut inner.candidates {
            runs.iter().for_each(|run| candidates.clear(run.start, run.count));
        }
        inner.quarantined.extend_from_slice(runs);
        inner.quarantined.len() <= QUARANTINED_MAX
    }

    /// The stamp for what is cut loose from now on.
    pub(crate) fn stamp(&self) -> Stamp {
        self.inner.lock().stamp
    }

    /// Returns blocks that nothing names any more and that were cut loose at `since` or later. While somebody walks
    /// over trees, metadata is kept until they are done.
    pub(crate) fn free(&self, runs: &[Run], since: Stamp) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if since != inner.stamp {
            return;
        }
        for run in runs {
            let collecting = inner.candidates.is_some() && !mutants::on(Mutant::GcReusesNodes);
            if inner.is_metadata(*run) && (collecting || inner.holds.any()) {
                inner.postpone(*run);
            } else {
                inner.release(&[*run]);
            }
        }
    }

    /// Takes blocks that nothing names any more out of reach of garbage collection, still allocated. Empty if one
    /// has begun since they were cut loose.
    pub(crate) fn hold(&self, runs: &[Run], since: Stamp) -> Vec<Run> {
        let mut inner = self.inner.lock();
        if since != inner.stamp {
            return Vec::new();
        }
        if let Some(candidates) = &mut inner.candidates {
            runs.iter().for_each(|run| candidates.clear(run.start, run.count));
        }
        inner.trimming.extend(runs);
        runs.to_vec()
    }

    /// Frees what [`Self::hold`] or [`Self::sweep`] gave.
    pub(crate) fn release_held(&self, runs: &[Run]) {
        let mut inner = self.inner.lock();
        for run in runs {
            inner.trimming.remove(run);
            if inner.holds.any() && inner.is_metadata(*run) {
                inner.postpone(*run);
            } else {
                inner.release(&[*run]);
            }
        }
    }

    /// Begins a garbage collection: everything that is allocated now is a candidate.
    pub(crate) fn begin_cycle(&self) -> bool {
        let mut inner = self.inner.lock();
        if inner.candidates.is_some() {
            return false;
        }
        inner.stamp.0 += 1;
        let may_go = |map: &&ExtentMap| match map.kind {
            ExtentKind::Data => !inner.late_record,
            ExtentKind::Metadata | ExtentKind::System => !inner.late_record && !inner.late_root,
        };
        let looked_at = inner.extents.values().filter(may_go);
        let mut candidates = Candidates::of(looked_at, self.disk.superblock.extent_blocks);
        let kept = inner.trimming.iter().chain(&inner.quarantined).chain(&inner.postponed);
        kept.for_each(|run| candidates.clear(run.start, run.count));
        inner.candidates = Some(candidates);
        true
    }

    /// Looks at the candidates of the cycle under way.
    pub(crate) fn with_candidates<T>(&self, work: impl FnOnce(&mut Candidates) -> T) -> Option<T> {
        self.inner.lock().candidates.as_mut().map(work)
    }

    /// From here on candidates are freed: nobody else frees what was cut loose before.
    pub(crate) fn begin_sweep(&self) {
        self.inner.lock().stamp.0 += 1;
    }

    /// Ends the cycle without freeing candidates.
    pub(crate) fn end_cycle(&self) {
        let mut inner = self.inner.lock();
        inner.candidates = None;
        inner.release_postponed();
    }

    /// Takes what is still a candidate in the next extent after `after`; the caller gives it to
    /// [`Self::release_held`] when the device has been told.
    pub(crate) fn sweep(&self, after: Option<ExtentId>) -> Option<(ExtentId, Vec<Run>, ExtentKind)> {
        let mut inner = self.inner.lock();
        let (extent, runs) = inner.candidates.as_mut()?.take_next(after)?;
        let kind = inner.extents.get(&extent)?.kind;
        inner.trimming.extend(&runs);
        Some((extent, runs, kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parallax_format::{PoolSalt, superblock::Superblock};
    use parallax_sim::{DiskOptions, SimDisk, World};
    use std::time::{Duration, Instant};

    /// The end of a sweep compared every piece with every other, with the allocator locked: an extent in which every
    /// other block was free stopped all writes for many seconds.
    #[test]
    fn a_sweep_of_many_pieces_is_over_at_once() {
        const BLOCKS: u32 = 1 << 18;
        let world = World::new(1);
        let device = SimDisk::new(&world, DiskOptions::new(16 << 30));
        let superblock = Superblock::lay_out(uuid::Uuid::nil(), PoolSalt(1), 4 << 20, Some(BLOCKS)).unwrap();
        let disk = Disk::new(Arc::new(device), superblock, Arc::new(world.process("daemon")), 64);
        let space = Space::new(Arc::new(disk), 1);
        let extent = ExtentId::new(1).unwrap();
        let mut map = ExtentMap::fresh(extent, ExtentKind::Data, 1, BLOCKS);
        let first = bitmap::first_usable(BLOCKS);
        map.set(first, BLOCKS - first);
        space.add(map);
        assert!(space.begin_cycle());
        space.with_candidates(|candidates| {
            for block in (first..BLOCKS).step_by(2) {
                candidates.clear(BlockAddress::new(extent, block).unwrap(), 1);
            }
        });
        space.begin_sweep();
        let begun = Instant::now();
        let (_, runs, _) = space.sweep(None).unwrap();
        assert_eq!(runs.len() as u32, (BLOCKS - first) / 2);
        space.release_held(&runs);
        assert_eq!(space.totals().data_free, u64::from((BLOCKS - first) / 2));
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
}
