//! Comparison of an open pool with the model.

use crate::{
    Failure,
    life::Life,
    model::{Cut, Doubt, Forest, Held, Origin, Registers, Snapshot, Stamp, Use},
};
use parallax_block::{BlockDevice, Buffer, SECTOR_SIZE};
use parallax_store::{SnapshotId, SnapshotInfo, VdiId, VdiInfo};
use std::collections::BTreeMap;

const READ_BYTES_MAX: u64 = 128 << 10;

type Checked<T = ()> = Result<T, Failure>;

/// What a disk holds: every sector that is not zero.
pub(crate) type Content = BTreeMap<u64, Stamp>;

/// Reads a whole device that nobody writes.
pub(crate) async fn read_all<D: BlockDevice + ?Sized>(device: &D, what: &str) -> Checked<Content> {
    let capacity = device.geometry().capacity;
    let mut content = Content::new();
    let mut at = 0;
    while at < capacity {
        let length = READ_BYTES_MAX.min(capacity - at);
        let (buffer, result) = device.read(at, Buffer::zeroed(length as usize)).await;
        result.map_err(|error| Failure::new(format!("{what}: reading {length} bytes at {at}: {error:?}")))?;
        for (index, sector) in buffer.chunks(SECTOR_SIZE).enumerate() {
            let lba = at / SECTOR_SIZE as u64 + index as u64;
            let stamp = Stamp::read(lba, sector)
                .map_err(|garbage| Failure::new(format!("{what}: sector {lba} holds {garbage}")))?;
            if stamp != Stamp::ZERO {
                content.insert(lba, stamp);
            }
        }
        at += length;
    }
    Ok(content)
}

/// Fails unless a snapshot holds what it held before. A write that failed may land in it late, and a power cut may take that
/// back.
fn same(forest: &Forest, vdi: VdiId, what: &str, expected: &Content, found: &Content) -> Checked {
    let is_late = |content: &Content, lba: u64| {
        forest.is_haunted(None, lba, content.get(&lba).copied().unwrap_or_default())
    };
    let differs = |lba: &&u64| {
        expected.get(lba) != found.get(lba) && !is_late(found, **lba) && !is_late(expected, **lba)
    };
    let Some(lba) = expected.keys().chain(found.keys()).find(differs) else { return Ok(()) };
    let value = |content: &Content| content.get(lba).copied().unwrap_or_default();
    let message = format!("{what}: sector {lba} holds {}, it held {}", value(found), value(expected));
    Err(Failure { message, story: forest.story(vdi, *lba) })
}

impl Life {
    /// Reads a whole device that nobody writes; gives up if the disk has failed.
    pub(crate) async fn read_all<D: BlockDevice + ?Sized>(&self, device: &D, what: &str) -> Checked<Content> {
        read_all(device, what).await.map_err(|failure| {
            let damaged = failure.message.contains("Corrupt") && !self.drill.is_lied_to();
            let unread = failure.message.contains("reading") && !damaged;
            if unread && self.drill.is_struck() { Failure::given_up() } else { failure }
        })
    }

    /// Reads snapshots of one instant and judges them together.
    pub(crate) async fn inspect_snapshots(&self, ids: &[SnapshotId]) -> Checked {
        let mut found = Vec::new();
        for id in ids {
            let what = format!("snapshot {id}");
            let failed = |step: &str, error: parallax_block::Error| {
                self.drill.trouble(&format!("{what}: {step}"), &error)
            };
            self.pool.materialise(*id).await.map_err(|error| failed("materialise", error))?;
            let view = self.pool.open_snapshot(*id).await.map_err(|error| failed("open", error))?;
            found.push(self.read_all(&*view, &what).await?);
            view.close().await.map_err(|error| failed("close", error))?;
        }
        let mut forest = self.drill.forest.lock();
        judge_snapshots(&mut forest, ids, &found)
    }

