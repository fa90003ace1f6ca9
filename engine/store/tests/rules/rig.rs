//! A pool on a simulated disk that was used before, and the few verbs that the tests are written in.

use parallax_block::{BLOCK_SIZE, BlockDevice, BoxFuture, Buffer, ByteRange, Result, Runtime, WriteOptions};
use parallax_sim::{
    Asks, Content, DiskOptions, Fault, FaultPlan, Image, Kind, Phase, Process, Request, SimDisk, SimTails,
    Unflushed, World, Zone,
};
use parallax_store::{
    CreatePool, CreateVdi, Environment, Finding, Name, Pool, Severity, SnapshotInfo, Source, TakeSnapshot,
    Timestamp, Vdi, VdiId, VdiInfo, check,
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const BLOCK: u64 = BLOCK_SIZE as u64;
/// What the disk holds where the store has never written.
pub(crate) const STRANGER: u8 = 0xee;

pub(crate) struct Rig {
    pub(crate) world: World,
    pub(crate) disk: SimDisk,
    pub(crate) tails: SimTails,
    pub(crate) process: Process,
    entropy: Arc<dyn Fn() -> u128 + Send + Sync>,
    capacity: u64,
}

impl Rig {
    pub(crate) fn new(seed: u64) -> Self {
        Self::sized(seed, 64 * MIB)
    }

    pub(crate) fn sized(seed: u64, capacity: u64) -> Self {
        let world = World::new(seed);
        let disk = SimDisk::with_image(&world, DiskOptions::new(capacity), Image::filled(STRANGER));
        let (tails, process, entropy) = (SimTails::new(&world), world.process("daemon"), world.entropy());
        let rig = Self { world, disk, tails, process, entropy, capacity };
        let options = CreatePool { extent_bytes: Some(256 << 10), force: true };
        rig.world.run(Pool::create(Arc::new(rig.disk.clone()), options, &rig.environment())).unwrap();
        rig
    }

    pub(crate) fn environment(&self) -> Environment {
        Environment {
            runtime: Arc::new(self.process.clone()),
            tails: Arc::new(self.tails.clone()),
            host: Name::new("node-1").unwrap(),
            entropy: self.entropy.clone(),
        }
    }

    pub(crate) fn open(&self) -> Pool {
        self.world.run(self.opening()).unwrap()
    }

    pub(crate) fn opening(&self) -> impl Future<Output = Result<Pool>> + use<> {
        Pool::open(Arc::new(self.disk.clone()), self.environment())
    }

    /// A pool with one attached volume of `size` bytes.
    pub(crate) fn with_volume(&self, size: u64) -> (Pool, Arc<Vdi>) {
        let pool = self.open();
        let vdi = self.world.run(async {
            let info = pool.create_vdi(request("volume", Some(size), Source::Empty)).await.unwrap();
            pool.attach(info.id).await.unwrap()
        });
        (pool, vdi)
    }

    /// The power goes and comes back.
    pub(crate) fn power_cut(&mut self, unflushed: Unflushed) {
        self.process.kill();
        self.disk = self.disk.crash(unflushed);
        self.tails.reboot();
        self.process = self.world.process("daemon");
    }

    /// `kill -9`, and the machine goes on.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
        self.disk = self.disk.handover();
        self.process = self.world.process("daemon");
    }

    /// Opens again and attaches the only volume.
    pub(crate) fn reopen(&self) -> (Pool, Arc<Vdi>) {
        let pool = self.open();
        let id = volume(&pool).id;
        let vdi = self.world.run(pool.attach(id)).unwrap();
        (pool, vdi)
    }

    /// Starts work that a kill of the daemon would end, and answers with where its result will be.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        name: &str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Started<T> {
        let done: Started<T> = Started { slot: Arc::default(), world: self.world.clone() };
        let slot = done.slot.clone();
        self.process.spawn_named(name, async move {
            let output = work.await;
            *slot.lock() = Some(output);
        });
        done
    }

    /// Longer than anything takes that is not stuck.
    pub(crate) fn a_minute(&self) -> BoxFuture<'static, ()> {
        self.world.sleep(Duration::from_secs(60))
    }

    /// Verifies the device as it is now. Only while no pool is open on it.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let image = self.disk.crash_image(Unflushed::Kept);
        let copy = SimDisk::with_image(&self.world, DiskOptions::new(self.capacity), image);
        self.world.run(check(Arc::new(copy), &|_, _| {})).unwrap()
    }

    pub(crate) fn assert_undamaged(&self) {
        let damage: Vec<Finding> =
            self.findings().into_iter().filter(|finding| finding.severity == Severity::Damage).collect();
        assert_eq!(damage, []);
    }

    /// Closes the pool and verifies it.
    pub(crate) fn close(&self, pool: &Pool) {
        self.world.run(pool.close()).unwrap();
        self.assert_undamaged();
    }

    /// The next request of this kind that touches `range` meets `fault`. Faults before it are forgotten.
    pub(crate) fn once(&self, asks: Asks, range: ByteRange, fault: Fault) {
        self.once_where(None, asks, range, fault);
    }

    /// The same for writes that bring `content`.
    pub(crate) fn once_where(&self, content: Option<Content>, asks: Asks, range: ByteRange, fault: Fault) {
        let zone = Zone { content, range, asks, fault, per_mille: 1000, times_max: 1 };
        self.disk.set_faults(FaultPlan { zones: vec![zone], ..FaultPlan::default() });
    }

    /// All of the disk.
    pub(crate) fn everywhere(&self) -> ByteRange {
        ByteRange::new(0, self.capacity).unwrap()
    }

    /// Writes down every change that the disk is asked for from now on.
    pub(crate) fn record(&self) -> Arc<Mutex<Vec<Change>>> {
        let log: Arc<Mutex<Vec<Change>>> = Arc::default();
        let writer = log.clone();
        self.disk.observe(move |event| {
            if event.phase == Phase::Begun && event.request.kind != Kind::Read {
                let change =
                    Change { kind: event.request.kind, range: event.range, head: event.bytes.to_vec() };
                writer.lock().push(change);
            }
        });
        log
    }
}

