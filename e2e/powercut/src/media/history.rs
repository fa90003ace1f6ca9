//! What was asked of a disk, in order, and what happened beside it.
//!
//! A write has a beginning and an end: between them it is in flight. Its number is how many began before it. A flush
//! covers the writes that ended before it began, once it has ended.

use crate::media::Image;
use std::{collections::BTreeMap, sync::Arc};

/// Tails by key: memory that a killed process leaves behind, and a power cut does not.
pub(crate) type Memory = BTreeMap<String, Vec<u8>>;

/// What a write leaves.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    Bytes(Arc<[u8]>),
    /// So many zeroes; a discard, too.
    Zeroes(usize),
}

impl Content {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Zeroes(length) => *length,
        }
    }

    /// Puts a part of it, of whole sectors, where it belongs.
    pub(crate) fn apply(&self, image: &mut Image, offset: u64, part: std::ops::Range<usize>) {
        let at = offset + part.start as u64;
        match self {
            Self::Bytes(bytes) => image.write(at, &bytes[part]),
            Self::Zeroes(_) => image.zero(at, part.len()),
        }
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    WriteBegins {
        offset: u64,
        content: Content,
        fua: bool,
    },
    WriteEnds {
        write: u64,
    },
    FlushBegins {
        flush: u64,
    },
    FlushEnds {
        flush: u64,
    },
    TailCreated {
        key: String,
    },
    TailWritten {
        key: String,
        offset: u64,
        bytes: Vec<u8>,
    },
    TailRemoved {
        key: String,
    },
    /// The load says: what worker `worker` counts as its promise number `number` has been kept.
    Promise {
        worker: u32,
        number: u64,
    },
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct History {
    /// Identity of the boot that it belongs to.
    pub(crate) boot: u128,
    /// The disk before, with nothing in flight.
    pub(crate) base: Image,
    /// The tails before.
    pub(crate) tails: Memory,
    pub(crate) events: Vec<Event>,
}

impl History {
    /// Positions at which a flush ends.
    pub(crate) fn flushes(&self) -> Vec<usize> {
        let ends = |(at, event): (usize, &Event)| matches!(event, Event::FlushEnds { .. }).then_some(at);
        self.events.iter().enumerate().filter_map(ends).collect()
    }
}
