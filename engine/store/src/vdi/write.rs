//! Writes: in place where the VDI alone holds the block, else to a new block that is published afterwards.

use super::{
    Piece, Target, VdiCore, encode,
    read::{graver, overlap, rejoin},
    runs::Choice,
};
use crate::{
    mutants::{self, Mutant},
    space::Run,
};
use parallax_block::{
    BLOCK_SIZE, Buffer, ByteRange, Completion, Error, ErrorKind, Result, WriteOptions, join_all,
};
use parallax_format::{Entry, journal::JournalRecord, node::FANOUT, record::ExtentKind};
use std::sync::Arc;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Longest write: its records fit the tail together, so that all of it is published at one instant.
const WRITE_BYTES_MAX: usize = 64 << 20;

/// New blocks for neighbouring blocks of the VDI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed {
    pub(crate) lba: u64,
    pub(crate) run: Run,
}

impl VdiCore {
    pub(crate) async fn write(
        self: Arc<Self>,
        offset: u64,
        buffer: Buffer,
        options: WriteOptions,
    ) -> Completion {
        let range = match self.request(offset, buffer.len() as u64) {
            Ok(range) if !range.is_empty() => range,
            Ok(_) => return (buffer, Ok(())),
            Err(error) => return (buffer, Err(error)),
        };
        if buffer.len() > WRITE_BYTES_MAX {
            let text =
                format!("a write of {} bytes is too long; at most {WRITE_BYTES_MAX} at once", buffer.len());
            return (buffer, Err(Error::invalid(text)));
        }
        let guard = self.locks.lock(range.outer_blocks()).await;
        let (pieces, ticket) = match self.look_up(range.outer_blocks(), usize::MAX).await {
            Ok(found) => found,
            Err(error) => return (buffer, Err(error)),
        };
        let in_place = pieces.iter().all(|piece| piece.target.is_writable());
        // FUA passes through only where the mapping is durable; elsewhere it is write + flush.
        let durable = self.mapping.read().is_durable() || mutants::on(Mutant::FuaPassesUnmapped);
        let pass_fua = options.fua && in_place && durable;
        let (buffer, result) = if in_place {
            let (buffer, result) = self.write_in_place(range, &pieces, buffer, pass_fua).await;
            match result {
                Ok(()) => (buffer, Ok(())),
                Err(error) => (buffer, Err(self.distrust(&pieces, error).await)),
            }
        } else {
            self.redirect(range, &pieces, buffer).await
        };
        drop(ticket);
        drop(guard);
        match result {
            Err(_) if mutants::on(Mutant::FailedWriteAcknowledged) => (buffer, Ok(())),
            Ok(()) if options.fua && !pass_fua && !mutants::on(Mutant::FuaForgotten) => {
                let flushed = self.flush().await;
                (buffer, flushed)
            }
            other => (buffer, other),
        }
    }

