//! The disk as the engine sees it.

use super::{
    Kind, SimDisk,
    cache::{Payload, range as between},
};
use parallax_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Completion, Error, ErrorKind, Geometry, Result, WriteOptions,
    ZeroOptions,
};
use std::sync::Arc;

impl BlockDevice for SimDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            capacity: self.inner.options.capacity,
            logical_block: self.inner.options.logical_block,
            physical_block: 4096,
            discard_granularity: self.inner.options.discard_granularity,
            read_only: false,
        }
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Completion> {
        match ByteRange::new(offset, buffer.len() as u64) {
            Ok(range) => Box::pin(self.submit(Kind::Read, range, None, buffer)),
            Err(error) => Box::pin(std::future::ready((buffer, Err(error)))),
        }
    }

    fn write(&self, offset: u64, buffer: Buffer, options: WriteOptions) -> BoxFuture<'_, Completion> {
        match ByteRange::new(offset, buffer.len() as u64) {
            Ok(range) => {
                let payload = Payload::Bytes(Arc::from(&buffer[..]));
                Box::pin(self.submit(Kind::Write { fua: options.fua }, range, Some(payload), buffer))
            }
            Err(error) => Box::pin(std::future::ready((buffer, Err(error)))),
        }
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        let ticket = self.submit(Kind::Flush, between(0, 0), None, Buffer::default());
        Box::pin(async move { ticket.await.1 })
    }

    fn discard(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        if self.inner.options.discard_granularity == 0 {
            let error = Error::new(ErrorKind::Unsupported, "this simulated disk cannot discard");
            return Box::pin(std::future::ready(Err(error)));
        }
        // What a discarded range reads is undefined, so each discard may leave it, clear it or spoil it.
        let payload = match self.inner.state.lock().prng.range(0..3) {
            0 => None,
            1 => Some(Payload::Fill(0)),
            _ => Some(Payload::Fill(0xdb)),
        };
        let ticket = self.submit(Kind::Discard, range, payload, Buffer::default());
        Box::pin(async move { ticket.await.1 })
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> BoxFuture<'_, Result<()>> {
        let kind = Kind::WriteZeroes { fua: options.fua };
        let ticket = self.submit(kind, range, Some(Payload::Fill(0)), Buffer::default());
        Box::pin(async move { ticket.await.1 })
    }
}
