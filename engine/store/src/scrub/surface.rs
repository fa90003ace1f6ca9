//! Sectors: every allocated block is read once, whatever it holds.

use super::Scrub;
use crate::{Severity, space::Run};
use parallax_block::{BLOCK_SIZE, Buffer, Result};
use parallax_format::{
    BlockAddress, ExtentId,
    bitmap::{self, BitmapBlock},
};
use std::time::Duration;

/// Blocks of one read.
const READ_BLOCKS: u32 = 256;

/// How often a bitmap block is read that does not verify, since it may be written at this moment.
const TRIES: u32 = 4;

/// Between two of these.
const PAUSE: Duration = Duration::from_millis(20);

impl Scrub<'_> {
    pub(super) async fn surface(&mut self) -> Result<()> {
        let space = &self.core.space;
        let totals = space.totals();
        let total = (totals.data_used + totals.metadata_used) * BLOCK_SIZE as u64;
        let mut done = 0;
        for extent in space.extents() {
            self.bitmaps(extent).await?;
            for run in space.allocated(extent, READ_BLOCKS) {
                // What is allocated meanwhile is not expected, and what is freed is read in vain.
                self.step("surface", done, total.max(done))?;
                self.run(run).await;
                done += u64::from(run.count) * BLOCK_SIZE as u64;
            }
        }
        self.step("surface", done, done)
    }

    async fn run(&mut self, run: Run) {
        let length = run.count as usize * BLOCK_SIZE;
        self.pace.spend(length as u64).await;
        let disk = &self.core.disk;
        if disk.read(run.start, 0, Buffer::zeroed(length)).await.1.is_ok() {
            return;
        }
        for address in (0..run.count).filter_map(|at| run.start.offset(at)) {
            if let Err(error) = disk.read_block(address).await
                && self.core.space.is_allocated(address)
            {
                self.note(address, "unreadable", error);
            }
        }
    }

    /// Both copies of each bitmap block verify, or were never written.
    async fn bitmaps(&mut self, extent: ExtentId) -> Result<()> {
        let blocks = self.core.disk.superblock.extent_blocks;
        for index in 0..bitmap::blocks_per_copy(blocks) {
            for copy in 0..2 {
                let at = bitmap::location(extent, blocks, index, copy);
                let mut tries = 1;
                while let Err(error) = self.bitmap(at).await {
                    if !self.core.space.extents().contains(&extent) {
                        return Ok(());
                    }
                    if tries == TRIES {
                        let detail = format!("extent {extent}: {error}");
                        self.find(Severity::Leak, "bitmap-copy", detail, &[]);
                        break;
                    }
                    tries += 1;
                    self.core.disk.runtime.sleep(PAUSE).await;
                }
            }
        }
        Ok(())
    }

    async fn bitmap(&mut self, at: BlockAddress) -> Result<()> {
        self.pace.spend(BLOCK_SIZE as u64).await;
        let disk = &self.core.disk;
        BitmapBlock::decode(&disk.read_block(at).await?, at, disk.salt()).map(drop)
    }
}