    async fn write_in_place(
        &self,
        range: ByteRange,
        pieces: &[Piece],
        buffer: Buffer,
        fua: bool,
    ) -> Completion {
        let disk = &self.pool.disk;
        if let [Piece { target: Target::Blocks { start, .. }, .. }] = pieces {
            return disk.write(*start, overlap(range, &pieces[0]).0, buffer, fua).await;
        }
        let mut rest = buffer;
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let (skip, _, length) = overlap(range, piece);
            let tail = rest.split_off(length as usize);
            let part = std::mem::replace(&mut rest, tail);
            parts.push(Box::pin(async move {
                match piece.target {
                    Target::Blocks { start, .. } => disk.write(start, skip, part, fua).await,
                    Target::Hole => (part, Ok(())),
                }
            }));
        }
        rejoin(parts).await
    }

    /// Writes the pieces that are not writable to new blocks, the others in place, then publishes.
    async fn redirect(&self, range: ByteRange, pieces: &[Piece], buffer: Buffer) -> Completion {
        let placed = match self.place(pieces).await {
            Ok(placed) => placed,
            Err(error) => return (buffer, Err(error)),
        };
        let whole = range.inner_blocks() == range.outer_blocks();
        let (buffer, result) = match &placed[..] {
            // One run takes the caller's buffer as it is.
            [only] if whole && pieces.iter().all(|piece| !piece.target.is_writable()) => {
                self.pool.disk.write(only.run.start, 0, buffer, false).await
            }
            _ => {
                let result = self.write_placed(range, pieces, &placed, &buffer).await;
                (buffer, result)
            }
        };
        let runs = || placed.iter().map(|placed| placed.run).collect::<Vec<_>>();
        if let Err(error) = result {
            // Nobody knows whether a write that failed will land yet, so its blocks are nobody's for now. Of the
            // pieces that were written in place the same holds.
            if error.kind() == ErrorKind::OutOfSpace {
                self.pool.space.give_back(&runs());
            } else {
                self.quarantine(&runs(), &error);
            }
            return (buffer, Err(self.distrust(pieces, error).await));
        }
        let result = self.publish(&placed).await;
        if result.is_err() && self.failure().is_none() {
            // Never named: neither published nor in a record.
            self.pool.space.give_back(&runs());
        }
        (buffer, result)
    }

    /// After writes in place that failed and may land yet: the next write to these blocks goes elsewhere, and they are
    /// not used for anything else.
    async fn distrust(&self, pieces: &[Piece], error: Error) -> Error {
        // A thin device that is full has refused the write: nothing is under way.
        let refused = error.kind() == ErrorKind::OutOfSpace;
        let (Some(first), Some(last), false) = (pieces.first(), pieces.last(), refused) else { return error };
        let blocks = first.lba..last.lba + last.count;
        let error = error.context(format!("volume {}: writing blocks {blocks:?}", self.id));
        let in_place = || pieces.iter().filter(|piece| piece.target.is_writable());
        let protected = self
            .change(blocks, &[], |mapping, find| {
                in_place().try_for_each(|piece| protect(mapping, piece, find))
            })
            .await;
        if let Err(unprotected) = protected {
            self.fail(&unprotected);
        }
        let runs: Vec<Run> = in_place()
            .filter_map(|piece| match piece.target {
                Target::Blocks { start, .. } => Some(Run { start, count: piece.count as u32 }),
                Target::Hole => None,
            })
            .collect();
        self.quarantine(&runs, &error);
        error
    }

    /// Keeps blocks from being used again by this process. A device that fails so often that this gets long is not
    /// written to any more.
    fn quarantine(&self, runs: &[Run], error: &Error) {
        if runs.is_empty() {
            return;
        }
        tracing::warn!(vdi = %self.id, %error, "a write failed; its blocks are put aside until the pool is opened again");
        if !self.pool.space.quarantine(runs) {
            self.fail(error);
        }
    }

    /// Finds new blocks for every piece that is not writable.
    async fn place(&self, pieces: &[Piece]) -> Result<Vec<Placed>> {
        self.pool.admit(pieces.len() as u64 + 8)?;
        self.throttle().await?;
        let mut placed: Vec<Placed> = Vec::new();
        for piece in pieces {
            if piece.target.is_writable() {
                continue;
            }
            let mut lba = piece.lba;
            let end = piece.lba + piece.count;
            while lba < end {
                match self.take(lba, (end - lba) as u32).await {
                    Ok(run) => {
                        placed.push(Placed { lba, run });
                        lba += u64::from(run.count);
                    }
                    Err(error) => {
                        self.pool
                            .space
                            .give_back(&placed.iter().map(|placed| placed.run).collect::<Vec<_>>());
                        return Err(error);
                    }
                }
            }
        }
        Ok(placed)
    }

    async fn take(&self, lba: u64, count: u32) -> Result<Run> {
        let space = &self.pool.space;
        loop {
            match self.runs.take(lba, count) {
                Choice::Use(run) => return Ok(run),
                Choice::Reserve { want, stream, near } => {
                    let near = near.map(|run| run.start);
                    let mut run = match space.take(&*self.pool, ExtentKind::Data, want, 1, near).await {
                        Ok(run) => run,
                        Err(error) => {
                            // Others may sit on runs that they do not use.
                            if !self.pool.reclaim_runs() {
                                return Err(error);
                            }
                            space.take(&*self.pool, ExtentKind::Data, count, 1, None).await?
                        }
                    };
                    // Used before others see the rest: where many write at once, they would take it all.
                    let used = run.split_front(count);
                    if let Some(old) = self.runs.add(lba, used.map_or(0, |used| used.count), run, stream) {
                        space.give_back(&[old]);
                    }
                    if let Some(used) = used {
                        return Ok(used);
                    }
                }
            }
        }
    }

    /// Writes data: whole new blocks with what is missing filled in, writable pieces in place.
    async fn write_placed(
        &self,
        range: ByteRange,
        pieces: &[Piece],
        placed: &[Placed],
        buffer: &Buffer,
    ) -> Result<()> {
        let disk = &self.pool.disk;
        let mut parts: Vec<parallax_block::BoxFuture<'_, Result<()>>> = Vec::new();
        for piece in pieces {
            if let Target::Blocks { start, writable: true } = piece.target {
                let (skip, from, length) = overlap(range, piece);
                let part = Buffer::copy_of(&buffer[from as usize..(from + length) as usize]);
                parts.push(Box::pin(async move { disk.write(start, skip, part, false).await.1 }));
            }
        }
        for place in placed {
            let first = place.lba * BLOCK;
            let mut block = Buffer::zeroed(place.run.count as usize * BLOCK_SIZE);
            let begin = range.offset().max(first);
            let end = range.end().min(first + block.len() as u64);
            let source = (begin - range.offset()) as usize..(end - range.offset()) as usize;
            block[(begin - first) as usize..(end - first) as usize].copy_from_slice(&buffer[source]);
            let run = place.run;
            let place = *place;
            parts.push(Box::pin(async move {
                let block = self.fill(range, pieces, place, block).await?;
                disk.write_blocks(run.start, block, false).await
            }));
        }
        join_all(parts).await.into_iter().fold(Ok(()), graver)
    }

    /// Fills the first and last block of a place, where the request covers them only in part, from the old
    /// block. A hole is zeroes already.
    async fn fill(
        &self,
        range: ByteRange,
        pieces: &[Piece],
        place: Placed,
        mut block: Buffer,
    ) -> Result<Buffer> {
        let last = place.lba + u64::from(place.run.count) - 1;
        for lba in if last == place.lba { vec![last] } else { vec![place.lba, last] } {
            let whole = ByteRange::new(lba * BLOCK, BLOCK)?;
            let covered = range.offset() <= whole.offset() && whole.end() <= range.end();
            if covered || mutants::on(Mutant::FillForgotten) {
                continue;
            }
            let old = pieces.iter().find(|piece| piece.lba <= lba && lba < piece.lba + piece.count);
            let Some(Piece { lba: first, target: Target::Blocks { start, .. }, .. }) = old else { continue };
            let (old, result) =
                self.pool.disk.read(*start, (lba - first) * BLOCK, Buffer::zeroed(BLOCK_SIZE)).await;
            result?;
            let base = ((lba - place.lba) * BLOCK) as usize;
            let short = mutants::on(Mutant::FillStopsEarly);
            let kept = |at: u64| at < range.offset() || (at >= range.end() && !short);
            for at in (0..BLOCK).filter(|at| kept(whole.offset() + at)) {
                block[base + at as usize] = old[at as usize];
            }
        }
        Ok(block)
    }

    /// Makes new blocks visible, with their records in the tail and in the open group.
    pub(crate) async fn publish(&self, placed: &[Placed]) -> Result<()> {
        let (Some(first), Some(last)) = (placed.first(), placed.last()) else { return Ok(()) };
        let blocks = first.lba..last.lba + u64::from(last.run.count);
        let records: Vec<Vec<u8>> = placed
            .iter()
            .map(|place| {
                encode(&JournalRecord::Map {
                    lba: place.lba,
                    count: place.run.count,
                    address: place.run.start,
                })
            })
            .collect();
        self.change(blocks, &records, |mapping, find| {
            for place in placed {
                map_run(mapping, *place, find)?;
            }
            Ok(())
        })
        .await
    }
}

