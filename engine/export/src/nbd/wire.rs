//! Numbers and headers of the NBD protocol. Everything on the wire is big-endian.

use parallax_block::ErrorKind;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U16, U32, U64},
};

/// First bytes of a server ("NBDMAGIC").
pub(super) const GREETING: u64 = 0x4e42_444d_4147_4943;
/// Starts the newstyle handshake and every option ("IHAVEOPT").
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Starts every reply to an option.
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Bits of the server's greeting, and of the client's answer.
pub(super) mod handshake_flag {
    pub(in super::super) const FIXED_NEWSTYLE: u16 = 1;
    pub(in super::super) const NO_ZEROES: u16 = 2;
}

/// Options of the handshake.
pub(super) mod option {
    pub(in super::super) const EXPORT_NAME: u32 = 1;
    pub(in super::super) const ABORT: u32 = 2;
    pub(in super::super) const LIST: u32 = 3;
    pub(in super::super) const INFO: u32 = 6;
    pub(in super::super) const GO: u32 = 7;
    pub(in super::super) const STRUCTURED_REPLY: u32 = 8;
    pub(in super::super) const LIST_META_CONTEXT: u32 = 9;
    pub(in super::super) const SET_META_CONTEXT: u32 = 10;
}

/// Types of replies to options.
pub(super) mod reply {
    pub(in super::super) const ACK: u32 = 1;
    pub(in super::super) const SERVER: u32 = 2;
    pub(in super::super) const INFO: u32 = 3;
    pub(in super::super) const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    pub(in super::super) const UNSUPPORTED: u32 = ERROR | 1;
    pub(in super::super) const INVALID: u32 = ERROR | 3;
    pub(in super::super) const UNKNOWN: u32 = ERROR | 6;
    pub(in super::super) const BLOCK_SIZE_REQUIRED: u32 = ERROR | 8;
    pub(in super::super) const TOO_BIG: u32 = ERROR | 9;
}

/// Kinds of information about an export.
pub(super) mod info {
    pub(in super::super) const EXPORT: u16 = 0;
    pub(in super::super) const NAME: u16 = 1;
    pub(in super::super) const DESCRIPTION: u16 = 2;
    pub(in super::super) const BLOCK_SIZE: u16 = 3;
}

/// What an export offers.
pub(super) mod transmission_flag {
    pub(in super::super) const HAS_FLAGS: u16 = 1;
    pub(in super::super) const READ_ONLY: u16 = 1 << 1;
    pub(in super::super) const FLUSH: u16 = 1 << 2;
    pub(in super::super) const FUA: u16 = 1 << 3;
    pub(in super::super) const TRIM: u16 = 1 << 5;
    pub(in super::super) const WRITE_ZEROES: u16 = 1 << 6;
    pub(in super::super) const DONT_FRAGMENT: u16 = 1 << 7;
    pub(in super::super) const MULTI_CONN: u16 = 1 << 8;
    pub(in super::super) const CACHE: u16 = 1 << 10;
}

/// Commands.
pub(super) mod command {
    pub(in super::super) const READ: u16 = 0;
    pub(in super::super) const WRITE: u16 = 1;
    pub(in super::super) const DISCONNECT: u16 = 2;
    pub(in super::super) const FLUSH: u16 = 3;
    pub(in super::super) const TRIM: u16 = 4;
    pub(in super::super) const CACHE: u16 = 5;
    pub(in super::super) const WRITE_ZEROES: u16 = 6;
    pub(in super::super) const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub(super) mod command_flag {
    pub(in super::super) const FUA: u16 = 1;
    pub(in super::super) const NO_HOLE: u16 = 1 << 1;
    pub(in super::super) const DONT_FRAGMENT: u16 = 1 << 2;
    pub(in super::super) const ONE_EXTENT: u16 = 1 << 3;
}

const CHUNK_DONE: u16 = 1;
const CHUNK_DATA: u16 = 1;
const CHUNK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = 1 << 15 | 1;

/// Number that we give to the one metadata context there is.
pub(super) const ALLOCATION_CONTEXT: u32 = 1;
/// Its name.
pub(super) const ALLOCATION_NAME: &str = "base:allocation";
/// Flags of an extent that reads as zeroes and takes no space.
pub(super) const EXTENT_HOLE: u32 = 1 | 2;

/// Why a command failed, as clients are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Errno {
    NotPermitted = 1,
    Io = 5,
    NoMemory = 12,
    Invalid = 22,
    NoSpace = 28,
    TooLarge = 75,
    NotSupported = 95,
    ShuttingDown = 108,
}

impl From<ErrorKind> for Errno {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidArgument => Self::Invalid,
            ErrorKind::OutOfSpace => Self::NoSpace,
            ErrorKind::ReadOnly => Self::NotPermitted,
            ErrorKind::Unsupported => Self::NotSupported,
            ErrorKind::Exhausted => Self::NoMemory,
            ErrorKind::Cancelled => Self::ShuttingDown,
            _ => Self::Io,
        }
    }
}