/// The kind of a bitmap's blocks.
pub(crate) const BITMAP: u8 = 8;

/// Whether bytes begin as a sealed block of a kind does: magic, then the kind.
pub(crate) fn is_sealed(bytes: &[u8], kind: u8) -> bool {
    bytes.starts_with(b"PLX1") && bytes.get(4..6) == Some(&[kind, 0])
}

/// A change or flush that the disk was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) kind: Kind,
    pub(crate) range: ByteRange,
    pub(crate) head: Vec<u8>,
}

impl Change {
    /// Whether it writes journal blocks.
    pub(crate) fn is_journal(&self) -> bool {
        is_sealed(&self.head, 10)
    }

    /// Whether it writes a root slot.
    pub(crate) fn is_root(&self) -> bool {
        is_sealed(&self.head, 9)
    }

    pub(crate) fn is_write(&self) -> bool {
        matches!(self.kind, Kind::Write { .. })
    }
}

/// Work that runs beside the test.
pub(crate) struct Started<T> {
    slot: Arc<Mutex<Option<T>>>,
    world: World,
}

impl<T> Started<T> {
    pub(crate) fn is_done(&self) -> bool {
        self.slot.lock().is_some()
    }

    /// Lets the world run until it is done; fails after a minute of virtual time.
    pub(crate) fn wait(&self) -> T {
        for _ in 0..60_000 {
            if let Some(output) = self.slot.lock().take() {
                return output;
            }
            self.world.run_for(Duration::from_millis(1));
        }
        panic!("still not done: {:#?}", self.world.pending_tasks());
    }
}

pub(crate) fn request(name: &str, size: Option<u64>, source: Source) -> CreateVdi {
    let (name, attributes) = (Name::new(name).unwrap(), BTreeMap::new());
    CreateVdi { name, size, source, logical_block: 512, attributes, at: Timestamp(1) }
}

/// The only volume that is not headless.
pub(crate) fn volume(pool: &Pool) -> VdiInfo {
    pool.vdis().into_iter().find(|info| !info.headless).unwrap()
}

pub(crate) async fn snapshot(pool: &Pool, vdis: &[VdiId]) -> Result<Vec<SnapshotInfo>> {
    let vdis = vdis.to_vec();
    pool.snapshot(TakeSnapshot { vdis, label: "label".to_owned(), name: None, at: Timestamp(2) }).await
}

/// Content of a snapshot's block, by its first byte.
pub(crate) async fn in_snapshot(pool: &Pool, info: &SnapshotInfo, block: u64) -> u8 {
    pool.materialise(info.id).await.unwrap();
    let view = pool.open_snapshot(info.id).await.unwrap();
    let byte = get(&*view, block).await;
    view.close().await.unwrap();
    byte
}

pub(crate) async fn try_put(device: &dyn BlockDevice, offset: u64, length: u64, byte: u8) -> Result<()> {
    let buffer = Buffer::copy_of(&vec![byte; length as usize]);
    device.write(offset, buffer, WriteOptions::default()).await.1
}

/// Fills one block.
pub(crate) async fn put(device: &dyn BlockDevice, block: u64, byte: u8) {
    try_put(device, block * BLOCK, BLOCK, byte).await.unwrap();
}

/// The byte that fills one block. Panics if it is not one.
pub(crate) async fn get(device: &dyn BlockDevice, block: u64) -> u8 {
    let bytes = read(device, block * BLOCK, BLOCK).await;
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "block {block} is torn: {:?}", sectors(&bytes));
    bytes[0]
}

/// First byte of every sector.
pub(crate) fn sectors(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(512).map(|sector| sector[0]).collect()
}

pub(crate) async fn read(device: &dyn BlockDevice, offset: u64, length: u64) -> Vec<u8> {
    let (buffer, result) = device.read(offset, Buffer::zeroed(length as usize)).await;
    result.unwrap();
    buffer.to_vec()
}

/// Whether a request writes a block of data that is filled with one byte (and so is no metadata).
pub(crate) fn is_change(request: &Request) -> bool {
    matches!(request.kind, Kind::Write { .. })
}
