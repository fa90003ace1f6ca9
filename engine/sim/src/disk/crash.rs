//! What is left on a disk when the power goes.

use super::{
    Image,
    cache::{Cache, Record},
};
use crate::Prng;
use parallax_block::SECTOR_SIZE;
use std::collections::BTreeMap;

/// What becomes of writes that no flush has covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unflushed {
    /// All lost.
    Lost,
    /// All kept, those in flight too.
    Kept,
    /// Each write is kept or lost as a whole.
    Some,
    /// Each write is kept, lost, cut short, or kept in some of its sectors.
    Torn,
}

impl Unflushed {
    /// Every way in which a disk may lose its cache.
    pub const ALL: [Self; 4] = [Self::Lost, Self::Kept, Self::Some, Self::Torn];
}

/// What becomes of one change that no flush has covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Lost.
    Lost,
    /// Kept.
    Kept,
    /// So many sectors from its front are kept.
    Front(u64),
    /// Every sector is kept whose bit is set; bits repeat every 64 sectors.
    Sectors(u64),
}

/// Adds to `durable` what survives if every request meets its fate.
pub(crate) fn chosen(
    durable: &Image,
    cache: &Cache,
    in_flight: &[Record],
    mut fate: impl FnMut(u64) -> Fate,
) -> Image {
    let mut image = durable.clone();
    for record in cache.records().iter().filter(|record| !record.dropped).chain(in_flight) {
        let kept: Box<dyn Fn(u64) -> bool> = match fate(record.request) {
            Fate::Lost => continue,
            Fate::Kept => {
                record.apply(&mut image);
                continue;
            }
            Fate::Front(sectors) => Box::new(move |at| at < sectors),
            Fate::Sectors(bits) => Box::new(move |at| bits >> (at % 64) & 1 == 1),
        };
        for sector in record.sectors() {
            if kept((sector.offset() - record.base) / SECTOR_SIZE as u64) {
                record.apply_piece(sector, &mut image);
            }
        }
    }
    image
}

/// Adds to `durable` what survives of the cache and of writes still in flight.
pub(crate) fn survivors(
    durable: &Image,
    cache: &Cache,
    in_flight: Vec<Record>,
    unflushed: Unflushed,
    prng: &mut Prng,
) -> Image {
    let mut image = durable.clone();
    if unflushed == Unflushed::Lost {
        return image;
    }
    // The cache in order of effect. What was in flight may land at any point of it, but only overlapping
    // requests could tell, and those may take effect in either order: after it, in any order, is enough.
    let mut late = in_flight;
    prng.shuffle(&mut late);
    let mut kept_requests = BTreeMap::new();
    for record in cache.records().iter().filter(|record| !record.dropped).chain(&late) {
        match unflushed {
            Unflushed::Lost => {}
            Unflushed::Kept => record.apply(&mut image),
            Unflushed::Some => {
                if *kept_requests.entry(record.request).or_insert_with(|| prng.chance(1, 2)) {
                    record.apply(&mut image);
                }
            }
            Unflushed::Torn => tear(record, &mut image, prng),
        }
    }
    image
}

fn tear(record: &Record, image: &mut Image, prng: &mut Prng) {
    match prng.range(0..4) {
        0 => {}
        1 => record.apply(image),
        2 => {
            let sectors = record.sectors().count();
            let cut = prng.range(0..sectors as u64 + 1) as usize;
            for sector in record.sectors().take(cut) {
                record.apply_piece(sector, image);
            }
        }
        _ => {
            for sector in record.sectors() {
                if prng.chance(1, 2) {
                    record.apply_piece(sector, image);
                }
            }
        }
    }
}
