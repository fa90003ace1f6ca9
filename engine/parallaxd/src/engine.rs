//! An open pool and the threads that serve it.
//!
//! Invariants:
//! * The device is opened exclusively: two processes never serve one pool on one node.
//! * A device is formatted only when that was asked for and nothing recognisable is on it.
//! * After [`Engine::close`] no request is in flight and the device is free for the next process.

use parallax_block::{BlockDevice, Error, ErrorKind, Result, ResultExt, Runtime};
use parallax_device::{IoMode, OpenOptions, Reactor, ReactorHandle, ReactorOptions, ShmTails, open_device};
use parallax_store::{CreatePool, Environment, Name, Pool, Timestamp};
use std::{
    fs::OpenOptions as FileOptions,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// How an engine is set up.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Block device or file.
    pub path: PathBuf,
    /// How I/O reaches the kernel.
    pub io: IoMode,
    /// Threads that move data.
    pub data_threads: usize,
    /// Whether the data threads are marked as writing back memory.
    pub io_flusher: bool,
    /// Directory in shared memory for what must outlive the process.
    pub tails: PathBuf,
    /// Name of this host in the pool.
    pub host: Name,
    /// Formats the device if it is blank.
    pub create: Option<Format>,
}

/// Formatting of a blank device.
#[derive(Debug, Clone, Copy, Default)]
pub struct Format {
    /// Creates the file with this many bytes if it does not exist.
    pub file_bytes: Option<u64>,
    /// Bytes of an extent.
    pub extent_bytes: Option<u64>,
    /// Formats over something recognisable too.
    pub force: bool,
}

/// Two, or as many as there are cores if that is less.
pub fn default_data_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2))
}

/// Now, by the wall clock that the store does not have.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The host's name, as the pool's slots know it.
pub fn host_name() -> Result<Name> {
    let uname = rustix::system::uname();
    Name::new(uname.nodename().to_string_lossy().into_owned())
}

/// Randomness for identities.
pub fn entropy() -> Arc<dyn Fn() -> u128 + Send + Sync> {
    Arc::new(|| uuid::Uuid::new_v4().as_u128())
}

/// The threads that move data, without a pool.
pub struct Reactors(Vec<ReactorHandle>);

impl Reactors {
    /// Starts `count` of them.
    pub fn start(count: usize, io: IoMode, io_flusher: bool) -> Result<Self> {
        let mut started = Self(Vec::with_capacity(count));
        for number in 0..count.max(1) {
            let options = ReactorOptions { io, io_flusher, ..ReactorOptions::default() };
            started.0.push(
                Reactor::start(&format!("data-{number}"), options)
                    .context(|| format!("starting data thread {number}"))?,
            );
        }
        Ok(started)
    }

    /// The first one, where the pool lives.
    pub fn home(&self) -> &ReactorHandle {
        &self.0[0]
    }

    /// All of them.
    pub fn all(&self) -> &[ReactorHandle] {
        &self.0
    }

    /// Stops them. Blocks until requests in flight have finished.
    pub fn shutdown(&self) {
        for reactor in &self.0 {
            reactor.shutdown();
        }
    }
}

impl Drop for Reactors {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// An open pool and the threads that serve it.
pub struct Engine {
    pool: Pool,
    device: Arc<dyn BlockDevice>,
    path: PathBuf,
    host: Name,
    reactors: Arc<Reactors>,
}

impl Engine {
    /// Starts the threads, opens the device, formats it if that was asked for and it is blank, opens the pool.
    pub async fn open(options: EngineOptions) -> Result<Self> {
        let reactors = Arc::new(Reactors::start(options.data_threads, options.io, options.io_flusher)?);
        let device = open_for_pool(&options, &reactors)?;
        let environment = environment(&options, &reactors)?;
        let found = {
            let device = Arc::clone(&device);
            reactors.home().run(async move { parallax_store::recognise(device.as_ref()).await }).await??
        };
        let blank = found.is_none();
        if let Some(format) = options.create
            && (blank || format.force)
        {
            let request = CreatePool { extent_bytes: format.extent_bytes, force: format.force };
            let (device, environment) = (Arc::clone(&device), environment.clone());
            reactors
                .home()
                .run(async move { Pool::create(device, request, &environment).await })
                .await?
                .context(|| format!("formatting {}", options.path.display()))?;
            tracing::info!(path = %options.path.display(), "formatted a blank device as a pool");
        } else if blank {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "{path} is blank; `parallax pool create {path}` makes it a pool",
                    path = options.path.display()
                ),
            ));
        }
        let pool = {
            let device = Arc::clone(&device);
            let opened = reactors.home().run(async move { Pool::open(device, environment).await }).await?;
            opened.context(|| match &found {
                Some(what) => format!("opening the pool on {} (found: {what})", options.path.display()),
                None => format!("opening the pool on {}", options.path.display()),
            })?
        };
        Ok(Self { pool, device, path: options.path, host: options.host, reactors })
    }

    /// Runs work on the pool's reactor and waits for it. Giving up the answer does not stop the work.
    pub async fn run<T, Work>(&self, work: impl FnOnce(Pool) -> Work + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        Work: Future<Output = Result<T>> + Send + 'static,
    {
        let pool = self.pool.clone();
        self.reactors.home().run(async move { work(pool).await }).await?
    }

    /// The pool, for what needs no I/O.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The pool's device.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Where the pool's device is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Name of this host.
    pub fn host(&self) -> &Name {
        &self.host
    }

    /// The data threads.
    pub fn reactors(&self) -> &Reactors {
        &self.reactors
    }

    /// Tasks and time of the pool's own thread.
    pub fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(self.reactors.home().clone())
    }

    /// Drains, checkpoints, releases, stops the threads.
    pub async fn close(&self) -> Result<()> {
        let closed = self.run(|pool| async move { pool.close().await }).await;
        let reactors = Arc::clone(&self.reactors);
        // Waiting for requests in flight blocks, and this may be the only thread of its executor.
        let stopped = tokio::task::spawn_blocking(move || reactors.shutdown()).await;
        closed?;
        stopped
            .map_err(|error| Error::new(ErrorKind::Io, "stopping the data threads failed").with_source(error))
    }
}

fn open_for_pool(options: &EngineOptions, reactors: &Reactors) -> Result<Arc<dyn BlockDevice>> {
    if let Some(Format { file_bytes: Some(bytes), .. }) = options.create {
        create_file(&options.path, bytes)?;
    }
    open_device(&options.path, reactors.home(), OpenOptions { io: options.io, ..OpenOptions::default() })
        .context(|| format!("opening {}", options.path.display()))
}

/// Creates a sparse file for a pool; leaves what exists alone.
fn create_file(path: &Path, bytes: u64) -> Result<()> {
    match FileOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file.set_len(bytes).context(|| format!("sizing {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error).context(|| format!("creating {}", path.display())),
    }
}

fn environment(options: &EngineOptions, reactors: &Reactors) -> Result<Environment> {
    Ok(Environment {
        runtime: Arc::new(reactors.home().clone()),
        tails: Arc::new(
            ShmTails::open(&options.tails).context(|| format!("opening {}", options.tails.display()))?,
        ),
        host: options.host.clone(),
        entropy: entropy(),
    })
}
