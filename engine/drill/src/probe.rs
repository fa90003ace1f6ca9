//! Damage at rest, tried on a copy: whatever happens to one block of metadata, nobody is shown wrong data.
//!
//! A copy of the disk is opened and read as it is. Then one block of metadata is damaged in another copy: a bit flips,
//! the block cannot be read, holds zeroes, or holds another block of its kind. Opening and reading that copy may fail,
//! saying why; what it shows must be what the first copy showed. Where either of two roots will do, both must.
//!
//! The last group of a journal and the last block of the registry's log are exempt: nothing says that they were whole,
//! so they look like a write that a power cut has torn. So is the first of two copies (headers of an area, roots of an epoch)
//! if the power went before the second was there. Blocks of data have no checksums and are left alone.

use crate::{
    Failure,
    model::Stamp,
    run::Drill,
    subject::Subject,
    verify::{Content, read_all},
};
use parallax_block::{BLOCK_SIZE, Buffer, ByteRange, SECTOR_SIZE, WriteOptions};
use parallax_format::{
    BlockAddress,
    area::AreaHeader,
    journal::{self, BlockHeader},
    root::RootSlot,
    seal,
    superblock::Superblock,
};
use parallax_sim::{Either, Image, Prng, SimDisk, either};
use parallax_store::{CreateVdi, Name, Source, Timestamp, VdiId};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// What a pool shows: of a volume, and of its snapshots.
type Sight = BTreeMap<(VdiId, u64), Content>;

/// Kinds of sealed blocks that are looked at more closely.
pub(crate) mod kind {
    pub(crate) const AREA_HEADER: u8 = 5;
    pub(crate) const AREA_LOG: u8 = 7;
    pub(crate) const BITMAP: u8 = 8;
    pub(crate) const ROOT: u8 = 9;
    pub(crate) const JOURNAL: u8 = 10;
    /// A radix node: no header.
    pub(crate) const NODE: u8 = 0;
}

/// How a failure begins that is about a sector which no write can have left.
pub(crate) const WHAT_NOBODY_WROTE: &str = "a damaged pool shows what nobody wrote";

/// A block of metadata.
struct Block {
    at: u64,
    kind: u8,
    bytes: Vec<u8>,
}

impl Block {
    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    /// Where a sealed block of an extent says that it belongs.
    fn address(&self) -> Option<BlockAddress> {
        BlockAddress::from_bits(self.word(16))
    }

    /// Of two versions of a sealed block the higher is newer.
    fn sequence(&self) -> u64 {
        self.word(24)
    }
}

/// What happens to it.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Flip,
    Unreadable,
    Zeroes,
    Another,
}

impl Drill {
    /// Damages copies of the disk, and looks at them.
    pub(crate) async fn probe(&self, disk: &SimDisk, prng: &mut Prng) -> Result<(), Failure> {
        let image = disk.crash_image(parallax_sim::Unflushed::Kept);
        let blocks = metadata(&image);
        let whole = match self.look(&image, None, false).await? {
            Ok(sight) => sight,
            Err(text) => return Err(Failure::new(format!("a copy of a sound pool does not open: {text}"))),
        };
        let mut kinds: Vec<u8> = blocks.iter().map(|block| block.kind).collect();
        kinds.dedup();
        if kinds.contains(&kind::JOURNAL) {
            // Most of it is stale.
            kinds.extend([kind::JOURNAL; 3]);
        }
        for _ in 0..3 {
            // Each kind as often as any other, however many blocks of it there are.
            let Some(kind) = (!kinds.is_empty()).then(|| *prng.pick(&kinds)) else { return Ok(()) };
            let same: Vec<&Block> = blocks.iter().filter(|block| block.kind == kind).collect();
            let candidates: Vec<&Block> =
                same.iter().copied().filter(|block| counts(block, &same, &image)).collect();
            if candidates.is_empty() {
                continue;
            }
            let block = *prng.pick(&candidates);
            let damage = *prng.pick(&[
                Damage::Flip,
                Damage::Flip,
                Damage::Unreadable,
                Damage::Zeroes,
                Damage::Another,
            ]);
            self.try_damage(&image, &whole, block, &same, damage, prng).await?;
        }
        Ok(())
    }

