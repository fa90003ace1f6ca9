//! Damage to what several volumes share is reported with the names of all of them, and a sector that cannot be read is
//! told of, not stumbled over.

use parallax_block::{BLOCK_SIZE, BlockDevice, Buffer, ByteRange, WriteOptions};
use parallax_sim::{DiskOptions, Image, SimDisk, SimTails, Unflushed, World};
use parallax_store::{
    CreatePool, CreateVdi, Damage, Environment, Name, Pool, Severity, Source, TakeSnapshot, Timestamp, Vdi,
    VdiId, damage, repair,
};
use std::{collections::BTreeMap, sync::Arc};

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
