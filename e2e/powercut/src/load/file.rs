//! One file: what it must hold and what it may hold after a power cut.
//!
//! Since the last fsync (the base) every byte may have the value that it had then or any that it was given later; a
//! write with O_DSYNC that returned takes the older ones away. The size may be anything between the extremes since.
//!
//! A write with O_DSYNC promises the size up to its end only if it has made the file longer. Otherwise ext4 of Linux 6.18
//! forgets it: where an earlier write without a promise had made the file longer, the size stays what it was.

use std::ops::Range;

/// What a change gives to the bytes of its range.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fill {
    /// Words that follow from this key and the place.
    Words(u64),
    Zeroes,
}

#[derive(Clone, Debug)]
struct Change {
    range: Range<u64>,
    fill: Fill,
    durable: bool,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct File {
    base: Vec<u8>,
    /// Since the base.
    changes: Vec<Change>,
    low: u64,
    high: u64,
    latest: Vec<u8>,
}

impl File {
    /// What a read shows while the machine runs.
    pub(crate) fn latest(&self) -> &[u8] {
        &self.latest
    }

    pub(crate) fn size(&self) -> u64 {
        self.latest.len() as u64
    }

    /// Everything so far is durable.
    pub(crate) fn synced(&mut self) {
        self.base.clone_from(&self.latest);
        self.changes.clear();
        self.low = self.size();
        self.high = self.size();
    }

    /// A write.
    pub(crate) fn write(&mut self, offset: u64, length: u64, key: u64, durable: bool) {
        let range = offset..offset + length;
        let longer = range.end > self.size();
        self.extend(range.end);
        self.latest[offset as usize..range.end as usize].copy_from_slice(&words(key, offset, length));
        self.high = self.high.max(range.end);
        if durable && longer {
            self.low = self.low.max(range.end);
        }
        self.changes.push(Change { range, fill: Fill::Words(key), durable });
    }

    /// Zeroes inside the file.
    pub(crate) fn zero(&mut self, offset: u64, length: u64) {
        let end = (offset + length).min(self.size());
        if offset < end {
            self.latest[offset as usize..end as usize].fill(0);
        }
        self.changes.push(Change { range: offset..offset + length, fill: Fill::Zeroes, durable: false });
    }

    /// At least this size.
    pub(crate) fn allocate(&mut self, end: u64) {
        self.extend(end);
        self.high = self.high.max(end);
    }

    /// This size.
    pub(crate) fn truncate(&mut self, size: u64) {
        self.latest.resize(size as usize, 0);
        self.low = self.low.min(size);
        self.high = self.high.max(size);
        self.changes.push(Change { range: size..u64::MAX, fill: Fill::Zeroes, durable: false });
    }

    fn extend(&mut self, end: u64) {
        if self.size() < end {
            self.latest.resize(end as usize, 0);
        }
    }

    /// Nobody has a name for it any more.
    pub(crate) fn forget_latest(&mut self) {
        self.latest = Vec::new();
    }

    /// Whether this may be left of it; if not, why.
    pub(crate) fn permits(&self, found: &[u8]) -> Result<(), String> {
        const STEP: usize = 512;
        let size = found.len() as u64;
        if size < self.low || size > self.high {
            return Err(format!("{size} bytes long, and not {} to {}", self.low, self.high));
        }
        let mut wrong: Option<(u64, u64)> = None;
        for start in (0..found.len()).step_by(STEP) {
            let piece = start..(start + STEP).min(found.len());
            let range = piece.start as u64..piece.end as u64;
            let touched = |change: &&Change| change.range.start < range.end && range.start < change.range.end;
            let changes: Vec<&Change> = self.changes.iter().filter(touched).collect();
            if self.as_at_base(&found[piece.clone()], piece.start)
                && !changes.iter().any(|change| change.durable)
            {
                continue;
            }
            for at in range {
                if !self.allowed(&changes, at, found[at as usize]) {
                    wrong = Some((wrong.map_or(at, |(first, _)| first), at));
                }
            }
        }
        match wrong {
            None => Ok(()),
            Some((first, last)) => Err(format!(
                "bytes {first} to {last} of {size} hold what was never written or was overwritten before a promise; \
                 there is {:02x?}, at the last fsync there was {:02x?}",
                &found[first as usize..found.len().min(first as usize + 8)],
                self.base.get(first as usize..self.base.len().min(first as usize + 8)).unwrap_or_default()
            )),
        }
    }

