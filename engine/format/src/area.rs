//! The manager's area: catalogue and registry as a base and a log.
//!
//! An area belongs to one manager epoch and one generation of it. Its header lies in the manager's host group
//! and lists where base and log are; it is written with FUA after a flush of the base, first over one of the group's
//! two copies, then over the other. The valid header with the highest (epoch, generation) counts; the one before
//! stays until then.
//!
//! Base and log blocks carry the same payload: `epoch u64 | generation u64 | predecessor crc u32 | records`.
//! A log block is written once. The log ends at the first block that does not continue the chain.

use crate::{
    codec::{Reader, Writer},
    record::Record,
    seal::{self, Kind, PAYLOAD, PoolSalt},
};
use parallax_block::{Buffer, Error, Result};

/// Bytes of records that fit one block.
pub const RECORD_BYTES: usize = PAYLOAD - 20;

/// Most runs that a header lists.
pub const RUNS_MAX: usize = 128;

/// Identity of an area; the higher is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AreaId {
    /// Manager epoch.
    pub epoch: u64,
    /// Rises with every compaction within the epoch.
    pub generation: u64,
}

/// Neighbouring physical blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First block on device 0.
    pub start: u64,
    /// How many.
    pub blocks: u32,
}

/// Where an area is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AreaHeader {
    /// Which.
    pub id: AreaId,
    /// Blocks of the base; they are the first blocks of `runs`, the rest is the log.
    pub base_blocks: u32,
    /// Crc of the last base block: the predecessor of the first log block.
    pub base_crc: u32,
    /// The area's blocks, in order.
    pub runs: Vec<Run>,
}

impl AreaHeader {
    /// The block. Its sequence is the generation.
    pub fn encode(&self, at: u64, salt: PoolSalt) -> Buffer {
        let mut w = Writer::default();
        w.u64(self.id.epoch);
        w.u64(self.id.generation);
        w.u32(self.base_blocks);
        w.u32(self.base_crc);
        w.u32(self.runs.len() as u32);
        for run in &self.runs {
            w.u64(run.start);
            w.u32(run.blocks);
        }
        seal::seal(Kind::AreaHeader, at, self.id.generation, salt, &w.0)
    }

    /// Verifies.
    pub fn decode(bytes: &[u8], at: u64, salt: PoolSalt) -> Result<Self> {
        let sealed = seal::open(bytes, Kind::AreaHeader, at, salt)?;
        let mut r = Reader::new(sealed.payload, "area header");
        let id = AreaId { epoch: r.count()?, generation: r.count()? };
        let (base_blocks, base_crc, runs) = (r.u32()?, r.u32()?, r.u32()? as usize);
        if runs > RUNS_MAX {
            return Err(Error::corrupt("the area header lists too many runs"));
        }
        let runs =
            (0..runs).map(|_| Ok(Run { start: r.count()?, blocks: r.u32()? })).collect::<Result<Vec<_>>>()?;
        let total: u64 = runs.iter().map(|run| u64::from(run.blocks)).sum();
        if u32::try_from(total).is_err() {
            return Err(Error::corrupt("the area is larger than any can be"));
        }
        if total < u64::from(base_blocks) {
            return Err(Error::corrupt("the area's base is larger than the area"));
        }
        Ok(Self { id, base_blocks, base_crc, runs })
    }

    /// Blocks of the log.
    pub fn log_blocks(&self) -> u32 {
        self.runs.iter().map(|run| run.blocks).sum::<u32>() - self.base_blocks
    }

    /// Physical block of the `index`-th block of the area.
    pub fn block(&self, index: u32) -> Option<u64> {
        let mut left = index;
        for run in &self.runs {
            if left < run.blocks {
                return Some(run.start + u64::from(left));
            }
            left -= run.blocks;
        }
        None
    }
}

/// Packs records into the payloads of as few blocks as their order allows.
#[derive(Debug, Default)]
pub struct Packer {
    full: Vec<Vec<u8>>,
    current: Vec<u8>,
}

impl Packer {
    /// Adds a record; one that does not fit a block by itself is refused.
    pub fn push(&mut self, record: &Record) -> Result<()> {
        let bytes = record.encode();
        if bytes.len() > RECORD_BYTES {
            return Err(Error::invalid(
                "the volume's name, attributes and publications do not fit its registry record",
            ));
        }
        if self.current.len() + bytes.len() > RECORD_BYTES {
            self.full.push(std::mem::take(&mut self.current));
        }
        self.current.extend_from_slice(&bytes);
        Ok(())
    }

    /// One body a block; at least one.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        if !self.current.is_empty() || self.full.is_empty() {
            self.full.push(self.current);
        }
        self.full
    }
}

/// A block of base or log. Returns it with its crc, the predecessor of the next.
pub fn encode_block(
    kind: Kind,
    at: u64,
    id: AreaId,
    index: u32,
    predecessor: u32,
    body: &[u8],
    salt: PoolSalt,
) -> (Buffer, u32) {
    let mut w = Writer::default();
    w.u64(id.epoch);
    w.u64(id.generation);
    w.u32(predecessor);
    w.raw(body);
    let block = seal::seal(kind, at, u64::from(index), salt, &w.0);
    let crc = u32::from_le_bytes([block[8], block[9], block[10], block[11]]);
    (block, crc)
}

/// Verifies a block of base or log that should follow `predecessor`; returns its records and its crc.
pub fn decode_block(
    bytes: &[u8],
    kind: Kind,
    at: u64,
    id: AreaId,
    index: u32,
    predecessor: u32,
    salt: PoolSalt,
) -> Result<(Vec<Record>, u32)> {
    let sealed = seal::open(bytes, kind, at, salt)?;
    let mut r = Reader::new(sealed.payload, "area block");
    if (AreaId { epoch: r.u64()?, generation: r.u64()? }) != id
        || sealed.sequence != u64::from(index)
        || r.u32()? != predecessor
    {
        return Err(Error::corrupt(format!("area block {index} does not continue its chain")));
    }
    let mut records = Vec::new();
    while r.remaining() > 0 {
        records.push(Record::decode(&mut r)?);
    }
    Ok((records, sealed.crc))
}
