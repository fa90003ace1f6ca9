//! One set of tests for every way to a real device: a file and a loop device, by io_uring and by threads.

use parallax_block::{
    Allocation, BLOCK_SIZE, BlockDevice, Buffer, ByteRange, ErrorKind, WriteOptions, ZeroOptions, join_all,
};
use parallax_device::{IoMode, OpenOptions, Reactor, ReactorHandle, ReactorOptions, open_device};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};
use tempfile::TempDir;

const SIZE: u64 = 8 << 20;

/// A place to test in.
struct Bed {
    name: &'static str,
    path: PathBuf,
    reactor: ReactorHandle,
    io: IoMode,
    loop_device: bool,
    backing: PathBuf,
    _directory: TempDir,
}

impl Bed {
    fn new(io: IoMode, loop_device: bool) -> Option<Self> {
        let name = match (io, loop_device) {
            (IoMode::Uring, false) => "file by io_uring",
            (IoMode::Uring, true) => "loop device by io_uring",
            (_, false) => "file by threads",
            (_, true) => "loop device by threads",
        };
        let directory = tempfile::tempdir().unwrap();
        let backing = directory.path().join("disk");
        File::create(&backing).unwrap().set_len(SIZE).unwrap();
        let path = if loop_device {
            let output = Command::new("losetup").args(["--find", "--show"]).arg(&backing).output();
            let output = match output {
                Ok(output) if output.status.success() => output,
                _ => {
                    eprintln!("skipped: {name}: loop devices need root");
                    return None;
                }
            };
            PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
        } else {
            backing.clone()
        };
        let reactor = Reactor::start("bed", ReactorOptions { io, ..ReactorOptions::default() }).unwrap();
        Some(Self { name, path, reactor, io, loop_device, backing, _directory: directory })
    }

    fn options(&self) -> OpenOptions {
        OpenOptions { io: self.io, ..OpenOptions::default() }
    }

    fn open(&self) -> Arc<dyn BlockDevice> {
        open_device(&self.path, &self.reactor, self.options()).unwrap()
    }

    fn run<T: Send + 'static>(&self, test: impl Future<Output = T> + Send + 'static) -> T {
        self.reactor.block_on(test).unwrap()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.reactor.shutdown();
        if self.loop_device {
            let detached = Command::new("losetup").arg("--detach").arg(&self.path).status();
            assert!(detached.unwrap().success());
        }
    }
}

fn everywhere(test: impl Fn(&Bed)) {
    for loop_device in [false, true] {
        for io in [IoMode::Uring, IoMode::Threads] {
            if let Some(bed) = Bed::new(io, loop_device) {
                eprintln!("on a {}", bed.name);
                test(&bed);
            }
        }
    }
}

fn on_files(test: impl Fn(&Bed)) {
    for io in [IoMode::Uring, IoMode::Threads] {
        test(&Bed::new(io, false).unwrap());
    }
}

fn filled(length: usize, byte: u8) -> Buffer {
    let mut buffer = Buffer::zeroed(length);
    buffer.fill(byte);
    buffer
}

fn range(offset: u64, length: u64) -> ByteRange {
    ByteRange::new(offset, length).unwrap()
}

async fn read(device: &dyn BlockDevice, offset: u64, length: usize) -> Buffer {
    let (buffer, result) = device.read(offset, Buffer::zeroed(length)).await;
    result.unwrap();
    buffer
}

async fn write(device: &dyn BlockDevice, offset: u64, buffer: Buffer) {
    device.write(offset, buffer, WriteOptions::default()).await.1.unwrap();
}

#[test]
fn what_is_written_is_read_again() {
    everywhere(|bed| {
        let device = bed.open();
        assert_eq!(device.geometry().capacity, SIZE);
        assert_eq!(device.geometry().logical_block, 512);
        bed.run(async move {
            assert!(
                read(&*device, 0, 8192).await.iter().all(|byte| *byte == 0),
                "sparse files read as zeroes"
            );
            write(&*device, 512, filled(1024, 7)).await;
            let got = read(&*device, 0, 2048).await;
            assert!(got[..512].iter().all(|byte| *byte == 0));
            assert!(got[512..1536].iter().all(|byte| *byte == 7));
            assert!(got[1536..].iter().all(|byte| *byte == 0));
            write(&*device, SIZE - 512, filled(512, 9)).await;
            assert!(read(&*device, SIZE - 512, 512).await.iter().all(|byte| *byte == 9));
            assert!(read(&*device, 0, 0).await.is_empty());
            device.flush().await.unwrap();
        });
        let mut byte = [0];
        File::open(&bed.backing).unwrap().read_exact_at(&mut byte, 1535).unwrap();
        assert_eq!(byte, [7]);
    });
}

