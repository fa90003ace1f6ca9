//! The main path, in the fake world: what a volume is for, and that it survives a crash.

use parallax_block::{BlockDevice, Buffer, ByteRange, ErrorKind, WriteOptions};
use parallax_sim::{DiskOptions, SimDisk, SimTails, Unflushed, World};
use parallax_store::{
    CreatePool, CreateVdi, Environment, Name, Pool, SnapshotId, Source, TakeSnapshot, Timestamp, VdiInfo,
    check,
};
use std::{collections::BTreeMap, sync::Arc};

const MIB: u64 = 1 << 20;

struct Rig {
    world: World,
    disk: SimDisk,
    tails: SimTails,
}

impl Rig {
    fn new(seed: u64, capacity: u64) -> Self {
        let world = World::new(seed);
        let disk = SimDisk::new(&world, DiskOptions::new(capacity));
        let tails = SimTails::new(&world);
        let rig = Self { world, disk, tails };
        let environment = rig.environment();
        let device: Arc<dyn BlockDevice> = Arc::new(rig.disk.clone());
        let options = CreatePool { extent_bytes: Some(256 << 10), force: false };
        rig.world.run(Pool::create(device, options, &environment)).unwrap();
        rig
    }

    fn environment(&self) -> Environment {
        Environment {
            runtime: Arc::new(self.world.process("daemon")),
            tails: Arc::new(self.tails.clone()),
            host: Name::new("node-1").unwrap(),
            entropy: self.world.entropy(),
        }
    }

    fn open(&self) -> Pool {
        let device: Arc<dyn BlockDevice> = Arc::new(self.disk.clone());
        self.world.run(Pool::open(device, self.environment())).unwrap()
    }

    fn power_loss(&mut self, unflushed: Unflushed) {
        self.disk = self.disk.crash(unflushed);
        self.tails.reboot();
    }

    fn assert_clean(&self) {
        let device: Arc<dyn BlockDevice> = Arc::new(self.disk.clone());
        let findings = self.world.run(check(device, &|_, _| {})).unwrap();
        let damage: Vec<_> =
            findings.iter().filter(|f| f.severity == parallax_store::Severity::Damage).collect();
        assert!(damage.is_empty(), "{damage:#?}");
    }
}

fn request(name: &str, size: Option<u64>, source: Source) -> CreateVdi {
    CreateVdi {
        name: Name::new(name).unwrap(),
        size,
        source,
        logical_block: 512,
        attributes: BTreeMap::new(),
        at: Timestamp(1),
    }
}

fn snapshot_of(vdi: &VdiInfo, label: &str) -> TakeSnapshot {
    TakeSnapshot { vdis: vec![vdi.id], label: label.to_owned(), name: None, at: Timestamp(2) }
}

async fn put(device: &dyn BlockDevice, offset: u64, byte: u8, length: usize) {
    let mut buffer = Buffer::zeroed(length);
    buffer.fill(byte);
    device.write(offset, buffer, WriteOptions::default()).await.1.unwrap();
}

async fn get(device: &dyn BlockDevice, offset: u64, length: usize) -> Vec<u8> {
    let (buffer, result) = device.read(offset, Buffer::zeroed(length)).await;
    result.unwrap();
    buffer.to_vec()
}

#[test]
fn a_volume_reads_what_was_written_and_zeroes_elsewhere() {
    let rig = Rig::new(1, 64 * MIB);
    let pool = rig.open();
    rig.world.run(async {
        let info = pool.create_vdi(request("db", Some(8 * MIB), Source::Empty)).await.unwrap();
        let vdi = pool.attach(info.id).await.unwrap();
        put(&*vdi, 512, 7, 1024).await;
        put(&*vdi, 4 * MIB, 9, 300 * 1024).await;
        put(&*vdi, 4 * MIB + 512, 8, 512).await;
        let head = get(&*vdi, 0, 4096).await;
        assert!(head[..512].iter().all(|b| *b == 0) && head[512..1536].iter().all(|b| *b == 7));
        assert!(head[1536..].iter().all(|b| *b == 0));
        let large = get(&*vdi, 4 * MIB, 300 * 1024).await;
        assert!(large[..512].iter().all(|b| *b == 9) && large[512..1024].iter().all(|b| *b == 8));
        assert!(large[1024..].iter().all(|b| *b == 9));
        assert_eq!(pool.attach(info.id).await.err().unwrap().kind(), ErrorKind::Busy);
        vdi.detach().await.unwrap();
        let vdi = pool.attach(info.id).await.unwrap();
        assert_eq!(get(&*vdi, 4 * MIB, 300 * 1024).await, large);
        vdi.detach().await.unwrap();
        pool.close().await.unwrap();
    });
    rig.assert_clean();
    let pool = rig.open();
    rig.world.run(async {
        let vdi = pool.attach(pool.vdi_named("db").unwrap().id).await.unwrap();
        assert!(get(&*vdi, 4 * MIB + 512, 512).await.iter().all(|b| *b == 8));
    });
}

