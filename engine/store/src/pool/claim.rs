//! Claims extents from the catalogue, and says how much must stay for metadata.

use super::{PoolCore, Registry};
use crate::{
    mutants::{self, Mutant},
    space::{Claim, ExtentMap},
};
use parallax_block::{BoxFuture, Error, ErrorKind, Result};
use parallax_format::{
    bitmap,
    record::{ExtentKind, ExtentRecord, Record},
};
use std::sync::atomic::Ordering::SeqCst;

/// What the claim policy looks at; blocks unless it says extents.
#[derive(Debug, Clone, Copy)]
struct Fill {
    extents_free: u64,
    extent_usable: u64,
    metadata_free: u64,
    reserve: u64,
    promised: u64,
}

/// Data may take an extent only if what remains still covers the reserve and everything promised.
fn may_claim(kind: ExtentKind, fill: Fill) -> bool {
    match kind {
        ExtentKind::Data => {
            fill.extents_free > 0
                && (fill.extents_free - 1) * fill.extent_usable + fill.metadata_free
                    >= if mutants::on(Mutant::ReserveIgnored) { 0 } else { fill.reserve + fill.promised }
        }
        ExtentKind::Metadata | ExtentKind::System => fill.extents_free > 0,
    }
}

impl PoolCore {
    /// Blocks of metadata that ordinary writes must leave: deletes, checkpoints and garbage collection need them,
    /// and every open VDI needs journal.
    pub(crate) fn metadata_reserve(&self) -> u64 {
        /// Three segments of journal and the root slots, rounded up.
        const PER_OPEN_VDI: u64 = 56;
        let superblock = &self.disk.superblock;
        let blocks = u64::from(superblock.extents) * u64::from(superblock.extent_blocks);
        (blocks / 256).clamp(128, 65_536) + PER_OPEN_VDI * self.opened.load(SeqCst)
    }

    fn fill(&self) -> Fill {
        let superblock = &self.disk.superblock;
        let extents_free = u64::from(superblock.extents) - self.known.read().extents.len() as u64;
        Fill {
            extents_free,
            extent_usable: u64::from(
                superblock.extent_blocks - bitmap::first_usable(superblock.extent_blocks),
            ),
            metadata_free: self.space.totals().metadata_free,
            reserve: self.metadata_reserve(),
            promised: self.dirty_nodes(),
        }
    }

    /// Refuses a write whose nodes and records would not fit beside the reserve.
    pub(crate) fn admit(&self, nodes: u64) -> Result<()> {
        self.room(nodes, true)
    }

    /// The same for operations that give space back: they may use the reserve, not what is promised.
    pub(crate) fn admit_metadata(&self, nodes: u64) -> Result<()> {
        self.room(nodes, false)
    }

    fn room(&self, nodes: u64, beside_the_reserve: bool) -> Result<()> {
        loop {
            let fill = self.fill();
            let reserve = if beside_the_reserve { fill.reserve } else { 0 };
            let room = fill.extents_free * fill.extent_usable + fill.metadata_free;
            if room >= reserve + fill.promised + nodes {
                return Ok(());
            }
            if !self.space.revoke_holds() {
                return Err(out_of_space());
            }
        }
    }

    async fn claim_extent(&self, kind: ExtentKind) -> Result<()> {
        let before = self.claims.load(SeqCst);
        let mut registry = self.registry.lock().await;
        registry.area.check()?;
        if self.claims.load(SeqCst) != before {
            // Somebody else has just claimed one; the caller looks again.
            return Ok(());
        }
        let extents = self.disk.superblock.extents;
        let next = |registry: &Registry| {
            registry.known.another_extent(extents, kind, self.incarnation).ok_or_else(out_of_space)
        };
        // Before the extent is chosen: the registry may take it.
        let some = next(&registry)?;
        self.make_room_for(&mut registry, &[Record::Extent(some)]).await?;
        if !may_claim(kind, self.fill()) {
            return Err(out_of_space());
        }
        let record = next(&registry)?;
        let ExtentRecord { extent, position, birth, .. } = record;
        self.disk.map_extent(extent, position);
        let mut map = ExtentMap::fresh(extent, kind, birth, self.disk.superblock.extent_blocks);
        for (at, block, sequence) in map.initial(self.incarnation) {
            let written =
                self.disk.write_blocks(at, block.encode(at, sequence, self.disk.salt()), false).await;
            written.map_err(|cause| {
                if cause.kind() != ErrorKind::OutOfSpace {
                    // It may land yet, on whatever is there then.
                    registry.known.avoid(position);
                }
                self.space.break_off(cause)
            })?;
        }
        self.disk.flush().await?;
        let records = registry.known.claiming(record);
        self.record_all(&mut registry, &records).await?;
        self.space.add(map);
        self.claims.fetch_add(1, SeqCst);
        tracing::debug!(%extent, ?kind, "claimed an extent");
        Ok(())
    }

