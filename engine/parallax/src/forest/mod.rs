//! Volumes, snapshots and clones as a forest: who came from whom, and when.
//!
//! ```text
//! Forest                lanes in the order in which they are drawn: every lane below the one it branched from
//!  |-- Lane             one volume: its snapshots in order, and where it branched off
//!       |-- Origin      lane and, if it is still there, snapshot that it was cloned from
//! ```

mod layout;
pub(crate) mod svg;
pub(crate) mod terminal;

use crate::output::{SnapshotView, VolumeView};
use std::collections::{BTreeMap, HashMap, HashSet};

/// One volume with what it left behind.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    /// The volume; its `deleted` is true when only snapshots are left.
    pub(crate) volume: VolumeView,
    /// In order of number.
    pub(crate) snapshots: Vec<SnapshotView>,
    /// Where it branched off.
    pub(crate) origin: Option<Origin>,
}

/// Where a lane branched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Number of the lane.
    pub(crate) lane: usize,
    /// Number of the snapshot in that lane; `None` if it is gone, or was never kept.
    pub(crate) snapshot: Option<usize>,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Forest {
    /// Parents before children.
    pub(crate) lanes: Vec<Lane>,
}

impl Forest {
    /// Grows the forest from flat lists.
    pub(crate) fn grow(mut volumes: Vec<VolumeView>, snapshots: Vec<SnapshotView>) -> Self {
        volumes.sort_by(|one, other| (one.created_at_ms, &one.id).cmp(&(other.created_at_ms, &other.id)));
        let mut by_volume: HashMap<String, Vec<SnapshotView>> = HashMap::new();
        for snapshot in snapshots {
            by_volume.entry(snapshot.volume_id.clone()).or_default().push(snapshot);
        }
        let index: HashMap<&str, usize> =
            volumes.iter().enumerate().map(|(number, volume)| (volume.id.as_str(), number)).collect();
        let parents: Vec<Option<usize>> = volumes
            .iter()
            .map(|volume| {
                let from_snapshot = volume.source_snapshot.as_deref().and_then(|id| id.rsplit_once('@'));
                let from = from_snapshot.map(|(volume, _)| volume).or(volume.source_volume.as_deref())?;
                index.get(from).copied()
            })
            .collect();
        let order = depth_first(&parents);
        let place: HashMap<usize, usize> =
            order.iter().enumerate().map(|(place, number)| (*number, place)).collect();
        let mut slots: Vec<Option<VolumeView>> = volumes.into_iter().map(Some).collect();
        let mut lanes: Vec<Lane> = Vec::with_capacity(order.len());
        for number in order {
            let Some(volume) = slots[number].take() else { continue };
            let mut snapshots = by_volume.remove(&volume.id).unwrap_or_default();
            snapshots.sort_by_key(|snapshot| snapshot.number);
            let origin = parents[number].and_then(|parent| place.get(&parent)).copied().and_then(|lane| {
                let parent: &Lane = lanes.get(lane)?;
                let wanted = volume.source_snapshot.as_deref();
                let found = parent.snapshots.iter().position(|snapshot| Some(snapshot.id.as_str()) == wanted);
                Some(Origin { lane, snapshot: found })
            });
            lanes.push(Lane { volume, snapshots, origin });
        }
        Self { lanes }
    }

    /// Only the tree that this volume belongs to.
    pub(crate) fn around(self, volume_id: &str) -> Self {
        let root_of = |mut lane: usize| {
            while let Some(origin) = self.lanes[lane].origin {
                lane = origin.lane;
            }
            lane
        };
        let Some(found) = self.lanes.iter().position(|lane| lane.volume.id == volume_id) else {
            return Self::default();
        };
        let root = root_of(found);
        let keep: Vec<usize> = (0..self.lanes.len()).filter(|lane| root_of(*lane) == root).collect();
        let place: HashMap<usize, usize> =
            keep.iter().enumerate().map(|(place, lane)| (*lane, place)).collect();
        let kept: HashSet<usize> = keep.into_iter().collect();
        let lanes = self
            .lanes
            .into_iter()
            .enumerate()
            .filter(|(number, _)| kept.contains(number))
            .map(|(_, mut lane)| {
                if let Some(origin) = &mut lane.origin {
                    origin.lane = place[&origin.lane];
                }
                lane
            })
            .collect();
        Self { lanes }
    }

    /// Lanes that branched off this one, by snapshot, in order of drawing.
    pub(crate) fn branches(&self, lane: usize) -> BTreeMap<Option<usize>, Vec<usize>> {
        let mut branches: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
        for (number, child) in self.lanes.iter().enumerate() {
            if let Some(origin) = child.origin
                && origin.lane == lane
            {
                branches.entry(origin.snapshot).or_default().push(number);
            }
        }
        branches
    }
}

/// Parents before children, each tree in one piece. Links that form a circle, which no pool has, are cut.
fn depth_first(parents: &[Option<usize>]) -> Vec<usize> {
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); parents.len()];
    for (number, parent) in parents.iter().enumerate() {
        if let Some(parent) = parent {
            children[*parent].push(number);
        }
    }
    let mut order = Vec::with_capacity(parents.len());
    let mut seen = vec![false; parents.len()];
    let roots = (0..parents.len()).filter(|number| parents[*number].is_none()).chain(0..parents.len());
    for root in roots {
        let mut stack = vec![root];
        while let Some(number) = stack.pop() {
            if std::mem::replace(&mut seen[number], true) {
                continue;
            }
            order.push(number);
            stack.extend(children[number].iter().rev());
        }
    }
    order
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
