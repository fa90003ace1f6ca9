//! Clients that break the protocol hurt themselves only.

#![expect(clippy::big_endian_bytes, reason = "NBD is big-endian on the wire")]

use crate::bed::{Backing, Bed, SIZE, noise, tool};
use parallax_block::Buffer;
use parallax_device::IoMode;
use parallax_export::nbd::Limits;
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    time::{Duration, Instant},
};

const OPTION: &[u8; 8] = b"IHAVEOPT";

/// The greeting is read and answered.
fn greeted(bed: &Bed) -> UnixStream {
    let mut stream = bed.connect();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    stream.write_all(&[0, 0, 0, 3]).unwrap();
    stream
}

fn option(number: u32, payload: &[u8]) -> Vec<u8> {
    [&OPTION[..], &number.to_be_bytes(), &(payload.len() as u32).to_be_bytes(), payload].concat()
}

/// Transmission of the default export, with simple replies.
fn begun(bed: &Bed) -> UnixStream {
    let mut stream = greeted(bed);
    stream.write_all(&option(1, b"")).unwrap();
    let mut shape = [0; 10];
    stream.read_exact(&mut shape).unwrap();
    assert_eq!(u64::from_be_bytes(shape[..8].try_into().unwrap()), SIZE);
    stream
}

fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    [
        &0x2560_9513u32.to_be_bytes()[..],
        &0u16.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

/// Everything until the server closes. It must close.
fn rest(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => bytes,
        // What a peer sees that was cut off with bytes on their way.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => bytes,
        Err(error) => panic!("the server did not close: {error}"),
    }
}

fn still_serves(bed: &Bed) {
    assert_eq!(tool("nbdinfo", ["--size".to_owned(), bed.uri("")]).trim(), SIZE.to_string());
}

#[test]
fn noise_closes_its_own_connection_only() {
    let bed =
        Bed::new(Backing::Ram(512), Limits { handshake: Duration::from_millis(300), ..Limits::default() });
    let mut bystander = begun(&bed);
    for seed in 0..60 {
        let mut stream = match seed % 3 {
            0 => bed.connect(),
            1 => greeted(&bed),
            _ => begun(&bed),
        };
        // The server may close before all of it has been sent.
        let _ = stream.write_all(&noise(5000, seed));
        let _ = stream.shutdown(std::net::Shutdown::Write);
        rest(&mut stream);
    }
    bystander.write_all(&request(0, 7, 0, 512)).unwrap();
    let mut reply = [0; 16 + 512];
    bystander.read_exact(&mut reply).unwrap();
    assert_eq!(reply[8..16], 7u64.to_be_bytes());
    still_serves(&bed);
}

#[test]
fn malformed_options_are_answered_and_the_handshake_goes_on() {
    let bed = Bed::new(Backing::Ram(512), Limits::default());
    let mut stream = greeted(&bed);
    let bad = [
        option(7, b"\xff\xff\xff\xff\0\0"),
        option(7, b""),
        option(3, b"unwanted"),
        option(8, b"unwanted"),
        option(10, b"\0\0\0\0\0\0\0\0"),
        option(5, b""),
        option(99, b"what"),
        option(7, &[0; 70_000]),
    ];
    for option in &bad {
        stream.write_all(option).unwrap();
        let mut header = [0; 20];
        stream.read_exact(&mut header).unwrap();
        let kind = u32::from_be_bytes(header[12..16].try_into().unwrap());
        assert!(kind >= 1 << 31, "an error, not {kind}");
        let length = u32::from_be_bytes(header[16..20].try_into().unwrap());
        stream.read_exact(&mut vec![0; length as usize]).unwrap();
    }
    stream.write_all(&option(1, b"")).unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
}

#[test]
fn a_client_that_does_not_ask_for_large_sectors_is_told_to() {
    let bed = Bed::new(Backing::Ram(4096), Limits::default());
    let mut stream = greeted(&bed);
    stream.write_all(&option(7, b"\0\0\0\0\0\0")).unwrap();
    let mut header = [0; 20];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(header[12..16], 0x8000_0008u32.to_be_bytes(), "the block size is required");
    assert_eq!(bed.server.connections(""), 0, "it has not begun");
}

#[test]
fn a_client_that_goes_in_the_middle_of_a_write_changes_nothing() {
    for backing in [Backing::Ram(512), Backing::File(IoMode::Uring), Backing::File(IoMode::Threads)] {
        let bed = Bed::new(backing, Limits::default());
        for sent in [0, 100, 4096, 300_000] {
            let mut stream = begun(&bed);
            stream.write_all(&request(1, 1, 0, 1 << 20)).unwrap();
            stream.write_all(&vec![1; sent]).unwrap();
            drop(stream);
        }
        while bed.server.connections("") > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let device = Arc::clone(&bed.device);
        let (buffer, result) = bed.run(async move { device.read(0, Buffer::zeroed(1 << 20)).await });
        result.unwrap();
        assert!(buffer.iter().all(|byte| *byte == 0));
        still_serves(&bed);
    }
}

#[test]
fn a_silent_client_is_cut_off() {
    let bed =
        Bed::new(Backing::Ram(512), Limits { handshake: Duration::from_millis(200), ..Limits::default() });
    let started = Instant::now();
    rest(&mut greeted(&bed));
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(150) && took < Duration::from_secs(5), "{took:?}");
    // One that has begun may be silent for as long as it likes.
    let mut stream = begun(&bed);
    std::thread::sleep(Duration::from_millis(400));
    stream.write_all(&request(3, 1, 0, 0)).unwrap();
    stream.read_exact(&mut [0; 16]).unwrap();
}

#[test]
fn connections_beyond_the_bound_are_turned_away() {
    let bed = Bed::new(Backing::Ram(512), Limits { connections_max: 2, ..Limits::default() });
    let (first, _second) = (begun(&bed), begun(&bed));
    assert!(rest(&mut bed.connect()).is_empty());
    drop(first);
    while bed.server.connections("") > 1 {
        std::thread::sleep(Duration::from_millis(5));
    }
    still_serves(&bed);
}

#[test]
fn a_client_that_does_not_read_its_replies_is_not_read_from() {
    let limits = Limits { requests_max: 8, bytes_max: 1 << 20, ..Limits::default() };
    let bed = Bed::new(Backing::Ram(512), limits);
    let mut stream = begun(&bed);
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    // A hundred thousand reads of 256 KiB are 25 GiB of replies that nobody reads.
    let flood = request(0, 1, 0, 256 << 10).repeat(100_000);
    let error = stream.write_all(&flood).unwrap_err();
    assert!(matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "{error}");
    still_serves(&bed);
}

#[test]
fn a_request_larger_than_all_room_is_served_alone() {
    let bed = Bed::new(Backing::Ram(512), Limits { bytes_max: 4096, ..Limits::default() });
    let mut stream = begun(&bed);
    for cookie in 0..3 {
        stream.write_all(&request(0, cookie, 0, 1 << 20)).unwrap();
    }
    let mut replies = vec![0; 3 * (16 + (1 << 20))];
    stream.read_exact(&mut replies).unwrap();
}

#[test]
fn a_write_larger_than_offered_ends_the_connection() {
    let bed = Bed::new(Backing::Ram(512), Limits::default());
    let mut stream = begun(&bed);
    stream.write_all(&request(1, 1, 0, (32 << 20) + 512)).unwrap();
    assert!(rest(&mut stream).is_empty());
    still_serves(&bed);
}
