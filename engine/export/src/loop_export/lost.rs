//! Stands for a device that could not be opened again: every request fails, and the reason is known.

use parallax_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Completion, Error, ErrorKind, Geometry, Result, WriteOptions,
    ZeroOptions,
};
use std::future::ready;

/// A device that is gone.
pub(super) struct Lost {
    pub(super) geometry: Geometry,
    pub(super) reason: String,
}

impl Lost {
    fn error(&self) -> Error {
        Error::new(ErrorKind::Fenced, self.reason.clone())
    }

    fn fail(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(ready(Err(self.error())))
    }
}

impl BlockDevice for Lost {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, _: u64, buffer: Buffer) -> BoxFuture<'_, Completion> {
        Box::pin(ready((buffer, Err(self.error()))))
    }

    fn write(&self, _: u64, buffer: Buffer, _: WriteOptions) -> BoxFuture<'_, Completion> {
        Box::pin(ready((buffer, Err(self.error()))))
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        self.fail()
    }

    fn discard(&self, _: ByteRange) -> BoxFuture<'_, Result<()>> {
        self.fail()
    }

    fn write_zeroes(&self, _: ByteRange, _: ZeroOptions) -> BoxFuture<'_, Result<()>> {
        self.fail()
    }
}