/// Makes the next write to the blocks of a piece go to new ones.
fn protect(
    mapping: &mut super::Mapping,
    piece: &Piece,
    find: &dyn Fn(Entry) -> Option<Arc<parallax_format::Node>>,
) -> std::result::Result<(), crate::tree::Missing> {
    for lba in piece.lba..piece.lba + piece.count {
        let leaf = mapping.map.leaf_mut(lba, find, &mut mapping.superseded)?;
        let at = (lba % FANOUT as u64) as usize;
        leaf.set(at, leaf.entry(at).with_ro());
    }
    Ok(())
}

/// Enters a run into the tree.
pub(crate) fn map_run(
    mapping: &mut super::Mapping,
    place: Placed,
    find: &dyn Fn(Entry) -> Option<Arc<parallax_format::Node>>,
) -> std::result::Result<(), crate::tree::Missing> {
    let mut done = 0;
    while done < place.run.count {
        let lba = place.lba + u64::from(done);
        let first = (lba % FANOUT as u64) as usize;
        let count = (FANOUT - first).min((place.run.count - done) as usize);
        let leaf = mapping.map.leaf_mut(lba, find, &mut mapping.superseded)?;
        for at in 0..count {
            if let Some(address) = place.run.start.offset(done + at as u32) {
                leaf.set(first + at, Entry::data(address, false));
            }
        }
        done += count as u32;
    }
    Ok(())
}
