//! Damage to what several volumes share is reported with the names of all of them, and a sector that cannot be read is
//! told of, not stumbled over.

use parallax_block::{BLOCK_SIZE, BlockDevice, Buffer, ByteRange, WriteOptions};
use parallax_sim::{DiskOptions, Image, SimDisk, SimTails, Unflushed, World};
use parallax_store::{
    CreatePool, CreateVdi, Damage, Environment, Finding, Name, Pool, Severity, Source, TakeSnapshot,
    Timestamp, Vdi, VdiId, check, damage, repair,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

const MIB: u64 = 1 << 20;
const CAPACITY: u64 = 16 * MIB;

/// A pool whose daemon was killed.
struct Bench {
    world: World,
    image: Image,
}

impl Bench {
    /// Two volumes, of which one is a clone of the other and writes one block. The map has two leaves, of 512 blocks and of 256: one that it writes to is its own.
    fn new(block: u64) -> Self {
        let world = World::new(3);
        let disk = SimDisk::with_image(&world, DiskOptions::new(CAPACITY), Image::filled(0xee));
        let bench = Self { world, image: Image::new() };
        let environment = bench.environment();
        bench.world.run(async {
            let options = CreatePool { extent_bytes: Some(256 << 10), force: true };
            Pool::create(Arc::new(disk.clone()), options, &environment).await.unwrap();
            let pool = Pool::open(Arc::new(disk.clone()), environment).await.unwrap();
            let id = create(&pool, "origin", Source::Empty).await;
            let origin = pool.attach(id).await.unwrap();
            fill(&origin, 0..120).await;
            let request = TakeSnapshot { vdis: vec![id], label: String::new(), name: None, at: Timestamp(2) };
            let taken = pool.snapshot(request).await.unwrap().remove(0);
            pool.materialise(taken.id).await.unwrap();
            let copy = create(&pool, "copy", Source::Snapshot(taken.id)).await;
            let copy = pool.attach(copy).await.unwrap();
            fill(&copy, block..block + 1).await;
            create(&pool, "stranger", Source::Empty).await;
            pool.collect_garbage(&|_| {}).await.unwrap();
        });
        Self { image: disk.crash_image(Unflushed::Kept), ..bench }
    }

    /// Two volumes from nothing, each with a snapshot. They write only what their snapshots do not keep.
    fn strangers() -> Self {
        let bench = Self { world: World::new(3), image: Image::new() };
        let disk = SimDisk::with_image(&bench.world, DiskOptions::new(CAPACITY), Image::filled(0xee));
        let environment = bench.environment();
        bench.world.run(async {
            let options = CreatePool { extent_bytes: Some(256 << 10), force: true };
            Pool::create(Arc::new(disk.clone()), options, &environment).await.unwrap();
            let pool = Pool::open(Arc::new(disk.clone()), environment).await.unwrap();
            for name in ["origin", "stranger"] {
                let id = create(&pool, name, Source::Empty).await;
                let vdi = pool.attach(id).await.unwrap();
                fill(&vdi, 0..20).await;
                let request =
                    TakeSnapshot { vdis: vec![id], label: String::new(), name: None, at: Timestamp(2) };
                let taken = pool.snapshot(request).await.unwrap().remove(0);
                pool.materialise(taken.id).await.unwrap();
                fill(&vdi, 30..31).await;
            }
            pool.collect_garbage(&|_| {}).await.unwrap();
        });
        Self { image: disk.crash_image(Unflushed::Kept), ..bench }
    }

    fn environment(&self) -> Environment {
        Environment {
            runtime: Arc::new(self.world.process("daemon")),
            tails: Arc::new(SimTails::new(&self.world)),
            host: Name::new("node-1").unwrap(),
            entropy: self.world.entropy(),
        }
    }

    fn disk(&self) -> SimDisk {
        SimDisk::with_image(&self.world, DiskOptions::new(CAPACITY), self.image.clone())
    }

    fn check(&self, disk: &SimDisk) -> Vec<Finding> {
        self.world.run(check(Arc::new(disk.clone()), &|_, _| {})).unwrap()
    }

    /// Names in the findings of a kind after a damage.
    fn named(&self, what: Damage, kind: &str) -> BTreeSet<String> {
        let disk = self.disk();
        self.world.run(damage(Arc::new(disk.clone()), what)).unwrap();
        let findings = self.check(&disk);
        let of_kind: Vec<&Finding> = findings.iter().filter(|finding| finding.kind == kind).collect();
        assert!(!of_kind.is_empty(), "{what:?}: {findings:?}");
        of_kind.into_iter().flat_map(|finding| finding.volumes.clone()).collect()
    }
}

async fn create(pool: &Pool, name: &str, source: Source) -> VdiId {
    let request = CreateVdi {
        name: Name::new(name).unwrap(),
        size: Some(3 * MIB),
        source,
        logical_block: 4096,
        attributes: BTreeMap::new(),
        at: Timestamp(1),
    };
    pool.create_vdi(request).await.unwrap().id
}

async fn fill(vdi: &Vdi, blocks: std::ops::Range<u64>) {
    for block in blocks {
        let buffer = Buffer::copy_of(&[7; BLOCK_SIZE]);
        vdi.write(block * BLOCK_SIZE as u64, buffer, WriteOptions::default()).await.1.unwrap();
    }
}

fn both() -> BTreeSet<String> {
    ["origin".to_owned(), "copy".to_owned()].into()
}

/// A node that had been met was not entered again, whether or not it verified: only the first of the volumes that share
/// it was named.
#[test]
fn a_damaged_node_names_every_volume_that_shares_it() {
    let bench = Bench::new(700);
    assert!(bench.check(&bench.disk()).iter().all(|finding| finding.severity == Severity::Leak));
    assert_eq!(bench.named(Damage::Leaf, "node"), both());
}

#[test]
fn a_block_in_use_that_counts_as_free_names_every_volume_that_uses_it() {
    // Through one leaf that both share, and through two.
    for block in [700, 400] {
        assert_eq!(Bench::new(block).named(Damage::Unmarked, "block-unmarked"), both(), "{block}");
    }
}

/// The tool changes a leaf in place, and the links on one volume's way to it. The other's link was never compared with
/// the node: somebody else had been there already.
#[test]
fn a_link_that_disagrees_with_another_to_the_same_node_is_damage() {
    let bench = Bench::new(700);
    assert_eq!(bench.named(Damage::LinkOutside, "block-kind").len(), 1);
    assert_eq!(bench.named(Damage::LinkOutside, "node"), both());
}

/// Both links are read-only, so that neither could harm the other: it was in order as long as nobody asked how two volumes
/// had come by one block.
#[test]
fn a_block_of_two_volumes_that_have_nothing_in_common_is_damage_even_to_readers() {
    let bench = Bench::strangers();
    let disk = bench.disk();
    assert!(bench.check(&disk).iter().all(|finding| finding.severity == Severity::Leak));
    bench.world.run(damage(Arc::new(disk.clone()), Damage::LinkForeign)).unwrap();
    let findings = bench.check(&disk);
    let damage: Vec<&Finding> =
        findings.iter().filter(|finding| finding.severity == Severity::Damage).collect();
    assert!(!damage.is_empty());
    for finding in damage {
        assert_eq!(finding.kind, "block-foreign", "{findings:?}");
        assert_eq!(finding.volumes, ["origin", "stranger"], "{findings:?}");
    }
}

/// The source of two clones is deleted, so that nothing tells any more what they have in common.
#[test]
fn what_the_clones_of_a_deleted_volume_share_is_in_order() {
    let world = World::new(4);
    let bench = Bench { world, image: Image::new() };
    let disk = SimDisk::with_image(&bench.world, DiskOptions::new(CAPACITY), Image::filled(0xee));
    let environment = bench.environment();
    bench.world.run(async {
        let options = CreatePool { extent_bytes: Some(256 << 10), force: true };
        Pool::create(Arc::new(disk.clone()), options, &environment).await.unwrap();
        let pool = Pool::open(Arc::new(disk.clone()), environment).await.unwrap();
        let first = create(&pool, "first", Source::Empty).await;
        let vdi = pool.attach(first).await.unwrap();
        fill(&vdi, 0..50).await;
        vdi.detach().await.unwrap();
        let middle = create(&pool, "middle", Source::Vdi(first)).await;
        for (name, source) in [("one", first), ("two", middle), ("three", middle)] {
            let clone = create(&pool, name, Source::Vdi(source)).await;
            fill(&pool.attach(clone).await.unwrap(), 7..8).await;
        }
        pool.delete_vdi(middle).await.unwrap();
        pool.delete_vdi(first).await.unwrap();
        create(&pool, "stranger", Source::Empty).await;
        create(&pool, "another", Source::Empty).await;
    });
    let findings = bench.check(&disk);
    assert!(findings.iter().all(|finding| finding.severity == Severity::Leak), "{findings:?}");
}

#[test]
fn an_extent_that_cannot_be_names_every_volume_in_it() {
    let bench = Bench::new(700);
    // The extent of data that was claimed last holds blocks of the clone.
    for (what, kind) in [
        (Damage::ExtentOverlap, "extent-overlap"),
        (Damage::ExtentRange, "extent-range"),
        (Damage::ExtentOwner, "extent-owner"),
    ] {
        assert!(bench.named(what, kind).contains("copy"), "{what:?}");
    }
}

/// A superblock in a sector that had gone bad was reported, and then ended the repair: nothing at all was mended.
#[test]
fn a_superblock_that_cannot_be_read_is_written_anew() {
    let bench = Bench::new(700);
    for block in [0, CAPACITY / BLOCK_SIZE as u64 - 1] {
        let disk = bench.disk();
        bench.world.run(damage(Arc::new(disk.clone()), Damage::Unmarked)).unwrap();
        disk.spoil(ByteRange::new(block * BLOCK_SIZE as u64, 512).unwrap());
        let done = bench.world.run(repair(Arc::new(disk.clone()), bench.environment(), &|_, _| {})).unwrap();
        assert!(done.found.iter().any(|finding| finding.kind == "superblock-copy"), "{done:?}");
        assert!(done.mended.iter().any(|mended| mended.contains("superblock")), "{done:?}");
        assert!(done.left.iter().all(|finding| finding.severity == Severity::Leak), "{done:?}");
        let (_, read) = bench.world.run(disk.read(block * BLOCK_SIZE as u64, Buffer::zeroed(BLOCK_SIZE)));
        read.unwrap();
    }
}

/// The check gave up with an error, as if there had been no pool.
#[test]
fn a_registry_that_cannot_be_read_is_a_finding() {
    let bench = Bench::new(700);
    let disk = bench.disk();
    let block = BLOCK_SIZE as u64;
    disk.spoil(ByteRange::new(block, CAPACITY - 2 * block).unwrap());
    let findings = bench.check(&disk);
    assert!(findings.iter().any(|finding| finding.kind == "registry"), "{findings:?}");
}
