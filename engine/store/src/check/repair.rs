//! Mends what can be proved to be safe, and nothing else.
//!
//! | what | how it is mended | why it is safe |
//! |---|---|---|
//! | a superblock, unreadable or torn | written from the other | both say the same, and the other verifies |
//! | blocks in use that count as free | marked | a mark takes nothing from anybody |
//! | a bitmap copy that does not verify | all of its blocks count as allocated until garbage is collected | as opening does |
//! | an area header, a root slot | the pool, or the volume, is opened and closed | its twin verifies, and opening adopts it |
//! | blocks that nothing reaches | garbage collection | everything else was reached |
//!
//! The last two only if nothing else is damaged: behind a lost node may lie what looks unreachable. A volume whose
//! data cannot be found, a block with two owners, a registry that does not verify are reported and left as they are.

use super::{Check, REACHED};
use crate::{Environment, Finding, Pool, disk::Disk, pool::read_superblock};
use parallax_block::{BlockDevice, Error, ErrorKind, Result, ResultExt};
use parallax_format::{
    bitmap::{self, BitmapBlock},
    superblock::Superblock,
};
use std::sync::Arc;

/// What opening the pool, or marking, sets right.
const MENDABLE: [&str; 6] =
    ["superblock-copy", "area-header-copy", "root-slot-copy", "bitmap-copy", "block-unmarked", "unreachable"];

/// What a repair did.
#[derive(Debug, Clone)]
pub struct Repaired {
    /// What was wrong before.
    pub found: Vec<Finding>,
    /// What was done, one sentence each.
    pub mended: Vec<String>,
    /// What is still wrong.
    pub left: Vec<Finding>,
}

/// Verifies a pool, mends what can be proved to be safe, and verifies it again. The device is held exclusively and no
/// pool is open on it. A pool in which nothing is wrong is not written to.
pub async fn repair(
    device: Arc<dyn BlockDevice>,
    environment: Environment,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Repaired> {
    if device.geometry().read_only {
        return Err(Error::new(ErrorKind::ReadOnly, "the pool's device is read-only"));
    }
    let superblock = read_superblock(&*device).await?;
    let disk = Disk::new(device.clone(), superblock, environment.runtime.clone(), 4096);
    // What is seen is durable: a repair may write over what came before it.
    disk.flush().await?;
    let mut check = Check::new(&disk);
    check.run(progress).await?;
    let found = check.findings();
    let mut mended = Vec::new();
    if found.is_empty() {
        return Ok(Repaired { left: Vec::new(), found, mended });
    }
    check.mend_superblocks(&mut mended).await.context(|| "mending a superblock")?;
    check.mend_bitmaps(&mut mended).await.context(|| "mending bitmaps")?;
    disk.flush().await?;
    drop(check);
    drop(disk);
    // A torn host slot says nothing about what is reached.
    if found.iter().all(|finding| MENDABLE.contains(&finding.kind) || finding.kind == "host-slot") {
        settle(&device, environment, &found, &mut mended).await?;
    }
    let left = super::check(device, progress).await?;
    Ok(Repaired { found, mended, left })
}

/// Lets the pool itself do the rest.
async fn settle(
    device: &Arc<dyn BlockDevice>,
    environment: Environment,
    found: &[Finding],
    mended: &mut Vec<String>,
) -> Result<()> {
    let pool = Pool::open(device.clone(), environment).await.context(|| "opening the pool to mend it")?;
    let done = async {
        for info in pool.vdis() {
            let slots = |finding: &&Finding| {
                finding.kind == "root-slot-copy"
                    && finding
                        .volumes
                        .iter()
                        .any(|name| *name == info.name.to_string() || *name == info.id.to_string())
            };
            if found.iter().any(|finding| slots(&finding)) {
                pool.core.with(info.id, |_| std::future::ready(Ok(()))).await?;
                mended.push(format!("volume '{}': both root slots are written anew", info.name));
            }
        }
        let freed = pool.collect_garbage(&|_| {}).await?;
        let bytes = freed.freed_data + freed.freed_metadata;
        if bytes > 0 {
            mended.push(format!("{} KiB that nothing reached are free again", bytes >> 10));
        }
        Ok(())
    }
    .await;
    pool.close().await.and(done)?;
    if found.iter().any(|finding| finding.kind == "area-header-copy") {
        mended.push("both headers of the registry are written anew".to_owned());
    }
    Ok(())
}

impl Check<'_> {
    async fn mend_superblocks(&mut self, mended: &mut Vec<String>) -> Result<()> {
        let places = [0, self.superblock.devices[0].blocks - 1];
        let mut sequence = 0;
        let mut bad = Vec::new();
        for at in places {
            // What cannot be read can often be written: a sector that went bad is then replaced.
            match self.disk.read_physical(at).await.and_then(|bytes| Superblock::decode(&bytes, at)) {
                Ok((_, valid)) => sequence = sequence.max(valid),
                Err(_) => bad.push(at),
            }
        }
        for at in bad {
            self.disk.write_physical(at, self.superblock.encode(at, sequence), true).await?;
            mended.push(format!("the superblock at block #{at} is written from its twin"));
        }
        Ok(())
    }

    async fn mend_bitmaps(&mut self, mended: &mut Vec<String>) -> Result<()> {
        let blocks = self.superblock.extent_blocks;
        if self.findings.listed().iter().any(|finding| finding.kind == "extent-overlap") {
            // Nobody can tell whose bitmaps lie there.
            return Ok(());
        }
        for (id, extent) in &self.extents {
            for (index, part) in extent.parts.iter().enumerate() {
                let first = index as u32 * bitmap::BITS;
                let covered = first..(first + bitmap::BITS).min(blocks);
                let unmarked = covered
                    .clone()
                    .filter(|block| {
                        extent.seen[*block as usize] & REACHED != 0
                            && extent.is_allocated(*block) == Some(false)
                    })
                    .count();
                if unmarked == 0 && !part.torn {
                    continue;
                }
                let mut words = vec![u64::MAX; bitmap::WORDS];
                if !part.torn {
                    let known = &extent.allocated[index * bitmap::WORDS..][..bitmap::WORDS];
                    words.copy_from_slice(known);
                    for block in covered.filter(|block| extent.seen[*block as usize] & REACHED != 0) {
                        let at = block - first;
                        words[at as usize / 64] |= 1 << (at % 64);
                    }
                }
                let (incarnation, sequence) = part.newest;
                let block = BitmapBlock { incarnation, birth: part.birth, words };
                for sequence in [sequence + 1, sequence + 2] {
                    let at = bitmap::location(*id, blocks, index as u32, (sequence % 2) as u32);
                    self.disk.write_blocks(at, block.encode(at, sequence, self.disk.salt()), true).await?;
                }
                mended.push(match part.torn {
                    true => format!("extent {id}: a bitmap that did not verify is written anew"),
                    false => format!("extent {id}: {unmarked} blocks in use are marked"),
                });
            }
        }
        Ok(())
    }
}