    fn as_at_base(&self, found: &[u8], start: usize) -> bool {
        let held = self.base.get(start..self.base.len().min(start + found.len())).unwrap_or_default();
        found[..held.len()] == *held && found[held.len()..].iter().all(|byte| *byte == 0)
    }

    fn allowed(&self, changes: &[&Change], at: u64, byte: u8) -> bool {
        let mut allowed = self.base.get(at as usize).copied().unwrap_or(0) == byte;
        for change in changes.iter().filter(|change| change.range.contains(&at)) {
            let gives = match change.fill {
                Fill::Words(key) => word(key, at / 8).to_le_bytes()[(at % 8) as usize] == byte,
                Fill::Zeroes => byte == 0,
            };
            allowed = gives || allowed && !change.durable;
        }
        allowed
    }
}

/// The bytes of a write.
pub(crate) fn words(key: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length as usize + 8);
    let mut at = offset;
    while at < offset + length {
        let word = word(key, at / 8).to_le_bytes();
        let skip = (at % 8) as usize;
        bytes.extend_from_slice(&word[skip..]);
        at += 8 - skip as u64;
    }
    bytes.truncate(length as usize);
    bytes
}

/// A word that tells which write made it, and where.
fn word(key: u64, at: u64) -> u64 {
    let mut mixed = key ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(parts: &[(u64, u64, u64)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (offset, length, key) in parts {
            bytes.resize(bytes.len().max((offset + length) as usize), 0);
            bytes[*offset as usize..(offset + length) as usize]
                .copy_from_slice(&words(*key, *offset, *length));
        }
        bytes
    }

    #[test]
    fn what_was_synced_must_be_there() {
        let mut file = File::default();
        file.write(0, 3000, 1, false);
        assert!(file.permits(&[]).is_ok());
        file.synced();
        assert!(file.permits(&after(&[(0, 3000, 1)])).is_ok());
        assert!(file.permits(&[]).is_err());
        assert!(file.permits(&vec![0; 3000]).is_err());
        assert!(file.permits(&after(&[(0, 2999, 1), (2999, 1, 2)])).is_err());
    }

    #[test]
    fn later_writes_may_be_there_in_part() {
        let mut file = File::default();
        file.write(0, 3000, 1, false);
        file.synced();
        file.write(1000, 4000, 2, false);
        assert!(file.permits(&after(&[(0, 3000, 1)])).is_ok());
        assert!(file.permits(&after(&[(0, 3000, 1), (1000, 3096, 2)])).is_ok());
        assert!(file.permits(&after(&[(0, 3000, 1), (2048, 512, 2)])).is_ok());
        assert!(file.permits(&after(&[(0, 3000, 1), (900, 100, 2)])).is_err());
        assert!(file.permits(&after(&[(0, 3000, 1), (1000, 4001, 2)])).is_err());
    }

    #[test]
    fn a_synchronous_write_must_be_there_and_the_one_before_it_need_not() {
        let mut file = File::default();
        file.write(0, 120, 1, false);
        file.write(100, 50, 2, true);
        assert!(file.permits(&after(&[(100, 50, 2)])).is_ok());
        assert!(file.permits(&after(&[(0, 120, 1), (100, 50, 2)])).is_ok());
        assert!(file.permits(&after(&[(0, 150, 1)])).is_err());
        assert!(file.permits(&after(&[(100, 49, 2)])).is_err());
    }

    #[test]
    fn zeroes_may_be_there_after_a_truncation() {
        let mut file = File::default();
        file.write(0, 1000, 1, false);
        file.synced();
        file.truncate(400);
        file.allocate(600);
        assert!(file.permits(&after(&[(0, 1000, 1)])).is_ok());
        let mut cut = after(&[(0, 400, 1)]);
        assert!(file.permits(&cut).is_ok());
        cut.resize(600, 0);
        assert!(file.permits(&cut).is_ok());
        assert!(file.permits(&after(&[(0, 399, 1)])).is_err());
    }
}
