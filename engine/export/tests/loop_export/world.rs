//! What the tests share: a device in memory that counts and fails on request, a runtime, and commands.

use parallax_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Completion, Error, ErrorKind, Geometry, Result, Runtime,
    WriteOptions, ZeroOptions,
};
use parallax_export::loop_export::{ExportKey, Limits, LoopExports};
use parking_lot::RwLock;
use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread,
    time::{Duration, Instant},
};

const CHUNK: usize = 64 << 10;

/// A sparse device in memory.
pub(crate) struct MemoryDevice {
    logical_block: u32,
    discard_granularity: u32,
    read_only: bool,
    capacity: AtomicU64,
    chunks: Vec<RwLock<Option<Box<[u8]>>>>,
    pub(crate) writes: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) zeroed: AtomicU64,
    pub(crate) unmapped: AtomicU64,
    pub(crate) fail: AtomicBool,
    pub(crate) full: AtomicBool,
    /// Requests wait while this is set.
    hang: AtomicBool,
    pub(crate) waiting: AtomicU64,
    /// Makes questions of the kernel about the device's shape take forever.
    pub(crate) slow_to_tell: AtomicBool,
}

/// Makes a device hang until it is dropped, so that a failed test ends too.
pub(crate) struct Hang(Arc<MemoryDevice>);

impl Hang {
    pub(crate) fn of(device: &Arc<MemoryDevice>) -> Self {
        device.hang.store(true, SeqCst);
        Self(Arc::clone(device))
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        self.0.hang.store(false, SeqCst);
    }
}

/// How a device differs from the ordinary one.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) capacity: u64,
    pub(crate) capacity_max: u64,
    pub(crate) logical_block: u32,
    pub(crate) discard_granularity: u32,
    pub(crate) read_only: bool,
}

impl Shape {
    pub(crate) fn of(capacity: u64) -> Self {
        Self {
            capacity,
            capacity_max: capacity,
            logical_block: 512,
            discard_granularity: 4096,
            read_only: false,
        }
    }
}

impl MemoryDevice {
    pub(crate) fn new(shape: Shape) -> Arc<Self> {
        let chunks = shape.capacity_max.div_ceil(CHUNK as u64);
        Arc::new(Self {
            logical_block: shape.logical_block,
            discard_granularity: shape.discard_granularity,
            read_only: shape.read_only,
            capacity: AtomicU64::new(shape.capacity),
            chunks: (0..chunks).map(|_| RwLock::new(None)).collect(),
            writes: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            zeroed: AtomicU64::new(0),
            unmapped: AtomicU64::new(0),
            fail: AtomicBool::new(false),
            full: AtomicBool::new(false),
            hang: AtomicBool::new(false),
            waiting: AtomicU64::new(0),
            slow_to_tell: AtomicBool::new(false),
        })
    }

    pub(crate) fn grow(&self, capacity: u64) {
        assert!(capacity.div_ceil(CHUNK as u64) <= self.chunks.len() as u64);
        self.capacity.store(capacity, SeqCst);
    }

    /// Bytes of memory behind it.
    pub(crate) fn used(&self) -> u64 {
        let chunks = self.chunks.iter().filter(|chunk| chunk.read().is_some()).count();
        (chunks * CHUNK) as u64
    }

    fn each_piece(offset: u64, length: usize, mut piece: impl FnMut(usize, std::ops::Range<usize>, usize)) {
        let mut done = 0;
        while done < length {
            let at = offset as usize + done;
            let within = at % CHUNK;
            let count = (CHUNK - within).min(length - done);
            piece(at / CHUNK, within..within + count, done);
            done += count;
        }
    }