    /// Compares everything with the model: for a pool that was just opened and that nobody uses yet.
    pub(crate) async fn verify(&self) -> Checked {
        let infos = self.pool.vdis();
        let mut snapshots: BTreeMap<VdiId, Vec<SnapshotInfo>> = BTreeMap::new();
        for info in &infos {
            snapshots.insert(info.id, self.list_snapshots(info.id).await?);
        }
        // Asked again: only now has every volume been looked into.
        let infos = self.pool.vdis();
        settle_doubts(&mut self.drill.forest.lock(), &infos, &snapshots)?;
        compare_forest(&self.drill.forest.lock(), &infos, &snapshots)?;
        for info in infos.iter().filter(|info| !info.headless) {
            // Some are left alone, so that more than one life may pass before their next checkpoint.
            let in_doubt = {
                let mut forest = self.drill.forest.lock();
                forest.or_else.contains_key(&info.id)
                    || forest.growing.contains_key(&info.id)
                    || forest.volume(info.id).unread.is_some()
            };
            let unverified = self.drill.options.unverified_percent;
            if in_doubt || !self.prng.lock().chance(unverified, 100) {
                self.verify_volume(info).await?;
            }
        }
        let ids: Vec<SnapshotId> = snapshots.values().flatten().map(|snapshot| snapshot.id).collect();
        for id in ids {
            self.inspect_snapshots(&[id]).await?;
        }
        Ok(())
    }