    /// Flips a bit of every block that counts.
    pub(crate) async fn probe_all(&self, disk: &SimDisk, prng: &mut Prng) -> Result<(), Failure> {
        let image = disk.crash_image(parallax_sim::Unflushed::Kept);
        let blocks = metadata(&image);
        let whole = self.look(&image, None, false).await?.map_err(Failure::new)?;
        for block in &blocks {
            let same: Vec<&Block> = blocks.iter().filter(|other| other.kind == block.kind).collect();
            if counts(block, &same, &image) {
                self.try_damage(&image, &whole, block, &same, Damage::Flip, prng).await?;
            }
        }
        Ok(())
    }

    async fn try_damage(
        &self,
        image: &Image,
        whole: &Sight,
        block: &Block,
        same: &[&Block],
        damage: Damage,
        prng: &mut Prng,
    ) -> Result<(), Failure> {
        let kind = block.kind;
        let mut copy = image.clone();
        match damage {
            Damage::Flip => {
                // Most of a node is empty: rather where something is.
                let words: Vec<u64> = (0..BLOCK_SIZE as u64 / 8)
                    .filter(|at| block.bytes[*at as usize * 8..][..8] != [0; 8])
                    .collect();
                let bit = if words.is_empty() || prng.chance(1, 4) {
                    prng.range(0..BLOCK_SIZE as u64 * 8)
                } else {
                    *prng.pick(&words) * 64 + prng.range(0..64)
                };
                let byte = block.bytes[(bit / 8) as usize] ^ 1 << (bit % 8);
                copy.write(block.at + bit / 8, &[byte]);
            }
            Damage::Unreadable => {}
            Damage::Zeroes => copy.write(block.at, &[0; BLOCK_SIZE]),
            Damage::Another => copy.write(block.at, &prng.pick(same).bytes),
        }
        let spoiled = matches!(damage, Damage::Unreadable).then_some(block.at);
        // A bitmap that is wrong shows when space is used.
        let seen = self.look(&copy, spoiled, kind == kind::BITMAP).await?;
        self.count(|summary| summary.probes += 1);
        let what = format!("{damage:?} of the block at {} (kind {kind})", block.at);
        match seen {
            Ok(seen) => compare(&what, whole, &seen),
            // Whether it reads wrong or cannot be read, there is its other copy.
            Err(text)
                if [kind::ROOT, kind::BITMAP].contains(&kind)
                    && !is_journal_by_now(block, &text)
                    && !is_alone(block, image) =>
            {
                Err(Failure::new(format!("{what}: the other copy does not do: {text}")))
            }
            Err(_) => {
                self.count(|summary| summary.refusals += 1);
                Ok(())
            }
        }
    }

    /// Opens a copy and reads all of it, until something fails: then its text is the answer.
    pub(crate) async fn look(
        &self,
        image: &Image,
        spoiled: Option<u64>,
        used: bool,
    ) -> Result<Result<Sight, String>, Failure> {
        let disk = SimDisk::with_image(&self.world, self.disk_options(), image.clone());
        if let Some(at) = spoiled {
            disk.spoil(ByteRange::new(at, BLOCK_SIZE as u64).expect("a block of the disk"));
        }
        let process = self.world.process("probe");
        let mut environment = self.environment(&process);
        environment.tails = Arc::new(self.tails.copy(&self.world));
        let work = async {
            let opened = self.system.open(&disk, environment, self.options.limits).await;
            let pool = opened.map_err(|error| format!("opening: {error}"))?;
            if used {
                // However much fits; it need not.
                let _ = self.use_space(&*pool).await;
            }
            sight(&*pool).await
        };
        let limit = parallax_block::Runtime::sleep(&self.world, Duration::from_secs(3600));
        let seen = match either(work, limit).await {
            Either::Left(seen) => seen,
            Either::Right(()) => return Err(Failure::new("looking at a damaged pool hangs")),
        };
        process.kill();
        match seen {
            // A sector that no write can have left is wrong data, not an answer.
            Err(text) if text.contains("garbage") => {
                Err(Failure::new(format!("{WHAT_NOBODY_WROTE}: {text}")))
            }
            other => Ok(other),
        }
    }
}

