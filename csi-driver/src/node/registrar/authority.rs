//! Makes kubelet's calls to a registration socket acceptable to our HTTP/2 server.
//!
//! Kubelet dials the socket by its path, and its gRPC library then sends that path, percent-encoded, as the
//! request's `:authority`. That is no authority by the rules of URIs, and our server ends the stream with
//! PROTOCOL_ERROR. Nothing here depends on the authority, so it is replaced on the way in.
//!
//! Invariants:
//! * Only the value of a literal `:authority` changes; every other byte passes as it came.
//! * What cannot be understood passes unchanged: the server refuses it in its own words.

use std::io;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::net::UnixStream;

/// Bytes of the client's connection preface.
const PREFACE: usize = 24;
/// Bytes of a frame's header: length 3, type 1, flags 1, stream 4.
const FRAME_HEADER: usize = 9;
/// Type of a frame that carries headers.
const HEADERS: u8 = 1;
/// Flags of a HEADERS frame whose payload does not begin with the headers: PADDED, PRIORITY.
const SHIFTED: u8 = 0x08 | 0x20;
/// Index of `:authority` in the static table of HPACK.
const AUTHORITY: usize = 1;
/// A literal that every server accepts: not Huffman-coded, nine bytes.
const REPLACEMENT: &[u8] = b"\x09localhost";
/// Largest frame that may be sent before our settings allow more, which they do not.
const FRAME_MAX: usize = 16_384;
/// A registration is a few hundred bytes.
const BUFFER: usize = 64 << 10;

/// The same connection, with acceptable authorities.
pub(super) fn repaired(kubelet: UnixStream) -> DuplexStream {
    let (ours, server) = tokio::io::duplex(BUFFER);
    let (from_kubelet, to_kubelet) = tokio::io::split(kubelet);
    let (from_server, to_server) = tokio::io::split(ours);
    tokio::spawn(async move {
        // The end of a connection, whichever side ends it, is no event for us.
        let _ = inward(from_kubelet, to_server).await;
    });
    tokio::spawn(async move {
        let (mut from_server, mut to_kubelet) = (from_server, to_kubelet);
        let _ = tokio::io::copy(&mut from_server, &mut to_kubelet).await;
        let _ = to_kubelet.shutdown().await;
    });
    server
}

async fn inward(mut from: ReadHalf<UnixStream>, mut to: WriteHalf<DuplexStream>) -> io::Result<()> {
    let mut preface = [0; PREFACE];
    from.read_exact(&mut preface).await?;
    to.write_all(&preface).await?;
    let mut payload = Vec::new();
    loop {
        let mut header = [0; FRAME_HEADER];
        if let Err(error) = from.read_exact(&mut header).await {
            to.shutdown().await?;
            return Err(error);
        }
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        if length > FRAME_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame larger than was agreed"));
        }
        payload.resize(length, 0);
        from.read_exact(&mut payload).await?;
        if header[3] == HEADERS && header[4] & SHIFTED == 0 {
            if let Some(block) = repair(&payload) {
                payload = block;
            }
            for (byte, shift) in header[..3].iter_mut().zip([16, 8, 0]) {
                *byte = u8::try_from(payload.len() >> shift & 0xff).unwrap_or(u8::MAX);
            }
        }
        to.write_all(&header).await?;
        to.write_all(&payload).await?;
    }
}

/// A header block with another value for each literal `:authority`; `None` if it is not well formed.
fn repair(block: &[u8]) -> Option<Vec<u8>> {
    let mut repaired = Vec::with_capacity(block.len());
    let mut rest = block;
    while let Some(first) = rest.first() {
        let field = rest;
        // The first byte tells the representation and how many of its bits begin an integer.
        let (bits, literal) = match first {
            0x80.. => (7, false),
            0x40..=0x7f => (6, true),
            0x20..=0x3f => (5, false),
            _ => (4, true),
        };
        let name = integer(&mut rest, bits)?;
        if literal {
            if name == 0 {
                string(&mut rest)?;
            }
            let before_value = field.len() - rest.len();
            string(&mut rest)?;
            if name == AUTHORITY {
                repaired.extend_from_slice(&field[..before_value]);
                repaired.extend_from_slice(REPLACEMENT);
                continue;
            }
        }
        repaired.extend_from_slice(&field[..field.len() - rest.len()]);
    }
    (repaired.len() <= FRAME_MAX).then_some(repaired)
}

/// An integer that begins in the low `bits` of the first byte.
fn integer(rest: &mut &[u8], bits: u32) -> Option<usize> {
    let full = (1usize << bits) - 1;
    let (first, mut after) = rest.split_first()?;
    let mut value = usize::from(*first) & full;
    if value == full {
        for shift in (0..28).step_by(7) {
            let (byte, next) = after.split_first()?;
            after = next;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                *rest = after;
                return Some(value);
            }
        }
        return None;
    }
    *rest = after;
    Some(value)
}

/// Passes over a string.
fn string(rest: &mut &[u8]) -> Option<()> {
    let length = integer(rest, 7)?;
    *rest = rest.get(length..)?;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_as_authority_is_replaced_and_the_rest_stays() {
        // :method POST, :scheme http, :path literal, :authority literal, te literal with a new name.
        let mut block = vec![0x83, 0x86, 0x44, 0x03, b'/', b'a', b'b', 0x41, 0x07];
        block.extend_from_slice(b"%2Fvar%");
        block.extend_from_slice(&[0x40, 0x02, b't', b'e', 0x01, b'x']);
        let mut expected = vec![0x83, 0x86, 0x44, 0x03, b'/', b'a', b'b', 0x41];
        expected.extend_from_slice(b"\x09localhost");
        expected.extend_from_slice(&[0x40, 0x02, b't', b'e', 0x01, b'x']);
        assert_eq!(repair(&block), Some(expected));
    }

    #[test]
    fn a_long_value_is_skipped_by_its_multi_byte_length() {
        let value = [b'a'; 300];
        // 300 = 127 + 173; 173 = 0x80|0x2d, then 1.
        let mut block = vec![0x41, 0x7f, 0xad, 0x01];
        block.extend_from_slice(&value);
        block.push(0x83);
        assert_eq!(repair(&block), Some([&[0x41], REPLACEMENT, &[0x83]].concat()));
    }

    #[test]
    fn an_indexed_authority_and_a_torn_block_are_left_alone() {
        assert_eq!(repair(&[0x81, 0xbe]), Some(vec![0x81, 0xbe]));
        assert_eq!(repair(&[0x41, 0x09, b'x']), None);
    }
}