#[test]
fn flushed_writes_survive_power_loss_and_acknowledged_ones_survive_a_killed_daemon() {
    for seed in 0..20 {
        let mut rig = Rig::new(seed, 64 * MIB);
        let pool = rig.open();
        let id = rig.world.run(async {
            let info = pool.create_vdi(request("db", Some(8 * MIB), Source::Empty)).await.unwrap();
            let vdi = pool.attach(info.id).await.unwrap();
            for at in 0..200u64 {
                put(&*vdi, at * 37 % 2000 * 4096, at as u8 + 1, 4096).await;
            }
            vdi.flush().await.unwrap();
            info.id
        });
        rig.power_loss(Unflushed::Lost);
        let pool = rig.open();
        rig.world.run(async {
            let vdi = pool.attach(id).await.unwrap();
            for at in 0..200u64 {
                assert_eq!(
                    get(&*vdi, at * 37 % 2000 * 4096, 4096).await,
                    vec![at as u8 + 1; 4096],
                    "seed {seed}"
                );
            }
            for at in 0..100u64 {
                put(&*vdi, (2000 - at) * 4096, at as u8 + 1, 4096).await;
            }
        });
        rig.disk = rig.disk.handover();
        let pool = rig.open();
        rig.world.run(async {
            let vdi = pool.attach(id).await.unwrap();
            for at in 0..100u64 {
                assert_eq!(
                    get(&*vdi, (2000 - at) * 4096, 4096).await,
                    vec![at as u8 + 1; 4096],
                    "seed {seed}"
                );
            }
            vdi.detach().await.unwrap();
            pool.close().await.unwrap();
        });
        rig.assert_clean();
    }
}

#[test]
fn snapshots_and_clones_keep_their_moment() {
    for seed in 0..10 {
        let mut rig = Rig::new(seed, 64 * MIB);
        let pool = rig.open();
        let (first, second): (SnapshotId, SnapshotId) = rig.world.run(async {
            let info = pool.create_vdi(request("db", Some(8 * MIB), Source::Empty)).await.unwrap();
            let vdi = pool.attach(info.id).await.unwrap();
            put(&*vdi, 0, 1, 64 * 1024).await;
            let first = pool.snapshot(snapshot_of(&info, "one")).await.unwrap()[0].id;
            put(&*vdi, 4096, 2, 8192).await;
            let second = pool.snapshot(snapshot_of(&info, "two")).await.unwrap()[0].id;
            put(&*vdi, 0, 3, 4096).await;
            vdi.discard(ByteRange::new(8192, 4096).unwrap()).await.unwrap();
            vdi.flush().await.unwrap();
            (first, second)
        });
        if seed % 2 == 1 {
            rig.power_loss(Unflushed::Lost);
        } else {
            rig.disk = rig.disk.handover();
        }
        let pool = rig.open();
        rig.world.run(async {
            let list = pool.snapshots(first.vdi, 0, 100).await.unwrap();
            assert_eq!(list.iter().map(|s| s.label.as_str()).collect::<Vec<_>>(), ["one", "two"]);
            let old = pool.open_snapshot(first).await.unwrap();
            assert_eq!(get(&*old, 0, 16384).await, vec![1; 16384]);
            assert_eq!(pool.delete_snapshot(first).await.unwrap_err().kind(), ErrorKind::Busy);
            old.close().await.unwrap();
            let clone =
                pool.create_vdi(request("copy", Some(16 * MIB), Source::Snapshot(second))).await.unwrap();
            let copy = pool.attach(clone.id).await.unwrap();
            assert_eq!(get(&*copy, 0, 16384).await, [vec![1; 4096], vec![2; 8192], vec![1; 4096]].concat());
            put(&*copy, 0, 5, 4096).await;
            let vdi = pool.attach(first.vdi).await.unwrap();
            let now = [vec![3; 4096], vec![2; 4096], vec![0; 4096], vec![1; 4096]].concat();
            assert_eq!(get(&*vdi, 0, 16384).await, now);
            let diff = pool.diff(Some(first), second, 0, 10).await.unwrap();
            assert_eq!(diff.len(), 1);
            assert_eq!((diff[0].range.offset(), diff[0].range.length(), diff[0].data), (4096, 8192, true));
            assert_eq!(pool.exclusive(first).await.unwrap() % 4096, 0);
            pool.delete_snapshot(first).await.unwrap();
            vdi.detach().await.unwrap();
            pool.revert_vdi(first.vdi, second).await.unwrap();
            let vdi = pool.attach(first.vdi).await.unwrap();
            assert_eq!(get(&*vdi, 0, 16384).await, [vec![1; 4096], vec![2; 8192], vec![1; 4096]].concat());
            let done = pool.collect_garbage(&|_| {}).await.unwrap();
            assert!(done.freed_data > 0, "{done:?}");
            assert_eq!(get(&*copy, 0, 16384).await, [vec![5; 4096], vec![2; 8192], vec![1; 4096]].concat());
            assert_eq!(get(&*vdi, 0, 16384).await, [vec![1; 4096], vec![2; 8192], vec![1; 4096]].concat());
            vdi.detach().await.unwrap();
            copy.detach().await.unwrap();
            pool.delete_vdi(first.vdi).await.unwrap();
            pool.delete_vdi(clone.id).await.unwrap();
            assert!(pool.vdi(first.vdi).unwrap().headless);
            pool.delete_snapshot(second).await.unwrap();
            assert!(pool.vdis().is_empty());
            pool.collect_garbage(&|_| {}).await.unwrap();
            let info = pool.info();
            assert_eq!((info.data_used, info.metadata_used), (0, 0), "{info:?}");
            pool.close().await.unwrap();
        });
        rig.assert_clean();
    }
}