/// Whether what could not be read is this very block, as part of a journal: an older volume's root slot lay there, and no
/// group has been written over it yet. Nobody knows whether one had been, so that is damage.
fn is_journal_by_now(block: &Block, text: &str) -> bool {
    let address = block.address().filter(|_| block.kind == kind::ROOT);
    address.is_some_and(|address| {
        text.contains(" of the journal of ") && text.contains(&format!("reading block {address}:"))
    })
}

/// Whether a root slot's twin has been torn already, as the power went when the first root of an epoch was written: if both
/// are gone, nobody knows which epoch they were of, so that is damage.
fn is_alone(block: &Block, image: &Image) -> bool {
    let Some(salt) = superblock(image).map(|superblock| superblock.salt) else { return false };
    let slot = |bytes: &[u8], at: BlockAddress| RootSlot::decode(bytes, at, salt).ok();
    let twin = || {
        let address = block.address().filter(|_| block.kind == kind::ROOT)?;
        let mine = slot(&block.bytes, address)?;
        let is_second = mine.number % 2 == 1;
        let number = address.block().checked_add_signed(if is_second { -1 } else { 1 })?;
        let mut bytes = [0; BLOCK_SIZE];
        image.read(
            if is_second { block.at - BLOCK_SIZE as u64 } else { block.at + BLOCK_SIZE as u64 },
            &mut bytes,
        );
        let twin = slot(&bytes, BlockAddress::new(address.extent(), number)?);
        Some(twin.is_some_and(|twin| twin.vdi == mine.vdi && twin.epoch.grant == mine.epoch.grant))
    };
    twin() == Some(false)
}

impl Drill {
    /// Writes to a new volume, and deletes it.
    async fn use_space(&self, pool: &dyn Subject) -> parallax_block::Result<()> {
        const BLOCKS: u64 = 300;
        let request = CreateVdi {
            name: Name::new("probe")?,
            size: Some(BLOCKS * BLOCK_SIZE as u64),
            source: Source::Empty,
            logical_block: 4096,
            attributes: BTreeMap::new(),
            at: Timestamp(0),
        };
        let id = pool.create_vdi(request).await?.id;
        let volume = pool.attach(id).await?;
        let mut outcome = Ok(());
        for block in 0..BLOCKS {
            let buffer = Buffer::copy_of(&[0x5a; BLOCK_SIZE]);
            let written = volume.write(block * BLOCK_SIZE as u64, buffer, WriteOptions::default()).await.1;
            outcome = outcome.and(written);
        }
        volume.detach().await?;
        pool.delete_vdi(id).await?;
        outcome
    }
}

async fn sight(pool: &dyn Subject) -> Result<Sight, String> {
    let mut sight = Sight::new();
    let said = |what: &str, error: parallax_block::Error| format!("{what}: {error}");
    for info in pool.vdis() {
        if !info.headless {
            let volume = pool.attach(info.id).await.map_err(|error| said("attach", error))?;
            let content = read_all(&*volume, "volume").await.map_err(|failure| failure.message)?;
            sight.insert((info.id, 0), content);
            volume.detach().await.map_err(|error| said("detach", error))?;
        }
        let snapshots = pool.snapshots(info.id, 0, 1000).await.map_err(|error| said("snapshots", error))?;
        for snapshot in snapshots {
            pool.materialise(snapshot.id).await.map_err(|error| said("materialise", error))?;
            let view = pool.open_snapshot(snapshot.id).await.map_err(|error| said("snapshot", error))?;
            let content = read_all(&*view, "snapshot").await.map_err(|failure| failure.message)?;
            sight.insert((info.id, snapshot.id.number), content);
            view.close().await.map_err(|error| said("close", error))?;
        }
    }
    Ok(sight)
}

