//! Space accounted for: what the store says that things take, against what can be counted in other ways.
//!
//! It is done on a copy of the disk, so that the lives that follow are not disturbed:
//!
//! | the store says | and that must be |
//! |---|---|
//! | how much a volume maps | what its block status calls data |
//! | how much of that is shared | no less than what deleting the volume leaves behind |
//! | how much only a snapshot holds | what comes back when it is deleted and garbage is collected |
//! | how much the pool has given to data | no more than all maps together, no less than the largest of them |
//! | what is allocated, once garbage is collected | what a check reaches, to the block |

use crate::{
    Failure,
    run::Drill,
    subject::{Subject, Volume},
};
use parallax_block::{
    Allocation, BLOCK_SIZE, BlockDevice, ByteRange, Error, ErrorKind, Result as Answer, Runtime,
};
use parallax_sim::{Either, Prng, SimDisk, Unflushed, either};
use parallax_store::{PoolInfo, SnapshotId, VdiId};
use std::{sync::Arc, time::Duration};

/// Bytes of metadata that come and go with a deletion besides what it frees: slots, journal, nodes of a snapshot table.
const SLACK: u64 = 128 * BLOCK_SIZE as u64;
/// Deletions that are weighed.
const DELETIONS_MAX: usize = 4;

/// Why it ended early.
enum Trouble {
    Store(Error),
    Wrong(String),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

fn holds(law: bool, text: impl FnOnce() -> String) -> Result<(), Trouble> {
    if law { Ok(()) } else { Err(Trouble::Wrong(text())) }
}

/// Something that takes space.
#[derive(Debug, Clone, Copy)]
enum Thing {
    Volume(VdiId),
    Snapshot(SnapshotId),
}

impl Drill {
    /// Accounts for all space on a copy of the disk.
    pub(crate) async fn account(&self, disk: &SimDisk, prng: &mut Prng) -> Result<(), Failure> {
        if !self.system.keeps_accounts() {
            return Ok(());
        }
        let copy = SimDisk::with_image(&self.world, self.disk_options(), disk.crash_image(Unflushed::Kept));
        let process = self.world.process("accounts");
        let mut environment = self.environment(&process);
        environment.tails = Arc::new(self.tails.copy(&self.world));
        let work = async {
            let pool = self.system.open(&copy, environment, self.options.limits).await?;
            let outcome = weigh(&*pool, prng).await;
            pool.close().await?;
            outcome
        };
        let outcome = match either(work, self.world.sleep(Duration::from_secs(3600))).await {
            Either::Left(outcome) => outcome,
            Either::Right(()) => return Err(Failure::new("accounting for space hangs")),
        };
        process.kill();
        self.count(|summary| summary.accounts += 1);
        match outcome {
            Ok(()) => {}
            Err(Trouble::Store(error)) if self.options.tight && error.kind() == ErrorKind::OutOfSpace => {
                return Ok(());
            }
            Err(Trouble::Store(error)) => {
                return Err(Failure::new(format!("accounting for space: {error:?}")));
            }
            Err(Trouble::Wrong(text)) => return Err(Failure::new(format!("space: {text}"))),
        }
        let left = SimDisk::with_image(&self.world, self.disk_options(), copy.crash_image(Unflushed::Kept));
        match self.system.check(&left).await {
            Ok(found) if found.is_empty() => Ok(()),
            other => Err(Failure::new(format!(
                "space: garbage was collected and the pool closed, yet a check finds {other:?}"
            ))),
        }
    }
}

/// Bytes that a device calls data.
async fn data<D: BlockDevice + ?Sized>(device: &D) -> Answer<u64> {
    let size = device.geometry().capacity;
    let (mut at, mut sum) = (0, 0);
    while at < size {
        for extent in device.status(ByteRange::new(at, size - at)?, 64).await? {
            sum += if extent.allocation == Allocation::Data { extent.range.length() } else { 0 };
            at = extent.range.end();
        }
    }
    Ok(sum)
}

async fn weigh(pool: &dyn Subject, prng: &mut Prng) -> Result<(), Trouble> {
    let mut things = Vec::new();
    let mut maps = Vec::new();
    for info in pool.vdis() {
        for snapshot in pool.snapshots(info.id, 0, 1000).await? {
            pool.materialise(snapshot.id).await?;
            let view = pool.open_snapshot(snapshot.id).await?;
            maps.push(data(&*view).await?);
            view.close().await?;
            things.push(Thing::Snapshot(snapshot.id));
        }
        if !info.headless {
            maps.push(mapped(pool, info.id).await?);
            things.push(Thing::Volume(info.id));
        }
    }
    let info = collected(pool).await?;
    let (most, sum) = (maps.iter().copied().max().unwrap_or(0), maps.iter().sum::<u64>());
    holds(most <= info.data_used && info.data_used <= sum, || {
        format!("maps of {maps:?} bytes take {} in the pool", info.data_used)
    })?;
    holds(info.free + info.data_used + info.metadata_used <= info.capacity, || {
        format!("more is free and used than there is: {info:?}")
    })?;
    prng.shuffle(&mut things);
    for thing in things.into_iter().take(DELETIONS_MAX) {
        match thing {
            Thing::Volume(id) => delete_volume(pool, id).await?,
            Thing::Snapshot(id) => delete_snapshot(pool, id).await?,
        }
    }
    Ok(())
}

/// What a volume maps, by its block status; the store must say the same.
async fn mapped(pool: &dyn Subject, id: VdiId) -> Result<u64, Trouble> {
    let volume: Arc<dyn Volume> = pool.attach(id).await?;
    let counted = data(&*volume).await?;
    let usage = pool.usage(id).await?;
    volume.detach().await?;
    let again = pool.usage(id).await?;
    holds(usage == again, || format!("{id} takes {usage:?} attached and {again:?} detached"))?;
    holds(usage.mapped == counted && usage.shared <= usage.mapped, || {
        format!("{id} has {counted} bytes of data, and is said to take {usage:?}")
    })?;
    Ok(counted)
}

/// The pool without garbage.
async fn collected(pool: &dyn Subject) -> Answer<PoolInfo> {
    pool.collect_garbage().await?;
    Ok(pool.info())
}

async fn delete_volume(pool: &dyn Subject, id: VdiId) -> Result<(), Trouble> {
    let usage = pool.usage(id).await?;
    let own = usage.mapped - usage.shared;
    let before = collected(pool).await?;
    pool.delete_vdi(id).await?;
    let after = collected(pool).await?;
    let freed = before.data_used.saturating_sub(after.data_used);
    holds(own <= freed && freed <= usage.mapped, || {
        format!("{id} took {usage:?}, and its deletion freed {freed} bytes of data")
    })
}

async fn delete_snapshot(pool: &dyn Subject, id: SnapshotId) -> Result<(), Trouble> {
    let before = collected(pool).await?;
    let said = pool.exclusive(id).await?;
    pool.delete_snapshot(id).await?;
    let after = collected(pool).await?;
    let data = before.data_used.saturating_sub(after.data_used);
    let nodes = before.metadata_used.saturating_sub(after.metadata_used);
    holds(data <= said && said <= data + nodes + SLACK && data + nodes <= said + SLACK, || {
        format!("only {id} held {said} bytes; its deletion freed {data} of data and {nodes} of metadata")
    })
}
