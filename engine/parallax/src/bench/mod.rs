//! The store against the bare file that it lies on, in one run on one disk.
//!
//! Two scratch files of its own, filled before anything is measured; both are gone afterwards, whatever happens.
//! Every row is measured on the bare file first and on a volume next, so that their ratio survives a machine that is
//! slow today.

mod load;
mod report;

use crate::{
    args::BenchArguments,
    failure::{Failure, Outcome},
    output::Output,
};
use load::{Load, Sample, Shape};
use parallax_block::{BlockDevice, Result};
use parallax_device::{IoMode, OpenOptions, ReactorHandle, ShmTails, open_device};
use parallax_store::{
    CreatePool, CreateVdi, Environment, Name, Pool, SnapshotId, Source, TakeSnapshot, VdiId,
};
use parallaxd::engine::{Reactors, entropy, host_name, now};
use report::{Latencies, Report, Row};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

const PAGE: u64 = 4096;
const LARGE: u64 = 1 << 20;

/// Room of the pool beyond its one volume: what snapshots keep, and metadata.
const SPARE: u64 = 2;

/// Clones that are timed.
const CLONES: u32 = 50;

/// What is measured on both.
const LOADS: [(&str, Load); 6] = [
    (
        "read 1 MiB sequential, depth 8",
        Load { shape: Shape::SequentialRead, bytes: LARGE, depth: 8, flush: false },
    ),
    (
        "write 1 MiB sequential, depth 8",
        Load { shape: Shape::SequentialWrite, bytes: LARGE, depth: 8, flush: false },
    ),
    ("read 4 KiB random, depth 1", Load { shape: Shape::RandomRead, bytes: PAGE, depth: 1, flush: false }),
    ("read 4 KiB random, depth 32", Load { shape: Shape::RandomRead, bytes: PAGE, depth: 32, flush: false }),
    (
        "write 4 KiB random, depth 32",
        Load { shape: Shape::RandomWrite, bytes: PAGE, depth: 32, flush: false },
    ),
    (
        "write 4 KiB random + flush, depth 1",
        Load { shape: Shape::RandomWrite, bytes: PAGE, depth: 1, flush: true },
    ),
];

pub(crate) async fn run(arguments: &BenchArguments, output: Output) -> Outcome {
    let size = arguments.size.0 / LARGE * LARGE;
    if size < 16 << 20 {
        return Err(Failure::new("less than 16M says nothing about a disk"));
    }
    let files = Scratch::new(&arguments.directory)?;
    let bench = Bench {
        size,
        each: Duration::from_secs(arguments.seconds.max(1)),
        snapshots: arguments.snapshots,
        output,
    };
    let report = bench.measure(&files).await?;
    output.show(&report, Report::text)
}

/// Two files that are deleted when this is dropped.
struct Scratch {
    directory: tempfile::TempDir,
}

impl Scratch {
    fn new(parent: &Path) -> Outcome<Self> {
        let directory =
            tempfile::Builder::new().prefix("parallax-bench-").tempdir_in(parent).map_err(|error| {
                Failure::from(error).during(format!("creating a scratch directory in {}", parent.display()))
            })?;
        Ok(Self { directory })
    }

    fn file(&self, name: &str, bytes: u64) -> Outcome<PathBuf> {
        let path = self.directory.path().join(name);
        std::fs::File::create(&path)
            .and_then(|file| file.set_len(bytes))
            .map_err(|error| Failure::from(error).during(format!("creating {}", path.display())))?;
        Ok(path)
    }
}

struct Bench {
    size: u64,
    each: Duration,
    snapshots: u32,
    output: Output,
}

