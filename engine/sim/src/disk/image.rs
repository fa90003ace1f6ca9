//! Sparse content of a disk: 4 KiB pages, shared between images until one of them changes.

use parallax_block::ByteRange;
use std::{collections::BTreeMap, sync::Arc};

const PAGE: u64 = 4096;

/// Bytes of a disk; what was never written reads as the background. Cloning shares the pages.
#[derive(Clone, Default)]
pub struct Image {
    background: u8,
    pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
}

impl Image {
    /// All zeroes.
    pub fn new() -> Self {
        Self::default()
    }

    /// `background` in every byte: a disk that was used before. What a store exposes without having written it
    /// does not look like zeroes there.
    pub fn filled(background: u8) -> Self {
        Self { background, pages: BTreeMap::new() }
    }

    /// Fills `bytes` from `offset`.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        for (page, start, part) in pages(offset, bytes.len()) {
            let target = &mut bytes[part.clone()];
            match self.pages.get(&page) {
                Some(content) => target.copy_from_slice(&content[start..start + part.len()]),
                None => target.fill(self.background),
            }
        }
    }

    /// Stores `bytes` at `offset`.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (page, start, part) in pages(offset, bytes.len()) {
            let blank = [self.background; PAGE as usize];
            let content = self.pages.entry(page).or_insert_with(|| Arc::new(blank));
            Arc::make_mut(content)[start..start + part.len()].copy_from_slice(&bytes[part]);
        }
    }

    /// Stores `byte` throughout `range`; whole pages of one byte share their memory.
    pub fn fill(&mut self, range: ByteRange, byte: u8) {
        let whole = range.inner_blocks();
        if byte == self.background {
            let mut rest = self.pages.split_off(&whole.start);
            self.pages.append(&mut rest.split_off(&whole.end));
        }
        let filled = Arc::new([byte; PAGE as usize]);
        for (page, start, part) in pages(range.offset(), range.length() as usize) {
            if whole.contains(&page) {
                if byte != self.background {
                    self.pages.insert(page, filled.clone());
                }
                continue;
            }
            let blank = [self.background; PAGE as usize];
            let content = self.pages.entry(page).or_insert_with(|| Arc::new(blank));
            Arc::make_mut(content)[start..start + part.len()].fill(byte);
        }
    }

    /// Bytes of memory behind it, counting shared pages in full.
    pub fn resident_bytes(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// Pages that hold something, in order, with their offsets.
    pub fn pages(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pages.iter().map(|(page, content)| (page * PAGE, content.as_slice()))
    }
}

/// The pieces of a byte range, page by page: page number, start inside the page, range inside the bytes.
fn pages(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = offset + done as u64;
        let start = (at % PAGE) as usize;
        let part = done..(done + PAGE as usize - start).min(length);
        done = part.end;
        Some((at / PAGE, start, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_do_not_see_each_other() {
        let mut first = Image::new();
        first.write(4000, &[7; 200]);
        let mut second = first.clone();
        second.write(4090, &[9; 10]);
        let (mut a, mut b) = ([0; 12], [0; 12]);
        first.read(4089, &mut a);
        second.read(4089, &mut b);
        assert_eq!(a, [7; 12]);
        assert_eq!(b, [7, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 7]);
    }

    #[test]
    fn a_used_disk_shows_its_background_where_nothing_was_written() {
        let mut image = Image::filled(0xee);
        image.fill(ByteRange::new(512, 8192).unwrap(), 0);
        image.write(16384, &[1; 10]);
        let mut bytes = [9; 20480];
        image.read(0, &mut bytes);
        assert_eq!([bytes[0], bytes[511], bytes[512], bytes[8703], bytes[8704]], [0xee, 0xee, 0, 0, 0xee]);
        assert_eq!([bytes[16384], bytes[16393], bytes[16394]], [1, 1, 0xee]);
        image.fill(ByteRange::new(0, 20480).unwrap(), 0xee);
        assert_eq!(image.resident_bytes(), 0);
    }

    #[test]
    fn zeroing_gives_whole_pages_back() {
        let mut image = Image::new();
        image.write(0, &[1; 16384]);
        image.fill(ByteRange::new(512, 12288).unwrap(), 0);
        assert_eq!(image.resident_bytes(), 2 * PAGE);
        let mut bytes = [9; 1024];
        image.read(12288, &mut bytes);
        assert_eq!((&bytes[..512], &bytes[512..]), (&[0; 512][..], &[1; 512][..]));
    }
}
