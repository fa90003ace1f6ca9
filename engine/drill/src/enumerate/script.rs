//! Scripts: operations, and the pool that they find.

use super::{Closeness, Recorder};
use crate::{
    Failure,
    io::Kind,
    life::Life,
    model::Forest,
    options::Options,
    plan::Plan,
    run::{Drill, guarded},
    subject::System,
};
use parallax_block::Runtime;
use parallax_sim::{SimDisk, SimTails, World, either};
use std::{fmt, sync::Arc, time::Duration};

/// One operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
#[expect(missing_docs, reason = "the names say it; what blocks hold is told at `prepare`")]
pub enum Op {
    WriteHole,
    WritePartOfHole,
    WriteInPlace,
    WritePartOfShared,
    WriteAcross,
    WriteForced,
    Discard,
    Zero,
    Flush,
    Snapshot,
    CloneSnapshot,
    CloneVolume,
    DeleteSnapshot,
    DeleteVolume,
    Revert,
    Grow,
    Collect,
    Checkpoint,
    Reattach,
    Reopen,
    /// A flush fails, and the disk forgets what it was to write. Not in the list of all: what may follow is open.
    FlushFails,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::WriteHole,
        Self::WritePartOfHole,
        Self::WriteInPlace,
        Self::WritePartOfShared,
        Self::WriteAcross,
        Self::WriteForced,
        Self::Discard,
        Self::Zero,
        Self::Flush,
        Self::Snapshot,
        Self::CloneSnapshot,
        Self::CloneVolume,
        Self::DeleteSnapshot,
        Self::DeleteVolume,
        Self::Revert,
        Self::Grow,
        Self::Collect,
        Self::Checkpoint,
        Self::Reattach,
        Self::Reopen,
    ];

    /// Whether another operation may be under way at the same time.
    pub fn runs_beside_others(self) -> bool {
        !matches!(self, Self::DeleteVolume | Self::Revert | Self::Reattach | Self::Reopen)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = clap::ValueEnum::to_possible_value(self).expect("no operation is hidden");
        f.write_str(value.get_name())
    }
}

/// Some operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// In order.
    pub ops: Vec<Op>,
    /// The last two at the same time.
    pub together: bool,
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.ops.iter().map(Op::to_string).collect();
        write!(f, "--script {}{}", names.join(","), if self.together { " --together" } else { "" })
    }
}

/// The world of every script: small, and the same for all.
pub(super) fn options(seed: u64) -> Options {
    Options {
        capacity: 40 * (256 << 10),
        extent_bytes: 256 << 10,
        sector_bytes: 512,
        large_percent: 0,
        tight: false,
        limits: parallax_store::Limits::default(),
        volume_sectors: 64..65,
        volumes_max: 4,
        snapshots_max: 8,
        lanes: 1,
        managers: 1,
        sharing: true,
        latency_max: Duration::from_micros(200),
        stuck_per_mille: 0,
        slow_reads: None,
        faulty_percent: 0,
        probe_percent: 0,
        account_percent: 0,
        haunted: false,
        lying: false,
        unverified_percent: 0,
        deaths_while_opening: false,
        ..Options::derive(&Plan::new(seed, 1))
    }
}

/// Plays a script to its end; what it might have left on the way is in the recorder.
pub(super) fn play(
    script: &Script,
    closeness: Closeness,
    system: Arc<dyn System>,
) -> Result<Arc<Recorder>, Failure> {
    let world = World::new(closeness.seed);
    let tails = SimTails::new(&world);
    let drill = Drill::new(&world, options(closeness.seed), Forest::new(), tails, system);
    let recorder = Recorder::new(&drill, closeness);
    match guarded(&world, perform(&drill, &recorder, script)) {
        None => Ok(recorder),
        Some(mut failure) => {
            failure.message = format!("{script}, without a crash: {}", failure.message);
            Err(failure)
        }
    }
}

async fn perform(drill: &Arc<Drill>, recorder: &Arc<Recorder>, script: &Script) -> Result<(), Failure> {
    let mut prng = drill.world.prng();
    let disk = drill.format().await?;
    let (mut disk, (mut process, pool)) = drill.open(disk, 0, &mut prng).await?;
    recorder.watch(&disk);
    *drill.disk.lock() = Some(disk.clone());
    let mut life = Life::new(drill, pool);
    prepare(&life).await?;
    let count = script.ops.len();
    if let (true, [before @ .., a, b]) = (script.together, &script.ops[..]) {
        for op in before {
            one(&life, *op).await?;
        }
        recorder.record(true);
        let (first, second) = (life.start(&process, *a), life.start(&process, *b));
        let limit = drill.world.sleep(Duration::from_secs(600));
        let both = async { (first.await, second.await) };
        match either(both, limit).await {
            parallax_sim::Either::Left((a, b)) => a.and(b)?,
            parallax_sim::Either::Right(()) => return Err(life.hung("two operations", &disk)),
        }
    } else {
        for (at, op) in script.ops.iter().enumerate() {
            recorder.record(at + 1 == count);
            if *op == Op::Reopen {
                disk = drill.close(&life, disk, process).await?;
                recorder.watch(&disk);
                let opened;
                (disk, opened) = drill.open(disk, 0, &mut prng).await?;
                process = opened.0;
                life = Life::new(drill, opened.1);
                life.attach().await?;
            } else {
                one(&life, *op).await?;
            }
        }
    }
    settle(&life).await;
    recorder.record(false);
    if drill.heal().forgot {
        return Ok(());
    }
    drill.close(&life, disk, process).await?;
    Ok(())
}

