//! Writes a VDI's journal: groups into blocks, blocks into segments.
//!
//! Invariants:
//! * A journal block is written once. A segment is reused only when no root slot's replay begins before its end.
//! * The segment after the current one is allocated, and its mark durable, before a block names it.
//! * The last block of a segment always names the next. So where the pool has no room for one, there are blocks left for
//!   more commits; two checkpoints then set the oldest segment free, and it becomes the next.

use crate::{
    disk::Disk,
    mutants::{self, Mutant},
    space::{Claim, Run, Space},
};
use parallax_block::{BLOCK_SIZE, Buffer, Error, ErrorKind, Result, ResultExt, join_all};
use parallax_format::{
    BlockAddress,
    journal::{self, BlockHeader, RECORD_BYTES, SEGMENT_BLOCKS},
    record::ExtentKind,
    root::{Epoch, ReplayPosition},
};
use std::collections::VecDeque;
use uuid::Uuid;

/// Records of one commit, encoded, in order.
#[derive(Default)]
pub(crate) struct Group {
    /// First record's number.
    pub(crate) first: u64,
    /// One a record.
    pub(crate) records: Vec<Vec<u8>>,
}

pub(crate) struct JournalWriter {
    vdi: Uuid,
    epoch: Epoch,
    /// Live segments, oldest first: those that replay may need, the current one, one ahead if the pool has room for it.
    segments: VecDeque<(u32, BlockAddress)>,
    /// Number of the current segment.
    current: u32,
    /// Blocks used of the current segment.
    index: u32,
    /// Crc of the block before.
    predecessor: u32,
    /// Number of the next group.
    group: u64,
    /// Last group that is durable.
    durable: u64,
    /// Number of the next record.
    record: u64,
}

impl JournalWriter {
    /// An empty journal of a new epoch.
    pub(crate) async fn begin(
        space: &Space,
        claim: &dyn Claim,
        vdi: Uuid,
        epoch: Epoch,
        group: u64,
        record: u64,
    ) -> Result<Self> {
        let mut journal = Self {
            vdi,
            epoch,
            segments: VecDeque::new(),
            current: 0,
            index: 0,
            predecessor: 0,
            group,
            durable: group - 1,
            record,
        };
        let result = journal.reserve(space, claim, 1).await;
        if let Err(error) = result {
            space.give_back(&journal.abandon());
            return Err(error);
        }
        Ok(journal)
    }

    fn find(&self, number: u32) -> Option<BlockAddress> {
        self.segments.iter().find(|(segment, _)| *segment == number).map(|(_, address)| *address)
    }

    fn address(&self, number: u32) -> Result<BlockAddress> {
        self.find(number).ok_or_else(|| Error::corrupt(format!("journal segment {number} was not allocated")))
    }

    /// The segment of the next block, and its place there.
    fn next_place(&self) -> (u32, u32) {
        if self.index == SEGMENT_BLOCKS { (self.current + 1, 0) } else { (self.current, self.index) }
    }

    /// Whether no segment is there to follow the one that is written.
    pub(crate) fn is_short(&self) -> bool {
        self.find(self.next_place().0 + 1).is_none()
    }

    /// Where replay of whatever is written next would begin.
    pub(crate) fn position(&self) -> Result<ReplayPosition> {
        let (segment_number, index) = self.next_place();
        Ok(ReplayPosition {
            segment: self.address(segment_number)?,
            next_segment: self.find(segment_number + 1),
            segment_number,
            index,
            group: self.group,
            record: self.record,
            predecessor: self.predecessor,
        })
    }

    pub(crate) fn durable_group(&self) -> u64 {
        self.durable
    }

    pub(crate) fn live_segments(&self) -> usize {
        self.segments.len()
    }

    pub(crate) fn segments(&self) -> impl Iterator<Item = Run> {
        self.segments.iter().map(|(_, start)| Run::segment(*start))
    }

    /// Allocates what `blocks` more blocks will need, and one segment beyond. Done before the flush of the
    /// commit, which makes the marks durable.
    async fn reserve(&mut self, space: &Space, claim: &dyn Claim, blocks: u32) -> Result<()> {
        let last = self.current + (self.index + blocks) / SEGMENT_BLOCKS + 1;
        loop {
            let next = self.segments.back().map_or(0, |(number, _)| number + 1);
            if next > last {
                return Ok(());
            }
            let run = space.take(claim, ExtentKind::Metadata, SEGMENT_BLOCKS, SEGMENT_BLOCKS, None).await?;
            self.segments.push_back((next, run.start));
        }
    }

