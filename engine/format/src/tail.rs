//! The tail: records that were acknowledged and are not yet durable, in memory that outlives the process.
//!
//! ```text
//! 0   header A  64 bytes   magic u32 | crc u32 | boot u128 | vdi u128 | epoch u64 | start u64 | record u64
//! 64  header B  64 bytes   of two valid headers, the higher record counts
//! 128 ring of entries: length u16 | 0 u16 | crc u32 | record u64 | bytes, padded to 8
//! ```
//!
//! `start` is the ring offset (never wrapped; position = offset modulo capacity) of record `record`. Entries
//! follow in order of record; the first that does not verify ends the tail. Memory of the same boot is not
//! torn by a crash of the process, but a process may die between two stores: hence two headers and a crc each.
//!
//! A header with the other magic is doubtful: a flush of the device has failed since, so of what the tail names the
//! data may be gone.

use crate::{
    PoolSalt,
    codec::{Reader, Writer},
    root::Epoch,
    seal::crc32c,
};
use parallax_block::{Error, Result};
use uuid::Uuid;

/// Bytes before the ring.
pub const RING: u64 = 128;

/// Bytes of an entry before its record.
pub const ENTRY_HEADER: usize = 16;

const MAGIC: u32 = 0x5450_4c58;
const MAGIC_DOUBTFUL: u32 = 0x4450_4c58;

/// Where a tail starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailHeader {
    /// Boot of the machine.
    pub boot: u128,
    /// Whose.
    pub vdi: Uuid,
    /// Which epoch's.
    pub epoch: Epoch,
    /// Ring offset of the first entry that counts.
    pub start: u64,
    /// Its record number.
    pub record: u64,
    /// A flush of the device has failed in this epoch.
    pub doubtful: bool,
}

impl TailHeader {
    /// 64 bytes.
    pub fn encode(&self, salt: PoolSalt) -> Vec<u8> {
        let mut w = Writer::default();
        w.u128(self.boot);
        w.u128(self.vdi.as_u128());
        w.u64(self.epoch.to_bits());
        w.u64(self.start);
        w.u64(self.record);
        let mut block = Writer::default();
        block.u32(if self.doubtful { MAGIC_DOUBTFUL } else { MAGIC });
        block.u32(crc32c(salt, &[&w.0]));
        block.raw(&w.0);
        block.0
    }

    /// Verifies 64 bytes.
    pub fn decode(bytes: &[u8], salt: PoolSalt) -> Result<Self> {
        let mut r = Reader::new(bytes, "tail header");
        let (magic, crc) = (r.u32()?, r.u32()?);
        let body = r.take(56)?;
        let doubtful = magic == MAGIC_DOUBTFUL;
        if (magic != MAGIC && !doubtful) || crc32c(salt, &[body]) != crc {
            return Err(Error::corrupt("the tail's header does not verify"));
        }
        let mut r = Reader::new(body, "tail header");
        Ok(Self {
            boot: r.u128()?,
            vdi: Uuid::from_u128(r.u128()?),
            epoch: Epoch::decode(r.u64()?)?,
            start: r.count()?,
            record: r.count()?,
            doubtful,
        })
    }
}

/// One entry, padded.
pub fn encode_entry(record: u64, epoch: Epoch, bytes: &[u8], salt: PoolSalt) -> Vec<u8> {
    let mut w = Writer::default();
    w.u16(bytes.len() as u16);
    w.u16(0);
    w.u32(entry_crc(record, epoch, bytes, salt));
    w.u64(record);
    w.raw(bytes);
    w.0.resize(w.0.len().next_multiple_of(8), 0);
    w.0
}

/// Takes the entry of `record` from the front of `bytes`: its record's bytes and the entry's whole length.
pub fn decode_entry(bytes: &[u8], record: u64, epoch: Epoch, salt: PoolSalt) -> Option<(&[u8], usize)> {
    let mut r = Reader::new(bytes, "tail entry");
    let length = usize::from(r.u16().ok()?);
    r.u16().ok()?;
    let (crc, number) = (r.u32().ok()?, r.u64().ok()?);
    let body = r.take(length).ok()?;
    (number == record && crc == entry_crc(record, epoch, body, salt))
        .then_some((body, (ENTRY_HEADER + length).next_multiple_of(8)))
}

fn entry_crc(record: u64, epoch: Epoch, bytes: &[u8], salt: PoolSalt) -> u32 {
    crc32c(salt, &[&record.to_le_bytes(), &epoch.to_bits().to_le_bytes(), bytes])
}
