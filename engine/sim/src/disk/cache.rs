//! The volatile cache: what a disk has taken but not yet made durable.
//!
//! Invariants:
//! * Records are in the order in which they took effect, so later ones lie above earlier ones.
//! * Once a record's bytes are durable, no earlier record can cover them any more: a disk never goes back
//!   from a newer value to an older one that it has overwritten in its own cache.

use super::Image;
use parallax_block::{ByteRange, SECTOR_SIZE};
use std::sync::Arc;

/// What a record puts into its range.
#[derive(Clone)]
pub(crate) enum Payload {
    /// These bytes, for the request's whole range.
    Bytes(Arc<[u8]>),
    /// One byte throughout.
    Fill(u8),
}

/// Part of a request that took effect.
#[derive(Clone)]
pub(crate) struct Record {
    /// Which request.
    pub(crate) request: u64,
    /// Where the request's payload begins.
    pub(crate) base: u64,
    /// Parts of the device that it still decides.
    pub(crate) pieces: Vec<ByteRange>,
    /// What.
    pub(crate) payload: Payload,
    /// Number of the completion, once the request has completed: what a flush covers.
    pub(crate) completed: Option<u64>,
    /// The device has forgotten to write it: no flush makes it durable any more.
    pub(crate) dropped: bool,
}

impl Record {
    /// Writes one part of the record into `image`.
    pub(crate) fn apply_piece(&self, piece: ByteRange, image: &mut Image) {
        match &self.payload {
            Payload::Bytes(bytes) => {
                let start = (piece.offset() - self.base) as usize;
                image.write(piece.offset(), &bytes[start..start + piece.length() as usize]);
            }
            Payload::Fill(byte) => image.fill(piece, *byte),
        }
    }

    /// Writes all that it still decides into `image`.
    pub(crate) fn apply(&self, image: &mut Image) {
        for piece in &self.pieces {
            self.apply_piece(*piece, image);
        }
    }

    /// The sectors that it still decides, as ranges of one sector.
    pub(crate) fn sectors(&self) -> impl Iterator<Item = ByteRange> {
        self.pieces.iter().flat_map(|piece| {
            (piece.offset()..piece.end()).step_by(SECTOR_SIZE).map(|at| range(at, at + SECTOR_SIZE as u64))
        })
    }
}

/// All records of a disk.
#[derive(Clone, Default)]
pub(crate) struct Cache {
    records: Vec<Record>,
}

impl Cache {
    pub(crate) fn push(&mut self, record: Record) {
        self.records.push(record);
    }

    pub(crate) fn records(&self) -> &[Record] {
        &self.records
    }

    /// Marks the records of a request as completed.
    pub(crate) fn complete(&mut self, request: u64, completion: u64) {
        for record in self.records.iter_mut().filter(|record| record.request == request) {
            record.completed = Some(completion);
        }
    }

    /// Marks everything as completed before whatever comes: the requests of a process that is gone.
    pub(crate) fn complete_all(&mut self) {
        for record in &mut self.records {
            record.completed = Some(0);
        }
    }

    /// Makes durable whatever `covers` picks, except what was dropped.
    pub(crate) fn settle(&mut self, durable: &mut Image, covers: impl Fn(&Record) -> bool) {
        let mut left: Vec<Record> = Vec::new();
        for record in self.records.drain(..) {
            if record.dropped || !covers(&record) {
                left.push(record);
                continue;
            }
            record.apply(durable);
            for earlier in &mut left {
                for piece in &record.pieces {
                    subtract(&mut earlier.pieces, *piece);
                }
            }
            left.retain(|earlier| !earlier.pieces.is_empty());
        }
        self.records = left;
    }

    /// The device forgets whatever `which` picks: it goes on reading it, and never writes it.
    pub(crate) fn forget(&mut self, which: impl Fn(&Record) -> bool) {
        for record in self.records.iter_mut().filter(|record| which(record)) {
            record.dropped = true;
        }
    }
}

/// `from..to`, for ends that are known to be in order.
pub(crate) fn range(from: u64, to: u64) -> ByteRange {
    ByteRange::new(from, to - from).expect("a part of a valid range")
}

/// Common part of two ranges.
pub(crate) fn intersection(a: ByteRange, b: ByteRange) -> Option<ByteRange> {
    let (from, to) = (a.offset().max(b.offset()), a.end().min(b.end()));
    (from < to).then(|| range(from, to))
}

/// Takes `hole` out of some ranges.
pub(crate) fn subtract(pieces: &mut Vec<ByteRange>, hole: ByteRange) {
    if pieces.iter().all(|piece| intersection(*piece, hole).is_none()) {
        return;
    }
    *pieces = pieces
        .iter()
        .flat_map(|piece| match intersection(*piece, hole) {
            None => [Some(*piece), None],
            Some(cut) => [
                (piece.offset() < cut.offset()).then(|| range(piece.offset(), cut.offset())),
                (cut.end() < piece.end()).then(|| range(cut.end(), piece.end())),
            ],
        })
        .flatten()
        .collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(request: u64, from: u64, to: u64, byte: u8, completed: Option<u64>) -> Record {
        Record {
            request,
            base: from,
            pieces: vec![range(from, to)],
            payload: Payload::Fill(byte),
            completed,
            dropped: false,
        }
    }

    #[test]
    fn an_older_value_never_comes_back_over_a_durable_newer_one() {
        let mut cache = Cache::default();
        let mut durable = Image::new();
        cache.push(record(1, 0, 1536, 1, None));
        cache.push(record(2, 512, 1024, 2, Some(1)));
        cache.settle(&mut durable, |record| record.completed.is_some());
        assert_eq!(cache.records()[0].pieces, [range(0, 512), range(1024, 1536)]);
        cache.settle(&mut durable, |_| true);
        let mut bytes = [0; 1536];
        durable.read(0, &mut bytes);
        assert_eq!([bytes[0], bytes[512], bytes[1024]], [1, 2, 1]);
    }

    #[test]
    fn what_was_forgotten_is_not_made_durable() {
        let mut cache = Cache::default();
        let mut durable = Image::new();
        cache.push(record(1, 0, 512, 1, Some(1)));
        cache.forget(|_| true);
        cache.settle(&mut durable, |_| true);
        let mut bytes = [9; 1];
        durable.read(0, &mut bytes);
        assert_eq!(bytes, [0]);
    }
}
