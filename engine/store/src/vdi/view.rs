//! A durable tree, read-only: snapshots that are open for reading.

use super::{
    lookup::{Finder, Stop, pieces},
    read::{extents, read_pieces},
};
use crate::{disk::Disk, tree::Tree};
use parallax_block::{Buffer, ByteRange, Completion, Result, ResultExt, StatusExtent};
use parallax_format::root::TreeRoot;
use std::{ops::Range, sync::Arc};

pub(crate) struct View {
    pub(crate) disk: Arc<Disk>,
    tree: Tree,
    pub(crate) size: u64,
    pub(crate) logical_block: u32,
}

impl View {
    pub(crate) fn new(disk: Arc<Disk>, root: TreeRoot, size: u64, logical_block: u32) -> Self {
        // Nothing here is ever dirty, so the count is its own.
        let tree = Tree::new(root, 0, &Arc::default());
        Self { disk, tree, size, logical_block }
    }

    pub(crate) async fn pieces(&self, blocks: Range<u64>, pieces_max: usize) -> Result<Vec<super::Piece>> {
        let found = self.look_up(blocks.clone(), pieces_max).await;
        found.context(|| format!("blocks {blocks:?}"))
    }

    async fn look_up(&self, blocks: Range<u64>, pieces_max: usize) -> Result<Vec<super::Piece>> {
        let mut held = Vec::new();
        loop {
            let missing = {
                let finder = Finder::new(&self.disk, std::mem::take(&mut held), false);
                let found = pieces(&self.tree, blocks.clone(), pieces_max, &|link| finder.find(link));
                match found {
                    Ok(pieces) => return Ok(pieces),
                    Err(Stop::Error(error)) => return Err(error),
                    Err(Stop::Missing(missing)) => {
                        held = finder.into_held();
                        missing
                    }
                }
            };
            held.push((missing.link, missing.load(&self.disk).await?));
        }
    }

    fn request(&self, offset: u64, length: u64) -> Result<ByteRange> {
        let range = ByteRange::new(offset, length)?;
        range.check(self.size, self.logical_block)?;
        Ok(range)
    }

    pub(crate) async fn read(&self, offset: u64, buffer: Buffer) -> Completion {
        let range = match self.request(offset, buffer.len() as u64) {
            Ok(range) if !range.is_empty() => range,
            Ok(_) => return (buffer, Ok(())),
            Err(error) => return (buffer, Err(error)),
        };
        match self.pieces(range.outer_blocks(), usize::MAX).await {
            Ok(pieces) => {
                let (buffer, result) = read_pieces(&self.disk, range, &pieces, buffer).await;
                (buffer, result.context(|| format!("reading bytes {range}")))
            }
            Err(error) => (buffer, Err(error)),
        }
    }

    pub(crate) async fn status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<StatusExtent>> {
        self.request(range.offset(), range.length())?;
        if range.is_empty() || extents_max == 0 {
            return Ok(Vec::new());
        }
        let pieces = self.pieces(range.outer_blocks(), extents_max.saturating_mul(8)).await?;
        extents(range, &pieces, extents_max)
    }
}