#[test]
fn many_requests_are_in_flight_together() {
    everywhere(|bed| {
        let device = bed.open();
        bed.run(async move {
            let blocks = SIZE / BLOCK_SIZE as u64;
            let writes = (0..blocks).map(|block| {
                device.write(
                    block * BLOCK_SIZE as u64,
                    filled(BLOCK_SIZE, (block % 251) as u8),
                    WriteOptions::default(),
                )
            });
            for (_, result) in join_all(writes.collect()).await {
                result.unwrap();
            }
            let reads = (0..blocks)
                .rev()
                .map(|block| device.read(block * BLOCK_SIZE as u64, Buffer::zeroed(BLOCK_SIZE)));
            for (index, (buffer, result)) in join_all(reads.collect()).await.into_iter().enumerate() {
                result.unwrap();
                let block = blocks - 1 - index as u64;
                assert!(buffer.iter().all(|byte| *byte == (block % 251) as u8), "block {block}");
            }
        });
    });
}

#[test]
fn requests_from_outside_a_reactor_go_through_the_home_reactor() {
    everywhere(|bed| {
        let device = bed.open();
        let other = Reactor::start("other", ReactorOptions::default()).unwrap();
        let same = Arc::clone(&device);
        other.block_on(async move { write(&*same, 4096, filled(4096, 3)).await }).unwrap();
        other.shutdown();
        let runtime = tokio_like(async move { read(&*device, 4096, 4096).await });
        assert!(runtime.iter().all(|byte| *byte == 3));
    });
}

/// Polls on this thread, which is no reactor.
fn tokio_like<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = std::pin::pin!(future);
    loop {
        if let std::task::Poll::Ready(output) =
            future.as_mut().poll(&mut std::task::Context::from_waker(&waker))
        {
            return output;
        }
        std::thread::park();
    }
}

#[test]
fn what_is_not_a_multiple_of_the_sector_is_refused() {
    everywhere(|bed| {
        let device = bed.open();
        bed.run(async move {
            for (offset, length) in [(1, 512), (512, 511), (0, SIZE as usize + 512), (SIZE, 512)] {
                let (buffer, result) = device.read(offset, Buffer::zeroed(length)).await;
                assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidArgument, "{offset} {length}");
                assert_eq!(buffer.len(), length, "the buffer comes back");
                let (_, result) =
                    device.write(offset, Buffer::zeroed(length), WriteOptions { fua: true }).await;
                assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidArgument);
            }
            let odd = range(3, 512);
            assert_eq!(device.discard(odd).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
            let zeroes = device.write_zeroes(odd, ZeroOptions::default()).await;
            assert_eq!(zeroes.unwrap_err().kind(), ErrorKind::InvalidArgument);
            assert_eq!(device.status(odd, 1).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
        });
    });
}

#[test]
fn memory_that_is_not_aligned_is_copied() {
    everywhere(|bed| {
        let device = bed.open();
        bed.run(async move {
            let mut whole = filled(4096 + 100, 5);
            let odd = whole.split_off(100);
            let (odd, result) = device.write(8192, odd, WriteOptions::default()).await;
            result.unwrap();
            let mut whole = Buffer::zeroed(4096 + 100);
            let (got, result) = device.read(8192, whole.split_off(100)).await;
            result.unwrap();
            assert_eq!(got[..], odd[..]);
        });
    });
}

