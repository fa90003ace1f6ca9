//! Which volumes may share blocks: those that descend from one and the same.
//!
//! A volume that was made from nothing founds a family, and its clones belong to it. Where a source has been deleted,
//! nobody can tell any more what it had been cloned from: such a volume is of no known family, and may share with anybody.

use super::{Check, extents::Extent};
use crate::{Severity, registry::Known, types::VdiId};
use parallax_format::{BlockAddress, record::VdiRecord};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Nobody knows which.
pub(super) const UNKNOWN: u32 = 0;

/// Blocks of a chunk.
const CHUNK: usize = 64;

/// Whose the claimed blocks of a chunk are. What a volume writes lies together, so few chunks are of several.
#[derive(Default)]
pub(super) enum Chunk {
    #[default]
    Nobodys,
    Ones(u32),
    Several(Box<[u32; CHUNK]>),
}

impl Chunk {
    fn family(&self, at: usize) -> u32 {
        match self {
            Self::Nobodys => UNKNOWN,
            Self::Ones(family) => *family,
            Self::Several(families) => families[at],
        }
    }

    fn set(&mut self, at: usize, family: u32) {
        match self {
            Self::Nobodys => *self = Self::Ones(family),
            Self::Ones(same) if *same == family => {}
            Self::Ones(other) => {
                let mut families = Box::new([*other; CHUNK]);
                families[at] = family;
                *self = Self::Several(families);
            }
            Self::Several(families) => families[at] = family,
        }
    }
}

impl Extent {
    /// Notes that a family uses a block; the other one that does so, too.
    fn claim(&mut self, block: u32, family: u32) -> Option<u32> {
        let (chunk, at) = (block as usize / CHUNK, block as usize % CHUNK);
        if self.families.len() <= chunk {
            self.families.resize_with(self.seen.len().div_ceil(CHUNK), Chunk::default);
        }
        let seen = self.seen.get_mut(block as usize)?;
        let chunk = self.families.get_mut(chunk)?;
        let before = if *seen & super::CLAIMED == 0 { UNKNOWN } else { chunk.family(at) };
        if *seen & super::CLAIMED == 0 || before == UNKNOWN {
            *seen |= super::CLAIMED;
            chunk.set(at, family);
            return None;
        }
        (family != UNKNOWN && family != before).then_some(before)
    }
}

/// The family of each volume.
#[derive(Default)]
pub(super) struct Families {
    of: BTreeMap<Uuid, u32>,
    founders: u32,
    /// Volumes that descend from themselves.
    circular: Vec<Uuid>,
}

fn source(record: &VdiRecord) -> Option<Uuid> {
    record.source_snapshot.map(|(vdi, _)| vdi).or(record.source_vdi)
}

impl Families {
    pub(super) fn of(known: &Known) -> Self {
        let mut families = Self::default();
        for id in known.vdis.keys() {
            families.find(known, *id);
        }
        families
    }

    fn find(&mut self, known: &Known, id: Uuid) {
        let mut way = BTreeSet::new();
        let mut at = id;
        let family = loop {
            if let Some(family) = self.of.get(&at) {
                break *family;
            }
            let Some(record) = known.vdis.get(&at) else { break UNKNOWN };
            if !way.insert(at) {
                // Those before may only lead into the circle.
                let met = at;
                let next = |at: &Uuid| known.vdis.get(at).and_then(source).filter(|next| *next != met);
                self.circular.extend(std::iter::successors(Some(met), next));
                break UNKNOWN;
            }
            match source(record) {
                Some(source) => at = source,
                None if record.initial.root.is_hole() => {
                    self.founders += 1;
                    break self.founders;
                }
                None => break UNKNOWN,
            }
        };
        self.of.extend(way.into_iter().map(|id| (id, family)));
    }
}

impl Check<'_> {
    pub(super) fn families(&mut self, known: &Known) {
        self.families = Families::of(known);
        for id in std::mem::take(&mut self.families.circular) {
            let detail = format!("volume {} was cloned from itself", VdiId(id));
            let name = known.vdis.get(&id).map_or_else(|| id.to_string(), super::called);
            self.find(Severity::Damage, "lineage", detail, &[&name]);
        }
    }

    pub(super) fn family(&self, id: Uuid) -> u32 {
        self.families.of.get(&id).copied().unwrap_or(UNKNOWN)
    }

    /// Notes that the volume that is looked at uses a block.
    pub(super) fn claim(&mut self, address: BlockAddress, name: &str) {
        if self.families.founders < 2 {
            return;
        }
        let family = self.of_family;
        let extent = self.extents.get_mut(&address.extent());
        if extent.and_then(|extent| extent.claim(address.block(), family)).is_some() {
            let detail = format!("block {address} is used by volumes that have no source in common");
            self.find_at(Severity::Damage, "block-foreign", address, detail, name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parallax_format::{
        Entry,
        record::{Filesystem, InitialRoot, Record},
    };

    /// Volumes by number, each with its source.
    fn known(volumes: &[(u128, Option<u128>)]) -> Known {
        let mut known = Known::default();
        for (id, source) in volumes {
            known.apply(&Record::Vdi(Box::new(VdiRecord {
                id: Uuid::from_u128(*id),
                name: format!("volume-{id}"),
                size: 4096,
                logical_block: 4096,
                created_ms: 0,
                source_snapshot: None,
                source_vdi: source.map(Uuid::from_u128),
                filesystem: Filesystem::Blank,
                headless: false,
                snapshots: 0,
                publications: Vec::new(),
                attributes: BTreeMap::new(),
                initial: InitialRoot { root: Entry::HOLE, depth: 1 },
                grant: None,
                previous: None,
            })));
        }
        known
    }

    #[test]
    fn families_follow_sources_as_far_as_they_are_known() {
        // 2 and 3 descend from 1, 5 from 4; the source of 6, and so of 7, has been deleted.
        let known = known(&[
            (1, None),
            (2, Some(1)),
            (3, Some(2)),
            (4, None),
            (5, Some(4)),
            (6, Some(90)),
            (7, Some(6)),
        ]);
        let families = Families::of(&known);
        let family = |id| families.of[&Uuid::from_u128(id)];
        assert_eq!(families.founders, 2);
        assert!(family(1) == family(2) && family(1) == family(3) && family(4) == family(5));
        assert_ne!(family(1), family(4));
        assert_eq!([family(6), family(7)], [UNKNOWN; 2]);
        assert!(families.circular.is_empty());
    }

    #[test]
    fn a_circle_is_told_from_what_leads_into_it() {
        // 1 leads to 2, and 2, 3, 4 go round.
        let known = known(&[(1, Some(2)), (2, Some(3)), (3, Some(4)), (4, Some(2)), (5, Some(5))]);
        let families = Families::of(&known);
        assert_eq!(families.circular, [2, 3, 4, 5].map(Uuid::from_u128));
        assert!(families.of.values().all(|family| *family == UNKNOWN));
    }

    #[test]
    fn a_chunk_knows_each_block_of_several_families() {
        let mut chunk = Chunk::default();
        chunk.set(3, 7);
        chunk.set(4, 7);
        assert!(matches!(chunk, Chunk::Ones(7)));
        chunk.set(5, 8);
        assert_eq!([3, 4, 5].map(|at| chunk.family(at)), [7, 7, 8]);
    }
}
