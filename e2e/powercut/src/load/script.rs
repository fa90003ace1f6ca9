//! The operations of one worker, from a seed.
//!
//! Two temperaments: one works on the bytes of few files (pieces of any length and place, holes, truncation, fsync), the
//! other on names (create, link, rename over one another, unlink, mkdir, rmdir, fsync of directories).

use super::model::{How, Model, Op, Place};
use parallax_sim::Prng;

const BLOCK: u64 = 4096;
/// Longest file.
const SIZE_MAX: u64 = 192 << 10;
/// Files of one worker at one time.
const FILES_MAX: usize = 16;
/// Directories of one worker at one time.
const FOLDERS_MAX: usize = 6;
/// Names that are used in each directory, again and again.
const NAMES: u64 = 12;

/// Kinds of operation, each with its weight for the two temperaments.
const WEIGHTS: [(Kind, u64, u64); 16] = [
    (Kind::Write, 40, 18),
    (Kind::Truncate, 6, 2),
    (Kind::Punch, 6, 1),
    (Kind::Zero, 4, 1),
    (Kind::Allocate, 4, 2),
    (Kind::Read, 10, 3),
    (Kind::Fsync, 12, 10),
    (Kind::Fdatasync, 6, 2),
    (Kind::SyncFolder, 2, 12),
    (Kind::SyncAll, 1, 1),
    (Kind::Create, 2, 16),
    (Kind::Link, 1, 6),
    (Kind::Unlink, 1, 8),
    (Kind::Rename, 2, 14),
    (Kind::Mkdir, 1, 4),
    (Kind::Rmdir, 1, 3),
];

#[derive(Clone, Copy, Debug)]
enum Kind {
    Write,
    Truncate,
    Punch,
    Zero,
    Allocate,
    Read,
    Fsync,
    Fdatasync,
    SyncFolder,
    SyncAll,
    Create,
    Link,
    Unlink,
    Rename,
    Mkdir,
    Rmdir,
}

/// See the module.
pub(crate) struct Script {
    prng: Prng,
    names: bool,
}

impl Script {
    /// That of worker `worker`, and what its bytes are made from.
    pub(crate) fn new(seed: u64, worker: u32) -> (Self, Model) {
        let mut prng = Prng::new(seed ^ (u64::from(worker) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let model = Model::new(prng.next_u64());
        (Self { prng, names: worker % 2 == 1 }, model)
    }

    /// The next operation; it is possible as things stand.
    pub(crate) fn next(&mut self, model: &Model) -> Op {
        loop {
            // Creating a file is possible whenever nothing else is, so this ends.
            if let Some(op) = self.attempt(model) {
                return op;
            }
        }
    }

    fn attempt(&mut self, model: &Model) -> Option<Op> {
        let files = model.live_files();
        if files.is_empty() {
            return self.create(model);
        }
        let file = *self.prng.pick(&files);
        let size = model.files[file].size();
        Some(match self.kind() {
            Kind::Write => self.write(file, size),
            Kind::Truncate => Op::Truncate { file, size: self.prng.range(0..size.max(BLOCK) + 1) },
            Kind::Punch => {
                let (offset, length) = self.piece(size);
                Op::Punch { file, offset, length }
            }
            Kind::Zero => {
                let (offset, length) = self.piece(size);
                Op::Zero { file, offset, length }
            }
            Kind::Allocate => {
                let (offset, length) = self.piece(size);
                Op::Allocate { file, offset, length }
            }
            Kind::Read => Op::Read { file },
            Kind::Fsync => Op::Fsync { file },
            Kind::Fdatasync => Op::Fdatasync { file },
            Kind::SyncFolder => Op::SyncFolder { folder: *self.prng.pick(&model.live_folders()) },
            Kind::SyncAll => Op::SyncAll,
            Kind::Create => return if files.len() < FILES_MAX { self.create(model) } else { None },
            Kind::Link => {
                let from = self.prng.pick(&model.places()).clone();
                let to = self.place(model);
                if model.folders[to.0].latest.contains_key(&to.1) || model.places().len() > 2 * FILES_MAX {
                    return None;
                }
                Op::Link { from, to }
            }
            Kind::Unlink => Op::Unlink { place: self.prng.pick(&model.places()).clone() },
            Kind::Rename => {
                let from = self.prng.pick(&model.places()).clone();
                let to = self.place(model);
                let same = |at: &Place| model.folders[at.0].latest.get(&at.1).copied();
                // Two names of one file: rename does nothing at all.
                if same(&from) == same(&to) {
                    return None;
                }
                Op::Rename { from, to }
            }
            Kind::Mkdir => {
                let folders = model.live_folders();
                if folders.len() >= FOLDERS_MAX {
                    return None;
                }
                Op::Mkdir { parent: *self.prng.pick(&folders) }
            }
            Kind::Rmdir => {
                let folder = *self.prng.pick(&model.live_folders());
                if folder == 0 || !model.folders[folder].latest.is_empty() {
                    return None;
                }
                Op::Rmdir { folder }
            }
        })
    }

    fn kind(&mut self) -> Kind {
        let weight = |row: &(Kind, u64, u64)| if self.names { row.2 } else { row.1 };
        let mut left = self.prng.range(0..WEIGHTS.iter().map(weight).sum());
        for row in &WEIGHTS {
            let weight = if self.names { row.2 } else { row.1 };
            if left < weight {
                return row.0;
            }
            left -= weight;
        }
        Kind::Write
    }

    fn create(&mut self, model: &Model) -> Option<Op> {
        let place = self.place(model);
        (!model.folders[place.0].latest.contains_key(&place.1)).then_some(Op::Create { place })
    }

    /// Any name, taken or not.
    fn place(&mut self, model: &Model) -> Place {
        let folder = *self.prng.pick(&model.live_folders());
        (folder, format!("file-{}", self.prng.range(0..NAMES)))
    }

    /// A place in a file or a little behind its end.
    fn piece(&mut self, size: u64) -> (u64, u64) {
        let offset = self.prng.range(0..(size + BLOCK).min(SIZE_MAX - 1));
        let most = (SIZE_MAX - offset).min(if self.prng.chance(1, 8) { 64 << 10 } else { 10 << 10 });
        (offset, self.prng.range(1..most + 1))
    }

    fn write(&mut self, file: usize, size: u64) -> Op {
        let (offset, length) = self.piece(size);
        match self.prng.range(0..10) {
            0 => Op::Write { file, offset, length, how: How::Synchronous },
            1 => {
                let offset = offset / BLOCK * BLOCK;
                let length = length.next_multiple_of(BLOCK).min(SIZE_MAX - offset);
                Op::Write { file, offset, length, how: How::Direct }
            }
            _ => Op::Write { file, offset, length, how: How::Buffered },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_script() {
        for worker in 0..2 {
            let run = || {
                let (mut script, mut model) = Script::new(7, worker);
                let ops: Vec<Op> = (0..500)
                    .map(|number| {
                        let op = script.next(&model);
                        model.apply(number, &op, true);
                        op
                    })
                    .collect();
                ops
            };
            assert_eq!(run(), run());
        }
    }
}
