//! Opening a file or a block device, and claiming it.

use crate::{
    disk::Disk,
    operation::Route,
    reactor::{IoMode, ReactorHandle},
    workers::Workers,
};
use parallax_block::{BlockDevice, Error, ErrorKind, Geometry, Result, ResultExt, SECTOR_SIZE};
use rustix::{
    fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom, StatxFlags},
    io::Errno,
};
use std::{fs::File, path::Path, sync::Arc};

/// Requests that wait for a thread of a device's pool; more wait with their callers.
const QUEUE_MAX: usize = 1024;

/// How a device is opened.
#[derive(Debug, Clone, Copy)]
pub struct OpenOptions {
    /// How I/O reaches the kernel.
    pub io: IoMode,
    /// Refuses writing. A file is then shared with other readers.
    pub read_only: bool,
    /// Claims the device, so that no second process can open it by mistake.
    pub exclusive: bool,
    /// Goes around the page cache where the filesystem can.
    pub direct: bool,
    /// Threads of the pool, where one is used.
    pub threads: usize,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { io: IoMode::Auto, read_only: false, exclusive: true, direct: true, threads: 8 }
    }
}

/// Opens a file or a block device. Requests go through the reactor of the thread that polls them, or through
/// `home` where it has none; with [`IoMode::Threads`], or if `home` has no ring, through a pool of threads.
pub fn open_device(path: &Path, home: &ReactorHandle, options: OpenOptions) -> Result<Arc<dyn BlockDevice>> {
    Ok(Arc::new(open_disk(path, home, options)?))
}

/// As [`open_device`], for callers that want the [`Disk`] itself.
pub fn open_disk(path: &Path, home: &ReactorHandle, options: OpenOptions) -> Result<Disk> {
    let opening = || format!("opening {}", path.display());
    let kind = FileType::from_raw_mode(rustix::fs::stat(path).map_err(os).context(opening)?.st_mode);
    let is_block_device = match kind {
        FileType::BlockDevice => true,
        FileType::RegularFile => false,
        _ => return Err(Error::invalid("this is neither a file nor a block device").context(opening())),
    };
    let (file, is_direct) = open_file(path, is_block_device, options).context(opening)?;
    if options.exclusive && !is_block_device {
        claim(&file, path, options.read_only)?;
    }
    let (geometry, memory_alignment) =
        geometry(&file, is_block_device, is_direct, options.read_only).context(opening)?;
    let threads =
        options.io == IoMode::Threads || (options.io == IoMode::Auto && home.io() == IoMode::Threads);
    if options.io == IoMode::Uring && home.io() != IoMode::Uring {
        return Err(Error::new(ErrorKind::Unsupported, "the I/O thread has no io_uring").context(opening()));
    }
    let route = if threads {
        Route::Workers(Workers::new("disk-worker", options.threads, QUEUE_MAX))
    } else {
        Route::Reactor(home.clone())
    };
    Ok(Disk {
        file: Arc::new(file),
        path: path.to_owned(),
        geometry,
        memory_alignment,
        is_block_device,
        route,
    })
}

fn os(errno: Errno) -> Error {
    Error::from(std::io::Error::from(errno))
}

/// Returns the file and whether it goes around the page cache.
fn open_file(path: &Path, is_block_device: bool, options: OpenOptions) -> Result<(File, bool)> {
    let mut flags = OFlags::CLOEXEC | if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    if options.exclusive && is_block_device {
        flags |= OFlags::EXCL;
    }
    let open = |flags| rustix::fs::open(path, flags, Mode::empty()).map(File::from);
    let in_use = |errno| match errno {
        Errno::BUSY => Error::new(
            ErrorKind::Busy,
            "the device is in use: mounted, part of another volume, or held by another parallax process; `lsblk` \
             and `fuser -v` show by whom",
        ),
        other => os(other),
    };
    if options.direct {
        match open(flags | OFlags::DIRECT) {
            Ok(file) => return Ok((file, true)),
            Err(Errno::INVAL) => tracing::warn!(
                path = %path.display(),
                "the filesystem refuses direct I/O; going through the page cache"
            ),
            Err(errno) => return Err(in_use(errno)),
        }
    }
    open(flags).map(|file| (file, false)).map_err(in_use)
}

fn claim(file: &File, path: &Path, read_only: bool) -> Result<()> {
    let how = if read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match rustix::fs::flock(file, how) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(Error::new(
            ErrorKind::Busy,
            format!(
                "{0} is held by another process; stop it, or go through it (`parallax --socket`); `fuser -v {0}` \
                 shows which",
                path.display()
            ),
        )),
        Err(errno) => Err(os(errno).context(format!("locking {}", path.display()))),
    }
}

/// Shape of the device, and what memory must be aligned to.
fn geometry(
    file: &File,
    is_block_device: bool,
    is_direct: bool,
    read_only: bool,
) -> Result<(Geometry, usize)> {
    let size = rustix::fs::seek(file, SeekFrom::End(0)).map_err(os)?;
    let (logical_block, physical_block, discard_granularity, memory_alignment) = if is_block_device {
        let logical = rustix::fs::ioctl_blksszget(file).map_err(os)?;
        let physical = rustix::fs::ioctl_blkpbszget(file).map_err(os)?.max(logical);
        (logical, physical, discard_granularity(file), logical as usize)
    } else {
        let (offsets, memory) = if is_direct { direct_alignment(file) } else { (SECTOR_SIZE as u32, 1) };
        (offsets, offsets.max(4096), 4096, memory)
    };
    let capacity = size / u64::from(logical_block) * u64::from(logical_block);
    Ok((
        Geometry { capacity, logical_block, physical_block, discard_granularity, read_only },
        memory_alignment,
    ))
}

/// What direct I/O on this file wants of offsets and of memory.
fn direct_alignment(file: &File) -> (u32, usize) {
    let sector = SECTOR_SIZE as u32;
    match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(answer)
            if answer.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && answer.stx_dio_offset_align != 0 =>
        {
            (answer.stx_dio_offset_align.max(sector), answer.stx_dio_mem_align.max(1) as usize)
        }
        // Kernels before 6.1 do not say; a sector is right for nearly all.
        _ => (sector, SECTOR_SIZE),
    }
}

/// From sysfs, since there is no ioctl for it; 0 if the device cannot discard.
fn discard_granularity(file: &File) -> u32 {
    let Ok(stat) = rustix::fs::fstat(file) else { return 0 };
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    // A partition has no queue of its own; its disk does.
    ["queue", "../queue"]
        .iter()
        .find_map(|queue| {
            std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{queue}/discard_granularity"))
                .ok()
        })
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}
