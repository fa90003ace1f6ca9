//! Bytes of a disk, sparse, in chunks that copies share until one of them writes.

use std::sync::Arc;

/// Bytes that are shared or copied as one.
const CHUNK: usize = 16 << 10;

/// What a disk holds. A copy costs a few bytes for each chunk.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    capacity: u64,
    chunks: Vec<Option<Arc<[u8]>>>,
}

impl Image {
    /// All zeroes.
    pub(crate) fn new(capacity: u64) -> Self {
        let chunks = usize::try_from(capacity).unwrap_or(usize::MAX).div_ceil(CHUNK);
        Self { capacity, chunks: vec![None; chunks] }
    }

    /// Bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Fills `bytes` from `offset`.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) {
        for (chunk, inside, piece) in pieces(offset, bytes.len()) {
            match &self.chunks[chunk] {
                Some(held) => bytes[piece].copy_from_slice(&held[inside]),
                None => bytes[piece].fill(0),
            }
        }
    }

    /// Writes `bytes` at `offset`.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (chunk, inside, piece) in pieces(offset, bytes.len()) {
            let held = self.chunks[chunk].get_or_insert_with(|| vec![0; CHUNK].into());
            Arc::make_mut(held)[inside].copy_from_slice(&bytes[piece]);
        }
    }

    /// Makes `length` bytes at `offset` zero.
    pub(crate) fn zero(&mut self, offset: u64, length: usize) {
        for (chunk, inside, _) in pieces(offset, length) {
            let slot = &mut self.chunks[chunk];
            if inside.len() == CHUNK {
                *slot = None;
            } else if let Some(held) = slot {
                Arc::make_mut(held)[inside].fill(0);
            }
        }
    }

    /// Chunks that hold something: where, and what.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.chunks
            .iter()
            .enumerate()
            .filter_map(|(at, held)| Some(((at * CHUNK) as u64, &held.as_ref()?[..])))
    }
}

/// The parts of a range by chunk: which, where in it, where in the range.
fn pieces(
    offset: u64,
    length: usize,
) -> impl Iterator<Item = (usize, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let start = offset as usize;
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = start + done;
        let inside = at % CHUNK;
        let count = (CHUNK - inside).min(length - done);
        let piece = done..done + count;
        done += count;
        Some((at / CHUNK, inside..inside + count, piece))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_does_not_see_what_is_written_later() {
        let mut image = Image::new(1 << 20);
        image.write(CHUNK as u64 - 2, &[1, 2, 3, 4]);
        let copy = image.clone();
        image.write(CHUNK as u64, &[9]);
        image.zero(0, CHUNK);
        let mut bytes = [0; 4];
        copy.read(CHUNK as u64 - 2, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4]);
        image.read(CHUNK as u64 - 2, &mut bytes);
        assert_eq!(bytes, [0, 0, 9, 4]);
    }
}
