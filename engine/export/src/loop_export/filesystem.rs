//! The FUSE filesystem: a root, one directory named after this instance, one file for each export.
//!
//! The directory's name is what a later daemon recognises its predecessor's loop devices by.

use super::{
    ExportKey,
    fuse::{self, Attributes, EntryOut, Filesystem, OpenOut, Question, Reply, StatfsOut},
    served::{Engine, Served},
};
use parking_lot::RwLock;
use rustix::time::{ClockId, clock_gettime};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The only directory in the root.
const DIRECTORY: u64 = 2;

/// Number of the first file of a new connection.
pub(super) const FIRST_FILE: u64 = 16;

/// A number for the first new file of a connection that is taken over. `told` is what was told to be free.
///
/// A number that was given before may still be known to the kernel as a file in use, whose users would then see the
/// bytes of another. What was told may be old: the holder was away, or slow, when the daemon before us gave later ones. So
/// it is the age of the machine in nanoseconds: nobody gives numbers faster.
pub(super) fn first_file_after(told: u64) -> u64 {
    let age = clock_gettime(ClockId::Boottime);
    let nanoseconds = age.tv_sec.saturating_mul(1_000_000_000).saturating_add(age.tv_nsec);
    told.max(nanoseconds.unsigned_abs())
}

/// Exports by inode and by name.
pub(super) struct Catalogue {
    instance: String,
    next_inode: AtomicU64,
    files: RwLock<Files>,
}

#[derive(Default)]
struct Files {
    by_inode: HashMap<u64, Arc<Served>>,
    by_name: HashMap<String, Arc<Served>>,
}

impl Catalogue {
    pub(super) fn new(instance: String, next_inode: u64) -> Arc<Self> {
        Arc::new(Self { instance, next_inode: AtomicU64::new(next_inode), files: RwLock::default() })
    }

    /// The number that the next new file gets.
    pub(super) fn next_inode(&self) -> u64 {
        self.next_inode.load(Relaxed)
    }

    /// A number that no file had before.
    pub(super) fn new_inode(&self) -> u64 {
        self.next_inode.fetch_add(1, Relaxed)
    }

    pub(super) fn insert(&self, key: &ExportKey, served: Arc<Served>) {
        let mut files = self.files.write();
        files.by_inode.insert(served.inode, Arc::clone(&served));
        files.by_name.insert(key.as_str().to_owned(), served);
    }

    pub(super) fn remove(&self, key: &ExportKey) {
        let mut files = self.files.write();
        if let Some(served) = files.by_name.remove(key.as_str()) {
            files.by_inode.remove(&served.inode);
        }
    }

    /// Path of an export's file, from the root of the mount.
    pub(super) fn path(&self, key: &ExportKey) -> String {
        format!("{}/{key}", self.instance)
    }

    fn by_inode(&self, inode: u64) -> Option<Arc<Served>> {
        self.files.read().by_inode.get(&inode).cloned()
    }

    fn by_name(&self, name: &[u8]) -> Option<Arc<Served>> {
        self.files.read().by_name.get(std::str::from_utf8(name).ok()?).cloned()
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Option<Attributes> {
        match parent {
            fuse::ROOT if name == self.instance.as_bytes() => self.attributes(DIRECTORY),
            DIRECTORY => self.by_name(name).map(|served| file_attributes(&served)),
            _ => None,
        }
    }

    fn attributes(&self, inode: u64) -> Option<Attributes> {
        match inode {
            fuse::ROOT | DIRECTORY => Some(attributes(inode, libc::S_IFDIR | 0o700, 0)),
            _ => self.by_inode(inode).map(|served| file_attributes(&served)),
        }
    }
}

fn attributes(inode: u64, mode: u32, size: u64) -> Attributes {
    Attributes {
        inode,
        size,
        blocks: size / 512,
        mode,
        links: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        block_size: 4096,
        ..Attributes::default()
    }
}

fn file_attributes(served: &Served) -> Attributes {
    let permissions = if served.read_only { 0o400 } else { 0o600 };
    attributes(served.inode, libc::S_IFREG | permissions, served.size())
}

/// What the connection asks.
pub(super) struct LoopFilesystem {
    pub(super) catalogue: Arc<Catalogue>,
    pub(super) engine: Engine,
}

impl Filesystem for LoopFilesystem {
    fn ask(&self, node: u64, question: Question<'_>, reply: Reply) {
        match question {
            Question::Lookup { name } => match self.catalogue.lookup(node, name) {
                Some(attributes) => {
                    reply.entry(EntryOut { node: attributes.inode, attributes, ..EntryOut::default() });
                }
                None => reply.error(libc::ENOENT),
            },
            Question::GetAttributes => match self.catalogue.attributes(node) {
                Some(attributes) => reply.attributes(attributes),
                None => reply.error(libc::ENOENT),
            },
            Question::Open => match self.catalogue.by_inode(node) {
                Some(served) => reply.opened(opened(&served)),
                None => reply.error(libc::ENOENT),
            },
            Question::Statfs => reply.statfs(self.statfs(node)),
            Question::Agree => reply.ok(),
            Question::Other => reply.error(libc::ENOSYS),
            Question::Read { .. } | Question::Write { .. } | Question::Sync | Question::Allocate { .. } => {
                match self.catalogue.by_inode(node) {
                    Some(served) => served.ask(&self.engine, question, reply),
                    None => reply.error(libc::EIO),
                }
            }
        }
    }
}

fn opened(served: &Served) -> OpenOut {
    // No flush on close: a close must never wait for this process, which may be the one that closes.
    let flags = fuse::open::DIRECT_IO | fuse::open::PARALLEL_DIRECT_WRITES | fuse::open::NO_FLUSH;
    OpenOut { handle: served.inode, flags, backing: 0 }
}

impl LoopFilesystem {
    /// The loop driver takes the block size for the granularity of discards.
    fn statfs(&self, node: u64) -> StatfsOut {
        let (size, block) = match self.catalogue.by_inode(node) {
            Some(served) => {
                let geometry = served.device.geometry();
                (geometry.capacity, geometry.discard_granularity.max(geometry.logical_block))
            }
            None => (0, 4096),
        };
        StatfsOut {
            blocks: size / u64::from(block),
            files: 1,
            block_size: block,
            name_length_max: ExportKey::LENGTH_MAX as u32,
            fragment_size: block,
            ..StatfsOut::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A holder missed the latest deposits of a daemon that was then killed. The next one began with a number that a
    /// file in use had already: what was attached next appeared behind the block device of another volume.
    #[test]
    fn no_number_is_given_twice_even_if_the_holder_has_missed_some() {
        let told = FIRST_FILE + 2;
        let mut given = told;
        for _ in 0..3 {
            let catalogue = Catalogue::new(String::new(), first_file_after(told));
            for _ in 0..1000 {
                let number = catalogue.new_inode();
                assert!(number > given, "{number} after {given}");
                given = number;
            }
        }
    }
}
