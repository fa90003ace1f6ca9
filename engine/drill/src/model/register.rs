//! Content of a disk as a set of registers, one per sector, each with every value that it may hold.
//!
//! Rules, for values that are all different:
//! * A write is **overwritten** by one that was sent after it had ended.
//! * A read may return a write that was sent before the read ended and was not overwritten by a write that
//!   ended before the read was sent. Writes in flight together may take effect in either order.
//! * After a power cut a sector may hold any write that was not overwritten by one that a flush had covered.
//! * After the death of a process it holds what a read could have returned: nothing acknowledged is lost.
//! * Once a read that no write ran beside has returned one of several possible values, the others are gone.
//! * Doubtful writes overwrite nothing until they are seen; haunting ones may be seen any time later.

use super::{
    content::Stamp,
    writes::{NEVER, Outcome, Tick, WriteId, Writes},
};
use std::collections::{BTreeMap, BTreeSet};

/// A volume maps blocks of this many sectors.
const BLOCK_SECTORS: u64 = 8;

/// One value that a sector may hold.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// What.
    pub stamp: Stamp,
    /// By whom.
    pub write: WriteId,
    /// When it is known to lie above whatever had ended before; at first the beginning of its write.
    order: Tick,
    /// Whether the write, once acknowledged, must show here (a discard of half a block need not).
    certain: bool,
    /// A read has seen it.
    seen: bool,
    /// When a read that has seen something newer instead had ended; only a power cut can bring it back.
    gone: Tick,
}

impl Entry {
    const BASE: Self =
        Self { stamp: Stamp::ZERO, write: WriteId::BASE, order: 0, certain: true, seen: true, gone: NEVER };

    /// Whether it hides what lies below it from readers.
    fn hides(&self, writes: &Writes) -> bool {
        self.seen || (self.certain && writes.get(self.write).outcome == Outcome::Done)
    }

    /// Whether it hides what lies below it from whoever comes after a power cut.
    fn hides_for_ever(&self, writes: &Writes) -> bool {
        self.certain && writes.get(self.write).flushed
    }

    /// Whether it is known to lie above another one of the same sector.
    fn is_above(&self, other: &Self, writes: &Writes) -> bool {
        !std::ptr::eq(self, other) && self.order > other.end(writes)
    }

    fn end(&self, writes: &Writes) -> Tick {
        writes.get(self.write).end
    }
}

/// A part of a request as the model sees it.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// Sector.
    pub lba: u64,
    /// What it would hold.
    pub stamp: Stamp,
    /// Whether it must.
    pub certain: bool,
}

/// Registers of one disk. Sectors that nobody touched hold zeroes.
#[derive(Debug, Clone, Default)]
pub struct Registers {
    sectors: BTreeMap<u64, Vec<Entry>>,
}

/// A value that the rules do not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Where.
    pub lba: u64,
    /// What was found.
    pub found: Stamp,
    /// What would have been right.
    pub allowed: BTreeSet<Stamp>,
    /// Which rule.
    pub rule: &'static str,
}

impl Registers {
    /// Content that is exactly `stamps`, by one durable write.
    pub fn adopted(stamps: &BTreeMap<u64, Stamp>, writes: &mut Writes) -> Self {
        let write = writes.adopt();
        let entry = |stamp| {
            let order = writes.get(write).begin;
            vec![Entry { stamp, write, order, certain: true, seen: true, gone: NEVER }]
        };
        Self { sectors: stamps.iter().map(|(lba, stamp)| (*lba, entry(*stamp))).collect() }
    }

    /// A write was sent.
    pub fn begin(&mut self, write: WriteId, pieces: &[Piece], writes: &Writes) {
        let order = writes.get(write).begin;
        for Piece { lba, stamp, certain } in pieces.iter().copied() {
            let entries = self.sectors.entry(lba).or_insert_with(|| vec![Entry::BASE]);
            entries.push(Entry { stamp, write, order, certain, seen: false, gone: NEVER });
        }
    }

    /// Stamps that a read from `begin` to `end` may return.
    pub fn readable(&self, lba: u64, begin: Tick, end: Tick, writes: &Writes) -> BTreeSet<Stamp> {
        match self.sectors.get(&lba) {
            None => [Stamp::ZERO].into(),
            Some(entries) => readable(entries, begin, end, writes).map(|entry| entry.stamp).collect(),
        }
    }

