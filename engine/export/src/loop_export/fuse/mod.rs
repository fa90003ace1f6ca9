//! A FUSE connection: requests come out of `/dev/fuse`, replies go in.
//!
//! ```text
//! Link::begin        a new connection: the two sides agree                (INIT)
//! Link::take_over    one that a daemon before us left: what that one had read and not answered comes again (RESEND)
//! Link::serve        threads that read requests and hand them to a filesystem
//! ```
//!
//! Invariants:
//! * A request is answered once: a [`Reply`] that is dropped answers EIO, unless the link was left.
//! * After [`Link::leave`] no error and no new request is answered: whoever takes the connection over gets them again.
//!   Successes are still told.
//! * All threads read one descriptor. The kernel keeps what was read and not answered with the open file that it
//!   was read through, and fails it when that one is closed; only a file that a holder has too survives us.
//! * The memory that requests are read into, and that replies are sent from, is present. The kernel fails a request
//!   with EIO if it must fault in a page for a thread that is being killed.

mod session;
mod wire;

pub(super) use session::{Agreed, Link, Serving};
pub(super) use wire::{Attributes, EntryOut, OpenOut, StatfsOut, open};

use session::Channel;
use std::{io::IoSlice, sync::Arc};
use wire::{AttributesOut, OutHeader, WriteOut, opcode};
use zerocopy::{FromBytes, IntoBytes};

/// Node of the root of a mount.
pub(super) const ROOT: u64 = 1;

/// What the kernel asks.
#[derive(Debug)]
pub(super) enum Question<'a> {
    /// A name in a directory.
    Lookup {
        /// The name.
        name: &'a [u8],
    },
    /// Attributes of a node.
    GetAttributes,
    /// Opening a file.
    Open,
    /// Bytes of a file.
    Read {
        /// Where.
        offset: u64,
        /// How many.
        length: u32,
    },
    /// Bytes for a file.
    Write {
        /// Where.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
    },
    /// Everything written before is to be durable.
    Sync,
    /// Space of a file.
    Allocate {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// What with them, as fallocate(2) has it.
        mode: i32,
    },
    /// About the filesystem around a node.
    Statfs,
    /// Permission, or the end of a use: always well.
    Agree,
    /// Nothing that is served here.
    Other,
}

/// Answers questions. Called on several threads at once; must not wait for the connection's own users.
pub(super) trait Filesystem: Send + Sync + 'static {
    /// Answers, now or later.
    fn ask(&self, node: u64, question: Question<'_>, reply: Reply);
}

/// The one answer to a request.
pub(super) struct Reply {
    channel: Arc<Channel>,
    unique: u64,
    answered: bool,
}

impl Reply {
    fn new(channel: Arc<Channel>, unique: u64) -> Self {
        Self { channel, unique, answered: false }
    }

    fn send(&mut self, error: i32, body: &[u8]) {
        self.answered = true;
        let length = (size_of::<OutHeader>() + body.len()) as u32;
        let header = OutHeader { length, error: -error, unique: self.unique };
        self.channel.send(&mut [IoSlice::new(header.as_bytes()), IoSlice::new(body)]);
    }

    /// An error, by its number.
    pub(super) fn error(mut self, errno: i32) {
        self.fail(errno);
    }

    fn fail(&mut self, errno: i32) {
        if self.channel.is_left() {
            // Whoever comes next is asked again.
            self.answered = true;
        } else {
            self.send(errno, &[]);
        }
    }

    /// Done.
    pub(super) fn ok(mut self) {
        self.send(0, &[]);
    }

    /// Bytes that were read.
    pub(super) fn data(mut self, bytes: &mut [u8]) {
        make_present(bytes);
        self.send(0, bytes);
    }

    /// How many bytes were written.
    pub(super) fn written(mut self, size: u32) {
        self.send(0, WriteOut { size, padding: 0 }.as_bytes());
    }

    /// A name was found.
    pub(super) fn entry(mut self, entry: EntryOut) {
        self.send(0, entry.as_bytes());
    }

    /// Attributes of a node.
    pub(super) fn attributes(mut self, attributes: Attributes) {
        self.send(0, AttributesOut { attributes, ..AttributesOut::default() }.as_bytes());
    }

    /// A file was opened.
    pub(super) fn opened(mut self, opened: OpenOut) {
        self.send(0, opened.as_bytes());
    }

    /// About the filesystem.
    pub(super) fn statfs(mut self, answer: StatfsOut) {
        self.send(0, answer.as_bytes());
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            self.fail(libc::EIO);
        }
    }
}

/// Touches every page: one that was never written to, or only read, has no memory of its own yet.
fn make_present(bytes: &mut [u8]) {
    const PAGE: usize = 4096;
    for page in bytes.chunks_mut(PAGE) {
        page[0] = std::hint::black_box(page[0]);
        std::hint::black_box(&mut *page);
    }
}

/// The question in a request's arguments; `None` if they are too short.
fn parse(code: u32, body: &[u8]) -> Option<Question<'_>> {
    let transfer = || wire::TransferIn::read_from_prefix(body).ok();
    Some(match code {
        opcode::LOOKUP => Question::Lookup { name: body.strip_suffix(&[0])? },
        opcode::GETATTR => Question::GetAttributes,
        opcode::OPEN => Question::Open,
        opcode::READ => {
            let (read, _) = transfer()?;
            Question::Read { offset: read.offset, length: read.size }
        }
        opcode::WRITE => {
            let (write, data) = transfer()?;
            Question::Write { offset: write.offset, data: data.get(..write.size as usize)? }
        }
        opcode::FSYNC => Question::Sync,
        opcode::FALLOCATE => {
            let (allocate, _) = wire::FallocateIn::read_from_prefix(body).ok()?;
            Question::Allocate {
                offset: allocate.offset,
                length: allocate.length,
                mode: allocate.mode.cast_signed(),
            }
        }
        opcode::STATFS => Question::Statfs,
        opcode::ACCESS | opcode::RELEASE => Question::Agree,
        _ => Question::Other,
    })
}

#[cfg(test)]
mod tests;
