//! Carries out requests with ordinary system calls, on a thread that may block.

use crate::operation::{Failure, Reallocate, Request, Work};
use rustix::{
    fs::FallocateFlags,
    io::{Errno, ReadWriteFlags},
};
use std::io::{IoSlice, IoSliceMut};

/// Carries out a request on a file and leaves the answer.
pub(crate) fn run(mut request: Request) {
    let outcome = loop {
        let result = attempt(&mut request.work);
        match result {
            Ok(count) => {
                if let Some(outcome) = request.work.advance(count) {
                    break outcome;
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => break Err(Failure::Os(errno.raw_os_error())),
        }
    };
    request.complete(outcome);
}

fn attempt(work: &mut Work) -> Result<usize, Errno> {
    match work {
        Work::Read { file, offset, buffer, done } => rustix::io::preadv2(
            &**file,
            &mut [IoSliceMut::new(&mut buffer[*done..])],
            *offset + *done as u64,
            ReadWriteFlags::empty(),
        ),
        Work::Write { file, offset, buffer, done, durable } => rustix::io::pwritev2(
            &**file,
            &[IoSlice::new(&buffer[*done..])],
            *offset + *done as u64,
            if *durable { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() },
        ),
        Work::Sync { file } => rustix::fs::fdatasync(&**file).map(|()| 0),
        Work::Reallocate { file, how, offset, length } => {
            rustix::fs::fallocate(&**file, flags(*how), *offset, *length).map(|()| 0)
        }
        Work::Receive { .. } | Work::Send { .. } | Work::Accept { .. } => Err(Errno::OPNOTSUPP),
    }
}

/// The flags of fallocate(2).
pub(crate) fn flags(how: Reallocate) -> FallocateFlags {
    FallocateFlags::KEEP_SIZE
        | match how {
            Reallocate::PunchHole => FallocateFlags::PUNCH_HOLE,
            Reallocate::ZeroRange => FallocateFlags::ZERO_RANGE,
        }
}