impl Bench {
    async fn measure(&self, files: &Scratch) -> Outcome<Report> {
        let reactors = Reactors::start(1, IoMode::Auto, false)?;
        let home = reactors.home();
        let bare = open_device(&files.file("bare.img", self.size)?, home, OpenOptions::default())?;
        let pool_bytes = self.size * (1 + SPARE) + (256 << 20);
        let under = open_device(&files.file("pool.img", pool_bytes)?, home, OpenOptions::default())?;
        let environment = Environment {
            runtime: Arc::new(home.clone()),
            tails: Arc::new(ShmTails::open(&files.directory.path().join("tails"))?),
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
        let volume = self.volume(home, &pool).await?;
        let vdi: Arc<dyn BlockDevice> =
            run_on(home, &pool, move |pool| async move { pool.attach(volume).await }).await?;

        let mut report = Report::default();
        let fill = Load { shape: Shape::SequentialWrite, bytes: LARGE, depth: 8, flush: false };
        self.say("fill");
        let filled = (self.fill(home, &bare, fill).await?, self.fill(home, &vdi, fill).await?);
        report.rows.push(Row::new("first write 1 MiB sequential, depth 8", filled.0, Some(filled.1)));
        for (name, load) in LOADS {
            self.say(name);
            let on_bare = self.load(home, &bare, load).await?;
            let on_volume = self.load(home, &vdi, load).await?;
            report.rows.push(Row::new(name, on_bare, Some(on_volume)));
        }
        let during = |what: &'static str| move |failure: Failure| failure.during(what);
        self.with_snapshots(home, &pool, volume, &bare, &vdi, &mut report)
            .await
            .map_err(during("snapshots"))?;
        self.clones(home, &pool, volume, &mut report).await.map_err(during("clones"))?;
        drop(vdi);
        self.reopening(home, pool, volume, under, environment, &mut report).await?;
        tokio::task::spawn_blocking(move || reactors.shutdown())
            .await
            .map_err(|error| Failure::new(format!("stopping the data thread failed: {error}")))?;
        Ok(report)
    }

    async fn volume(&self, home: &ReactorHandle, pool: &Pool) -> Outcome<VdiId> {
        let create = CreateVdi {
            name: Name::new("bench")?,
            size: Some(self.size),
            source: Source::Empty,
            logical_block: 4096,
            attributes: Default::default(),
            at: now(),
        };
        Ok(run_on(home, pool, move |pool| async move { pool.create_vdi(create).await }).await?.id)
    }

    async fn fill(&self, home: &ReactorHandle, device: &Arc<dyn BlockDevice>, load: Load) -> Outcome<Sample> {
        Ok(load::run(home, device, load, self.size, load::Until::Requests(self.size / load.bytes)).await?)
    }

    async fn load(&self, home: &ReactorHandle, device: &Arc<dyn BlockDevice>, load: Load) -> Outcome<Sample> {
        Ok(load::run(home, device, load, self.size, load::Until::Time(self.each)).await?)
    }

    /// Snapshots in the middle of writing, then the same loads with all of them in place.
    async fn with_snapshots(
        &self,
        home: &ReactorHandle,
        pool: &Pool,
        volume: VdiId,
        bare: &Arc<dyn BlockDevice>,
        vdi: &Arc<dyn BlockDevice>,
        report: &mut Report,
    ) -> Outcome {
        self.say("write after one snapshot");
        snapshot(home, pool, volume).await?;
        let (name, write) = LOADS[4];
        let after = self.load(home, vdi, write).await?;
        report.rows.push(Row::new(
            &format!("{name}, after a snapshot"),
            self.load(home, bare, write).await?,
            Some(after),
        ));

        self.say("snapshots under load");
        let background = Load { depth: 4, ..write };
        let loaded = {
            let (home, vdi, size) = (home.clone(), Arc::clone(vdi), self.size);
            let until = load::Until::Time(self.each * 2);
            tokio::spawn(async move { load::run(&home, &vdi, background, size, until).await })
        };
        let mut latencies = Vec::new();
        let end = Instant::now() + self.each;
        while Instant::now() < end {
            let begun = Instant::now();
            snapshot(home, pool, volume).await?;
            latencies.push(begun.elapsed());
        }
        let rate = latencies.len() as f64 / self.each.as_secs_f64();
        report.latencies.push(Latencies::new("snapshot, durable, under writes at depth 4", latencies));
        report.figures.push(("snapshots a second, one after the other, under load".into(), rate));
        loaded.await.map_err(|error| Failure::new(format!("the load panicked: {error}")))??;

        self.say("many snapshots");
        let before = pool.info();
        for _ in 0..self.snapshots {
            snapshot(home, pool, volume).await?;
        }
        let grown = pool.info().metadata_used.saturating_sub(before.metadata_used);
        let each = grown as f64 / f64::from(self.snapshots.max(1));
        report
            .figures
            .push((format!("bytes of metadata for one of {} unchanged snapshots", self.snapshots), each));
        for (name, load) in [LOADS[3], LOADS[4]] {
            let sample = self.load(home, vdi, load).await?;
            let name = format!("{name}, with {} snapshots", self.snapshots);
            report.rows.push(Row::new(&name, self.load(home, bare, load).await?, Some(sample)));
        }
        Ok(())
    }

    async fn clones(&self, home: &ReactorHandle, pool: &Pool, volume: VdiId, report: &mut Report) -> Outcome {
        self.say("clones");
        let source = snapshot(home, pool, volume).await?;
        run_on(home, pool, move |pool| async move { pool.materialise(source).await })
            .await
            .map_err(|error| error.context("waiting for the snapshot to clone"))?;
        let mut latencies = Vec::new();
        for number in 0..CLONES {
            let create = CreateVdi {
                name: Name::new(format!("clone-{number}"))?,
                size: None,
                source: Source::Snapshot(source),
                logical_block: 4096,
                attributes: Default::default(),
                at: now(),
            };
            let begun = Instant::now();
            run_on(home, pool, move |pool| async move { pool.create_vdi(create).await }).await?;
            latencies.push(begun.elapsed());
        }
        report.latencies.push(Latencies::new("clone of a snapshot", latencies));
        Ok(())
    }

    /// Closes the pool and opens it again, with everything that is in it.
    async fn reopening(
        &self,
        home: &ReactorHandle,
        pool: Pool,
        volume: VdiId,
        under: Arc<dyn BlockDevice>,
        environment: Environment,
        report: &mut Report,
    ) -> Outcome {
        self.say("open");
        run_on(home, &pool, |pool| async move { pool.close().await }).await?;
        let begun = Instant::now();
        let pool = home.run(async move { Pool::open(under, environment).await }).await??;
        let opened = begun.elapsed();
        let begun = Instant::now();
        run_on(home, &pool, move |pool| async move { pool.attach(volume).await.map(drop) }).await?;
        report.latencies.push(Latencies::new("open the pool", vec![opened]));
        report.latencies.push(Latencies::new("open the volume", vec![begun.elapsed()]));
        run_on(home, &pool, |pool| async move { pool.close().await }).await?;
        Ok(())
    }

    fn say(&self, what: &str) {
        if !self.output.json {
            eprintln!("{what} …");
        }
    }
}

async fn snapshot(home: &ReactorHandle, pool: &Pool, volume: VdiId) -> Result<SnapshotId> {
    let take = TakeSnapshot { vdis: vec![volume], label: String::new(), name: None, at: now() };
    let taken = run_on(home, pool, move |pool| async move { pool.snapshot(take).await }).await?;
    taken.first().map(|info| info.id).ok_or_else(|| parallax_block::Error::corrupt("a snapshot of nothing"))
}

async fn run_on<T, Work>(
    home: &ReactorHandle,
    pool: &Pool,
    work: impl FnOnce(Pool) -> Work + Send + 'static,
) -> Result<T>
where
    T: Send + 'static,
    Work: Future<Output = Result<T>> + Send + 'static,
{
    let pool = pool.clone();
    home.run(async move { work(pool).await }).await?
}
