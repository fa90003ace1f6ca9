//! qcow2 images, by imago. What an image refers to outside itself is refused: a backing file or a data file could
//! be any file of this machine.

mod header;

use super::Image;
use crate::failure::Failure;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping, StorageOpenOptions, file::File,
    qcow2::Qcow2,
};
use std::{ops::Range, path::Path};

pub(super) struct Disk(FormatAccess<File>);

pub(super) fn open(file: std::fs::File) -> std::io::Result<Disk> {
    header::check(&file)?;
    let storage = File::from_open_file(file, StorageOpenOptions::new())?;
    let image = Qcow2::<File>::builder(storage).write(false).open(DenyImplicitOpenGate::default())?;
    Ok(Disk(FormatAccess::new(image)))
}

/// Says what is wrong with an image, and how to make one that can be read.
pub(super) fn explain(path: &Path, error: std::io::Error) -> Failure {
    let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
    let failure = Failure::from(error).during(format!("reading the qcow2 image {}", path.display()));
    if denied {
        failure.or_try(format!(
            "qemu-img convert -O qcow2 {0} {0}.flat, which takes the files that it refers to into one",
            path.display()
        ))
    } else {
        failure.or_try(format!("qemu-img check {}", path.display()))
    }
}

impl Image for Disk {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn next_data(&mut self, from: u64) -> std::io::Result<Option<Range<u64>>> {
        let size = self.size();
        let mut at = from;
        while at < size {
            let (mapping, length) = self.0.get_mapping(at, size - at)?;
            match mapping {
                Mapping::Eof { .. } => return Ok(None),
                _ if length == 0 => {
                    return Err(std::io::Error::new(
                        std::io::ErrorKind::InvalidData,
                        format!("the image's map does not go on at byte {at}"),
                    ));
                }
                Mapping::Zero { .. } => at += length,
                _ => return Ok(Some(at..(at + length).min(size))),
            }
        }
        Ok(None)
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        self.0.read(bytes, offset)
    }
}
