//! The pool's device, addressed by logical blocks.
//!
//! Invariants:
//! * Only extents that the catalogue maps are reachable; extent 0 never is.
//! * A flush that is joined covers every write completed before; concurrent callers share one. The device is asked only
//!   if a write has completed since the last flush that succeeded began.
//! * After a failed flush none succeeds until the device is opened again: what it has dropped may be anybody's, and a
//!   later flush that succeeds says nothing about it.

use crate::{
    cache::NodeCache,
    mutants::{self, Mutant},
    rounds::Rounds,
};
use parallax_block::{
    BLOCK_SIZE, BlockDevice, Buffer, ByteRange, Completion, Error, ErrorKind, Result, ResultExt, Runtime,
    WriteOptions,
};
use parallax_format::{BlockAddress, Entry, ExtentId, Node, PoolSalt, superblock::Superblock};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

pub(crate) struct Disk {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) superblock: Superblock,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) cache: NodeCache,
    positions: RwLock<BTreeMap<ExtentId, u32>>,
    flushes: Arc<Rounds>,
    unflushed: Arc<Unflushed>,
    /// A discard has failed.
    no_discards: AtomicBool,
    /// Why no flush succeeds any more.
    lost: Arc<Mutex<Option<Error>>>,
    /// Told when that happens.
    when_lost: Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>,
}

/// Whether a flush has anything to do.
struct Unflushed {
    /// Writes that have ended and were not durable by themselves.
    ended: AtomicU64,
    /// As many of them are durable.
    durable: AtomicU64,
}

impl Default for Unflushed {
    /// What earlier processes have written may not be durable.
    fn default() -> Self {
        Self { ended: AtomicU64::new(1), durable: AtomicU64::new(0) }
    }
}

impl Disk {
    pub(crate) fn new(
        device: Arc<dyn BlockDevice>,
        superblock: Superblock,
        runtime: Arc<dyn Runtime>,
        cache_nodes_max: usize,
    ) -> Self {
        Self {
            device,
            superblock,
            runtime,
            cache: NodeCache::new(cache_nodes_max),
            positions: RwLock::default(),
            flushes: Arc::default(),
            unflushed: Arc::default(),
            no_discards: AtomicBool::new(false),
            lost: Arc::default(),
            when_lost: Arc::default(),
        }
    }

    pub(crate) fn salt(&self) -> PoolSalt {
        self.superblock.salt
    }

    /// Makes an extent reachable.
    pub(crate) fn map_extent(&self, extent: ExtentId, position: u32) {
        self.positions.write().insert(extent, position);
    }

    /// Makes an extent unreachable.
    pub(crate) fn unmap_extent(&self, extent: ExtentId) {
        self.positions.write().remove(&extent);
    }

    /// Byte offset of a block on the device.
    pub(crate) fn offset(&self, address: BlockAddress) -> Result<u64> {
        let position = self.positions.read().get(&address.extent()).copied();
        match position {
            Some(position) if address.block() < self.superblock.extent_blocks => {
                Ok((self.superblock.extent_start(position) + u64::from(address.block())) * BLOCK_SIZE as u64)
            }
            _ => Err(Error::corrupt(format!("block {address} lies in no extent of the catalogue"))),
        }
    }

    /// Reads from `skip` bytes into the block at `address`, and on over its neighbours.
    pub(crate) async fn read(&self, address: BlockAddress, skip: u64, buffer: Buffer) -> Completion {
        match self.offset(address) {
            Ok(offset) => self.device.read(offset + skip, buffer).await,
            Err(error) => (buffer, Err(error)),
        }
    }

    /// Writes from `skip` bytes into the block at `address`, and on over its neighbours.
    pub(crate) async fn write(
        &self,
        address: BlockAddress,
        skip: u64,
        buffer: Buffer,
        fua: bool,
    ) -> Completion {
        match self.offset(address) {
            Ok(offset) => self.write_bytes(offset + skip, buffer, fua).await,
            Err(error) => (buffer, Err(error)),
        }
    }

    /// All writes pass here, so that flushes know of them.
    async fn write_bytes(&self, offset: u64, buffer: Buffer, fua: bool) -> Completion {
        let completion = self.device.write(offset, buffer, WriteOptions { fua }).await;
        // One that failed may have left something in the device's cache, even with FUA.
        if !fua || completion.1.is_err() {
            self.unflushed.ended.fetch_add(1, SeqCst);
        }
        completion
    }

    /// Reads one block.
    pub(crate) async fn read_block(&self, address: BlockAddress) -> Result<Buffer> {
        let (buffer, result) = self.read(address, 0, Buffer::zeroed(BLOCK_SIZE)).await;
        result.context(|| format!("reading block {address}"))?;
        Ok(buffer)
    }

