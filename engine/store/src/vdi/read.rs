//! Reads: look up, then read each piece into its part of the buffer. No locks are taken.

use super::{Piece, Target, VdiCore};
use parallax_block::{
    Allocation, BLOCK_SIZE, Buffer, ByteRange, Completion, ErrorKind, Result, ResultExt, StatusExtent,
    join_all,
};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// The bytes of `range` that lie in `piece`: offset in the piece, offset in the range, length.
pub(crate) fn overlap(range: ByteRange, piece: &Piece) -> (u64, u64, u64) {
    let start = range.offset().max(piece.lba * BLOCK);
    let end = range.end().min((piece.lba + piece.count) * BLOCK);
    (start - piece.lba * BLOCK, start - range.offset(), end - start)
}

impl VdiCore {
    pub(crate) async fn read(&self, offset: u64, buffer: Buffer) -> Completion {
        let range = match self.request(offset, buffer.len() as u64) {
            Ok(range) if !range.is_empty() => range,
            Ok(_) => return (buffer, Ok(())),
            Err(error) => return (buffer, Err(error)),
        };
        let (pieces, ticket) = match self.look_up(range.outer_blocks(), usize::MAX).await {
            Ok(found) => found,
            Err(error) => return (buffer, Err(error)),
        };
        let (buffer, result) = read_pieces(&self.pool.disk, range, &pieces, buffer).await;
        drop(ticket);
        (buffer, result.context(|| format!("volume {}: reading bytes {range}", self.id)))
    }

    /// Checks a request against the VDI's shape.
    pub(crate) fn request(&self, offset: u64, length: u64) -> Result<ByteRange> {
        let range = ByteRange::new(offset, length)?;
        let size = {
            let mapping = self.mapping.read();
            mapping.check()?;
            mapping.size
        };
        range.check(size, self.logical_block)?;
        Ok(range)
    }

    pub(crate) async fn status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<StatusExtent>> {
        self.request(range.offset(), range.length())?;
        if range.is_empty() || extents_max == 0 {
            return Ok(Vec::new());
        }
        // Neighbouring mapped pieces are one extent here, so ask for more pieces than extents.
        let (pieces, _ticket) = self.look_up(range.outer_blocks(), extents_max.saturating_mul(8)).await?;
        extents(range, &pieces, extents_max)
    }
}

/// Merges pieces into extents of data and holes.
pub(crate) fn extents(range: ByteRange, pieces: &[Piece], extents_max: usize) -> Result<Vec<StatusExtent>> {
    let mut out: Vec<StatusExtent> = Vec::new();
    for piece in pieces {
        let (_, skip, length) = overlap(range, piece);
        let allocation = match piece.target {
            Target::Hole => Allocation::Hole,
            Target::Blocks { .. } => Allocation::Data,
        };
        let full = out.len() == extents_max;
        match out.last_mut() {
            Some(last) if last.allocation == allocation => {
                last.range = ByteRange::new(last.range.offset(), last.range.length() + length)?;
            }
            _ if full => break,
            _ => out.push(StatusExtent { range: ByteRange::new(range.offset() + skip, length)?, allocation }),
        }
    }
    Ok(out)
}

/// Fills `buffer`, which stands for `range`, from `pieces`, which cover it.
pub(crate) async fn read_pieces(
    disk: &crate::disk::Disk,
    range: ByteRange,
    pieces: &[Piece],
    mut buffer: Buffer,
) -> Completion {
    if let [piece] = pieces {
        return match piece.target {
            Target::Hole => {
                buffer.fill(0);
                (buffer, Ok(()))
            }
            Target::Blocks { start, .. } => disk.read(start, overlap(range, piece).0, buffer).await,
        };
    }
    let mut parts = Vec::with_capacity(pieces.len());
    let mut rest = buffer;
    for piece in pieces {
        let (skip, _, length) = overlap(range, piece);
        let tail = rest.split_off(length as usize);
        let mut part = std::mem::replace(&mut rest, tail);
        parts.push(Box::pin(async move {
            match piece.target {
                Target::Hole => {
                    part.fill(0);
                    (part, Ok(()))
                }
                Target::Blocks { start, .. } => disk.read(start, skip, part).await,
            }
        }));
    }
    rejoin(parts).await
}

/// Waits for all parts of a request and puts its buffer together again; the gravest error counts.
pub(crate) async fn rejoin(parts: Vec<impl Future<Output = Completion> + Unpin>) -> Completion {
    let mut whole = Buffer::default();
    let mut outcome = Ok(());
    for (part, result) in join_all(parts).await {
        whole.unsplit(part);
        outcome = graver(outcome, result);
    }
    (whole, outcome)
}

/// The outcome of two parts of a request: that a device was full is said only if nothing worse has happened.
pub(crate) fn graver(one: Result<()>, other: Result<()>) -> Result<()> {
    match (&one, &other) {
        (Err(error), Err(_)) if error.kind() == ErrorKind::OutOfSpace => other,
        (Err(_), _) => one,
        _ => other,
    }
}
