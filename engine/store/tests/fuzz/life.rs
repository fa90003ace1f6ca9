//! A pool with some of everything, and all that can be done with one.

use crate::image::{BACKGROUND, CAPACITY};
use parallax_block::{BLOCK_SIZE, BlockDevice, Buffer, Error, Result, WriteOptions};
use parallax_fuzz::Outcome;
use parallax_sim::{DiskOptions, Either, Image, SimDisk, SimTails, Unflushed, World, either};
use parallax_store::{
    CreatePool, CreateVdi, Environment, Name, Pool, Severity, Source, TakeSnapshot, Timestamp, Vdi, VdiId,
    check, repair,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = BLOCK_SIZE as u64;
/// Nothing that is asked of a pool of 8 MiB takes so long, by the world's own clock.
const LIMIT: Duration = Duration::from_secs(3600);
/// Bytes of a volume that are read and written; a forged size may be any.
const LOOKED_AT: u64 = MIB;
/// Snapshots of a volume that are looked at; a forged number may be any.
const SNAPSHOTS: usize = 50;

struct Bench {
    world: World,
    disk: SimDisk,
}

impl Bench {
    fn new(image: Image) -> Self {
        let world = World::new(7);
        let disk = SimDisk::with_image(&world, DiskOptions::new(CAPACITY as u64), image);
        Self { world, disk }
    }

    fn environment(&self) -> Environment {
        Environment {
            runtime: Arc::new(self.world.process("daemon")),
            // A machine that was started anew: what a daemon had in memory is of no help.
            tails: Arc::new(SimTails::new(&self.world)),
            host: Name::new("node-1").unwrap(),
            entropy: self.world.entropy(),
        }
    }

    /// Runs something that must end.
    fn run<T: Send>(&self, what: &str, task: impl Future<Output = T> + Send) -> T {
        let clock = self.environment().runtime;
        match self.world.run(either(task, clock.sleep(LIMIT))) {
            Either::Left(done) => done,
            Either::Right(()) => panic!("{what} does not end"),
        }
    }
}

async fn fill(vdi: &Vdi, blocks: std::ops::Range<u64>, byte: u8) -> Result<()> {
    for block in blocks {
        let buffer = Buffer::copy_of(&[byte; BLOCK_SIZE]);
        vdi.write(block * BLOCK, buffer, WriteOptions::default()).await.1?;
    }
    Ok(())
}

async fn volume(pool: &Pool, name: &str, source: Source) -> Result<VdiId> {
    let request = CreateVdi {
        name: Name::new(name)?,
        size: matches!(source, Source::Empty).then_some(3 * MIB),
        source,
        logical_block: 4096,
        attributes: BTreeMap::from([("kept".to_owned(), name.to_owned())]),
        at: Timestamp(1),
    };
    Ok(pool.create_vdi(request).await?.id)
}

async fn snapshot(pool: &Pool, vdis: &[VdiId], name: Option<&str>) -> Result<()> {
    let name = name.map(Name::new).transpose()?;
    let request = TakeSnapshot { vdis: vdis.to_vec(), label: "label".into(), name, at: Timestamp(2) };
    for info in pool.snapshot(request).await? {
        pool.materialise(info.id).await?;
    }
    Ok(())
}

/// The image of a pool at rest: closed in order, or as a killed process left it.
pub(crate) fn aged(closed: bool) -> Vec<u8> {
    let bench = Bench::new(Image::filled(BACKGROUND));
    let made: Result<()> = bench.run("making a pool", async {
        let environment = bench.environment();
        let options = CreatePool { extent_bytes: Some(256 << 10), force: true };
        Pool::create(Arc::new(bench.disk.clone()), options, &environment).await?;
        let pool = Pool::open(Arc::new(bench.disk.clone()), environment).await?;
        let (first, second) =
            (volume(&pool, "first", Source::Empty).await?, volume(&pool, "second", Source::Empty).await?);
        let (a, b) = (pool.attach(first).await?, pool.attach(second).await?);
        fill(&a, 0..60, 1).await?;
        fill(&b, 500..530, 2).await?;
        snapshot(&pool, &[first, second], Some("set")).await?;
        fill(&a, 50..70, 3).await?;
        snapshot(&pool, &[first], None).await?;
        fill(&a, 0..10, 4).await?;
        a.flush().await?;
        let copy = volume(&pool, "copy", Source::Vdi(first)).await?;
        let c = pool.attach(copy).await?;
        fill(&c, 65..75, 5).await?;
        c.flush().await?;
        fill(&b, 0..9, 6).await?;
        b.flush().await?;
        fill(&b, 9..12, 7).await?;
        b.flush().await?;
        if closed { pool.close().await } else { Ok(()) }
    });
    made.unwrap();
    let image = bench.disk.crash_image(Unflushed::Kept);
    let mut bytes = vec![0; CAPACITY];
    image.read(0, &mut bytes);
    bytes
}

/// What failed, and the kind of failure; the words may change with the store.
fn told(what: &str, error: &Error) -> String {
    assert!(error.message().contains(' '), "{error:?} says nothing to a person");
    format!("{what} {:?}", error.kind())
}

/// Reads, writes and takes snapshots of everything; the first error of each volume, with its name.
async fn look(pool: &Pool) -> Vec<String> {
    let mut errors = Vec::new();
    for info in pool.vdis() {
        let lived = async {
            let vdi = pool.attach(info.id).await?;
            let size = vdi.geometry().capacity;
            read(&*vdi, size).await?;
            fill(&vdi, 0..(size / BLOCK).min(2), 9).await?;
            vdi.flush().await?;
            for shot in pool.snapshots(info.id, 0, SNAPSHOTS).await? {
                let view = pool.open_snapshot(shot.id).await?;
                let read = read(&*view, view.geometry().capacity).await;
                view.close().await?;
                read?;
            }
            snapshot(pool, &[info.id], None).await?;
            vdi.detach().await
        };
        if let Err(error) = lived.await {
            errors.push(told(&info.name.to_string().escape_default().to_string(), &error));
        }
    }
    errors
}

/// The beginning and the end of a device.
async fn read(device: &dyn BlockDevice, size: u64) -> Result<()> {
    let part = LOOKED_AT.min(size);
    for at in [0, size - part] {
        device.read(at / BLOCK * BLOCK, Buffer::zeroed((part / BLOCK * BLOCK) as usize)).await.1?;
    }
    Ok(())
}

/// Checks, opens, uses, collects, closes and repairs the pool that `bytes` are. What is wrong with it, in words.
pub(crate) fn lived(bytes: &[u8]) -> Outcome {
    let mut image = Image::filled(BACKGROUND);
    for (number, page) in bytes.chunks(BLOCK_SIZE).enumerate() {
        if page.iter().any(|byte| *byte != BACKGROUND) {
            image.write(number as u64 * BLOCK, page);
        }
    }
    let mut words = Vec::new();
    let bench = Bench::new(image.clone());
    match bench.run("a check", check(Arc::new(bench.disk.clone()), &|_, _| {})) {
        Ok(findings) => {
            let damage = findings.iter().filter(|finding| finding.severity == Severity::Damage);
            let kinds: BTreeSet<&str> = damage.map(|finding| finding.kind).collect();
            words.extend(kinds.iter().map(|kind| format!("check {kind}")));
        }
        Err(error) => words.push(told("check", &error)),
    }
    let used = bench.run("a life", async {
        let pool = match Pool::open(Arc::new(bench.disk.clone()), bench.environment()).await {
            Ok(pool) => pool,
            Err(error) => return vec![told("open", &error)],
        };
        let mut errors = look(&pool).await;
        if let Some(info) = pool.vdis().first()
            && let Err(error) = pool.delete_vdi(info.id).await
        {
            errors.push(told("delete", &error));
        }
        if let Err(error) = pool.collect_garbage(&|_| {}).await {
            errors.push(told("collect", &error));
        }
        if let Err(error) = pool.close().await {
            errors.push(told("close", &error));
        }
        errors
    });
    words.extend(used.into_iter().take(4));
    let other = Bench::new(image);
    let repaired =
        other.run("a repair", repair(Arc::new(other.disk.clone()), other.environment(), &|_, _| {}));
    if let Err(error) = repaired {
        words.push(told("repair", &error));
    }
    words.dedup();
    if words.is_empty() { Outcome::Accepted } else { Outcome::Refused(words.join(" | ")) }
}