/// What a killed process leaves: roots, a journal of several groups behind them, snapshots, a clone.
pub(super) async fn age(drill: &Arc<Drill>) -> Result<SimDisk, Failure> {
    let mut prng = drill.world.prng();
    let disk = drill.format().await?;
    let (disk, (process, pool)) = drill.open(disk, 0, &mut prng).await?;
    let life = Life::new(drill, pool);
    prepare(&life).await?;
    one(&life, Op::CloneSnapshot).await?;
    one(&life, Op::Snapshot).await?;
    settle(&life).await;
    for block in 4..8 {
        life.ask(Kind::Write { fua: false }, block * 8..block * 8 + 8).await?;
        life.ask(Kind::Flush, 0..0).await?;
        life.ask(Kind::Discard, block * 8..block * 8 + 8).await?;
        life.ask(Kind::Flush, 0..0).await?;
    }
    settle(&life).await;
    process.kill();
    drill.forget(false, "kill");
    Ok(disk.handover())
}

/// Lets whatever goes on in the background come to an end.
async fn settle(life: &Life) {
    life.drill.world.sleep(Duration::from_millis(20)).await;
}

/// Blocks 0 and 1 flushed and in a snapshot, 1 written again and flushed, 3 written and not flushed, the rest holes.
async fn prepare(life: &Arc<Life>) -> Result<(), Failure> {
    life.create_empty().await?;
    life.attach().await?;
    life.ask(Kind::Write { fua: false }, 0..16).await?;
    life.ask(Kind::Flush, 0..0).await?;
    life.snapshot(1).await?;
    life.ask(Kind::Write { fua: false }, 8..16).await?;
    life.ask(Kind::Flush, 0..0).await?;
    settle(life).await;
    life.ask(Kind::Write { fua: false }, 24..32).await?;
    settle(life).await;
    Ok(())
}

async fn one(life: &Arc<Life>, op: Op) -> Result<(), Failure> {
    let write = Kind::Write { fua: false };
    match op {
        Op::WriteHole => life.ask(write, 40..48).await,
        Op::WritePartOfHole => life.ask(write, 51..53).await,
        Op::WriteInPlace => life.ask(write, 8..16).await,
        Op::WritePartOfShared => life.ask(write, 2..3).await,
        Op::WriteAcross => life.ask(write, 4..29).await,
        Op::WriteForced => life.ask(Kind::Write { fua: true }, 6..10).await,
        Op::Discard => life.ask(Kind::Discard, 0..16).await,
        Op::Zero => life.ask(Kind::Zero { fua: false, unmap: true }, 5..30).await,
        Op::Flush => life.ask(Kind::Flush, 0..0).await,
        Op::FlushFails => {
            life.drill.let_flush_fail();
            life.ask(Kind::Flush, 0..0).await
        }
        Op::Snapshot => life.snapshot(1).await,
        Op::CloneSnapshot => life.clone_snapshot().await,
        Op::CloneVolume => life.clone_volume().await,
        Op::DeleteSnapshot => life.delete_snapshot().await,
        Op::DeleteVolume => {
            life.detach().await?;
            life.delete_volume().await
        }
        Op::Revert => {
            life.detach().await?;
            life.revert().await?;
            life.attach().await
        }
        Op::Grow => life.resize().await,
        Op::Collect => life.collect().await,
        Op::Checkpoint => life.space().await,
        Op::Reattach | Op::Reopen => {
            life.detach().await?;
            life.attach().await
        }
    }
}

impl Life {
    /// Starts an operation in its own task; the answer is its end.
    fn start(
        self: &Arc<Self>,
        process: &parallax_sim::Process,
        op: Op,
    ) -> impl Future<Output = Result<(), Failure>> + use<> {
        let done: Arc<parking_lot::Mutex<Option<Result<(), Failure>>>> = Arc::default();
        let (life, told) = (self.clone(), done.clone());
        process.spawn_named(&op.to_string(), async move {
            let outcome = one(&life, op).await;
            *told.lock() = Some(outcome);
        });
        let world = self.drill.world.clone();
        async move {
            loop {
                let outcome = done.lock().take();
                match outcome {
                    Some(outcome) => return outcome,
                    None => world.sleep(Duration::from_micros(50)).await,
                }
            }
        }
    }
}
