//! A device in memory: sparse, for tests and for measuring what is above a device.

use parallax_block::{
    Allocation, BLOCK_SIZE, BlockDevice, BoxFuture, Buffer, ByteRange, Completion, Error, Geometry, Result,
    SECTOR_SIZE, StatusExtent, WriteOptions, ZeroOptions,
};
use parking_lot::RwLock;
use std::{collections::HashMap, future::ready, ops::Range};

/// Locks that the blocks are spread over.
const SHARDS: usize = 64;

type Page = Box<[u8]>;

/// A sparse device in memory. Requests take effect when they are made, so flushing has nothing to do.
pub struct RamDevice {
    geometry: Geometry,
    shards: Vec<RwLock<HashMap<u64, Page>>>,
}

impl RamDevice {
    /// An empty one of `capacity` bytes with sectors of `logical_block` bytes (512 or 4096).
    pub fn new(capacity: u64, logical_block: u32) -> Result<Self> {
        let sized = logical_block as usize == SECTOR_SIZE || logical_block as usize == BLOCK_SIZE;
        if !sized || !capacity.is_multiple_of(u64::from(logical_block)) {
            return Err(Error::invalid(format!(
                "a device of {capacity} bytes cannot have sectors of {logical_block} bytes"
            )));
        }
        let geometry = Geometry {
            capacity,
            logical_block,
            physical_block: BLOCK_SIZE as u32,
            discard_granularity: BLOCK_SIZE as u32,
            read_only: false,
        };
        Ok(Self { geometry, shards: (0..SHARDS).map(|_| RwLock::default()).collect() })
    }

    fn shard(&self, block: u64) -> &RwLock<HashMap<u64, Page>> {
        &self.shards[(block % SHARDS as u64) as usize]
    }

    fn check(&self, offset: u64, length: u64) -> Result<()> {
        ByteRange::new(offset, length)?.check(self.geometry.capacity, self.geometry.logical_block)
    }

    fn fetch(&self, offset: u64, bytes: &mut [u8]) {
        for (block, inside, piece) in pieces(offset, bytes.len()) {
            match self.shard(block).read().get(&block) {
                Some(page) => bytes[piece].copy_from_slice(&page[inside]),
                None => bytes[piece].fill(0),
            }
        }
    }

    fn store(&self, offset: u64, bytes: &[u8]) {
        for (block, inside, piece) in pieces(offset, bytes.len()) {
            let mut shard = self.shard(block).write();
            let page = shard.entry(block).or_insert_with(|| vec![0; BLOCK_SIZE].into_boxed_slice());
            page[inside].copy_from_slice(&bytes[piece]);
        }
    }

    /// Whole blocks are forgotten, parts of blocks overwritten.
    fn erase(&self, range: ByteRange) {
        let whole = range.inner_blocks();
        for block in range.outer_blocks() {
            let mut shard = self.shard(block).write();
            if whole.contains(&block) {
                shard.remove(&block);
            } else if let Some(page) = shard.get_mut(&block) {
                let start = block * BLOCK_SIZE as u64;
                let from = range.offset().max(start) - start;
                let to = range.end().min(start + BLOCK_SIZE as u64) - start;
                page[from as usize..to as usize].fill(0);
            }
        }
    }
}

/// Cuts a request at block boundaries: block, bytes inside it, bytes of the request.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let inside = (at % BLOCK_SIZE as u64) as usize;
        let count = (BLOCK_SIZE - inside).min(length - done);
        let piece = (at / BLOCK_SIZE as u64, inside..inside + count, done..done + count);
        done += count;
        (count > 0).then_some(piece)
    })
}

impl BlockDevice for RamDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Completion> {
        let result = self.check(offset, buffer.len() as u64);
        if result.is_ok() {
            self.fetch(offset, &mut buffer);
        }
        Box::pin(ready((buffer, result)))
    }

    fn write(&self, offset: u64, buffer: Buffer, _: WriteOptions) -> BoxFuture<'_, Completion> {
        let result = self.check(offset, buffer.len() as u64);
        if result.is_ok() {
            self.store(offset, &buffer);
        }
        Box::pin(ready((buffer, result)))
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(ready(Ok(())))
    }

    fn discard(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        let result = self.check(range.offset(), range.length());
        if result.is_ok() {
            self.erase(range);
        }
        Box::pin(ready(result))
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> BoxFuture<'_, Result<()>> {
        let result = self.check(range.offset(), range.length());
        if result.is_ok() && options.unmap {
            self.erase(range);
        } else if result.is_ok() {
            let zeroes = [0; BLOCK_SIZE];
            for (block, inside, _) in pieces(range.offset(), range.length() as usize) {
                self.store(block * BLOCK_SIZE as u64 + inside.start as u64, &zeroes[inside]);
            }
        }
        Box::pin(ready(result))
    }

    fn status(&self, range: ByteRange, extents_max: usize) -> BoxFuture<'_, Result<Vec<StatusExtent>>> {
        let found = self.check(range.offset(), range.length()).and_then(|()| {
            let mut found: Vec<StatusExtent> = Vec::new();
            for (block, inside, _) in pieces(range.offset(), range.length() as usize) {
                let mapped = self.shard(block).read().contains_key(&block);
                let allocation = if mapped { Allocation::Data } else { Allocation::Hole };
                let piece =
                    ByteRange::new(block * BLOCK_SIZE as u64 + inside.start as u64, inside.len() as u64)?;
                let full = found.len() == extents_max;
                match found.last_mut() {
                    Some(last) if last.allocation == allocation => {
                        last.range = ByteRange::new(last.range.offset(), piece.end() - last.range.offset())?;
                    }
                    _ if full => break,
                    _ => found.push(StatusExtent { range: piece, allocation }),
                }
            }
            Ok(found)
        });
        Box::pin(ready(found))
    }
}
