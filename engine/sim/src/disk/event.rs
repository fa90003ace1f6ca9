//! What a disk tells its observers, and how a test picks requests.

use super::SimDisk;
use parallax_block::ByteRange;
use std::sync::Arc;

/// What a request asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Bytes out.
    Read,
    /// Bytes in.
    Write {
        /// Durable before it completes.
        fua: bool,
    },
    /// Zeroes in.
    WriteZeroes {
        /// Durable before it completes.
        fua: bool,
    },
    /// Content that is no longer wanted.
    Discard,
    /// Everything that has completed, durable.
    Flush,
}

impl Kind {
    /// Whether it changes what the disk holds or makes it durable: where a power cut can make a difference.
    pub fn is_boundary(self) -> bool {
        self != Self::Read
    }

    /// Whether it changes bytes.
    pub fn is_change(self) -> bool {
        !matches!(self, Self::Read | Self::Flush)
    }
}

/// A request as its observers and the predicates of holds see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Number on this disk, from 1, in order of submission.
    pub number: u64,
    /// Number among requests of the same [`Kind::is_boundary`] class, from 1; 0 for reads.
    pub boundary: u64,
    /// What.
    pub kind: Kind,
    /// Where; empty for a flush.
    pub range: ByteRange,
    /// Process whose task submitted it.
    pub process: Arc<str>,
}

impl Request {
    /// Whether it touches `range`.
    pub fn touches(&self, range: ByteRange) -> bool {
        self.range.offset() < range.end() && range.offset() < self.range.end()
    }
}

/// Where in its life a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Submitted.
    Begun,
    /// Kept back by a hold.
    Held,
    /// Has taken effect, or a part of it: reads begun now see it.
    Effect,
    /// Answered with success.
    Completed,
    /// Answered with an error.
    Failed,
    /// Swallowed by a power cut; never answered.
    Lost,
}

/// One step in the life of a request.
#[derive(Debug)]
pub struct Event<'a> {
    /// The disk; it may be asked, not sent requests.
    pub disk: &'a SimDisk,
    /// Which.
    pub request: &'a Request,
    /// What happened to it.
    pub phase: Phase,
    /// The part that took effect; otherwise the whole.
    pub range: ByteRange,
    /// What a write carries for that part; empty for everything else.
    pub bytes: &'a [u8],
}