#[test]
fn a_full_pool_refuses_the_write_that_does_not_fit_and_stays_usable() {
    let rig = Rig::new(3, 16 * MIB);
    let pool = rig.open();
    rig.world.run(async {
        let info = pool.create_vdi(request("big", Some(64 * MIB), Source::Empty)).await.unwrap();
        let vdi = pool.attach(info.id).await.unwrap();
        let mut at = 0;
        let error = loop {
            let (_, result) = vdi.write(at, Buffer::copy_of(&[1; 65536]), WriteOptions::default()).await;
            match result {
                Ok(()) => at += 65536,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::OutOfSpace);
        assert!(at > 8 * MIB, "only {at} bytes fitted");
        put(&*vdi, 0, 2, 65536).await;
        vdi.flush().await.unwrap();
        vdi.discard(ByteRange::new(0, 4 * MIB).unwrap()).await.unwrap();
        vdi.flush().await.unwrap();
        pool.collect_garbage(&|_| {}).await.unwrap();
        put(&*vdi, MIB, 3, 65536).await;
        assert_eq!(get(&*vdi, MIB, 65536).await, vec![3; 65536]);
        vdi.detach().await.unwrap();
        pool.close().await.unwrap();
    });
    rig.assert_clean();
}

/// The snapshot table was once addressed by leaf where its tree expects words: the 33rd snapshot took the place of
/// the first.
#[test]
fn a_hundred_snapshots_are_listed_in_order_and_each_is_its_own() {
    let rig = Rig::new(5, 64 * MIB);
    let pool = rig.open();
    rig.world.run(async {
        let info = pool.create_vdi(request("db", Some(8 * MIB), Source::Empty)).await.unwrap();
        let vdi = pool.attach(info.id).await.unwrap();
        for at in 0..100u8 {
            put(&*vdi, 0, at + 1, 4096).await;
            let id = pool.snapshot(snapshot_of(&info, &format!("s{at}"))).await.unwrap()[0].id;
            pool.materialise(id).await.unwrap();
        }
        let list = pool.snapshots(info.id, 0, 1000).await.unwrap();
        assert_eq!(list.len(), 100);
        for (at, snapshot) in list.iter().enumerate() {
            assert_eq!(snapshot.label, format!("s{at}"));
            let view = pool.open_snapshot(snapshot.id).await.unwrap();
            assert_eq!(get(&*view, 0, 4096).await, vec![at as u8 + 1; 4096]);
            view.close().await.unwrap();
        }
        vdi.detach().await.unwrap();
        pool.close().await.unwrap();
    });
    rig.assert_clean();
}

/// The drill grew by some megabytes with each pool that a killed process had left: open volumes and their pool held each
/// other. Nobody who serves one pool until its end would have seen it.
#[test]
fn a_pool_that_is_given_up_without_being_closed_gives_its_memory_back() {
    let rig = Rig::new(11, 32 * MIB);
    let device: Arc<dyn BlockDevice> = Arc::new(rig.disk.clone());
    rig.world.run(async {
        let pool = Pool::open(device.clone(), rig.environment()).await.unwrap();
        let request = CreateVdi {
            name: Name::new("volume").unwrap(),
            size: Some(MIB),
            source: Source::Empty,
            logical_block: 512,
            attributes: BTreeMap::new(),
            at: Timestamp(1),
        };
        let info = pool.create_vdi(request).await.unwrap();
        let vdi = pool.attach(info.id).await.unwrap();
        drop(pool);
        // The handle of a volume is one of its pool: it goes on.
        vdi.write(0, Buffer::copy_of(&[7; 4096]), WriteOptions::default()).await.1.unwrap();
        vdi.flush().await.unwrap();
    });
    rig.world.run_for(std::time::Duration::from_secs(10));
    assert_eq!(Arc::strong_count(&device), 1, "something still holds the pool's device");
}

/// A disk whose beginning is blank and whose end holds the copy of a partition table, or what makes it a member of a RAID,
/// was formatted as if nobody wanted it.
#[test]
fn what_lies_at_the_end_of_a_device_is_recognised() {
    let world = World::new(12);
    let disk = SimDisk::new(&world, DiskOptions::new(32 * MIB));
    assert_eq!(world.run(parallax_store::recognise(&disk)).unwrap(), None);
    world.run(put(&disk, 32 * MIB - 8 * 4096, 0x42, 4096));
    let found = world.run(parallax_store::recognise(&disk)).unwrap();
    assert!(found.is_some_and(|what| what.contains("at its end")));
}
