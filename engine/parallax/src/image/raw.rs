//! Raw images: the bytes themselves, with the holes that the filesystem knows.

use super::Image;
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use std::{fs::File, ops::Range, os::unix::fs::FileExt};

pub(super) struct Raw {
    file: File,
    size: u64,
}

impl Raw {
    pub(super) fn open(file: File) -> std::io::Result<Self> {
        // Works for block devices as well, whose metadata says 0.
        let size = seek(&file, SeekFrom::End(0))?;
        Ok(Self { file, size })
    }
}

impl Image for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn next_data(&mut self, from: u64) -> std::io::Result<Option<Range<u64>>> {
        if from >= self.size {
            return Ok(None);
        }
        let start = match seek(&self.file, SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // A filesystem or device that does not know its holes has none.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(from..self.size)),
            Err(error) => return Err(error.into()),
        };
        let end = seek(&self.file, SeekFrom::Hole(start))?.min(self.size);
        Ok((start < end).then_some(start..end))
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }
}
