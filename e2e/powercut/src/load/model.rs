//! Files and directories of one worker: as they are, and as they may be after a power cut.
//!
//! Invariants:
//! * A file is one number for ever; names come and go and may be taken again by another file.
//! * A directory has its name for ever and is never moved, so its number is its path.
//! * Each name is what it was when its directory was last synced, or what it was made later.

use super::file::File;
use std::collections::{BTreeMap, BTreeSet};

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Entry {
    File(usize),
    Folder(usize),
}

/// A name in a directory.
pub(crate) type Place = (usize, String);

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Op {
    Create { place: Place },
    Write { file: usize, offset: u64, length: u64, how: How },
    Truncate { file: usize, size: u64 },
    Punch { file: usize, offset: u64, length: u64 },
    Zero { file: usize, offset: u64, length: u64 },
    Allocate { file: usize, offset: u64, length: u64 },
    Read { file: usize },
    Fsync { file: usize },
    Fdatasync { file: usize },
    SyncFolder { folder: usize },
    SyncAll,
    Link { from: Place, to: Place },
    Unlink { place: Place },
    Rename { from: Place, to: Place },
    Mkdir { parent: usize },
    Rmdir { folder: usize },
}

/// How bytes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Buffered,
    /// O_DSYNC.
    Synchronous,
    /// O_DIRECT; whole blocks.
    Direct,
}

impl Op {
    /// Whether its return promises something.
    pub(crate) fn promises(&self) -> bool {
        match self {
            Self::Write { how, .. } => *how == How::Synchronous,
            Self::Fsync { .. } | Self::Fdatasync { .. } | Self::SyncFolder { .. } | Self::SyncAll => true,
            _ => false,
        }
    }
}

/// A directory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Folder {
    /// Relative to the worker's own.
    pub(crate) path: String,
    parent: usize,
    gone: bool,
    pub(crate) latest: BTreeMap<String, Entry>,
    base: BTreeMap<String, Entry>,
    /// Since the base.
    changes: Vec<(String, Option<Entry>)>,
}

impl Folder {
    /// Everything that each name may be; `None` is nothing.
    pub(crate) fn allowed(&self) -> BTreeMap<&str, BTreeSet<Option<Entry>>> {
        let mut allowed: BTreeMap<&str, BTreeSet<Option<Entry>>> =
            self.base.iter().map(|(name, entry)| (name.as_str(), BTreeSet::from([Some(*entry)]))).collect();
        for (name, entry) in &self.changes {
            allowed.entry(name).or_insert_with(|| BTreeSet::from([None])).insert(*entry);
        }
        allowed
    }

    fn set(&mut self, name: &str, entry: Option<Entry>) {
        match entry {
            Some(entry) => self.latest.insert(name.to_owned(), entry),
            None => self.latest.remove(name),
        };
        self.changes.push((name.to_owned(), entry));
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    /// Makes the bytes of this worker's writes its own.
    key: u64,
    pub(crate) files: Vec<File>,
    /// Names of each file now.
    names: Vec<BTreeSet<Place>>,
    pub(crate) folders: Vec<Folder>,
    /// Files that are durable under some name and have only been renamed or linked since: they must be found somewhere.
    pub(crate) anchored: BTreeSet<usize>,
}

impl Model {
    /// An empty directory that is durable.
    pub(crate) fn new(key: u64) -> Self {
        Self {
            key,
            files: Vec::new(),
            names: Vec::new(),
            folders: vec![Folder::default()],
            anchored: BTreeSet::new(),
        }
    }

    /// Files that have a name.
    pub(crate) fn live_files(&self) -> Vec<usize> {
        (0..self.files.len()).filter(|file| !self.names[*file].is_empty()).collect()
    }

    /// Directories that exist.
    pub(crate) fn live_folders(&self) -> Vec<usize> {
        (0..self.folders.len()).filter(|folder| !self.folders[*folder].gone).collect()
    }

    /// Every name of every file.
    pub(crate) fn places(&self) -> Vec<Place> {
        self.names.iter().flatten().cloned().collect()
    }

    /// Some name of a file.
    pub(crate) fn place(&self, file: usize) -> Option<&Place> {
        self.names[file].first()
    }

    /// A name's path, relative to the worker's directory.
    pub(crate) fn path(&self, (folder, name): &Place) -> String {
        format!("{}{name}", self.folders[*folder].path)
    }

