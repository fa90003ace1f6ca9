//! Bad FUSE requests: `tests/corpus/fuse.txt` keeps them, with what must come of each.
//!
//! An input is what the kernel sends: messages behind their lengths, INIT first. They go through a socket that keeps
//! messages apart, as `/dev/fuse` does, to the parser, the filesystem and an export of 5 GiB in memory.

use super::{
    ExportKey,
    filesystem::{Catalogue, FIRST_FILE, LoopFilesystem},
    fuse::Link,
    limits::Gate,
    served::{Engine, Served},
};
use parallax_block::{BoxFuture, Runtime};
use parallax_device::RamDevice;
use parallax_fuzz::{Bound, Input, Outcome, Seed, Target, explore, replay};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read, Write},
    path::PathBuf,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

/// Requests of 1 MiB are held once by the reader and once by the export.
const BOUND: Bound = Bound { memory: 16 << 20, time: Duration::from_secs(60) };
/// More than a length of 32 bits can name.
const SIZE: u64 = 5 << 30;
/// Messages of an input; further ones are not sent.
const MESSAGES_MAX: usize = 200;
/// Kinds of errors that are told; further ones add nothing.
const TOLD_MAX: usize = 4;

/// Runs tasks at once: a device in memory never waits.
struct AtOnce;

impl Runtime for AtOnce {
    fn spawn(&self, mut task: BoxFuture<'static, ()>) {
        let done = task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(done, Poll::Ready(()), "a device in memory waits");
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep(&self, _delay: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// The messages of an input.
fn messages(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = (u32::from_le_bytes(*length) as usize).min(rest.len());
        let (message, rest) = rest.split_at(length);
        // An empty one would be the end of the connection.
        if !message.is_empty() && out.len() < MESSAGES_MAX {
            out.push(message);
        }
        bytes = rest;
    }
    out
}

fn outcome(bytes: &[u8]) -> Outcome {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let mut ours = File::from(ours);
    let mut sender = ours.try_clone().unwrap();
    let mut told = BTreeSet::new();
    let served = std::thread::scope(|scope| {
        scope.spawn(move || {
            for message in messages(bytes) {
                // A server that has ended the connection hears no more.
                if sender.write_all(message).is_err() {
                    break;
                }
            }
            let _ = shutdown(&sender, Shutdown::Write);
        });
        let answers = scope.spawn(|| {
            let mut answer = vec![0; 2 << 20];
            while let Ok(length @ 1..) = ours.read(&mut answer) {
                assert!(length >= 16, "an answer of {length} bytes");
                let error = i32::from_le_bytes(answer[4..8].try_into().unwrap());
                if error != 0 {
                    told.insert(format!("a request fails: {}", std::io::Error::from_raw_os_error(-error)));
                }
            }
        });
        // A socket that is closed with something unread takes its answers with it.
        let open = theirs.try_clone().unwrap();
        let served = serve(theirs);
        shutdown(&open, Shutdown::Write).unwrap();
        answers.join().unwrap();
        served
    });
    let mut words: Vec<String> = told.into_iter().take(TOLD_MAX).collect();
    words.extend(served.err().map(|error| error.to_string()));
    if words.is_empty() { Outcome::Accepted } else { Outcome::Refused(words.join(" | ")) }
}

/// Serves until nothing more comes.
fn serve(device: std::os::fd::OwnedFd) -> parallax_block::Result<()> {
    let link = Link::begin(device)?;
    let catalogue = Catalogue::new("instance".into(), FIRST_FILE);
    for (name, read_only) in [("disk", false), ("sealed", true)] {
        let inode = catalogue.new_inode();
        let device = Arc::new(RamDevice::new(SIZE, 512)?);
        let key = ExportKey::new(name).unwrap();
        catalogue.insert(&key, Served::new(inode, device, read_only));
    }
    let engine = Engine { runtime: Arc::new(AtOnce), gate: Gate::new(4 << 20) };
    link.serve(1, Arc::new(LoopFilesystem { catalogue, engine }))?.join()
}

/// `b8:opcode` and the rest of a request, by the notation.
fn message(opcode: u32, node: u64, body: &str) -> Vec<u8> {
    let body = Input::parse(body).unwrap().apply(&[]).unwrap();
    let header = format!("l32:{0} l32:{0} l32:{opcode} l64:7 l64:{node} 00*16", body.len() + 40);
    [Input::parse(&header).unwrap().apply(&[]).unwrap(), body].concat()
}

#[test]
fn fuse_requests() {
    // Version 7.40 with asynchronous direct I/O and pages.
    let init = message(26, 0, "l32:7 l32:40 l32:65536 l32:0x40408000 00*48");
    let disk = FIRST_FILE;
    let transfer = |offset: u64, size: u32| format!("l64:{disk} l64:{offset} l32:{size} 00*20");
    let all = [
        init.clone(),
        message(1, 1, "\"instance\" 00"),
        message(1, 2, "\"disk\" 00"),
        message(3, disk, "00*16"),
        message(14, disk, "00*8"),
        message(15, disk, &transfer(4096, 1024)),
        message(16, disk, &format!("{} ab*512", transfer(512, 512))),
        message(20, disk, "00*16"),
        message(43, disk, &format!("l64:{disk} l64:0 l64:65536 l32:3 00*4")),
        message(17, disk, ""),
        message(2, disk, "l64:1"),
        message(34, disk, "00*8"),
        message(18, disk, "00*24"),
    ];
    let target = Target {
        name: "fuse",
        folder: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus"),
        seeds: vec![Seed::new("begin", init), Seed::new("session", all.concat())],
        seal: None,
        moves: true,
        bound: BOUND,
        cases: 400,
        run: Box::new(outcome),
    };
    replay(&target);
    explore(&target);
}