    /// Judges one sector of a read, and learns from it.
    pub fn read(
        &mut self,
        lba: u64,
        found: Stamp,
        begin: Tick,
        end: Tick,
        writes: &Writes,
    ) -> Result<(), Wrong> {
        let allowed = self.readable(lba, begin, end, writes);
        if !allowed.contains(&found) {
            return Err(Wrong {
                lba,
                found,
                allowed,
                rule: "a read returns the last write or one in flight",
            });
        }
        let Some(entries) = self.sectors.get_mut(&lba) else { return Ok(()) };
        let is_open =
            |entry: &Entry| entry.end(writes) > begin || writes.get(entry.write).outcome == Outcome::Haunting;
        if entries.iter().any(is_open) {
            return Ok(());
        }
        let holders: Vec<bool> = {
            let readable: Vec<*const Entry> =
                readable(entries, begin, end, writes).map(std::ptr::from_ref).collect();
            entries
                .iter()
                .map(|entry| entry.stamp == found && readable.contains(&std::ptr::from_ref(entry)))
                .collect()
        };
        let unique = holders.iter().filter(|holder| **holder).count() == 1;
        for (entry, holder) in entries.iter_mut().zip(holders) {
            if !holder {
                entry.gone = entry.gone.min(end);
            } else if unique {
                entry.seen = true;
                entry.order = begin;
            }
        }
        Ok(())
    }

    /// The power went: every sector holds one of what may have survived, durably. Call after
    /// [`Writes::give_up_pending`].
    pub fn power_cut(&mut self, writes: &mut Writes) {
        let adopted = writes.adopt();
        let order = writes.get(adopted).begin;
        for entries in self.sectors.values_mut() {
            let stamps: BTreeSet<Stamp> = survivors(entries, writes).map(|entry| entry.stamp).collect();
            let certain = true;
            *entries = stamps
                .into_iter()
                .map(|stamp| Entry { stamp, write: adopted, order, certain, seen: false, gone: NEVER })
                .collect();
        }
    }

    /// Forgets what can neither be read nor come back. Only while nothing is in flight.
    pub fn compact(&mut self, writes: &Writes) {
        for entries in self.sectors.values_mut() {
            let keep: Vec<Entry> = survivors(entries, writes).copied().collect();
            *entries = keep;
        }
    }

    /// Everything that a snapshot taken from `begin` to `end` may hold.
    pub fn cut(&self, begin: Tick, end: Tick, writes: &Writes) -> Cut {
        let sectors = self
            .sectors
            .iter()
            .map(|(lba, entries)| {
                let before: Vec<Entry> =
                    entries.iter().filter(|entry| writes.get(entry.write).begin < end).copied().collect();
                (*lba, before)
            })
            .collect();
        Cut { begin, end, sectors, interrupted: false }
    }

    /// Sectors that were ever touched.
    pub fn touched(&self) -> impl Iterator<Item = u64> {
        self.sectors.keys().copied()
    }

    /// What is known of a sector, for a report.
    pub fn describe(&self, lba: u64, writes: &Writes) -> Vec<String> {
        let entries = self.sectors.get(&lba).map_or(&[][..], Vec::as_slice);
        entries
            .iter()
            .map(|entry| {
                let write = writes.get(entry.write);
                let end = if write.end == NEVER { "...".to_owned() } else { write.end.to_string() };
                format!(
                    "{} ticks {}..{end} {:?}{}{}{}",
                    entry.stamp,
                    write.begin,
                    write.outcome,
                    if write.flushed { ", flushed" } else { "" },
                    if entry.seen { ", seen" } else { "" },
                    if entry.gone < NEVER { ", gone" } else { "" },
                )
            })
            .collect()
    }
}

fn readable<'a>(
    entries: &'a [Entry],
    begin: Tick,
    end: Tick,
    writes: &'a Writes,
) -> impl Iterator<Item = &'a Entry> {
    entries.iter().filter(move |entry| {
        let over =
            |other: &Entry| other.hides(writes) && other.end(writes) < begin && other.is_above(entry, writes);
        entry.gone > begin && writes.get(entry.write).begin < end && !entries.iter().any(over)
    })
}

