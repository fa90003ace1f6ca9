//! The header of every typed block.
//!
//! ```text
//!  0  magic    u32   "PLX1"
//!  4  kind     u16   what the block is
//!  6  length   u16   bytes of payload that count (from byte 32)
//!  8  crc      u32   CRC32C of salt, then the whole block with this field zero
//! 12  reserved u32   zero
//! 16  address  u64   where the block belongs: a physical block, or the bits of a block address
//! 24  sequence u64   of two versions, the higher is newer
//! 32  payload
//! ```
//!
//! A block read at another address than it was written for, from another pool, or torn, does not open.

use crate::codec::Reader;
use parallax_block::{BLOCK_SIZE, Buffer, Error, Result};

/// Bytes of the header.
pub const HEADER: usize = 32;

/// Most bytes of payload.
pub const PAYLOAD: usize = BLOCK_SIZE - HEADER;

const MAGIC: u32 = 0x3158_4c50;

/// A pool's own number, mixed into every checksum so that blocks of another pool never verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSalt(pub u64);

/// What a sealed block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum Kind {
    Superblock = 1,
    HostSlot = 2,
    Ballot = 3,
    Claim = 4,
    AreaHeader = 5,
    AreaBase = 6,
    AreaLog = 7,
    Bitmap = 8,
    Root = 9,
    Journal = 10,
}

/// The payload of a block whose header has been verified.
#[derive(Debug)]
pub struct Sealed<'a> {
    /// The payload that counts.
    pub payload: &'a [u8],
    /// See the module.
    pub sequence: u64,
    /// The block's own checksum: what a successor may name it by.
    pub crc: u32,
}

/// CRC32C of `salt` followed by `parts`.
pub fn crc32c(salt: PoolSalt, parts: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&salt.0.to_le_bytes());
    for part in parts {
        digest.update(part);
    }
    digest.finalize() as u32
}

/// Builds a block around `payload`, which must fit [`PAYLOAD`] bytes.
pub fn seal(kind: Kind, address: u64, sequence: u64, salt: PoolSalt, payload: &[u8]) -> Buffer {
    assert!(payload.len() <= PAYLOAD, "{kind:?} of {} bytes does not fit a block", payload.len());
    let mut block = Buffer::zeroed(BLOCK_SIZE);
    block[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    block[4..6].copy_from_slice(&(kind as u16).to_le_bytes());
    block[6..8].copy_from_slice(&(payload.len() as u16).to_le_bytes());
    block[16..24].copy_from_slice(&address.to_le_bytes());
    block[24..32].copy_from_slice(&sequence.to_le_bytes());
    block[HEADER..HEADER + payload.len()].copy_from_slice(payload);
    let crc = crc32c(salt, &[&block]);
    block[8..12].copy_from_slice(&crc.to_le_bytes());
    block
}

/// Verifies a block that should be a `kind` at `address`.
pub fn open(bytes: &[u8], kind: Kind, address: u64, salt: PoolSalt) -> Result<Sealed<'_>> {
    let fail = |what: &str| Error::corrupt(format!("{kind:?} block at {address:#x}: {what}"));
    if bytes.len() != BLOCK_SIZE {
        return Err(fail("is not a whole block"));
    }
    let mut header = Reader::new(bytes, "block header");
    if header.u32()? != MAGIC {
        return Err(fail("no Parallax block is here"));
    }
    if header.u16()? != kind as u16 {
        return Err(fail("holds another kind of block"));
    }
    let length = usize::from(header.u16()?);
    let crc = header.u32()?;
    if crc32c(salt, &[&bytes[..8], &[0; 4], &bytes[12..]]) != crc {
        return Err(fail("its checksum does not match"));
    }
    header.u32()?;
    if header.u64()? != address {
        return Err(fail("was written for another address"));
    }
    let sequence = header.count()?;
    let payload = bytes.get(HEADER..HEADER + length).ok_or_else(|| fail("its length is out of range"))?;
    Ok(Sealed { payload, sequence, crc })
}

/// Whether the bytes begin like any sealed block of any pool.
pub fn looks_sealed(bytes: &[u8]) -> bool {
    bytes.get(..4) == Some(&MAGIC.to_le_bytes()[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: PoolSalt = PoolSalt(7);

    #[test]
    fn every_single_bit_matters() {
        let block = seal(Kind::Root, 42, 3, SALT, b"payload");
        assert_eq!(open(&block, Kind::Root, 42, SALT).unwrap().payload, b"payload");
        for bit in 0..BLOCK_SIZE * 8 {
            let mut damaged = block.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&damaged, Kind::Root, 42, SALT).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn strangers_do_not_open() {
        let block = seal(Kind::Root, 42, 3, SALT, b"payload");
        assert!(open(&block, Kind::Root, 43, SALT).is_err());
        assert!(open(&block, Kind::Bitmap, 42, SALT).is_err());
        assert!(open(&block, Kind::Root, 42, PoolSalt(8)).is_err());
    }
}
