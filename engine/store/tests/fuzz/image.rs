//! Images of pools as text: sixteen bytes a line behind their offset, without what is background.

use std::fmt::Write;
use std::ops::Range;

/// Bytes of the pool.
pub(crate) const CAPACITY: usize = 8 << 20;
/// What was on the disk before: it does not look like zeroes.
pub(crate) const BACKGROUND: u8 = 0xee;

pub(crate) const PAGE: usize = 4096;

/// Lines of a page are compared with what most of it holds.
fn most_of(page: &[u8]) -> u8 {
    if page[PAGE - 1] == page[PAGE - 2] { page[PAGE - 1] } else { 0 }
}

pub(crate) fn render(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (number, page) in bytes.chunks(PAGE).enumerate() {
        if page.iter().all(|byte| *byte == BACKGROUND) {
            continue;
        }
        let fill = most_of(page);
        writeln!(text, "page {number} {fill:02x}").unwrap();
        for (line, chunk) in page.chunks(16).enumerate() {
            if chunk.iter().any(|byte| *byte != fill) {
                write!(text, "{:03x} ", line * 16).unwrap();
                chunk.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
                text.push('\n');
            }
        }
    }
    text
}

pub(crate) fn parse(text: &str) -> Vec<u8> {
    let mut bytes = vec![BACKGROUND; CAPACITY];
    let mut start = 0;
    let hex = |digits: &str| u8::from_str_radix(digits, 16).expect("two digits");
    for line in text.lines() {
        if let Some(page) = line.strip_prefix("page ") {
            let (number, fill) = page.split_once(' ').expect("a number and a byte");
            start = number.parse::<usize>().expect("a number") * PAGE;
            bytes[start..start + PAGE].fill(hex(fill));
        } else {
            let (offset, digits) = line.split_once(' ').expect("an offset and bytes");
            let offset = start + usize::from_str_radix(offset, 16).expect("an offset");
            for index in 0..digits.len() / 2 {
                bytes[offset + index] = hex(&digits[2 * index..2 * index + 2]);
            }
        }
    }
    bytes
}

/// Whether a page holds metadata: data are blocks of one byte here.
pub(crate) fn is_metadata(page: &[u8]) -> bool {
    page.iter().any(|byte| *byte != page[0])
}

/// Bytes of metadata that mean something.
pub(crate) fn focus(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut spots = Vec::new();
    for (number, page) in bytes.chunks(PAGE).enumerate().filter(|(_, page)| is_metadata(page)) {
        let start = number * PAGE;
        if page[..4] == *b"PLX1" {
            let length = usize::from(u16::from_le_bytes([page[6], page[7]])).min(256);
            spots.push(start + 4..start + 32 + length);
        } else {
            let last = page.iter().rposition(|byte| *byte != 0).unwrap_or(0).min(512);
            spots.push(start..start + last + 1);
        }
    }
    spots
}

#[test]
fn an_image_reads_back_as_it_was_written() {
    let mut bytes = vec![BACKGROUND; CAPACITY];
    bytes[PAGE..2 * PAGE].fill(0);
    bytes[PAGE + 17] = 5;
    bytes[3 * PAGE..4 * PAGE].fill(7);
    assert!(parse(&render(&bytes)) == bytes);
}
