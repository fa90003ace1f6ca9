//! Exports come and go, and the server ends without losing what it was doing.

use crate::bed::{Backing, Bed, SIZE, everywhere, tool};
use parallax_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Completion, ErrorKind, Geometry, Result, Runtime,
    WriteOptions, ZeroOptions,
};
use parallax_device::{RamDevice, ReactorHandle};
use parallax_export::nbd::{Limits, NbdExport, NbdServer};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    time::Duration,
};

/// Memory that takes its time.
struct Slow {
    memory: RamDevice,
    clock: ReactorHandle,
}

impl BlockDevice for Slow {
    fn geometry(&self) -> Geometry {
        self.memory.geometry()
    }
    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Completion> {
        self.memory.read(offset, buffer)
    }
    fn write(&self, offset: u64, buffer: Buffer, options: WriteOptions) -> BoxFuture<'_, Completion> {
        Box::pin(async move {
            self.clock.sleep(Duration::from_millis(300)).await;
            self.memory.write(offset, buffer, options).await
        })
    }
    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        self.memory.flush()
    }
    fn discard(&self, _: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { panic!("a device with a bug") })
    }
    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> BoxFuture<'_, Result<()>> {
        self.memory.write_zeroes(range, options)
    }
}

fn slow(bed: &Bed) -> Arc<Slow> {
    let slow = Arc::new(Slow { memory: RamDevice::new(SIZE, 512).unwrap(), clock: bed.reactors[1].clone() });
    let export = NbdExport {
        name: "slow".to_owned(),
        device: slow.clone(),
        read_only: false,
        description: String::new(),
    };
    bed.server.add_export(export).unwrap();
    slow
}

/// A connection to the slow export that has sent a write and not read its reply.
fn writing(bed: &Bed) -> UnixStream {
    let mut stream = bed.connect();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04slow").unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    let mut write = b"\x25\x60\x95\x13\0\0\0\x01\0\0\0\0\0\0\0\x2a\0\0\0\0\0\0\0\0\0\0\x02\0".to_vec();
    write.extend([5; 512]);
    stream.write_all(&write).unwrap();
    // The server has parsed it once the device is busy with it.
    std::thread::sleep(Duration::from_millis(100));
    stream
}

fn answered(mut stream: UnixStream, memory: &RamDevice, bed: &Bed) {
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    assert_eq!(reply, b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x2a", "one good reply, then the end");
    let read = memory.read(0, Buffer::zeroed(512));
    let mut read = std::pin::pin!(read);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready((buffer, _)) = read.as_mut().poll(&mut cx) else { panic!("memory is ready") };
    assert!(buffer.iter().all(|byte| *byte == 5));
    assert_eq!(bed.server.connections("slow"), 0);
}

#[test]
fn shutdown_waits_for_what_is_in_flight() {
    everywhere(|bed| {
        let device = slow(bed);
        let stream = writing(bed);
        bed.shut_down();
        answered(stream, &device.memory, bed);
        assert!(!bed.server.socket().exists());
        assert!(UnixStream::connect(bed.server.socket()).is_err());
    });
}

#[test]
fn removing_an_export_ends_its_clients_only() {
    everywhere(|bed| {
        let device = slow(bed);
        let stream = writing(bed);
        let server = bed.server.clone();
        bed.run(async move { server.remove_export("slow").await.unwrap() });
        answered(stream, &device.memory, bed);
        let server = bed.server.clone();
        let again = bed.run(async move { server.remove_export("slow").await.unwrap_err() });
        assert_eq!(again.kind(), ErrorKind::NotFound);
        tool("nbdinfo", [bed.uri("")]);
    });
}

#[test]
fn a_panic_in_a_device_fails_one_request() {
    let bed = Bed::new(Backing::Ram(512), Limits::default());
    slow(&bed);
    crate::bed::nbdsh(
        &bed.uri("slow"),
        "
    try:
        h.trim(512, 0)
    except nbd.Error as error:
        assert error.errnum == errno.EIO, error.errnum
    else:
        assert False
    assert h.pread(512, 0) == bytes(512)
    ",
    );
}

#[test]
fn names_are_unique_and_a_socket_has_one_server() {
    let bed = Bed::new(Backing::Ram(512), Limits::default());
    let export = || NbdExport {
        name: String::new(),
        device: Arc::clone(&bed.device),
        read_only: false,
        description: String::new(),
    };
    assert_eq!(bed.server.add_export(export()).unwrap_err().kind(), ErrorKind::AlreadyExists);
    let second = NbdServer::start(&bed.reactors, &bed.server.socket(), vec![export()], Limits::default());
    assert_eq!(second.err().unwrap().kind(), ErrorKind::Busy);
    let other =
        NbdServer::start(&bed.reactors, &bed.path("other"), vec![export()], Limits::default()).unwrap();
    bed.run(async move { other.shutdown().await });
}
