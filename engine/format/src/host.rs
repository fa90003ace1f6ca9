//! A host's group of blocks: written by one incarnation of one host, read by all.
//!
//! ```text
//! block 0   slot: who the host is, its incarnation, its last renewal
//! block 1   ballot: the highest manager epoch that it has stood for
//! block 2   area header, written first when the manager's generation is even
//! block 3   area header, written first when it is odd
//! block 4-7 claim log: what it was granted and has taken up, by number modulo 4
//! ```

use crate::{
    codec::{Reader, Writer},
    seal::{self, Kind, PoolSalt},
};
use parallax_block::{Buffer, Error, Result};

/// Offset of the slot block in a group.
pub const SLOT: u64 = 0;
/// Offset of the ballot block in a group.
pub const BALLOT: u64 = 1;
/// Offset of the first area header in a group.
pub const AREA_HEADER: u64 = 2;
/// Offset of the claim log in a group.
pub const CLAIMS: u64 = 4;
/// Most bytes of a host's name.
pub const NAME_MAX: usize = 128;
/// Blocks of the claim log.
pub const CLAIM_BLOCKS: u64 = 4;

/// A host's slot. Its sequence counts renewals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSlot {
    /// Name of the host, at most [`NAME_MAX`] bytes.
    pub name: String,
    /// Rises every time the host joins anew; unique in the pool.
    pub incarnation: u64,
    /// Identity of the machine's boot.
    pub boot_id: u128,
    /// Milliseconds of the host's own boottime clock at the start of this renewal.
    pub renewed_ms: u64,
    /// Whether it is still in the pool.
    pub standing: Standing,
}

/// How a host stands with the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has joined; nobody else may take what it holds.
    Joined,
    /// It left in order, and holds nothing.
    Released,
    /// An operator has declared that it will not come back. Its I/O may not have ended in order.
    Evicted,
}

impl Standing {
    fn from_byte(byte: u8) -> Result<Self> {
        Ok(match byte {
            0 => Self::Joined,
            1 => Self::Released,
            2 => Self::Evicted,
            other => return Err(Error::corrupt(format!("a host slot has the unknown standing {other}"))),
        })
    }
}

impl HostSlot {
    /// The block.
    pub fn encode(&self, at: u64, sequence: u64, salt: PoolSalt) -> Buffer {
        let mut w = Writer::default();
        w.u64(self.incarnation);
        w.u128(self.boot_id);
        w.u64(self.renewed_ms);
        w.u8(self.standing as u8);
        w.text(&self.name);
        seal::seal(Kind::HostSlot, at, sequence, salt, &w.0)
    }

    /// Verifies; returns the slot and its renewal count.
    pub fn decode(bytes: &[u8], at: u64, salt: PoolSalt) -> Result<(Self, u64)> {
        let sealed = seal::open(bytes, Kind::HostSlot, at, salt)?;
        let mut r = Reader::new(sealed.payload, "host slot");
        let slot = Self {
            incarnation: r.count()?,
            boot_id: r.u128()?,
            renewed_ms: r.u64()?,
            standing: Standing::from_byte(r.u8()?)?,
            name: r.text()?,
        };
        if slot.name.len() > NAME_MAX {
            return Err(Error::corrupt("the name in a host slot is too long"));
        }
        Ok((slot, sealed.sequence))
    }
}

/// A stand for manager: the epoch is the block's sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ballot {
    /// Who stands.
    pub incarnation: u64,
    /// For which manager epoch.
    pub epoch: u64,
}

impl Ballot {
    /// The block.
    pub fn encode(&self, at: u64, salt: PoolSalt) -> Buffer {
        let mut w = Writer::default();
        w.u64(self.incarnation);
        seal::seal(Kind::Ballot, at, self.epoch, salt, &w.0)
    }

    /// Verifies.
    pub fn decode(bytes: &[u8], at: u64, salt: PoolSalt) -> Result<Self> {
        let sealed = seal::open(bytes, Kind::Ballot, at, salt)?;
        let incarnation = Reader::new(sealed.payload, "ballot").count()?;
        Ok(Self { incarnation, epoch: sealed.sequence })
    }
}