fn survivors<'a>(entries: &'a [Entry], writes: &'a Writes) -> impl Iterator<Item = &'a Entry> {
    entries.iter().filter(move |entry| {
        !entries.iter().any(|other| other.hides_for_ever(writes) && other.is_above(entry, writes))
    })
}

/// What one instant of a write stream may have been: see [`Cut::judge`].
#[derive(Debug, Clone)]
pub struct Cut {
    begin: Tick,
    end: Tick,
    sectors: BTreeMap<u64, Vec<Entry>>,
    /// Death came before the snapshot was acknowledged. A write that was in flight when it was cut may then
    /// have been acknowledged and torn by the power cut: blocks need not be whole.
    interrupted: bool,
}

impl Cut {
    /// The same, of a snapshot that was never acknowledged.
    #[must_use]
    pub fn interrupted(self) -> Self {
        Self { interrupted: true, ..self }
    }

    /// Judges what was found at every sector of several disks that were cut at one instant. There must be
    /// one moment such that every write that ended before it is in, none that began after it is, and what an
    /// acknowledged write brought to one block is in as a whole or not at all.
    pub fn judge(cuts: &[(&Self, &BTreeMap<u64, Stamp>)], writes: &Writes) -> Result<(), (usize, Wrong)> {
        let found = |disk: usize, lba: u64| cuts[disk].1.get(&lba).copied().unwrap_or_default();
        let mut moment = cuts.iter().map(|(cut, _)| cut.begin).max().unwrap_or(0);
        let mut included: BTreeSet<(WriteId, usize, u64)> = BTreeSet::new();
        for (disk, (cut, stamps)) in cuts.iter().enumerate() {
            if let Some((lba, stamp)) =
                stamps.iter().find(|(lba, stamp)| **stamp != Stamp::ZERO && !cut.sectors.contains_key(lba))
            {
                let allowed = [Stamp::ZERO].into();
                let rule = "a sector that nobody wrote holds zeroes";
                return Err((disk, Wrong { lba: *lba, found: *stamp, allowed, rule }));
            }
            for (lba, entries) in &cut.sectors {
                let value = found(disk, *lba);
                let matching: Vec<&Entry> = readable(entries, cut.begin, cut.end, writes)
                    .filter(|entry| entry.stamp == value)
                    .collect();
                let Some(earliest) = matching.iter().map(|entry| writes.get(entry.write).begin).min() else {
                    let allowed =
                        readable(entries, cut.begin, cut.end, writes).map(|entry| entry.stamp).collect();
                    let rule = "a snapshot holds the last write before it or one in flight";
                    return Err((disk, Wrong { lba: *lba, found: value, allowed, rule }));
                };
                moment = moment.max(earliest);
                if let [only] = matching[..]
                    && !cut.interrupted
                    && only.certain
                    && writes.get(only.write).outcome == Outcome::Done
                {
                    included.insert((only.write, disk, lba / BLOCK_SECTORS));
                }
            }
        }
        for (disk, (cut, _)) in cuts.iter().enumerate() {
            for (lba, entries) in &cut.sectors {
                let value = found(disk, *lba);
                let fits = |limit: &dyn Fn(&Entry) -> bool| {
                    readable(entries, cut.begin, cut.end, writes).any(|entry| {
                        let hidden = |other: &Entry| {
                            other.hides(writes) && limit(other) && other.is_above(entry, writes)
                        };
                        entry.stamp == value && !entries.iter().any(hidden)
                    })
                };
                let allowed =
                    || readable(entries, moment, cut.end, writes).map(|entry| entry.stamp).collect();
                if !fits(&|other| other.end(writes) < moment) {
                    let rule = "a snapshot that holds a write holds every write that ended before it began";
                    return Err((disk, Wrong { lba: *lba, found: value, allowed: allowed(), rule }));
                }
                let block = lba / BLOCK_SECTORS;
                if !fits(&|other| other.certain && included.contains(&(other.write, disk, block))) {
                    let rule = "a snapshot holds what a write brought to a block wholly or not at all";
                    return Err((disk, Wrong { lba: *lba, found: value, allowed: allowed(), rule }));
                }
            }
        }
        Ok(())
    }

    /// The sectors that may hold something.
    pub fn touched(&self) -> impl Iterator<Item = u64> {
        self.sectors.keys().copied()
    }
}

#[cfg(test)]
mod tests;