    /// Gets ready to write `group`.
    pub(crate) async fn prepare(&mut self, space: &Space, claim: &dyn Claim, group: &Group) -> Result<()> {
        let bytes: usize = group.records.iter().map(Vec::len).sum();
        // Records do not straddle blocks, but each is far smaller than half of one.
        let blocks = (bytes / (RECORD_BYTES / 2)) as u32 + 1;
        match self.reserve(space, claim, blocks).await {
            Err(error) if error.kind() == ErrorKind::OutOfSpace && blocks < self.room() => Ok(()),
            other => other,
        }
    }

    /// Blocks that are left of the segments that there are.
    fn room(&self) -> u32 {
        let (number, index) = self.next_place();
        let last = self.segments.back().map_or(0, |(number, _)| *number);
        (last + 1).saturating_sub(number) * SEGMENT_BLOCKS - index
    }

    /// Writes `group` and makes it durable.
    pub(crate) async fn write(&mut self, disk: &Disk, group: &Group) -> Result<()> {
        debug_assert_eq!(group.first, self.record, "groups are written in order of record");
        let mut bodies: Vec<(u32, Vec<u8>)> = vec![(0, Vec::new())];
        for record in &group.records {
            if bodies.last().is_some_and(|(_, body)| body.len() + record.len() > RECORD_BYTES) {
                bodies.push((0, Vec::new()));
            }
            if let Some((count, body)) = bodies.last_mut() {
                *count += 1;
                body.extend_from_slice(record);
            }
        }
        let mut writes: Vec<(BlockAddress, Buffer)> = Vec::new();
        let last = bodies.len() - 1;
        for (at, (count, body)) in bodies.iter().enumerate() {
            if self.index == SEGMENT_BLOCKS {
                self.current += 1;
                self.index = 0;
            }
            let address = self
                .address(self.current)?
                .offset(self.index)
                .ok_or_else(|| Error::corrupt("a journal segment leaves its extent"))?;
            let header = BlockHeader {
                vdi: self.vdi,
                epoch: self.epoch,
                group: self.group,
                durable: self.durable,
                record: self.record,
                next_segment: self.find(self.current + 1),
                segment: self.current,
                index: self.index as u16,
                last: at == last,
                predecessor: self.predecessor,
            };
            let (block, crc) = journal::encode_block(&header, *count, body, address, disk.salt());
            self.predecessor = crc;
            self.record += u64::from(*count);
            self.index += 1;
            match writes.last_mut() {
                Some((start, buffer))
                    if start.offset((buffer.len() / BLOCK_SIZE) as u32) == Some(address) =>
                {
                    buffer.unsplit(block);
                }
                _ => writes.push((address, block)),
            }
        }
        let single = writes.len() == 1;
        let lazy = mutants::on(Mutant::JournalNotFlushed);
        let pending: Vec<_> = writes
            .into_iter()
            .map(|(address, buffer)| Box::pin(disk.write_blocks(address, buffer, single && !lazy)))
            .collect();
        for result in join_all(pending).await {
            result.context(|| format!("writing the journal of volume {}", self.vdi))?;
        }
        if !single && !lazy {
            disk.flush().await?;
        }
        self.durable = self.group;
        self.group += 1;
        Ok(())
    }

    /// Segments before `number`, which no replay needs any more. One of them is kept, as the next, if there is none.
    pub(crate) fn retire(&mut self, number: u32) -> Vec<Run> {
        let mut retired = Vec::new();
        while self.segments.front().is_some_and(|(segment, _)| *segment < number) {
            retired.extend(self.segments.pop_front().map(|(_, start)| Run::segment(start)));
        }
        if self.is_short()
            && let Some(kept) = retired.pop()
        {
            let next = self.segments.back().map_or(0, |(number, _)| number + 1);
            self.segments.push_back((next, kept.start));
        }
        retired
    }

    /// All segments: the epoch has ended in order.
    pub(crate) fn abandon(&mut self) -> Vec<Run> {
        self.segments.drain(..).map(|(_, start)| Run::segment(start)).collect()
    }
}
