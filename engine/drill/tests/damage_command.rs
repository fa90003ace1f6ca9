//! `parallax-drill damage` on a real pool file: each kind is reported with what it touches, nothing is written unless a
//! repair is asked for, and a repair mends those that can be proved to be safe.

use parallax_block::{BLOCK_SIZE, BlockDevice, Buffer, WriteOptions};
use parallax_device::{OpenOptions, Reactor, ReactorHandle, ReactorOptions, open_device};
use parallax_sim::{SimTails, World};
use parallax_store::{
    CreatePool, CreateVdi, Environment, Finding, Name, Pool, Severity, Source, TakeSnapshot, Timestamp, Vdi,
    check, repair,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

const MIB: u64 = 1 << 20;

/// Kind of damage, what a check calls it, whether it is some volume's own, whether a repair leaves nothing of it.
const KINDS: [(&str, &str, bool, bool); 30] = [
    ("first-superblock", "superblock-copy", false, true),
    ("last-superblock", "superblock-copy", false, true),
    ("host-slot", "host-slot", false, false),
    ("area-header", "area-header-copy", false, true),
    ("area-headers", "registry", false, false),
    ("area-base", "registry", false, false),
    ("extent-overlap", "extent-overlap", true, false),
    ("extent-range", "extent-range", true, false),
    ("extent-owner", "extent-owner", true, false),
    ("bitmap", "bitmap-copy", false, true),
    ("bitmaps", "bitmap-copy", false, true),
    ("newest-root", "root-slot-copy", true, true),
    ("older-root", "root-slot-copy", true, true),
    ("roots", "root-slot", true, false),
    ("journal", "journal", true, false),
    ("root-node", "node", true, false),
    ("leaf", "node", true, false),
    ("table-leaf", "node", true, false),
    ("link-outside", "block-kind", true, false),
    ("link-to-node", "block-kind", true, false),
    ("link-twice", "block-shared", true, false),
    ("past-end", "block-range", true, false),
    ("journal-over-node", "block-shared", true, false),
    ("snapshot-count", "snapshot-table", true, false),
    ("epoch-order", "epoch", true, false),
    ("snapshot-number", "lineage", true, false),
    ("link-foreign", "block-foreign", true, false),
    ("foreign-superblock", "superblock-twins", false, false),
    ("unmarked", "block-unmarked", true, true),
    ("leak", "unreachable", false, true),
];

struct Bench {
    reactor: ReactorHandle,
    directory: tempfile::TempDir,
    /// A pool as a killed daemon left it.
    whole: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let whole = directory.path().join("whole");
        std::fs::File::create(&whole).unwrap().set_len(16 * MIB).unwrap();
        let reactor = Reactor::start("bench", ReactorOptions::default()).unwrap();
        let bench = Self { reactor, directory, whole };
        let (device, environment) = (bench.open(&bench.whole), bench.environment());
        let killed = bench.directory.path().join("killed");
        let (whole, copy) = (bench.whole.clone(), killed.clone());
        let work = async move {
            let options = CreatePool { extent_bytes: Some(256 << 10), force: false };
            Pool::create(device.clone(), options, &environment).await.unwrap();
            let pool = Pool::open(device, environment).await.unwrap();
            let mut attached = Vec::new();
            for (name, byte) in [("first", 1), ("second", 5)] {
                let request = CreateVdi {
                    name: Name::new(name).unwrap(),
                    size: Some(3 * MIB),
                    source: Source::Empty,
                    logical_block: 4096,
                    attributes: BTreeMap::new(),
                    at: Timestamp(1),
                };
                let id = pool.create_vdi(request).await.unwrap().id;
                let vdi = pool.attach(id).await.unwrap();
                fill(&vdi, 0..120, byte).await;
                let request =
                    TakeSnapshot { vdis: vec![id], label: "label".into(), name: None, at: Timestamp(2) };
                let taken = pool.snapshot(request).await.unwrap().remove(0);
                pool.materialise(taken.id).await.unwrap();
                fill(&vdi, 0..20, byte + 1).await;
                attached.push((vdi, byte));
            }
            // Two checkpoints, so that no tree is its snapshot's any more; then groups for the journals.
            pool.collect_garbage(&|_| {}).await.unwrap();
            for (vdi, byte) in &attached {
                for (blocks, byte) in [(100..140, byte + 2), (300..310, byte + 3), (310..320, byte + 2)] {
                    fill(vdi, blocks, byte).await;
                    vdi.flush().await.unwrap();
                }
            }
            std::fs::copy(&whole, &copy).unwrap();
            pool.close().await.unwrap();
        };
        bench.reactor.block_on(work).unwrap();
        Self { whole: killed, ..bench }
    }

    fn open(&self, path: &Path) -> Arc<dyn BlockDevice> {
        // Whoever had it before may still be on the way out.
        for _ in 0..200 {
            match open_device(path, &self.reactor, OpenOptions::default()) {
                Ok(device) => return device,
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        open_device(path, &self.reactor, OpenOptions::default()).unwrap()
    }

    /// A machine that was started anew: what a daemon had in memory is of no help.
    fn environment(&self) -> Environment {
        static BOOTS: AtomicU64 = AtomicU64::new(1);
        let world = World::new(BOOTS.fetch_add(1, Relaxed));
        Environment {
            runtime: Arc::new(self.reactor.clone()),
            tails: Arc::new(SimTails::new(&world)),
            host: Name::new("node-1").unwrap(),
            entropy: world.entropy(),
        }
    }

    /// A copy of the pool with this damage.
    fn damaged(&self, kind: &str) -> PathBuf {
        let path = self.directory.path().join(kind);
        std::fs::copy(&self.whole, &path).unwrap();
        let done = drill(&["damage", path.to_str().unwrap(), "--kind", kind]);
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success() && said.contains("DAMAGED") && said.contains(kind), "{kind}: {done:?}");
        assert_ne!(std::fs::read(&path).unwrap(), std::fs::read(&self.whole).unwrap(), "{kind}");
        path
    }

    fn check(&self, path: &Path) -> Vec<Finding> {
        let device = self.open(path);
        self.reactor.block_on(async move { check(device, &|_, _| {}).await }).unwrap().unwrap()
    }
}

fn drill(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_parallax-drill")).args(arguments).output().unwrap()
}

async fn fill(vdi: &Vdi, blocks: std::ops::Range<u64>, byte: u8) {
    for block in blocks {
        let buffer = Buffer::copy_of(&[byte; BLOCK_SIZE]);
        vdi.write(block * BLOCK_SIZE as u64, buffer, WriteOptions::default()).await.1.unwrap();
    }
}

fn kinds(findings: &[Finding]) -> BTreeSet<&'static str> {
    findings.iter().map(|finding| finding.kind).collect()
}

