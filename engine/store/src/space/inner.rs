//! What [`Space`](super::Space) knows, behind its lock: bitmaps on their shelves, and blocks that are on their way back.

use super::{Candidates, ExtentMap, Run, Stamp, Totals, hold::Holds};
use crate::mutants::{self, Mutant};
use parallax_block::{Error, ErrorKind};
use parallax_format::{ExtentId, record::ExtentKind};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(super) struct Inner {
    pub(super) extents: BTreeMap<ExtentId, ExtentMap>,
    /// The same extents in order of kind, then of free blocks.
    pub(super) shelves: BTreeSet<(ExtentKind, u32, ExtentId)>,
    pub(super) totals: Totals,
    pub(super) candidates: Option<Candidates>,
    /// Metadata freed while somebody walks over trees: given back when they are done.
    pub(super) postponed: Vec<Run>,
    /// Who walks, besides garbage collection.
    pub(super) holds: Holds,
    /// Cut loose, and being discarded on the device before they can be allocated again.
    pub(super) trimming: BTreeSet<Run>,
    /// Blocks of writes that failed and may land yet: allocated, and no candidates, until the pool is opened again.
    pub(super) quarantined: Vec<Run>,
    /// A write has failed and may land yet: no epoch of this process that did not end in order proves anything.
    pub(super) doubts: bool,
    /// A root may land yet of which nobody knows the nodes: no metadata is collected until the pool is opened again.
    pub(super) late_root: bool,
    /// A record of the registry may land yet that names nobody knows what: nothing is collected until the pool is opened again.
    pub(super) late_record: bool,
    /// Why no more space is given out: a bitmap could not be written, and the write may land yet, over a newer one.
    pub(super) broken: Option<Error>,
    /// Rises when a cycle begins and when its sweep begins.
    pub(super) stamp: Stamp,
}

/// How many extents to look at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Look {
    /// The fullest few that may do, and the emptiest.
    Some,
    /// Every one, before the pool is said to be full.
    All,
}

impl Inner {
    /// Extents of `kind` with at least `free` free blocks: partly filled ones first, so that empty ones can be
    /// given back.
    pub(super) fn shelf(&self, kind: ExtentKind, free: u32, look: Look) -> Vec<ExtentId> {
        const FEW: usize = 16;
        let range = || {
            let low = ExtentId::new(1).map(|extent| (kind, free, extent));
            low.into_iter().flat_map(|low| self.shelves.range(low..)).take_while(move |(of, ..)| *of == kind)
        };
        match look {
            Look::All => range().map(|(.., extent)| *extent).collect(),
            Look::Some => {
                let mut few: Vec<ExtentId> = range().take(FEW).map(|(.., extent)| *extent).collect();
                few.extend(self.emptiest(kind).filter(|extent| !few.contains(extent)));
                few
            }
        }
    }

    pub(super) fn emptiest(&self, kind: ExtentKind) -> Option<ExtentId> {
        let high = ExtentId::new(parallax_format::address::EXTENTS_MAX)?;
        let (of, _, extent) = self.shelves.range(..=(kind, u32::MAX, high)).next_back()?;
        (*of == kind).then_some(*extent)
    }

    pub(super) fn is_metadata(&self, run: Run) -> bool {
        self.extents.get(&run.start.extent()).is_some_and(|map| map.kind == ExtentKind::Metadata)
    }

    /// Keeps freed metadata until nobody walks over trees any more.
    pub(super) fn postpone(&mut self, run: Run) {
        if let Some(candidates) = &mut self.candidates {
            candidates.clear(run.start, run.count);
        }
        self.postponed.push(run);
    }

    /// Gives back what was postponed, unless somebody walks.
    pub(super) fn release_postponed(&mut self) {
        if self.candidates.is_none() && !self.holds.any() {
            let postponed = std::mem::take(&mut self.postponed);
            self.release(&postponed);
        }
    }

    /// Gives back what is held only for the sake of walks. Whether there was anything.
    pub(super) fn revoke_holds(&mut self) -> bool {
        if self.candidates.is_some() || !self.holds.any() || self.postponed.is_empty() {
            return false;
        }
        self.holds.revoke();
        self.release_postponed();
        true
    }

    /// Adds an extent to the shelves and totals, or takes it out.
    pub(super) fn count(&mut self, map: &ExtentMap, add: bool) {
        let (free, used) = (u64::from(map.free()), u64::from(map.usable() - map.free()));
        let place = (map.kind, map.free(), map.extent);
        if add {
            self.shelves.insert(place);
        } else {
            self.shelves.remove(&place);
        }
        let totals = match map.kind {
            ExtentKind::Data => (&mut self.totals.data_free, &mut self.totals.data_used),
            ExtentKind::Metadata => (&mut self.totals.metadata_free, &mut self.totals.metadata_used),
            ExtentKind::System => return,
        };
        let apply =
            |total: &mut u64, blocks: u64| *total = if add { *total + blocks } else { *total - blocks };
        apply(totals.0, free);
        apply(totals.1, used);
    }

    /// Changes a bitmap and keeps shelves and totals in step.
    pub(super) fn edit<T>(&mut self, extent: ExtentId, work: impl FnOnce(&mut ExtentMap) -> T) -> Option<T> {
        let mut map = self.extents.remove(&extent)?;
        self.count(&map, false);
        let out = work(&mut map);
        self.count(&map, true);
        self.extents.insert(extent, map);
        Some(out)
    }

    /// Gives out nothing any more.
    pub(super) fn break_off(&mut self, cause: &Error) -> Error {
        let error = Error::new(
            ErrorKind::Fenced,
            format!(
                "the pool has stopped giving out space after a failed write; restart parallaxd ({cause})"
            ),
        );
        if self.broken.is_none() {
            tracing::error!(%cause, "a bitmap could not be written: the pool gives out no more space");
        }
        self.broken.get_or_insert(error).clone()
    }

    pub(super) fn release(&mut self, runs: &[Run]) {
        for run in runs {
            // What is put aside stays allocated, whoever lets go of it.
            if self.quarantined.iter().any(|aside| aside.overlaps(*run)) {
                continue;
            }
            let freed = self.edit(run.start.extent(), |map| map.clear(run.start.block(), run.count));
            debug_assert!(
                freed.is_none_or(|freed| freed == run.count),
                "{} and {} more were free already",
                run.start,
                run.count - 1
            );
            if let Some(candidates) = &mut self.candidates
                && !mutants::on(Mutant::GcFreesNewBlocks)
            {
                candidates.clear(run.start, run.count);
            }
        }
    }
}