#[test]
fn a_write_with_fua_needs_no_flush() {
    everywhere(|bed| {
        let device = bed.open();
        bed.run(async move {
            let (_, result) = device.write(0, filled(4096, 1), WriteOptions { fua: true }).await;
            result.unwrap();
            device.write_zeroes(range(0, 512), ZeroOptions { unmap: false, fua: true }).await.unwrap();
            assert_eq!(read(&*device, 0, 1024).await[511..513], [0, 1]);
        });
    });
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes_and_become_holes() {
    everywhere(|bed| {
        let device = bed.open();
        let loop_device = bed.loop_device;
        bed.run(async move {
            write(&*device, 0, filled(1 << 20, 6)).await;
            device.flush().await.unwrap();
            device.discard(range(4096, 8192)).await.unwrap();
            device.write_zeroes(range(65536, 4096), ZeroOptions { unmap: true, fua: false }).await.unwrap();
            device.write_zeroes(range(131_072, 512), ZeroOptions { unmap: false, fua: false }).await.unwrap();
            let got = read(&*device, 0, 1 << 20).await;
            for (index, byte) in got.iter().enumerate() {
                let zero = matches!(index, 4096..12288 | 65536..69632 | 131_072..131_584);
                assert_eq!(*byte, if zero { 0 } else { 6 }, "byte {index}");
            }
            let status = device.status(range(0, 65536), 10).await.unwrap();
            let found: Vec<_> = status
                .iter()
                .map(|extent| (extent.range.offset(), extent.range.length(), extent.allocation))
                .collect();
            if loop_device {
                assert_eq!(found, [(0, 65536, Allocation::Data)]);
            } else {
                assert_eq!(
                    found,
                    [
                        (0, 4096, Allocation::Data),
                        (4096, 8192, Allocation::Hole),
                        (12288, 53248, Allocation::Data)
                    ]
                );
                assert_eq!(device.status(range(0, 65536), 2).await.unwrap().len(), 2);
            }
        });
    });
}

#[test]
fn a_second_opener_is_told_that_the_device_is_busy() {
    everywhere(|bed| {
        let device = bed.open();
        let error = open_device(&bed.path, &bed.reactor, bed.options()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert!(error.to_string().contains("fuser"), "{error}");
        drop(device);
        // A reactor may hold the last request for a moment longer than its caller.
        drop(bed.open());
    });
}

#[test]
fn the_claim_outlives_the_device_while_a_request_is_in_flight() {
    on_files(|bed| {
        let device = bed.open();
        let reactor = bed.reactor.clone();
        let (path, options) = (bed.path.clone(), bed.options());
        bed.run(async move {
            let mut flush = device.write(0, filled(4 << 20, 1), WriteOptions { fua: true });
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(flush.as_mut().poll(&mut cx).is_pending());
            drop(flush);
            drop(device);
            // This task keeps the ring's thread from reaping; a pool's thread may be done already.
            if options.io == IoMode::Uring {
                let error = open_device(&path, &reactor, options).err().unwrap();
                assert_eq!(error.kind(), ErrorKind::Busy);
            }
        });
        let free = || open_device(&bed.path, &bed.reactor, bed.options());
        for _ in 0..200 {
            if free().is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        free().map(drop).unwrap();
    });
}

#[test]
fn read_only_devices_refuse_writing_and_are_shared() {
    everywhere(|bed| {
        fs::write(&bed.backing, vec![8; SIZE as usize]).unwrap();
        let options = OpenOptions { read_only: true, ..bed.options() };
        let device = open_device(&bed.path, &bed.reactor, options).unwrap();
        if !bed.loop_device {
            drop(open_device(&bed.path, &bed.reactor, options).unwrap());
            let error = open_device(&bed.path, &bed.reactor, bed.options()).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Busy, "a reader keeps writers out");
        }
        bed.run(async move {
            assert!(device.geometry().read_only);
            assert!(read(&*device, 0, 512).await.iter().all(|byte| *byte == 8));
            let (_, result) = device.write(0, Buffer::zeroed(512), WriteOptions::default()).await;
            assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnly);
            assert_eq!(device.discard(range(0, 512)).await.unwrap_err().kind(), ErrorKind::ReadOnly);
            let zeroes = device.write_zeroes(range(0, 512), ZeroOptions::default()).await;
            assert_eq!(zeroes.unwrap_err().kind(), ErrorKind::ReadOnly);
        });
    });
}

#[test]
fn a_device_that_shrank_gives_an_error_not_zeroes() {
    everywhere(|bed| {
        let device = bed.open();
        File::options().write(true).open(&bed.backing).unwrap().set_len(4096).unwrap();
        bed.run(async move {
            let (_, result) = device.read(1 << 20, Buffer::zeroed(4096)).await;
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Io);
        });
    });
}

#[test]
fn a_full_filesystem_is_out_of_space() {
    for io in [IoMode::Uring, IoMode::Threads] {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(directory.path())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let path = directory.path().join("disk");
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        let reactor = Reactor::start("full", ReactorOptions { io, ..ReactorOptions::default() }).unwrap();
        let device = open_device(&path, &reactor, OpenOptions { io, ..OpenOptions::default() }).unwrap();
        let kind = reactor
            .block_on(async move {
                let (_, result) = device.write(0, filled(2 << 20, 1), WriteOptions::default()).await;
                let kind = result.unwrap_err().kind();
                device.discard(range(0, SIZE)).await.unwrap();
                write(&*device, 0, filled(4096, 1)).await;
                kind
            })
            .unwrap();
        reactor.shutdown();
        assert!(Command::new("umount").arg(directory.path()).status().unwrap().success());
        assert_eq!(kind, ErrorKind::OutOfSpace);
    }
}

#[test]
fn only_files_and_block_devices_are_opened() {
    let reactor = Reactor::start("odd", ReactorOptions::default()).unwrap();
    let open = |path: &str| open_device(Path::new(path), &reactor, OpenOptions::default()).err().unwrap();
    assert_eq!(open("/dev/null").kind(), ErrorKind::InvalidArgument);
    assert_eq!(open("/tmp").kind(), ErrorKind::InvalidArgument);
    let missing = open("/nowhere/at/all");
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(missing.to_string().contains("/nowhere/at/all"), "{missing}");
    reactor.shutdown();
}