    /// Claims extents for the registry while there are some, rather than when a compaction needs one and data has taken
    /// the last. Where there are none, what is new is refused; what is known may change.
    pub(super) async fn make_room_for(&self, registry: &mut Registry, records: &[Record]) -> Result<()> {
        let frees = |record: &Record| {
            matches!(record, Record::ExtentFreed(_) | Record::VdiDeleted(_) | Record::SetDeleted(_))
        };
        if records.iter().all(frees) {
            return Ok(());
        }
        while !registry.area.has_room(&self.disk, &registry.known, records)? {
            let extents = self.disk.superblock.extents;
            let another = registry.known.another_extent(extents, ExtentKind::System, 0);
            let Some(extent) = another.filter(|_| may_claim(ExtentKind::Data, self.fill())) else {
                let known = &registry.known;
                let grows = records.iter().any(|record| match record {
                    Record::Vdi(vdi) => !known.vdis.contains_key(&vdi.id),
                    Record::Set(set) => !known.sets.contains_key(&set.id),
                    Record::Extent(extent) => extent.kind == ExtentKind::Data,
                    _ => false,
                });
                return if grows { Err(out_of_space()) } else { Ok(()) };
            };
            let records = registry.known.claiming(extent);
            self.record_all(registry, &records).await?;
            tracing::debug!(extent = %extent.extent, "claimed an extent for the registry");
        }
        Ok(())
    }

    /// Gives empty extents back to the pool, keeping one of each kind.
    pub(crate) async fn release_extents(&self) -> Result<usize> {
        let mut registry = self.registry.lock().await;
        // They are taken out of the allocator first.
        registry.area.check()?;
        let released = self.space.release_empty(1);
        if released.is_empty() {
            return Ok(0);
        }
        let records: Vec<Record> = released.iter().map(|map| Record::ExtentFreed(map.extent)).collect();
        if let Err(error) = self.commit(&mut registry, &records).await {
            if error.kind() == ErrorKind::OutOfSpace {
                // Nothing was written: they are ours still.
                released.into_iter().for_each(|map| self.space.add(map));
            }
            return Err(error);
        }
        for map in &released {
            self.disk.unmap_extent(map.extent);
        }
        Ok(released.len())
    }
}

impl Claim for PoolCore {
    fn claim(&self, kind: ExtentKind) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.claim_extent(kind))
    }
}

fn out_of_space() -> Error {
    Error::new(
        ErrorKind::OutOfSpace,
        "the pool is full; delete volumes or snapshots and run `parallax gc`, or use a larger pool",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_leaves_the_reserve_and_metadata_may_use_it() {
        let fill = Fill { extents_free: 3, extent_usable: 60, metadata_free: 10, reserve: 128, promised: 2 };
        assert!(may_claim(ExtentKind::Data, fill));
        assert!(!may_claim(ExtentKind::Data, Fill { promised: 3, ..fill }));
        assert!(!may_claim(ExtentKind::Data, Fill { extents_free: 2, ..fill }));
        assert!(may_claim(ExtentKind::Metadata, Fill { extents_free: 1, ..fill }));
        assert!(!may_claim(ExtentKind::Metadata, Fill { extents_free: 0, ..fill }));
    }
}
