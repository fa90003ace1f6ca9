//! Design, section 6: who may be in a pool, and what an opener may believe of the epoch before.

use crate::rig::*;
use parallax_block::{BlockDevice, Buffer, ErrorKind, Result, WriteOptions};
use parallax_sim::{Kind, Phase, SimTails, Unflushed, either};
use parallax_store::{Environment, Name, Pool, Standing};
use parking_lot::Mutex;
use std::sync::Arc;

impl Rig {
    /// Another machine at the same device: its own name, its own boot.
    fn other_machine(&self) -> Environment {
        let tails = Arc::new(SimTails::new(&self.world));
        Environment { tails, host: Name::new("node-2").unwrap(), ..self.environment() }
    }

    fn open_as(&self, environment: &Environment) -> Result<Pool> {
        self.world.run(Pool::open(Arc::new(self.disk.clone()), environment.clone()))
    }

    fn evict(&self, environment: &Environment, name: &str) -> Result<()> {
        let name = Name::new(name).unwrap();
        self.world.run(Pool::evict_host(Arc::new(self.disk.clone()), environment, &name))
    }
}

#[test]
fn rule_6e_a_machine_is_refused_until_the_one_before_has_left_or_is_evicted() {
    let mut rig = Rig::new(1);
    let (_pool, vdi) = rig.with_volume(MIB);
    rig.world.run(async {
        put(&*vdi, 0, 1).await;
        vdi.flush().await.unwrap();
    });
    rig.kill();
    let second = rig.other_machine();
    let changes = rig.record();
    let refused = rig.open_as(&second).err().expect("refused");
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    assert!(refused.to_string().contains("parallax pool evict PATH node-1"), "{refused}");
    assert_eq!(changes.lock().len(), 0, "a host that was refused has written");

    assert_eq!(rig.evict(&second, "node-3").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(rig.evict(&rig.environment(), "node-1").unwrap_err().kind(), ErrorKind::FailedPrecondition);
    rig.evict(&second, "node-1").unwrap();
    assert_eq!(rig.evict(&second, "node-1").unwrap_err().kind(), ErrorKind::FailedPrecondition);
    let pool = rig.open_as(&second).unwrap();
    let hosts = rig.world.run(Pool::hosts(&rig.disk)).unwrap();
    let seen: Vec<_> = hosts.iter().map(|host| (host.name.as_str(), host.standing, host.manager)).collect();
    assert_eq!(seen, [("node-1", Standing::Evicted, false), ("node-2", Standing::Joined, true)]);
    let vdi = rig.world.run(pool.attach(volume(&pool).id)).unwrap();
    assert_eq!(rig.world.run(get(&*vdi, 0)), 1);
    rig.close(&pool);

    // It left in order, so the first may come back.
    let (pool, vdi) = rig.reopen();
    assert_eq!(rig.world.run(get(&*vdi, 0)), 1);
    rig.close(&pool);
}

/// In Ceph's NVMe-oF gateway (issue 1965) a machine paused for longer than its lock lived, woke up and wrote.
#[test]
fn rule_6e_a_late_write_of_an_evicted_machine_reaches_nothing_written_since() {
    let mut rig = Rig::new(1);
    let (_pool, vdi) = rig.with_volume(MIB);
    let places: Arc<Mutex<Vec<u64>>> = Arc::default();
    let seen = places.clone();
    rig.disk.observe(move |event| {
        let data =
            matches!(event.request.kind, Kind::Write { .. }) && event.bytes.iter().all(|byte| *byte == 7);
        if event.phase == Phase::Begun && data {
            seen.lock().push(event.range.offset());
        }
    });
    rig.world.run(async {
        put(&*vdi, 0, 7).await;
        vdi.flush().await.unwrap();
    });
    let place = places.lock()[0];
    rig.kill();
    let second = rig.other_machine();
    rig.evict(&second, "node-1").unwrap();
    let pool = rig.open_as(&second).unwrap();
    let vdi = rig.world.run(pool.attach(volume(&pool).id)).unwrap();
    rig.world.run(async {
        assert_eq!(get(&*vdi, 0).await, 7);
        put(&*vdi, 0, 9).await;
        // The first machine had rewritten the block in place; only now does it land.
        let late = Buffer::copy_of(&[8; BLOCK as usize]);
        rig.disk.write(place, late, WriteOptions::default()).await.1.unwrap();
        assert_eq!(get(&*vdi, 0).await, 9);
    });
    rig.close(&pool);
}

#[test]
fn rule_6e_the_same_machine_comes_back_by_itself() {
    let mut rig = Rig::new(1);
    let (_pool, vdi) = rig.with_volume(MIB);
    rig.world.run(async {
        put(&*vdi, 0, 1).await;
        vdi.flush().await.unwrap();
    });
    // Under another name in the same boot: the command line beside a daemon that died.
    rig.kill();
    let renamed = Environment { host: Name::new("command-line").unwrap(), ..rig.environment() };
    let pool = rig.open_as(&renamed).unwrap();
    rig.close(&pool);
    // Under its own name in another boot.
    let (_pool, vdi) = rig.reopen();
    rig.world.run(put(&*vdi, 1, 2));
    rig.world.run(vdi.flush()).unwrap();
    rig.power_cut(Unflushed::Lost);
    let (pool, vdi) = rig.reopen();
    assert_eq!(rig.world.run(async { (get(&*vdi, 0).await, get(&*vdi, 1).await) }), (1, 2));
    rig.close(&pool);
}

/// A daemon was killed, the command line opened the pool directly under another name, and the daemon came back
/// and kept its incarnation. Of two copies of a bitmap the one of the higher incarnation counts: what the daemon
/// wrote was older than what the command line had written, and its blocks were free after the next opening.
#[test]
fn rule_5b_an_incarnation_is_not_kept_once_there_was_a_higher_one() {
    let mut rig = Rig::new(1);
    let (_pool, vdi) = rig.with_volume(MIB);
    rig.world.run(async {
        put(&*vdi, 0, 1).await;
        vdi.flush().await.unwrap();
    });
    rig.kill();
    let other = Environment { host: Name::new("command-line").unwrap(), ..rig.environment() };
    let pool = rig.open_as(&other).unwrap();
    let vdi = rig.world.run(pool.attach(volume(&pool).id)).unwrap();
    rig.world.run(async {
        for block in 1..10 {
            put(&*vdi, block, 2).await;
        }
    });
    rig.close(&pool);
    let (pool, vdi) = rig.reopen();
    rig.world.run(async {
        put(&*vdi, 50, 3).await;
        let info = snapshot(&pool, &[vdi.id()]).await.unwrap().remove(0);
        pool.materialise(info.id).await.unwrap();
    });
    rig.kill();
    rig.assert_undamaged();
    let (pool, vdi) = rig.reopen();
    rig.world.run(async {
        for block in 100..200 {
            put(&*vdi, block, 4).await;
        }
        assert_eq!((get(&*vdi, 1).await, get(&*vdi, 50).await), (2, 3));
    });
    rig.close(&pool);
}

/// A daemon was killed while it wrote the header of its registry. The next one saw that header, which was not durable yet,
/// and put its own registry where the one before lay. Then the power went: the header that came back named blocks that
/// had been written over, and the pool was gone.
#[test]
fn rule_5a_what_a_killed_process_left_is_made_durable_before_anything_is_built_on_it() {
    // Which writes a power cut takes is chance: each pair of deaths is tried with several seeds.
    for seed in 0..16 {
        let unflushed = Unflushed::ALL[seed as usize % Unflushed::ALL.len()];
        for (first, second) in (1..8).flat_map(|first| (1..8).map(move |second| (first, second))) {
            let mut rig = Rig::sized(seed * 100 + first * 10 + second, 16 * MIB);
            let (_pool, vdi) = rig.with_volume(MIB);
            rig.world.run(async {
                put(&*vdi, 0, 1).await;
                vdi.flush().await.unwrap();
            });
            rig.kill();
            rig.disk.crash_after(first);
            let _ = rig.world.run(either(rig.opening(), rig.disk.power_lost()));
            rig.kill();
            rig.disk.crash_after(second);
            let _ = rig.world.run(either(rig.opening(), rig.disk.power_lost()));
            rig.power_cut(unflushed);
            rig.assert_undamaged();
            let (pool, vdi) = rig.reopen();
            assert_eq!(rig.world.run(get(&*vdi, 0)), 1, "{first}, {second}, {unflushed:?}");
            rig.close(&pool);
        }
    }
}
