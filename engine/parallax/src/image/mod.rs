//! Disk images to import.
//!
//! Invariants:
//! * An image is never trusted: it cannot name another file to be read, its sizes are checked, and a reader that
//!   panics over it fails the import and nothing else.
//! * Holes are found, not read.

mod qcow2;
mod raw;

use crate::{
    args::ImageFormat,
    failure::{Failure, Outcome},
};
use std::{fs::File, ops::Range, os::unix::fs::FileExt, path::Path};

/// Largest volume.
const BYTES_MAX: u64 = 256 << 40;

/// A disk image that is open for reading.
pub(crate) trait Image: Send {
    /// Bytes of the disk in it.
    fn size(&self) -> u64;

    /// The next range from `from` on that may hold data; `None` when only holes are left.
    fn next_data(&mut self, from: u64) -> std::io::Result<Option<Range<u64>>>;

    /// Fills `bytes` from `offset`.
    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()>;
}

/// What the first bytes say about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looks {
    Raw,
    Qcow2,
    Other(&'static str),
}

/// Opens an image.
pub(crate) fn open(path: &Path, format: ImageFormat) -> Outcome<Box<dyn Image>> {
    let fail = |error: std::io::Error| Failure::from(error).during(format!("opening {}", path.display()));
    let file = File::open(path).map_err(fail)?;
    let format = match format {
        ImageFormat::Auto => match looks(&file).map_err(fail)? {
            Looks::Raw => ImageFormat::Raw,
            Looks::Qcow2 => ImageFormat::Qcow2,
            Looks::Other(what) => {
                return Err(Failure::new(format!("{} is {what}", path.display())).or_try(format!(
                    "qemu-img convert -O qcow2 {0} {0}.qcow2, or --format raw to take its bytes as they are",
                    path.display()
                )));
            }
        },
        chosen => chosen,
    };
    let image: Box<dyn Image> = match format {
        ImageFormat::Qcow2 => Box::new(qcow2::open(file).map_err(|error| qcow2::explain(path, error))?),
        ImageFormat::Raw | ImageFormat::Auto => Box::new(raw::Raw::open(file).map_err(fail)?),
    };
    match image.size() {
        0 => Err(Failure::new(format!("{} is empty", path.display()))),
        size if size > BYTES_MAX => Err(Failure::new(format!(
            "{} says that its disk has {size} bytes, more than a volume can have",
            path.display()
        ))),
        _ => Ok(image),
    }
}

fn looks(file: &File) -> std::io::Result<Looks> {
    let mut head = [0; 64];
    let mut filled = 0;
    while filled < head.len() {
        match file.read_at(&mut head[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(match &head {
        [b'Q', b'F', b'I', 0xfb, ..] => Looks::Qcow2,
        [b'K', b'D', b'M', b'V', ..] => Looks::Other("a VMDK image"),
        head if head.starts_with(b"vhdxfile") => Looks::Other("a VHDX image"),
        head if head.starts_with(b"conectix") => Looks::Other("a VHD image"),
        head if head.starts_with(b"# Disk DescriptorFile") => Looks::Other("a VMDK descriptor"),
        [0x1f, 0x8b, ..] => Looks::Other("compressed with gzip"),
        head if head.starts_with(b"\xfd7zXZ\0") => Looks::Other("compressed with xz"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Looks::Other("compressed with zstd"),
        _ => Looks::Raw,
    })
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