    /// Name of a directory in its parent.
    pub(crate) fn folder_name(folder: usize) -> String {
        format!("folder-{folder}")
    }

    /// The key of the bytes that operation `number` writes.
    pub(crate) fn bytes_key(&self, number: u64) -> u64 {
        self.key ^ number.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// An operation has been done, or may have been. `durable`: what it promises is known to be kept.
    pub(crate) fn apply(&mut self, number: u64, op: &Op, durable: bool) {
        let key = self.bytes_key(number);
        match op {
            Op::Create { place } => {
                let file = self.files.len();
                self.files.push(File::default());
                self.names.push(BTreeSet::new());
                self.put(place, file);
            }
            Op::Write { file, offset, length, how } => {
                self.files[*file].write(*offset, *length, key, durable && *how == How::Synchronous);
            }
            Op::Truncate { file, size } => self.files[*file].truncate(*size),
            Op::Punch { file, offset, length } | Op::Zero { file, offset, length } => {
                self.files[*file].zero(*offset, *length);
            }
            Op::Allocate { file, offset, length } => self.files[*file].allocate(offset + length),
            Op::Read { .. } => {}
            Op::Fsync { file } | Op::Fdatasync { file } => {
                if durable {
                    self.files[*file].synced();
                }
            }
            Op::SyncFolder { folder } => {
                if durable {
                    self.folder_synced(*folder);
                }
            }
            Op::SyncAll => {
                if durable {
                    self.all_synced();
                }
            }
            Op::Link { from, to } => {
                if let Some(file) = self.file_at(from) {
                    self.put(to, file);
                }
            }
            Op::Unlink { place } => {
                if let Some(file) = self.file_at(place) {
                    self.take(place, file);
                    self.anchored.remove(&file);
                }
            }
            Op::Rename { from, to } => {
                if let Some(file) = self.file_at(from) {
                    if let Some(other) = self.file_at(to) {
                        self.take(to, other);
                        self.anchored.remove(&other);
                    }
                    // In this order: a file without a name is forgotten.
                    self.put(to, file);
                    self.take(from, file);
                }
            }
            Op::Mkdir { parent } => {
                let folder = self.folders.len();
                let name = Self::folder_name(folder);
                let path = format!("{}{name}/", self.folders[*parent].path);
                self.folders[*parent].set(&name, Some(Entry::Folder(folder)));
                self.folders.push(Folder { path, parent: *parent, ..Folder::default() });
            }
            Op::Rmdir { folder } => {
                let parent = self.folders[*folder].parent;
                self.folders[parent].set(&Self::folder_name(*folder), None);
                self.folders[*folder].gone = true;
            }
        }
    }

    fn file_at(&self, (folder, name): &Place) -> Option<usize> {
        match self.folders[*folder].latest.get(name)? {
            Entry::File(file) => Some(*file),
            Entry::Folder(_) => None,
        }
    }

    fn put(&mut self, place: &Place, file: usize) {
        self.folders[place.0].set(&place.1, Some(Entry::File(file)));
        self.names[file].insert(place.clone());
    }

    fn take(&mut self, place: &Place, file: usize) {
        self.folders[place.0].set(&place.1, None);
        self.names[file].remove(place);
        if self.names[file].is_empty() {
            self.files[file].forget_latest();
        }
    }

    fn folder_synced(&mut self, folder: usize) {
        let rooted = self.rooted(folder);
        let found = &mut self.folders[folder];
        found.base = found.latest.clone();
        found.changes.clear();
        if rooted {
            self.anchor(folder);
        }
    }

    fn all_synced(&mut self) {
        for folder in self.live_folders() {
            let found = &mut self.folders[folder];
            found.base = found.latest.clone();
            found.changes.clear();
            self.anchor(folder);
        }
        for file in self.live_files() {
            self.files[file].synced();
        }
    }

    fn anchor(&mut self, folder: usize) {
        let files = self.folders[folder].latest.values().filter_map(|entry| match entry {
            Entry::File(file) => Some(*file),
            Entry::Folder(_) => None,
        });
        self.anchored.extend(files);
    }

    /// Whether a directory is sure to be there.
    fn rooted(&self, folder: usize) -> bool {
        let mut at = folder;
        while at != 0 {
            let parent = self.folders[at].parent;
            if !self.folders[parent].base.contains_key(&Self::folder_name(at)) {
                return false;
            }
            at = parent;
        }
        true
    }
}