    async fn admit(&self, writing: bool) -> Result<()> {
        if self.hang.load(SeqCst) {
            self.waiting.fetch_add(1, SeqCst);
            while self.hang.load(SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.waiting.fetch_sub(1, SeqCst);
        }
        if self.fail.load(SeqCst) {
            return Err(Error::new(ErrorKind::Io, "the test asked for a failure"));
        }
        if writing && self.full.load(SeqCst) {
            return Err(Error::new(ErrorKind::OutOfSpace, "the test asked for a full pool"));
        }
        Ok(())
    }
}

impl BlockDevice for MemoryDevice {
    fn geometry(&self) -> Geometry {
        let asked_by_kernel = thread::current().name().is_some_and(|name| name.starts_with("fuse-"));
        while asked_by_kernel && self.slow_to_tell.load(SeqCst) {
            thread::sleep(Duration::from_millis(10));
        }
        Geometry {
            capacity: self.capacity.load(SeqCst),
            logical_block: self.logical_block,
            physical_block: 4096,
            discard_granularity: self.discard_granularity,
            read_only: self.read_only,
        }
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Completion> {
        Box::pin(async move {
            if let Err(error) = self.admit(false).await {
                return (buffer, Err(error));
            }
            let length = buffer.len();
            Self::each_piece(offset, length, |chunk, within, at| {
                let target = &mut buffer[at..at + within.len()];
                match &*self.chunks[chunk].read() {
                    Some(bytes) => target.copy_from_slice(&bytes[within]),
                    None => target.fill(0),
                }
            });
            (buffer, Ok(()))
        })
    }

    fn write(&self, offset: u64, buffer: Buffer, _: WriteOptions) -> BoxFuture<'_, Completion> {
        Box::pin(async move {
            if let Err(error) = self.admit(true).await {
                return (buffer, Err(error));
            }
            self.writes.fetch_add(1, Relaxed);
            Self::each_piece(offset, buffer.len(), |chunk, within, at| {
                let source = &buffer[at..at + within.len()];
                let mut slot = self.chunks[chunk].write();
                slot.get_or_insert_with(|| vec![0; CHUNK].into())[within].copy_from_slice(source);
            });
            (buffer, Ok(()))
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.admit(false).await?;
            self.flushes.fetch_add(1, SeqCst);
            Ok(())
        })
    }

    fn discard(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        self.write_zeroes(range, ZeroOptions { unmap: true, fua: false })
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.admit(false).await?;
            let counter = if options.unmap { &self.unmapped } else { &self.zeroed };
            counter.fetch_add(range.length(), SeqCst);
            Self::each_piece(range.offset(), range.length() as usize, |chunk, within, _| {
                let mut slot = self.chunks[chunk].write();
                if within.len() == CHUNK {
                    *slot = None;
                } else if let Some(bytes) = &mut *slot {
                    bytes[within].fill(0);
                }
            });
            Ok(())
        })
    }
}

/// Tasks on a small pool of threads.
pub(crate) struct Pool {
    runtime: tokio::runtime::Runtime,
    start: Instant,
}

impl Pool {
    pub(crate) fn new() -> Arc<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        Arc::new(Self { runtime, start: Instant::now() })
    }
}

impl Runtime for Pool {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.runtime.spawn(task);
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(delay))
    }
}

/// A running loop export and its directory.
pub(crate) struct World {
    pub(crate) exports: LoopExports,
    pub(crate) directory: tempfile::TempDir,
}

impl World {
    /// Starts one; `None`, with the reason printed, where the kernel does not offer what it needs.
    pub(crate) fn start() -> Option<Self> {
        if !machine_can() {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let exports = LoopExports::start(directory.path(), Pool::new(), Limits::default()).unwrap();
        Some(Self { exports, directory })
    }

    /// An empty directory to mount on.
    pub(crate) fn mount_point(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            // A failed test must not leave a dead filesystem behind.
            for name in std::fs::read_dir(self.directory.path()).unwrap().flatten() {
                try_run("umount", &["-q", "-l", text(&name.path())]);
            }
        }
        let held = self.exports.shutdown().unwrap();
        if !thread::panicking() {
            assert!(held.is_empty(), "the test left {held:?} in use");
        }
    }
}

/// Whether this machine can run loop exports at all.
pub(crate) fn machine_can() -> bool {
    for node in ["/dev/fuse", "/dev/loop-control"] {
        if let Err(error) = OpenOptions::new().read(true).write(true).open(node) {
            eprintln!("SKIPPED: {node}: {error}");
            return false;
        }
    }
    true
}

pub(crate) fn key(text: &str) -> ExportKey {
    ExportKey::new(text).unwrap()
}

/// Runs a program; panics with its output if it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = try_run(program, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Runs a program.
pub(crate) fn try_run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Text of a path, for command lines.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Unmounts, and waits until nobody has the device mounted any more. Processes that were just told of an error may
/// still be leaving, and a container that starts on this machine has copies of all mounts for a moment.
pub(crate) fn unmount(mount: &Path, device: &Path) {
    let limit = Duration::from_secs(20);
    let start = Instant::now();
    while !try_run("umount", &[text(mount)]).status.success() {
        assert!(start.elapsed() < limit, "{} cannot be unmounted within {limit:?}", mount.display());
        thread::sleep(Duration::from_millis(50));
    }
    while OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device).is_err() {
        assert!(start.elapsed() < limit, "{} stays mounted somewhere for {limit:?}", device.display());
        thread::sleep(Duration::from_millis(50));
    }
}
