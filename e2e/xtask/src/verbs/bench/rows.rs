//! What is measured over NBD: one line, one row of the table.

use super::fio::{Job, Pattern};

/// State of the image that a row wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Image {
    /// Every block was written; the same image for every repetition.
    Filled,
    /// No block was written; a new one for each repetition. The raw file stays the filled one.
    Empty,
    /// Filled, and a snapshot (or a new overlay) has been taken just before.
    AfterSnapshot,
    /// As filled, with thousands of snapshots in its past; each block was written once since.
    AfterMany,
    /// The same, and one more snapshot just before.
    AfterManyAndOne,
}

/// Which table a row belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    /// Plain reads and writes.
    Plain,
    /// Flushes, and writes after a snapshot.
    Special,
    /// After thousands of snapshots.
    Many,
}

/// A row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// For `--only`.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) part: Part,
    pub(super) job: Job,
    pub(super) image: Image,
}

const PAGE: u64 = 4 << 10;

/// Every row, in the order in which it is measured.
pub(super) const ROWS: &[Row] = &[
    plain("read-4k-q1", "4 KiB random read, queue 1", Pattern::RandomRead, PAGE, 1),
    plain("read-4k-q32", "4 KiB random read, queue 32", Pattern::RandomRead, PAGE, 32),
    plain("write-4k-q1", "4 KiB random write, queue 1", Pattern::RandomWrite, PAGE, 1),
    plain("write-4k-q32", "4 KiB random write, queue 32", Pattern::RandomWrite, PAGE, 32),
    plain("read-64k", "64 KiB sequential read, queue 8", Pattern::Read, 64 << 10, 8),
    plain("write-64k", "64 KiB sequential write, queue 8", Pattern::Write, 64 << 10, 8),
    plain("read-1m", "1 MiB sequential read, queue 4", Pattern::Read, 1 << 20, 4),
    plain("write-1m", "1 MiB sequential write, queue 4", Pattern::Write, 1 << 20, 4),
    special("first-touch", "4 KiB first touch + flush, queue 1", 1, true, Image::Empty),
    special("same-block", "4 KiB same blocks again + flush, queue 1", 1, true, Image::Filled),
    special(
        "after-snapshot",
        "4 KiB random write after a snapshot, queue 32",
        32,
        false,
        Image::AfterSnapshot,
    ),
    many("many-read", "4 KiB random read, queue 32", Pattern::RandomRead, Image::AfterMany),
    many("many-write", "4 KiB random write, queue 32", Pattern::RandomWrite, Image::AfterMany),
    many(
        "many-after-snapshot",
        "4 KiB random write after one more snapshot, queue 32",
        Pattern::RandomWrite,
        Image::AfterManyAndOne,
    ),
];

const fn plain(name: &'static str, title: &'static str, pattern: Pattern, block: u64, depth: u32) -> Row {
    let job = Job { pattern, block, depth, flush: false, rate: None };
    Row { name, title, part: Part::Plain, job, image: Image::Filled }
}

const fn special(name: &'static str, title: &'static str, depth: u32, flush: bool, image: Image) -> Row {
    let job = Job { pattern: Pattern::RandomWrite, block: PAGE, depth, flush, rate: None };
    Row { name, title, part: Part::Special, job, image }
}

const fn many(name: &'static str, title: &'static str, pattern: Pattern, image: Image) -> Row {
    let job = Job { pattern, block: PAGE, depth: 32, flush: false, rate: None };
    Row { name, title, part: Part::Many, job, image }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_names_one_row() {
        let mut names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
    }
}
