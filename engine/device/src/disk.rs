//! A file or a block device as a [`BlockDevice`].
//!
//! Invariants:
//! * Nothing reaches the kernel that is not a multiple of the logical block, inside the device, and aligned in
//!   memory as direct I/O wants it; a buffer that is not is copied.
//! * The claim on the device (flock, O_EXCL) lives as long as the open file, which every request in flight
//!   holds too: once somebody else can open it, no request of this process is left.

use crate::{
    ioctl,
    operation::{Failure, Operation, Outcome, Reallocate, Route, Work},
    workers::Workers,
};
use parallax_block::{
    Allocation, BlockDevice, BoxFuture, Buffer, ByteRange, Completion, Error, ErrorKind, Geometry, Result,
    ResultExt, StatusExtent, WriteOptions, ZeroOptions,
};
use rustix::{fs::SeekFrom, io::Errno};
use std::{
    fmt,
    fs::File,
    future::ready,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Bytes of zeroes written at one time where the filesystem cannot make them itself.
const ZEROES_MAX: u64 = 1 << 20;

/// An open file or block device. Made by [`crate::open_device`].
pub struct Disk {
    pub(crate) file: Arc<File>,
    pub(crate) path: PathBuf,
    pub(crate) geometry: Geometry,
    /// What buffers must be aligned to.
    pub(crate) memory_alignment: usize,
    pub(crate) is_block_device: bool,
    pub(crate) route: Route,
}

impl Disk {
    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn operate(&self, work: Work) -> Operation {
        Operation::new(self.route.clone(), work)
    }

    fn check(&self, offset: u64, length: u64, writes: bool) -> Result<()> {
        if writes && self.geometry.read_only {
            let message = format!("{} was opened read-only", self.path.display());
            return Err(Error::new(ErrorKind::ReadOnly, message));
        }
        ByteRange::new(offset, length)
            .and_then(|range| range.check(self.geometry.capacity, self.geometry.logical_block))
            .map_err(|error| error.context(self.path.display().to_string()))
    }

    fn explain(&self, outcome: Outcome, what: impl FnOnce() -> String) -> Result<()> {
        let failure = match outcome {
            Ok(_) => return Ok(()),
            Err(failure) => failure,
        };
        let gone = "the device has vanished; check its cable, path or session";
        let error = match failure {
            Failure::Os(libc::ENXIO | libc::ENODEV | libc::ESHUTDOWN) => Error::new(ErrorKind::Io, gone),
            Failure::Os(errno) => Error::from(std::io::Error::from_raw_os_error(errno)),
            Failure::EndOfFile => Error::new(
                ErrorKind::Io,
                "the device ends before its capacity: it shrank or vanished while in use",
            ),
            Failure::Cancelled => Error::new(ErrorKind::Cancelled, "the I/O thread has ended"),
        };
        Err(error.context(format!("{} of {}", what(), self.path.display())))
    }

    async fn transfer(&self, work: Work, what: &'static str, offset: u64) -> Completion {
        let (work, outcome) = self.operate(work).await;
        let buffer = work.into_buffer();
        let length = buffer.len();
        let result = self.explain(outcome, || format!("{what} {length} bytes at {offset}"));
        (buffer, result)
    }

    async fn sync(&self) -> Result<()> {
        let (_, outcome) = self.operate(Work::Sync { file: Arc::clone(&self.file) }).await;
        self.explain(outcome, || "flush".to_owned())
    }

    async fn reallocate(&self, how: Reallocate, range: ByteRange) -> Outcome {
        let file = Arc::clone(&self.file);
        let work = Work::Reallocate { file, how, offset: range.offset(), length: range.length() };
        self.operate(work).await.1
    }

    async fn discard_range(&self, range: ByteRange) -> Result<()> {
        let outcome = if self.is_block_device {
            let file = Arc::clone(&self.file);
            let call = move || Ok(ioctl::discard(&file, range));
            let result = Workers::helpers().run(call).await?;
            result.map(|()| 0).map_err(|errno| Failure::Os(errno.raw_os_error()))
        } else {
            self.reallocate(Reallocate::PunchHole, range).await
        };
        self.explain(outcome, || format!("discard of {range}"))
    }

    async fn zero_range(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        const NOT_OFFERED: [Failure; 2] = [Failure::Os(libc::EOPNOTSUPP), Failure::Os(libc::ENOSYS)];
        let wanted = if options.unmap {
            &[Reallocate::PunchHole, Reallocate::ZeroRange][..]
        } else {
            &[Reallocate::ZeroRange]
        };
        for how in wanted {
            match self.reallocate(*how, range).await {
                Err(failure) if NOT_OFFERED.contains(&failure) => {}
                outcome => {
                    self.explain(outcome, || format!("zeroing {range}"))?;
                    return if options.fua { self.sync().await } else { Ok(()) };
                }
            }
        }
        self.write_plain_zeroes(range, options.fua).await
    }

    async fn write_plain_zeroes(&self, range: ByteRange, durable: bool) -> Result<()> {
        let mut buffer = Buffer::zeroed(range.length().min(ZEROES_MAX) as usize);
        let mut offset = range.offset();
        while offset < range.end() {
            // The last piece may be shorter.
            let _ = buffer.split_off(buffer.len().min((range.end() - offset) as usize));
            let file = Arc::clone(&self.file);
            let work = Work::Write { file, offset, buffer, done: 0, durable };
            let (back, result) = self.transfer(work, "zeroing", offset).await;
            result?;
            offset += back.len() as u64;
            buffer = back;
        }
        Ok(())
    }
}

impl BlockDevice for Disk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Completion> {
        if let Err(error) = self.check(offset, buffer.len() as u64, false) {
            return Box::pin(ready((buffer, Err(error))));
        }
        if buffer.is_empty() {
            return Box::pin(ready((buffer, Ok(()))));
        }
        let file = Arc::clone(&self.file);
        if buffer.is_aligned(self.memory_alignment) {
            return Box::pin(self.transfer(Work::Read { file, offset, buffer, done: 0 }, "reading", offset));
        }
        Box::pin(async move {
            let mut buffer = buffer;
            let work = Work::Read { file, offset, buffer: Buffer::zeroed(buffer.len()), done: 0 };
            let (aligned, result) = self.transfer(work, "reading", offset).await;
            buffer.copy_from_slice(&aligned);
            (buffer, result)
        })
    }

    fn write(&self, offset: u64, buffer: Buffer, options: WriteOptions) -> BoxFuture<'_, Completion> {
        if let Err(error) = self.check(offset, buffer.len() as u64, true) {
            return Box::pin(ready((buffer, Err(error))));
        }
        if buffer.is_empty() {
            return Box::pin(ready((buffer, Ok(()))));
        }
        let (file, durable) = (Arc::clone(&self.file), options.fua);
        if buffer.is_aligned(self.memory_alignment) {
            let work = Work::Write { file, offset, buffer, done: 0, durable };
            return Box::pin(self.transfer(work, "writing", offset));
        }
        Box::pin(async move {
            let work = Work::Write { file, offset, buffer: Buffer::copy_of(&buffer), done: 0, durable };
            let (_, result) = self.transfer(work, "writing", offset).await;
            (buffer, result)
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.sync())
    }

    fn discard(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.check(range.offset(), range.length(), true)?;
            if range.is_empty() { Ok(()) } else { self.discard_range(range).await }
        })
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.check(range.offset(), range.length(), true)?;
            if range.is_empty() { Ok(()) } else { self.zero_range(range, options).await }
        })
    }

    fn status(&self, range: ByteRange, extents_max: usize) -> BoxFuture<'_, Result<Vec<StatusExtent>>> {
        Box::pin(async move {
            self.check(range.offset(), range.length(), false)?;
            if range.is_empty() || extents_max == 0 {
                return Ok(Vec::new());
            }
            if self.is_block_device {
                return Ok(vec![StatusExtent { range, allocation: Allocation::Data }]);
            }
            let file = Arc::clone(&self.file);
            let seek = move || extents(&file, range, extents_max);
            Workers::helpers().run(seek).await.context(|| format!("status of {}", self.path.display()))
        })
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Disk({})", self.path.display())
    }
}

/// Asks the filesystem where data is. Holes are rounded inwards to the smallest sector, so that no extent cuts
/// a sector in two.
fn extents(file: &File, range: ByteRange, extents_max: usize) -> Result<Vec<StatusExtent>> {
    let sector = parallax_block::SECTOR_SIZE as u64;
    // ENXIO: there is no data, or hole, up to the end of the file.
    let find = |from| match rustix::fs::seek(file, from) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(Error::from(std::io::Error::from(errno))),
    };
    let mut found = Vec::new();
    let mut at = range.offset();
    while at < range.end() && found.len() < extents_max {
        let data = find(SeekFrom::Data(at))?
            .map_or(range.end(), |data| data / sector * sector)
            .clamp(at, range.end());
        let (end, allocation) = if data > at {
            (data, Allocation::Hole)
        } else {
            let hole = find(SeekFrom::Hole(at))?.map_or(range.end(), |hole| hole.next_multiple_of(sector));
            // A file that changes meanwhile must not make this loop stand still.
            (hole.clamp(at + sector, range.end()), Allocation::Data)
        };
        found.push(StatusExtent { range: ByteRange::new(at, end - at)?, allocation });
        at = end;
    }
    Ok(found)
}
