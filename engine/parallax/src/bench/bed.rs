//! A pool in a scratch file and the threads that drive it.

use super::{LARGE, say};
use crate::failure::{Failure, Outcome};
use parallax_block::{BlockDevice, Result};
use parallax_device::{IoMode, OpenOptions, ReactorHandle, ShmTails, open_device};
use parallax_store::{
    CreatePool, CreateVdi, Environment, Name, Pool, SnapshotId, Source, TakeSnapshot, Vdi, VdiId,
};
use parallaxd::engine::{Reactors, entropy, host_name, now};
use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;

/// Files that are deleted when this is dropped.
pub(super) struct Scratch {
    directory: TempDir,
    /// In shared memory, as the daemon has it.
    tails: TempDir,
}

impl Scratch {
    pub(super) fn new(parent: &Path) -> Outcome<Self> {
        let shared = Path::new("/dev/shm");
        let make = |parent: &Path| {
            tempfile::Builder::new().prefix("parallax-bench-").tempdir_in(parent).map_err(|error| {
                Failure::from(error).during(format!("creating a scratch directory in {}", parent.display()))
            })
        };
        Ok(Self { directory: make(parent)?, tails: make(if shared.is_dir() { shared } else { parent })? })
    }

    /// A file that is written with zeroes.
    fn file(&self, name: &str, bytes: u64) -> Outcome<PathBuf> {
        let path = self.directory.path().join(name);
        say(&format!("writing {} MiB of zeroes to {name}", bytes >> 20));
        let write = || {
            let mut file = std::fs::File::create(&path)?;
            let zeroes = vec![0; LARGE as usize];
            for _ in 0..bytes.div_ceil(LARGE) {
                file.write_all(&zeroes)?;
            }
            file.set_len(bytes)?;
            file.sync_all()
        };
        write().map_err(|error: std::io::Error| {
            Failure::from(error).during(format!("writing {}", path.display()))
        })?;
        Ok(path)
    }
}

/// Threads, a pool and what it lies on.
pub(super) struct Bed {
    reactors: Reactors,
    under: Arc<dyn BlockDevice>,
    environment: Environment,
    pool: Pool,
}

impl Bed {
    /// Formats a new pool of `bytes` and opens it.
    pub(super) async fn make(files: &Scratch, bytes: u64) -> Outcome<Self> {
        let reactors = Reactors::start(1, IoMode::Auto, false)?;
        let home = reactors.home();
        let under = open_device(&files.file("pool.img", bytes)?, home, OpenOptions::default())?;
        let environment = Environment {
            runtime: Arc::new(home.clone()),
            tails: Arc::new(ShmTails::open(&files.tails.path().join("tails"))?),
            host: host_name()?,
            entropy: entropy(),
        };
        let pool = {
            let (under, environment) = (Arc::clone(&under), environment.clone());
            home.run(async move {
                Pool::create(Arc::clone(&under), CreatePool::default(), &environment).await?;
                Pool::open(under, environment).await
            })
            .await??
        };
        Ok(Self { reactors, under, environment, pool })
    }

    /// Another file on the same disk, without a store.
    pub(super) fn bare(&self, files: &Scratch, bytes: u64) -> Outcome<Arc<dyn BlockDevice>> {
        Ok(open_device(&files.file("bare.img", bytes)?, self.home(), OpenOptions::default())?)
    }

    /// The thread that everything runs on.
    pub(super) fn home(&self) -> &ReactorHandle {
        self.reactors.home()
    }

    /// The pool.
    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) async fn volume(&self, name: &str, size: u64) -> Outcome<VdiId> {
        self.create(name, Some(size), Source::Empty).await
    }

    pub(super) async fn create(&self, name: &str, size: Option<u64>, source: Source) -> Outcome<VdiId> {
        let create = CreateVdi {
            name: Name::new(name)?,
            size,
            source,
            logical_block: 4096,
            attributes: Default::default(),
            at: now(),
        };
        Ok(self.run(move |pool| async move { pool.create_vdi(create).await }).await?.id)
    }

    pub(super) async fn attach(&self, volume: VdiId) -> Outcome<Arc<Vdi>> {
        Ok(self.run(move |pool| async move { pool.attach(volume).await }).await?)
    }

    /// Releases a volume in order, so that it can be attached again.
    pub(super) async fn detach(&self, vdi: Arc<Vdi>) -> Outcome {
        self.run(move |_| async move { vdi.detach().await }).await?;
        Ok(())
    }

    /// A snapshot; it is durable when this returns.
    pub(super) async fn snapshot(&self, volume: VdiId) -> Result<SnapshotId> {
        self.run(move |pool| async move { snapshot(&pool, volume).await }).await
    }

    /// Closes the pool and opens it again; how long the opening took.
    pub(super) async fn reopen(&mut self) -> Outcome<std::time::Duration> {
        self.run(|pool| async move { pool.close().await }).await?;
        let (under, environment) = (Arc::clone(&self.under), self.environment.clone());
        let begun = std::time::Instant::now();
        self.pool = self.home().run(async move { Pool::open(under, environment).await }).await??;
        Ok(begun.elapsed())
    }

    /// Closes the pool and stops the threads.
    pub(super) async fn end(self) -> Outcome {
        self.run(|pool| async move { pool.close().await }).await?;
        let Self { reactors, pool, under, .. } = self;
        drop((pool, under));
        tokio::task::spawn_blocking(move || reactors.shutdown())
            .await
            .map_err(|error| Failure::new(format!("stopping the data thread failed: {error}")))
    }

    /// Runs something of the pool where the pool lives.
    pub(super) async fn run<T, Work>(&self, work: impl FnOnce(Pool) -> Work + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        Work: Future<Output = Result<T>> + Send + 'static,
    {
        let pool = self.pool.clone();
        self.home().run(async move { work(pool).await }).await?
    }
}

/// One snapshot of one volume.
pub(super) async fn snapshot(pool: &Pool, volume: VdiId) -> Result<SnapshotId> {
    let take = TakeSnapshot { vdis: vec![volume], label: String::new(), name: None, at: now() };
    let taken = pool.snapshot(take).await?;
    taken.first().map(|info| info.id).ok_or_else(|| parallax_block::Error::corrupt("a snapshot of nothing"))
}