fn compare(what: &str, whole: &Sight, seen: &Sight) -> Result<(), Failure> {
    for (key, content) in whole {
        let (vdi, number) = key;
        match seen.get(key) {
            None => return Err(Failure::new(format!("{what}: {vdi}@{number} has vanished without a word"))),
            Some(found) if found != content => {
                let differs = |lba: &&u64| content.get(lba) != found.get(lba);
                let lba = content.keys().chain(found.keys()).find(differs).copied().unwrap_or_default();
                let show = |content: &Content| content.get(&lba).copied().unwrap_or(Stamp::ZERO);
                let (was, is) = (show(content), show(found));
                let message =
                    format!("{what} was believed: sector {lba} of {vdi}@{number} was {was}, is {is}");
                return Err(Failure::new(message));
            }
            Some(_) => {}
        }
    }
    match seen.keys().find(|key| !whole.contains_key(key)) {
        Some((vdi, number)) => Err(Failure::new(format!("{what}: {vdi}@{number} came from nowhere"))),
        None => Ok(()),
    }
}

/// What a block that begins like this is, if it is metadata: it has a header, or is neither uniform nor data.
pub(crate) fn kind_of(page: &[u8]) -> Option<u8> {
    let page = page.get(..BLOCK_SIZE)?;
    let is_data = |sector: &[u8]| {
        let lba = u64::from_le_bytes(sector[8..16].try_into().expect("eight bytes")) & !(1 << 63);
        Stamp::read(lba, sector).is_ok_and(|stamp| stamp != Stamp::ZERO)
    };
    if page[..4] == *b"PLX1" {
        return Some(page[4]);
    }
    let uniform = page.iter().all(|byte| *byte == page[0]);
    (!uniform && !page.chunks(SECTOR_SIZE).any(is_data)).then_some(kind::NODE)
}

/// Where extents begin, on a disk of this size: behind the first superblock, host slots and the like.
pub(crate) fn first_extent(image: &Image) -> u64 {
    superblock(image).map_or(0, |superblock| superblock.extent_start(0) * BLOCK_SIZE as u64)
}

fn superblock(image: &Image) -> Option<Superblock> {
    let mut first = [0; BLOCK_SIZE];
    image.read(0, &mut first);
    Superblock::decode(&first, 0).ok().map(|(superblock, _)| superblock)
}

/// Blocks that hold metadata, by kind.
fn metadata(image: &Image) -> Vec<Block> {
    let mut blocks: Vec<Block> = image
        .pages()
        .filter_map(|(at, page)| Some(Block { at, kind: kind_of(page)?, bytes: page.to_vec() }))
        .collect();
    blocks.sort_by_key(|block| (block.kind, block.at));
    blocks
}

/// Whether damage to this block must be noticed and may matter: not the last of a log, nor long before it.
fn counts(block: &Block, same: &[&Block], image: &Image) -> bool {
    let Some(superblock) = superblock(image) else { return block.kind != kind::JOURNAL };
    match block.kind {
        // Between the two headers of a new area the power went: the second is of the area before.
        kind::AREA_HEADER => {
            let id = |block: &Block| {
                let header = AreaHeader::decode(&block.bytes, block.at / BLOCK_SIZE as u64, superblock.salt);
                header.ok().map(|header| header.id)
            };
            same.iter().any(|other| other.at != block.at && id(other) == id(block))
        }
        // Logs of older areas do not count any more; that they are spared is no loss.
        kind::AREA_LOG => {
            let area = |block: &Block| block.bytes[32..48].to_vec();
            // A later one that was torn proves nothing.
            let is_whole = |other: &Block| {
                let at = other.at / BLOCK_SIZE as u64;
                seal::open(&other.bytes, seal::Kind::AreaLog, at, superblock.salt).is_ok()
            };
            let rest = same.iter().filter(|other| area(other) == area(block) && is_whole(other));
            rest.map(|other| other.sequence()).max().is_some_and(|last| last > block.sequence())
        }
        kind::JOURNAL => {
            let header = |block: &Block| -> Option<BlockHeader> {
                journal::decode_block(&block.bytes, block.address()?, superblock.salt)
                    .ok()
                    .map(|(header, ..)| header)
            };
            let Some(mine) = header(block) else { return false };
            let of_vdi =
                same.iter().filter_map(|other| header(other)).filter(|header| header.vdi == mine.vdi);
            // Groups are numbered on from epoch to epoch.
            let newest = of_vdi.map(|header| (header.epoch, header.group)).max();
            newest.is_some_and(|(epoch, group)| {
                epoch == mine.epoch && mine.group < group && group < mine.group + 6
            })
        }
        _ => true,
    }
}