    /// All snapshots of a volume, in pages.
    async fn list_snapshots(&self, vdi: VdiId) -> Checked<Vec<SnapshotInfo>> {
        let mut all: Vec<SnapshotInfo> = Vec::new();
        loop {
            let after = all.last().map_or(0, |snapshot| snapshot.id.number);
            let page = self.pool.snapshots(vdi, after, 3).await;
            let page =
                page.map_err(|error| Failure::new(format!("listing snapshots of {vdi}: {error:?}")))?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }

    /// Attaches, reads and detaches one volume.
    async fn verify_volume(&self, info: &VdiInfo) -> Checked {
        let what = format!("{} ({}) after opening", info.name, info.id);
        let begin = self.drill.forest.lock().writes.tick();
        let failed =
            |step: &str, error: parallax_block::Error| Failure::new(format!("{what}: {step}: {error:?}"));
        let volume = self.pool.attach(info.id).await.map_err(|error| failed("attach", error))?;
        let capacity = volume.geometry().capacity;
        let growth = self.drill.forest.lock().growing.remove(&info.id);
        if growth == Some(capacity) {
            self.drill.forest.lock().volume(info.id).size = capacity;
        } else if capacity != info.size {
            return Err(Failure::new(format!(
                "{what}: attached with {capacity} bytes, listed with {}",
                info.size
            )));
        }
        let found = read_all(&*volume, &what).await?;
        let stays = self.prng.lock().chance(1, 2);
        if !stays {
            volume.detach().await.map_err(|error| failed("detach", error))?;
        }
        let mut forest = self.drill.forest.lock();
        forest.note(Some(info.id), 0..0, format!("verified{}", if stays { ", stays attached" } else { "" }));
        judge_volume(&mut forest, info.id, &what, begin, &found)?;
        forest.volume(info.id).handle = stays.then_some(volume);
        Ok(())
    }
}

/// Judges the content of a volume that nobody writes.
fn judge_volume(forest: &mut Forest, id: VdiId, what: &str, begin: u64, found: &Content) -> Checked {
    let other = forest.or_else.remove(&id);
    let reverted = other.as_ref().is_some_and(|other| other == found);
    let unread = forest.volume(id).unread.take();
    if let Some(cut) = &unread {
        judge_cut(forest, id, what, cut, found)?;
    }
    let (writes, volume) = forest.split(id);
    if reverted || unread.is_some() {
        volume.registers = Registers::adopted(found, writes);
        return Ok(());
    }
    let end = writes.tick();
    let touched: Vec<u64> = volume.registers.touched().chain(found.keys().copied()).collect();
    for lba in touched {
        let stamp = found.get(&lba).copied().unwrap_or_default();
        let (writes, volume) = forest.split(id);
        if let Err(wrong) = volume.registers.read(lba, stamp, begin, end, writes) {
            if forest.is_haunted(Some(id), lba, stamp) {
                continue;
            }
            let mut failure = forest.wrong(id, what, &wrong);
            if let Some(other) = other {
                let outcome = same(forest, id, "nor is it what the revert in doubt brings", &other, found);
                failure.story.extend(outcome.err().map(|failure| failure.message));
            }
            return Err(failure);
        }
    }
    let (writes, volume) = forest.split(id);
    volume.registers.compact(writes);
    Ok(())
}

/// Judges what one thing holds that was cut at some moment.
pub(crate) fn judge_cut(forest: &Forest, id: VdiId, what: &str, cut: &Cut, found: &Content) -> Checked {
    match Cut::judge(&[(cut, found)], &forest.writes) {
        Err((_, wrong)) if !forest.is_haunted(None, wrong.lba, wrong.found) => {
            Err(forest.wrong(id, what, &wrong))
        }
        _ => Ok(()),
    }
}

fn judge_snapshots(forest: &mut Forest, ids: &[SnapshotId], found: &[Content]) -> Checked {
    let held = |forest: &Forest, id: &SnapshotId| {
        forest
            .volumes
            .get(&id.vdi)
            .and_then(|volume| volume.snapshots.get(&id.number))
            .map(|s| s.held.clone())
    };
    let mut cuts: Vec<(SnapshotId, Cut, &Content)> = Vec::new();
    for (id, content) in ids.iter().zip(found) {
        match held(forest, id) {
            Some(Held::Fixed(before)) => {
                same(forest, id.vdi, &format!("snapshot {id}"), &before, content)?;
                if before != *content
                    && let Some(snapshot) = forest.volume(id.vdi).snapshots.get_mut(&id.number)
                {
                    // A late write has come, or gone: whoever is cloned from it begins with what there is now.
                    snapshot.held = Held::Fixed(content.clone());
                }
            }
            Some(Held::Cut(cut)) => cuts.push((*id, cut, content)),
            None => return Err(Failure::new(format!("snapshot {id} is not in the model"))),
        }
    }
    let pairs: Vec<(&Cut, &Content)> = cuts.iter().map(|(_, cut, content)| (cut, *content)).collect();
    if let Err((which, wrong)) = Cut::judge(&pairs, &forest.writes)
        && !forest.is_haunted(None, wrong.lba, wrong.found)
    {
        let id = cuts[which].0;
        return Err(forest.wrong(id.vdi, &format!("snapshot {id}"), &wrong));
    }
    for (id, _, content) in cuts {
        if let Some(snapshot) = forest.volume(id.vdi).snapshots.get_mut(&id.number) {
            snapshot.held = Held::Fixed(content.clone());
        }
    }
    Ok(())
}

/// Finds out how the operations ended that were under way at a death.
fn settle_doubts(
    forest: &mut Forest,
    infos: &[VdiInfo],
    snapshots: &BTreeMap<VdiId, Vec<SnapshotInfo>>,
) -> Checked {
    let info = |id: VdiId| infos.iter().find(|info| info.id == id);
    let listed = |id: VdiId| snapshots.get(&id).map_or(&[][..], Vec::as_slice);
    let doubts: Vec<Doubt> = std::mem::take(&mut forest.doubts).into_values().collect();
    let (ends, others): (Vec<Doubt>, Vec<Doubt>) =
        doubts.into_iter().partition(|doubt| matches!(doubt, Doubt::Delete(_)));
    for doubt in others.into_iter().chain(ends) {
        match doubt {
            Doubt::Create { name, size, logical_block, origin, source } => {
                let Some(made) = infos.iter().find(|info| !info.headless && info.name.as_str() == name)
                else {
                    continue;
                };
                let (registers, unread) = match origin {
                    Origin::Content(content) => (Registers::adopted(&content, &mut forest.writes), None),
                    Origin::Cut(cut) => (Registers::default(), Some(cut)),
                    Origin::Moment(..) => {
                        return Err(Failure::new("a death left a doubt without its moment"));
                    }
                };
                forest.add(made.id, name, size, logical_block, registers);
                let volume = forest.volume(made.id);
                (volume.source, volume.unread) = (source, unread);
            }
            Doubt::Delete(id) => {
                if forest.volumes.contains_key(&id) && info(id).is_none_or(|info| info.headless) {
                    forest.delete(id);
                }
            }
            Doubt::Rename(id, name) => {
                if info(id).is_some_and(|info| info.name.as_str() == name) {
                    forest.volume(id).name = name;
                }
            }
            Doubt::Resize(id, size) => {
                // The list may lag behind the volume itself, which is asked when it is attached.
                if info(id).is_some_and(|info| info.size == size) {
                    forest.volume(id).size = size;
                } else {
                    forest.growing.insert(id, size);
                }
            }
            Doubt::Revert(id, content) => {
                forest.or_else.insert(id, content);
            }
            Doubt::Snapshot { vdis, label, cuts, .. } => {
                settle_snapshot(forest, &vdis, &label, cuts, snapshots)?
            }
            Doubt::Label(id, label) => {
                let new = listed(id.vdi).iter().any(|s| s.id == id && s.label == label);
                if let Some(snapshot) = forest
                    .volumes
                    .get_mut(&id.vdi)
                    .and_then(|v| v.snapshots.get_mut(&id.number))
                    .filter(|_| new)
                {
                    snapshot.label = label;
                }
            }
            Doubt::DeleteSnapshot(id) => {
                if listed(id.vdi).iter().all(|snapshot| snapshot.id != id) {
                    forest.delete_snapshot(id);
                }
            }
        }
    }
    Ok(())
}

fn settle_snapshot(
    forest: &mut Forest,
    vdis: &[VdiId],
    label: &str,
    cuts: Vec<(u64, Cut)>,
    snapshots: &BTreeMap<VdiId, Vec<SnapshotInfo>>,
) -> Checked {
    let mut made: Vec<SnapshotInfo> = Vec::new();
    for id in vdis {
        let known = &forest.volume(*id).numbers;
        let new = |snapshot: &&SnapshotInfo| !known.contains(&snapshot.id.number) && snapshot.label == label;
        made.extend(snapshots.get(id).into_iter().flatten().filter(new).cloned());
    }
    if made.is_empty() {
        return Ok(());
    }
    if made.len() != vdis.len() {
        let message =
            format!("of snapshots of {vdis:?} at one instant only {made:?} are there after a death");
        return Err(Failure::new(message));
    }
    for (info, (size, cut)) in made.iter().zip(cuts) {
        let snapshot = Snapshot { size, label: label.to_owned(), held: Held::Cut(cut), used: Use::Free };
        forest.add_snapshot(info.id, snapshot)?;
    }
    Ok(())
}

fn compare_forest(
    forest: &Forest,
    infos: &[VdiInfo],
    snapshots: &BTreeMap<VdiId, Vec<SnapshotInfo>>,
) -> Checked {
    let failure =
        |id: VdiId, message: String| Err(Failure { message, story: forest.story(id, u64::MAX - 8) });
    for info in infos {
        let Some(volume) = forest.volumes.get(&info.id) else {
            return failure(
                info.id,
                format!("volume {} ({}) should not be there: {info:?}", info.name, info.id),
            );
        };
        // The registry's count of snapshots is a hint after a death; the list below is what counts.
        let expected = (volume.headless, volume.source, false);
        if expected != (info.headless, info.source_vdi, info.attached) {
            return failure(
                info.id,
                format!("{} is {info:?}, expected (headless, source, attached) {expected:?}", info.id),
            );
        }
        let shape = (volume.name.as_str(), volume.size, volume.logical_block);
        if !volume.headless && shape != (info.name.as_str(), info.size, info.logical_block) {
            return failure(info.id, format!("volume {info:?} should be {shape:?}"));
        }
        let found: Vec<(u64, &str, u64)> = snapshots
            .get(&info.id)
            .into_iter()
            .flatten()
            .map(|snapshot| (snapshot.id.number, snapshot.label.as_str(), snapshot.size))
            .collect();
        let expected: Vec<(u64, &str, u64)> =
            volume.snapshots.iter().map(|(number, s)| (*number, s.label.as_str(), s.size)).collect();
        if found != expected {
            return failure(info.id, format!("{} has snapshots {found:?}, expected {expected:?}", info.id));
        }
    }
    if let Some(id) = forest.volumes.keys().find(|id| infos.iter().all(|info| info.id != **id)) {
        return failure(*id, format!("volume {} ({id}) is lost", forest.volumes[id].name));
    }
    Ok(())
}
