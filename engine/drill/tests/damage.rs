//! Each kind of damage is reported, with what it touches; what can be proved to be safe is mended, the rest is left as
//! it is; and what is not damaged goes on.

use parallax_block::{BLOCK_SIZE, BlockDevice, Buffer, ErrorKind, Result, WriteOptions};
use parallax_sim::{DiskOptions, Image, Kind, Phase, SimDisk, SimTails, Unflushed, World};
use parallax_store::{
    CreatePool, CreateVdi, Damage, Environment, Finding, Name, Pool, Severity, Source, TakeSnapshot,
    Timestamp, Vdi, check, damage, repair,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

const MIB: u64 = 1 << 20;
const CAPACITY: u64 = 16 * MIB;

/// What is expected of a kind of damage: the finding, and whether a repair leaves nothing of it.
fn expected(what: Damage) -> (&'static str, bool) {
    match what {
        Damage::FirstSuperblock | Damage::LastSuperblock => ("superblock-copy", true),
        Damage::HostSlot => ("host-slot", false),
        Damage::AreaHeader => ("area-header-copy", true),
        Damage::AreaHeaders | Damage::AreaBase => ("registry", false),
        Damage::ExtentOverlap => ("extent-overlap", false),
        Damage::ExtentRange => ("extent-range", false),
        Damage::ExtentOwner => ("extent-owner", false),
        Damage::Bitmap | Damage::Bitmaps => ("bitmap-copy", true),
        Damage::NewestRoot | Damage::OlderRoot => ("root-slot-copy", true),
        Damage::Roots => ("root-slot", false),
        Damage::Journal => ("journal", false),
        Damage::RootNode | Damage::Leaf | Damage::TableLeaf => ("node", false),
        Damage::LinkOutside | Damage::LinkToNode => ("block-kind", false),
        Damage::LinkTwice | Damage::JournalOverNode => ("block-shared", false),
        Damage::PastEnd => ("block-range", false),
        Damage::SnapshotCount => ("snapshot-table", false),
        Damage::EpochOrder => ("epoch", false),
        Damage::SnapshotNumber => ("lineage", false),
        Damage::LinkForeign => ("block-foreign", false),
        Damage::ForeignSuperblock => ("superblock-twins", false),
        Damage::Unmarked => ("block-unmarked", true),
        Damage::Leak => ("unreachable", true),
    }
}

/// Whether a kind of damage is some volume's own.
fn is_of_a_volume(what: Damage) -> bool {
    let (kind, _) = expected(what);
    [
        "extent-overlap",
        "extent-range",
        "extent-owner",
        "epoch",
        "lineage",
        "block-foreign",
        "root-slot-copy",
        "root-slot",
        "journal",
        "node",
        "block-kind",
        "block-shared",
        "block-range",
        "snapshot-table",
        "block-unmarked",
    ]
    .contains(&kind)
}

struct Bench {
    world: World,
    image: Image,
    whole: BTreeMap<String, Vec<u8>>,
}

impl Bench {
    fn new() -> Self {
        let world = World::new(3);
        let disk = SimDisk::with_image(&world, DiskOptions::new(CAPACITY), Image::filled(0xee));
        let mut bench = Self { world, image: Image::new(), whole: BTreeMap::new() };
        let environment = bench.environment();
        bench.world.run(async {
            let options = CreatePool { extent_bytes: Some(256 << 10), force: true };
            Pool::create(Arc::new(disk.clone()), options, &environment).await.unwrap();
            let pool = Pool::open(Arc::new(disk.clone()), environment).await.unwrap();
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
        });
        bench.image = disk.crash_image(Unflushed::Kept);
        bench.whole =
            bench.look(&bench.disk()).into_iter().map(|(name, seen)| (name, seen.unwrap())).collect();
        bench
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

    /// The pool as a killed daemon left it.
    fn disk(&self) -> SimDisk {
        SimDisk::with_image(&self.world, DiskOptions::new(CAPACITY), self.image.clone())
    }

    fn damaged(&self, what: Damage) -> SimDisk {
        let disk = self.disk();
        let done = self.world.run(damage(Arc::new(disk.clone()), what));
        assert!(done.is_ok(), "{what:?}: {done:?}");
        disk
    }

    fn check(&self, disk: &SimDisk) -> Vec<Finding> {
        self.world.run(check(Arc::new(disk.clone()), &|_, _| {})).unwrap()
    }

    /// What can be read, by volume.
    fn look(&self, disk: &SimDisk) -> BTreeMap<String, Result<Vec<u8>>> {
        let environment = self.environment();
        let disk = disk.clone();
        self.world.run(async move {
            let pool = match Pool::open(Arc::new(disk), environment).await {
                Ok(pool) => pool,
                Err(error) => return BTreeMap::from([("pool".to_owned(), Err(error))]),
            };
            let mut seen = BTreeMap::new();
            for info in pool.vdis() {
                let read = async {
                    let vdi = pool.attach(info.id).await?;
                    let (buffer, result) = vdi.read(0, Buffer::zeroed(3 * MIB as usize)).await;
                    result?;
                    Ok(buffer.chunks(BLOCK_SIZE).map(|block| block[7]).collect())
                };
                seen.insert(info.name.to_string(), read.await);
            }
            seen
        })
    }
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
fn every_kind_of_damage_is_reported_with_the_volume_that_it_touches_and_nothing_is_written() {
    let bench = Bench::new();
    assert!(bench.check(&bench.disk()).iter().all(|finding| finding.severity == Severity::Leak));
    for what in Damage::ALL {
        let disk = bench.damaged(what);
        let writes = Arc::new(AtomicU64::new(0));
        let counter = writes.clone();
        disk.observe(move |event| {
            if event.phase == Phase::Begun && event.request.kind != Kind::Read {
                counter.fetch_add(1, SeqCst);
            }
        });
        let findings = bench.check(&disk);
        let (kind, _) = expected(what);
        let found: Vec<&Finding> = findings.iter().filter(|finding| finding.kind == kind).collect();
        assert!(!found.is_empty(), "{what:?}: {findings:?}");
        if is_of_a_volume(what) {
            let named =
                found.iter().any(|finding| finding.volumes.iter().any(|name| bench.whole.contains_key(name)));
            assert!(named, "{what:?} names no volume: {found:?}");
        }
        assert_eq!(writes.load(SeqCst), 0, "{what:?}: a check has written");
    }
}

#[test]
fn a_repair_mends_what_is_safe_and_leaves_the_rest_as_it_is() {
    let bench = Bench::new();
    for what in Damage::ALL {
        let disk = bench.damaged(what);
        let (kind, is_mended) = expected(what);
        let done = bench.world.run(repair(Arc::new(disk.clone()), bench.environment(), &|_, _| {})).unwrap();
        assert!(kinds(&done.found).contains(kind), "{what:?}: {done:?}");
        assert_eq!(kinds(&done.left).contains(kind), !is_mended, "{what:?}: {done:?}");
        if is_mended {
            assert!(!done.mended.is_empty(), "{what:?}: {done:?}");
            let seen: BTreeMap<_, _> =
                bench.look(&disk).into_iter().map(|(name, seen)| (name, seen.unwrap())).collect();
            assert_eq!(seen, bench.whole, "{what:?}");
        } else if kind != "registry" && what != Damage::HostSlot {
            let both: BTreeSet<_> = kinds(&done.found).intersection(&kinds(&done.left)).copied().collect();
            assert!(both.contains(kind), "{what:?}: {done:?}");
        }
    }
}

#[test]
fn a_damaged_volume_fails_by_name_and_the_others_go_on() {
    let bench = Bench::new();
    for what in [Damage::Roots, Damage::Journal, Damage::RootNode, Damage::Leaf, Damage::LinkOutside] {
        let disk = bench.damaged(what);
        let touched: BTreeSet<String> =
            bench.check(&disk).into_iter().flat_map(|finding| finding.volumes).collect();
        assert_eq!(touched.len(), 1, "{what:?} touches {touched:?}");
        let seen = bench.look(&disk);
        assert_eq!(seen.len(), 2, "{what:?}: {seen:?}");
        for (name, seen) in seen {
            match seen {
                Ok(seen) => {
                    assert_eq!(seen, bench.whole[&name], "{what:?}: {name}");
                    assert!(!touched.contains(&name), "{what:?}: {name} is damaged and was read");
                }
                Err(error) => {
                    assert!(touched.contains(&name), "{what:?}: {name}: {error}");
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{what:?}: {error}");
                    assert!(error.to_string().contains("volume"), "{what:?}: {error}");
                }
            }
        }
    }
}