/// Bytes of a request's header.
pub(super) const REQUEST_BYTES: usize = size_of::<RequestHeader>();

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RequestHeader {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    length: U32,
}

/// A request as the client sent it: nothing about it has been checked but its magic number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UntrustedRequest {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl UntrustedRequest {
    /// Decodes the first bytes. `None` if there are too few, or if they are no request.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (header, _) = RequestHeader::ref_from_prefix(bytes).ok()?;
        (header.magic.get() == REQUEST_MAGIC).then(|| Self {
            flags: header.flags.get(),
            command: header.command.get(),
            cookie: header.cookie.get(),
            offset: header.offset.get(),
            length: header.length.get(),
        })
    }

    /// Encodes; the counterpart for tests.
    #[cfg(test)]
    pub(super) fn encode(&self) -> Vec<u8> {
        RequestHeader {
            magic: REQUEST_MAGIC.into(),
            flags: self.flags.into(),
            command: self.command.into(),
            cookie: self.cookie.into(),
            offset: self.offset.into(),
            length: self.length.into(),
        }
        .as_bytes()
        .to_vec()
    }
}

/// Header of a reply without a body.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct SimpleReply {
    magic: U32,
    error: U32,
    cookie: U64,
}

impl SimpleReply {
    pub(super) fn new(cookie: u64, error: Option<Errno>) -> Self {
        Self {
            magic: SIMPLE_REPLY_MAGIC.into(),
            error: error.map_or(0, |error| error as u32).into(),
            cookie: cookie.into(),
        }
    }
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ChunkHeader {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    length: U32,
}

impl ChunkHeader {
    fn last(kind: u16, cookie: u64, length: usize) -> Self {
        Self {
            magic: CHUNK_MAGIC.into(),
            flags: CHUNK_DONE.into(),
            kind: kind.into(),
            cookie: cookie.into(),
            length: (length as u32).into(),
        }
    }
}

/// Start of the chunk that answers a read; the data follows.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct DataChunk {
    header: ChunkHeader,
    offset: U64,
}

impl DataChunk {
    pub(super) fn new(cookie: u64, offset: u64, length: usize) -> Self {
        let header = ChunkHeader::last(CHUNK_DATA, cookie, size_of::<U64>() + length);
        Self { header, offset: offset.into() }
    }
}

/// A whole chunk that says why a command failed.
pub(super) fn error_chunk(cookie: u64, error: Errno, message: &str) -> Vec<u8> {
    let mut end = message.len().min(1024);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let message = &message.as_bytes()[..end];
    let mut chunk = ChunkHeader::last(CHUNK_ERROR, cookie, 6 + message.len()).as_bytes().to_vec();
    chunk.extend(U32::new(error as u32).as_bytes());
    chunk.extend(U16::new(message.len() as u16).as_bytes());
    chunk.extend(message);
    chunk
}

/// A whole chunk that answers a block status: lengths and flags of adjoining extents.
pub(super) fn status_chunk(cookie: u64, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut chunk = ChunkHeader::last(CHUNK_STATUS, cookie, 4 + extents.len() * 8).as_bytes().to_vec();
    chunk.extend(U32::new(ALLOCATION_CONTEXT).as_bytes());
    for (length, flags) in extents {
        chunk.extend(U32::new(*length).as_bytes());
        chunk.extend(U32::new(*flags).as_bytes());
    }
    chunk
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn headers_have_the_bytes_of_the_protocol() {
        assert_eq!(REQUEST_BYTES, 28);
        let request = UntrustedRequest {
            flags: 1,
            command: 6,
            cookie: 0x0102_0304_0506_0708,
            offset: 4096,
            length: 512,
        };
        assert_eq!(
            request.encode(),
            [
                0x25, 0x60, 0x95, 0x13, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0,
                2, 0
            ]
        );
        assert_eq!(
            SimpleReply::new(9, Some(Errno::NoSpace)).as_bytes(),
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 9]
        );
        assert_eq!(
            DataChunk::new(9, 512, 4096).as_bytes(),
            [
                0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0x10, 8, 0, 0, 0, 0, 0, 0,
                2, 0
            ]
        );
    }

    #[test]
    fn long_error_messages_are_cut_between_characters() {
        let chunk = error_chunk(1, Errno::Io, &"ä".repeat(1000));
        assert_eq!(chunk.len(), 20 + 6 + 1024);
        assert!(std::str::from_utf8(&chunk[26..]).is_ok());
        let chunk = error_chunk(1, Errno::Io, &format!("x{}", "ä".repeat(1000)));
        assert_eq!(chunk.len(), 20 + 6 + 1023);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = UntrustedRequest::decode(&bytes);
        }

        #[test]
        fn a_request_survives_the_wire(
            flags: u16, command: u16, cookie: u64, offset: u64, length: u32
        ) {
            let request = UntrustedRequest { flags, command, cookie, offset, length };
            prop_assert_eq!(UntrustedRequest::decode(&request.encode()), Some(request));
        }
    }
}
