//! Real devices and the threads that drive them.

pub mod loop_control;

use parallax_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Completion, Error, ErrorKind, Geometry, Result, Runtime, Tail,
    TailStore, WriteOptions, ZeroOptions,
};
use std::{convert::Infallible, future::Future, path::Path, pin::Pin, sync::Arc, task, time::Duration};

/// How asynchronous I/O reaches the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IoMode {
    /// io_uring where the kernel has and permits it, else threads.
    #[default]
    Auto,
    /// io_uring, or fail.
    Uring,
    /// A pool of threads and poll(2).
    Threads,
}

/// How a reactor is set up.
#[derive(Debug, Clone, Copy)]
pub struct ReactorOptions {
    /// How I/O reaches the kernel.
    pub io: IoMode,
    /// Requests that the kernel may have at one time; more wait in the reactor.
    pub in_flight_max: u32,
    /// Marks the thread as one that writes back memory (`PR_SET_IO_FLUSHER`), so that serving a local block
    /// device cannot deadlock with reclaim. Needs CAP_SYS_RESOURCE; without it a warning is logged.
    pub io_flusher: bool,
}

impl Default for ReactorOptions {
    fn default() -> Self {
        Self { io: IoMode::Auto, in_flight_max: 1024, io_flusher: false }
    }
}

/// Starts reactors.
pub struct Reactor;

impl Reactor {
    /// Starts a named thread with a ring and an executor.
    pub fn start(_name: &str, _options: ReactorOptions) -> Result<ReactorHandle> {
        Err(Error::new(ErrorKind::Unsupported, "the reactor is not built into this version"))
    }
}

/// A running reactor; cheap to clone.
#[derive(Clone)]
pub struct ReactorHandle(Infallible);

impl ReactorHandle {
    /// Starts a task on the reactor. Nobody waits for it.
    pub fn spawn(&self, _task: impl Future<Output = ()> + Send + 'static) {
        match self.0 {}
    }

    /// Starts a task on the reactor and gives its result to whoever awaits the answer, on any executor.
    pub fn run<T: Send + 'static>(&self, _task: impl Future<Output = T> + Send + 'static) -> Join<T> {
        match self.0 {}
    }

    /// Runs a task on the reactor and waits for it. Must not be called on a reactor's own thread.
    pub fn block_on<T: Send + 'static>(&self, _task: impl Future<Output = T> + Send + 'static) -> Result<T> {
        match self.0 {}
    }

    /// Stops the reactor: drops its tasks, waits for requests in flight, ends the thread. Called on the
    /// reactor's own thread it only asks for that.
    pub fn shutdown(&self) {
        match self.0 {}
    }
}

impl Runtime for ReactorHandle {
    fn spawn(&self, _task: BoxFuture<'static, ()>) {
        match self.0 {}
    }
    fn now(&self) -> Duration {
        match self.0 {}
    }
    fn sleep(&self, _delay: Duration) -> BoxFuture<'static, ()> {
        match self.0 {}
    }
}

/// Answer of a task that runs on a reactor. `Cancelled` if the reactor ended or the task panicked.
pub struct Join<T>(Infallible, std::marker::PhantomData<T>);

impl<T> Future for Join<T> {
    type Output = Result<T>;
    fn poll(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> task::Poll<Self::Output> {
        match self.0 {}
    }
}

/// How a device is opened.
#[derive(Debug, Clone, Copy)]
pub struct OpenOptions {
    /// How I/O reaches the kernel.
    pub io: IoMode,
    /// Refuses writing, and shares the device with other readers.
    pub read_only: bool,
    /// Claims the device, so that no second process can open it by mistake.
    pub exclusive: bool,
    /// Goes around the page cache where the filesystem can.
    pub direct: bool,
    /// Threads of the pool, when it is used.
    pub threads: usize,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { io: IoMode::Auto, read_only: false, exclusive: true, direct: true, threads: 8 }
    }
}

/// Opens a file or a block device. `home` runs the requests of callers that are not on a reactor themselves.
pub fn open_device(
    _path: &Path,
    _home: &ReactorHandle,
    _options: OpenOptions,
) -> Result<Arc<dyn BlockDevice>> {
    Err(Error::new(ErrorKind::Unsupported, "devices are not built into this version"))
}

/// A device in memory; sparse.
pub struct RamDevice(Infallible);

impl RamDevice {
    /// An empty one of `capacity` bytes with sectors of `logical_block` bytes.
    pub fn new(_capacity: u64, _logical_block: u32) -> Result<Self> {
        Err(Error::new(ErrorKind::Unsupported, "memory devices are not built into this version"))
    }
}

impl BlockDevice for RamDevice {
    fn geometry(&self) -> Geometry {
        match self.0 {}
    }
    fn read(&self, _: u64, _: Buffer) -> BoxFuture<'_, Completion> {
        match self.0 {}
    }
    fn write(&self, _: u64, _: Buffer, _: WriteOptions) -> BoxFuture<'_, Completion> {
        match self.0 {}
    }
    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        match self.0 {}
    }
    fn discard(&self, _: ByteRange) -> BoxFuture<'_, Result<()>> {
        match self.0 {}
    }
    fn write_zeroes(&self, _: ByteRange, _: ZeroOptions) -> BoxFuture<'_, Result<()>> {
        match self.0 {}
    }
}

/// Tails as files in a directory on tmpfs.
pub struct ShmTails(Infallible);

impl ShmTails {
    /// Opens the directory, creating it with mode 0700.
    pub fn open(_directory: &Path) -> Result<Self> {
        Err(Error::new(ErrorKind::Unsupported, "tails are not built into this version"))
    }
}

impl TailStore for ShmTails {
    fn boot_id(&self) -> u128 {
        match self.0 {}
    }
    fn load(&self, _: &str) -> Result<Option<Vec<u8>>> {
        match self.0 {}
    }
    fn create(&self, _: &str) -> Result<Box<dyn Tail>> {
        match self.0 {}
    }
    fn remove(&self, _: &str) -> Result<()> {
        match self.0 {}
    }
}
