//! What the stand-in knows: sectors by number, twice.

use parallax_block::{ByteRange, Error, ErrorKind, Result, SECTOR_SIZE};
use parallax_sim::Prng;
use parallax_store::{SnapshotId, SnapshotInfo, VdiId, VdiInfo};
use std::{collections::BTreeMap, sync::Arc};

/// Sectors that are not zero.
pub(super) type Sectors = BTreeMap<u64, Arc<[u8]>>;

#[derive(Clone)]
pub(super) struct Snapshot {
    pub(super) info: SnapshotInfo,
    pub(super) sectors: Sectors,
}

/// One sector of a write that no flush has covered.
pub(super) struct Change {
    pub(super) write: u64,
    pub(super) lba: u64,
    pub(super) sector: Option<Arc<[u8]>>,
    pub(super) acknowledged: bool,
}

pub(super) struct Volume {
    pub(super) info: VdiInfo,
    pub(super) live: Sectors,
    pub(super) durable: Sectors,
    pub(super) unflushed: Vec<Change>,
    pub(super) snapshots: BTreeMap<u64, Snapshot>,
    pub(super) last_number: u64,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) volumes: BTreeMap<VdiId, Volume>,
    pub(super) last_write: u64,
    pub(super) leaked: u64,
    /// For the bug that brings one back.
    pub(super) buried: Option<(VdiId, u64, Snapshot)>,
}

fn put(sectors: &mut Sectors, lba: u64, sector: Option<Arc<[u8]>>) {
    match sector {
        Some(sector) => sectors.insert(lba, sector),
        None => sectors.remove(&lba),
    };
}

impl Volume {
    pub(super) fn new(info: VdiInfo, sectors: Sectors) -> Self {
        let (live, durable) = (sectors.clone(), sectors);
        Self { info, live, durable, unflushed: Vec::new(), snapshots: BTreeMap::new(), last_number: 0 }
    }

    /// Applies one write as a whole; `None` is zeroes.
    pub(super) fn apply(&mut self, write: u64, changes: Vec<(u64, Option<Arc<[u8]>>)>, durable: bool) {
        for (lba, sector) in changes {
            put(&mut self.live, lba, sector.clone());
            if durable {
                put(&mut self.durable, lba, sector);
                self.unflushed.retain(|change| change.lba != lba);
            } else {
                self.unflushed.push(Change { write, lba, sector, acknowledged: false });
            }
        }
    }

    pub(super) fn acknowledge(&mut self, write: u64) {
        for change in self.unflushed.iter_mut().filter(|change| change.write == write) {
            change.acknowledged = true;
        }
    }

    /// Makes durable what was acknowledged when the flush was sent.
    pub(super) fn flush(&mut self, covered: &[(u64, u64)]) {
        let mut left: Vec<Change> = Vec::new();
        for change in self.unflushed.drain(..) {
            if covered.contains(&(change.write, change.lba)) {
                left.retain(|earlier| earlier.lba != change.lba);
                put(&mut self.durable, change.lba, change.sector);
            } else {
                left.push(change);
            }
        }
        self.unflushed = left;
    }

    pub(super) fn acknowledged(&self) -> Vec<(u64, u64)> {
        self.unflushed
            .iter()
            .filter(|change| change.acknowledged)
            .map(|change| (change.write, change.lba))
            .collect()
    }
}

impl State {
    pub(super) fn volume(&mut self, id: VdiId) -> Result<&mut Volume> {
        let missing = || Error::new(ErrorKind::NotFound, format!("there is no volume {id}"));
        self.volumes.get_mut(&id).ok_or_else(missing)
    }

    pub(super) fn snapshot(&mut self, id: SnapshotId) -> Result<&mut Snapshot> {
        let missing = || Error::new(ErrorKind::NotFound, format!("there is no snapshot {id}"));
        self.volume(id.vdi)?.snapshots.get_mut(&id.number).ok_or_else(missing)
    }

    /// Removes a headless volume without snapshots.
    pub(super) fn bury(&mut self, id: VdiId) {
        if self.volumes.get(&id).is_some_and(|volume| volume.info.headless && volume.snapshots.is_empty()) {
            self.volumes.remove(&id);
        }
    }

    pub(super) fn power_cut(&mut self, prng: &mut Prng, resurrect: bool) {
        for volume in self.volumes.values_mut() {
            for change in std::mem::take(&mut volume.unflushed) {
                if prng.chance(1, 2) {
                    put(&mut volume.durable, change.lba, change.sector);
                }
            }
            volume.live = volume.durable.clone();
            volume.info.attached = false;
        }
        if let Some((id, number, snapshot)) = self.buried.take().filter(|_| resurrect)
            && let Some(volume) = self.volumes.get_mut(&id)
        {
            volume.snapshots.insert(number, snapshot);
        }
    }

    pub(super) fn kill(&mut self, prng: &mut Prng, lose: bool) {
        for volume in self.volumes.values_mut() {
            if lose && prng.chance(1, 2) {
                volume.unflushed.clear();
                volume.live = volume.durable.clone();
            }
            volume.unflushed.iter_mut().for_each(|change| change.acknowledged = true);
            volume.info.attached = false;
        }
    }
}

/// Sector numbers of a range.
pub(super) fn lbas(range: ByteRange) -> std::ops::Range<u64> {
    let size = SECTOR_SIZE as u64;
    range.offset() / size..range.end() / size
}