#[test]
fn every_kind_of_damage_to_a_real_pool_is_reported_and_mended_where_that_is_safe_and_only_then_written() {
    let listed = String::from_utf8(drill(&["damage", "--list"]).stdout).unwrap();
    assert_eq!(listed.lines().collect::<Vec<_>>(), KINDS.map(|(kind, ..)| kind));
    let bench = Bench::new();
    let clean = bench.check(&bench.whole);
    assert!(clean.iter().all(|finding| finding.severity == Severity::Leak), "{clean:?}");
    for (kind, called, is_of_a_volume, is_mended) in KINDS {
        let path = bench.damaged(kind);
        let before = std::fs::read(&path).unwrap();
        let found: Vec<Finding> =
            bench.check(&path).into_iter().filter(|finding| finding.kind == called).collect();
        assert!(!found.is_empty(), "{kind} is not reported as {called}: {:?}", bench.check(&path));
        if is_of_a_volume {
            let named =
                |finding: &Finding| finding.volumes.iter().any(|name| name == "first" || name == "second");
            assert!(found.iter().any(named), "{kind} names no volume: {found:?}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), before, "{kind}: a check has written");
        let (device, environment) = (bench.open(&path), bench.environment());
        let done = bench
            .reactor
            .block_on(async move { repair(device, environment, &|_, _| {}).await })
            .unwrap()
            .unwrap();
        assert!(kinds(&done.found).contains(called), "{kind}: {done:?}");
        assert_eq!(kinds(&done.left).contains(called), !is_mended, "{kind}: {done:?}");
        assert_eq!(
            !done.mended.is_empty() && !kinds(&bench.check(&path)).contains(called),
            is_mended,
            "{kind}: {done:?}"
        );
    }
}

#[test]
fn a_pool_that_somebody_holds_is_not_damaged() {
    let bench = Bench::new();
    let holder = bench.open(&bench.whole);
    let before = std::fs::read(&bench.whole).unwrap();
    let refused = drill(&["damage", bench.whole.to_str().unwrap(), "--kind", "roots"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("was not damaged"), "{refused:?}");
    assert_eq!(std::fs::read(&bench.whole).unwrap(), before);
    drop(holder);
}
