//! Discards and zeroes: whole blocks become holes and their space comes back; partial blocks are overwritten.

use super::{Freed, VdiCore, encode};
use crate::{
    mutants::{self, Mutant},
    space::{Run, Stamp},
    tree::Dropped,
};
use parallax_block::{BLOCK_SIZE, Buffer, ByteRange, Result, WriteOptions, ZeroOptions};
use parallax_format::{Entry, journal::JournalRecord, node::FANOUT};
use std::{ops::Range, sync::Arc};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Zeroes written at a time where a range must not be unmapped.
const ZERO_CHUNK: u64 = 1 << 20;

impl VdiCore {
    pub(crate) async fn discard(self: Arc<Self>, range: ByteRange) -> Result<()> {
        let range = self.request(range.offset(), range.length())?;
        let blocks = range.inner_blocks();
        if blocks.is_empty() {
            return Ok(());
        }
        let _guard = self.locks.lock(blocks.clone()).await;
        self.unmap(blocks).await
    }

    pub(crate) async fn write_zeroes(self: Arc<Self>, range: ByteRange, options: ZeroOptions) -> Result<()> {
        let range = self.request(range.offset(), range.length())?;
        if range.is_empty() {
            return Ok(());
        }
        if options.unmap {
            let inner = range.inner_blocks();
            let head =
                ByteRange::new(range.offset(), (inner.start * BLOCK).min(range.end()) - range.offset())?;
            self.clone().zero_by_writing(head).await?;
            if !inner.is_empty() {
                let _guard = self.locks.lock(inner.clone()).await;
                self.unmap(inner.clone()).await?;
            }
            // A range across the border of two blocks has a tail without having a whole block.
            let tail = inner.end * BLOCK;
            if tail < range.end() {
                self.clone().zero_by_writing(ByteRange::new(tail, range.end() - tail)?).await?;
            }
        } else {
            self.clone().zero_by_writing(range).await?;
        }
        if options.fua { self.flush().await } else { Ok(()) }
    }

    async fn zero_by_writing(self: Arc<Self>, range: ByteRange) -> Result<()> {
        let mut at = range.offset();
        while at < range.end() {
            let length = (range.end() - at).min(ZERO_CHUNK);
            let zeroes = Buffer::zeroed(length as usize);
            self.clone().write(at, zeroes, WriteOptions::default()).await.1?;
            at += length;
        }
        Ok(())
    }

    /// Makes whole blocks holes. The caller holds their locks.
    async fn unmap(&self, blocks: Range<u64>) -> Result<()> {
        // A range that is a hole already needs no record.
        let (pieces, _ticket) = self.look_up(blocks.clone(), 1).await?;
        if let [piece] = &pieces[..]
            && piece.count == blocks.end - blocks.start
            && piece.target == super::Target::Hole
        {
            return Ok(());
        }
        self.pool.admit_metadata(8)?;
        self.throttle().await?;
        let record = encode(&JournalRecord::Unmap { lba: blocks.start, count: blocks.end - blocks.start });
        let records = if mutants::on(Mutant::UnmapNotRecorded) { vec![] } else { vec![record] };
        self.change(ends(&blocks), &records, |mapping, find| {
            let mut dropped = Vec::new();
            let mut gone: Vec<Run> = Vec::new();
            mapping.map.clear(blocks.clone(), find, &mut mapping.superseded, &mut dropped, &mut |entry| {
                collect(&mut gone, entry)
            })?;
            mapping.freed.extend(gone.into_iter().map(Freed::Blocks));
            mapping.freed.extend(dropped.into_iter().filter(|tree| !tree.shared).map(Freed::Subtree));
            Ok(())
        })
        .await
    }

    /// Finds what a subtree that was cut off held alone: its data may be freed at once, its nodes once no root
    /// slot names them. Nothing once a garbage collection has begun since it was cut off: that frees what is left.
    pub(super) async fn reap(&self, subtree: Dropped, since: Stamp) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        let mut stack = vec![(subtree.link, subtree.level)];
        while let Some((link, level)) = stack.pop() {
            let children = crate::tree::open_exclusive(&self.pool.disk, link, level).await?;
            let Some((children, superseded)) = children else { continue };
            {
                let mut mapping = self.mapping.write();
                // The list that takes it may have begun after a sweep that has freed it.
                if self.pool.space.stamp() != since {
                    return Ok(Vec::new());
                }
                mapping.superseded.push(superseded);
            }
            for child in children {
                match child {
                    crate::tree::Child::Data(entry) => collect(&mut runs, entry),
                    crate::tree::Child::Node(link) => stack.push((link, level - 1)),
                }
            }
        }
        Ok(runs)
    }
}

/// The leaves on which clearing `blocks` works entry by entry.
fn ends(blocks: &Range<u64>) -> Range<u64> {
    if blocks.end - blocks.start > 64 * FANOUT as u64 { 0..0 } else { blocks.clone() }
}

/// Adds a data block to a list of runs.
pub(super) fn collect(runs: &mut Vec<Run>, entry: Entry) {
    let Some(address) = entry.address() else { return };
    match runs.last_mut() {
        Some(run) if run.start.offset(run.count) == Some(address) => run.count += 1,
        _ => runs.push(Run { start: address, count: 1 }),
    }
}
