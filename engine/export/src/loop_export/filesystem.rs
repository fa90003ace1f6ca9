//! The FUSE filesystem: a root, one directory named after this instance, one file for each export.
//!
//! The directory's name is what a later daemon recognises its predecessor's loop devices by.

use super::{
    ExportKey,
    served::{Engine, Served},
};
use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, WriteFlags,
};
use parking_lot::RwLock;
use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

/// Bytes of the largest FUSE request.
const WRITE_BYTES_MAX: u32 = 1 << 20;

/// Asynchronous requests that the kernel sends before it waits for answers. Each loop device has its own, much
/// smaller bound; this one is shared by all and must not let one device starve the others.
const BACKGROUND_MAX: u16 = 16384;

const DIRECTORY: INodeNo = INodeNo(2);
const FIRST_FILE: u64 = 16;

/// Names and attributes are never cached: a size may change at any time.
const UNCACHED: Duration = Duration::ZERO;

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
    pub(super) fn new(instance: String) -> Arc<Self> {
        Arc::new(Self { instance, next_inode: AtomicU64::new(FIRST_FILE), files: RwLock::default() })
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

    fn by_inode(&self, inode: INodeNo) -> Option<Arc<Served>> {
        self.files.read().by_inode.get(&inode.0).cloned()
    }

    fn by_name(&self, name: &str) -> Option<Arc<Served>> {
        self.files.read().by_name.get(name).cloned()
    }
}

/// What fuser calls.
pub(super) struct LoopFilesystem {
    pub(super) catalogue: Arc<Catalogue>,
    pub(super) engine: Engine,
}

fn attributes(inode: INodeNo, kind: FileType, perm: u16, size: u64) -> FileAttr {
    let epoch = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: inode,
        size,
        blocks: size / 512,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind,
        perm,
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn file_attributes(served: &Served) -> FileAttr {
    let perm = if served.read_only { 0o400 } else { 0o600 };
    attributes(INodeNo(served.inode), FileType::RegularFile, perm, served.size())
}

impl LoopFilesystem {
    fn attributes_of(&self, inode: INodeNo) -> Option<FileAttr> {
        match inode {
            INodeNo::ROOT | DIRECTORY => Some(attributes(inode, FileType::Directory, 0o700, 0)),
            _ => self.catalogue.by_inode(inode).map(|served| file_attributes(&served)),
        }
    }
}

impl Filesystem for LoopFilesystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let refused = |what: &str| io::Error::other(format!("the kernel's FUSE has no {what}"));
        // Without asynchronous direct I/O the queue of a loop device would be one request deep.
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).map_err(|_| refused("asynchronous direct I/O"))?;
        config.set_max_write(WRITE_BYTES_MAX).map_err(|_| refused("requests of 1 MiB"))?;
        config.set_max_background(BACKGROUND_MAX).map_err(|_| refused("deep queues"))?;
        config.set_congestion_threshold(BACKGROUND_MAX).map_err(|_| refused("deep queues"))?;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_str().unwrap_or_default();
        let found = match parent {
            INodeNo::ROOT if name == self.catalogue.instance => self.attributes_of(DIRECTORY),
            DIRECTORY => self.catalogue.by_name(name).map(|served| file_attributes(&served)),
            _ => None,
        };
        match found {
            Some(attributes) => reply.entry(&UNCACHED, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes_of(inode) {
            Some(attributes) => reply.attr(&UNCACHED, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let Some(served) = self.catalogue.by_inode(inode) else { return reply.error(Errno::ENOENT) };
        // No flush on close: a close must never wait for this process, which may be the one that closes.
        let flags = FopenFlags::FOPEN_DIRECT_IO
            | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
            | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(served.inode), flags);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Tells a kernel that does not know FOPEN_NOFLUSH never to ask again.
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.catalogue.by_inode(inode) {
            Some(served) => served.read(&self.engine, offset, size, reply),
            None => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.catalogue.by_inode(inode) {
            Some(served) => served.write(&self.engine, offset, data, reply),
            None => reply.error(Errno::EIO),
        }
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.catalogue.by_inode(inode) {
            Some(served) => served.flush(&self.engine, reply),
            None => reply.error(Errno::EIO),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        match self.catalogue.by_inode(inode) {
            Some(served) => served.allocate(&self.engine, offset, length, mode, reply),
            None => reply.error(Errno::EIO),
        }
    }

    /// The loop driver takes the block size for the granularity of discards.
    fn statfs(&self, _: &Request, inode: INodeNo, reply: ReplyStatfs) {
        let (size, block) = match self.catalogue.by_inode(inode) {
            Some(served) => {
                let geometry = served.device.geometry();
                (geometry.capacity, geometry.discard_granularity.max(geometry.logical_block))
            }
            None => (0, 4096),
        };
        reply.statfs(size / u64::from(block), 0, 0, 1, 0, block, ExportKey::LENGTH_MAX as u32, block);
    }
}