    /// Writes whole blocks.
    pub(crate) async fn write_blocks(&self, address: BlockAddress, buffer: Buffer, fua: bool) -> Result<()> {
        self.write(address, 0, buffer, fua).await.1.context(|| format!("writing block {address}"))
    }

    /// Reads one block by its number on the device.
    pub(crate) async fn read_physical(&self, block: u64) -> Result<Buffer> {
        let (buffer, result) = self.device.read(block * BLOCK_SIZE as u64, Buffer::zeroed(BLOCK_SIZE)).await;
        result.context(|| format!("reading block #{block}"))?;
        Ok(buffer)
    }

    /// Writes one block by its number on the device.
    pub(crate) async fn write_physical(&self, block: u64, buffer: Buffer, fua: bool) -> Result<()> {
        let (_, result) = self.write_bytes(block * BLOCK_SIZE as u64, buffer, fua).await;
        result.context(|| format!("writing block #{block}"))
    }

    /// Whether a flush has failed.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.lock().is_some()
    }

    /// Has `tell` called when a flush fails for the first time. Once.
    pub(crate) fn when_lost(&self, tell: impl Fn() + Send + Sync + 'static) {
        // Set once, by the pool that opens the disk.
        let _ = self.when_lost.set(Box::new(tell));
    }

    /// Makes every completed write durable; shared with whoever asks meanwhile.
    pub(crate) async fn flush(&self) -> Result<()> {
        let (device, lost, told) = (self.device.clone(), self.lost.clone(), self.when_lost.clone());
        let unflushed = self.unflushed.clone();
        self.flushes
            .join(&self.runtime, move || {
                let (device, lost, told) = (device.clone(), lost.clone(), told.clone());
                let unflushed = unflushed.clone();
                Box::pin(async move {
                    let before = lost.lock().clone().filter(|_| !mutants::on(Mutant::FailedFlushRetried));
                    before.map_or(Ok(()), Err)?;
                    let ended = unflushed.ended.load(SeqCst);
                    if unflushed.durable.load(SeqCst) == ended {
                        return Ok(());
                    }
                    let result = device.flush().await.context(|| "flushing the pool's device");
                    if result.is_ok() {
                        // Rounds follow each other, so this never goes back.
                        unflushed.durable.store(ended, SeqCst);
                    }
                    if let Err(error) = &result {
                        tracing::error!(%error, "the device failed to flush: nothing is acknowledged any more");
                        let text = format!("an earlier flush of the pool's device failed; restart parallaxd ({error})");
                        *lost.lock() = Some(Error::new(ErrorKind::Fenced, text));
                        if let Some(tell) = told.get() {
                            tell();
                        }
                    }
                    result
                })
            })
            .await
    }

    /// Tells the device that blocks are unused. Whether they may be used again: a discard that failed may take effect
    /// later, over what somebody has written there since. After one such, no more are sent until the pool is opened again.
    pub(crate) async fn trim(&self, address: BlockAddress, blocks: u32) -> bool {
        let geometry = self.device.geometry();
        if geometry.discard_granularity == 0 || self.no_discards.load(SeqCst) {
            return true;
        }
        if let Ok(offset) = self.offset(address)
            && let Ok(range) = ByteRange::new(offset, u64::from(blocks) * BLOCK_SIZE as u64)
            && let Err(error) = self.device.discard(range).await
        {
            let refused = [ErrorKind::Unsupported, ErrorKind::InvalidArgument, ErrorKind::OutOfSpace];
            if refused.contains(&error.kind()) {
                tracing::debug!(%address, blocks, %error, "the device did not take a discard");
                return true;
            }
            tracing::warn!(%address, blocks, %error, "a discard failed: its blocks are put aside, and no more are sent");
            self.no_discards.store(true, SeqCst);
            return false;
        }
        true
    }

    /// The node behind `link`: from the cache, or read and verified.
    pub(crate) async fn node(&self, link: Entry, level: u8) -> Result<Arc<Node>> {
        if let Some(node) = self.cache.get(link) {
            return Ok(node);
        }
        let address =
            link.address().ok_or_else(|| Error::corrupt(format!("{link:?} is no link to a node")))?;
        let bytes = self.read_block(address).await?;
        let proof = if mutants::on(Mutant::CheckBitsIgnored) {
            Entry::node(address, parallax_format::node::check(&bytes, address, level, self.salt()), false)
        } else {
            link
        };
        let node = Arc::new(Node::open(&bytes, proof, level, self.salt())?);
        self.cache.insert(link, node.clone());
        Ok(node)
    }
}
