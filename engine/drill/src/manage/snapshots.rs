//! Operations on snapshots, and on space.

use super::{Checked, Life};
use crate::{
    Failure,
    model::{Cut, Doubt, Held, Snapshot, Stamp, Use},
};
use parallax_block::SECTOR_SIZE;
use parallax_store::{DiffExtent, SnapshotId, TakeSnapshot, VdiId};
use std::collections::{BTreeMap, BTreeSet};

const SECTOR: u64 = SECTOR_SIZE as u64;

impl Life {
    /// Takes snapshots of up to `count` volumes at one instant.
    pub(crate) async fn snapshot(&self, count: usize) -> Checked {
        let mut vdis: Vec<VdiId> = Vec::new();
        for _ in 0..count {
            vdis.extend(self.share_volume().filter(|id| {
                let twice = vdis.contains(id);
                if twice {
                    self.release_volume(*id);
                }
                !twice
            }));
        }
        let crowded = {
            let forest = self.drill.forest.lock();
            let full = |id: &VdiId| forest.volumes[id].snapshots.len() >= self.drill.options.snapshots_max;
            vdis.iter().any(full)
        };
        let unread = vdis.iter().any(|id| self.drill.forest.lock().volume(*id).unread.is_some());
        if vdis.is_empty() || crowded || unread {
            vdis.iter().for_each(|id| self.release_volume(*id));
            return Ok(());
        }
        let label = self.drill.forest.lock().next_label();
        let begin = self.drill.forest.lock().writes.tick();
        let key =
            self.begin(Doubt::Snapshot { vdis: vdis.clone(), label: label.clone(), begin, cuts: Vec::new() });
        let request =
            TakeSnapshot { vdis: vdis.clone(), label: label.clone(), name: None, at: self.timestamp() };
        let answer = self.pool.snapshot(request).await;
        let cuts: Vec<_> = vdis.iter().map(|id| self.drill.forest.lock().cut(*id, begin)).collect();
        let taken = self.end(key, "snapshot", answer)?;
        let mut made: Vec<SnapshotId> = Vec::new();
        if let Some(infos) = taken {
            let mut cuts: BTreeMap<VdiId, Cut> = vdis.iter().copied().zip(cuts).collect();
            let mut forest = self.drill.forest.lock();
            for info in &infos {
                let Some(cut) = cuts.remove(&info.id.vdi) else {
                    return Err(Failure::new(format!("a snapshot that was not asked for: {info:?}")));
                };
                let size = forest.volume(info.id.vdi).size;
                if (info.size, info.label.as_str()) != (size, label.as_str()) {
                    return Err(Failure::new(format!(
                        "a snapshot of {size} bytes with {label:?} is {info:?}"
                    )));
                }
                forest.note(
                    Some(info.id.vdi),
                    0..0,
                    format!("snapshot {} taken since {begin}", info.id.number),
                );
                let snapshot =
                    Snapshot { size, label: label.clone(), held: Held::Cut(cut), used: Use::Shared(1) };
                forest.add_snapshot(info.id, snapshot)?;
                made.push(info.id);
            }
            if !cuts.is_empty() {
                return Err(Failure::new(format!("snapshots of {vdis:?} were asked, taken were {infos:?}")));
            }
            self.drill.count(|summary| summary.snapshots += infos.len() as u64);
        }
        vdis.iter().for_each(|id| self.release_volume(*id));
        if self.prng.lock().chance(1, 3) {
            self.inspect_snapshots(&made).await?;
        }
        made.into_iter().for_each(|id| self.release_snapshot(id));
        Ok(())
    }

    pub(crate) async fn inspect(&self) -> Checked {
        let Some(id) = self.share_snapshot(None) else { return Ok(()) };
        self.inspect_snapshots(&[id]).await?;
        self.release_snapshot(id);
        Ok(())
    }

    pub(crate) async fn label(&self) -> Checked {
        let Some(id) = self.claim_snapshot(None) else { return Ok(()) };
        let label = self.drill.forest.lock().next_label();
        let key = self.begin(Doubt::Label(id, label.clone()));
        let answer = self.pool.label_snapshot(id, label.clone()).await;
        if let Some(info) = self.end(key, &format!("label of {id}"), answer)? {
            if info.label != label {
                return Err(Failure::new(format!("{id} was given the label {label:?}, is {info:?}")));
            }
            let mut forest = self.drill.forest.lock();
            if let Some(snapshot) = forest.volume(id.vdi).snapshots.get_mut(&id.number) {
                snapshot.label = label;
            }
        }
        self.release_snapshot(id);
        Ok(())
    }

    pub(crate) async fn delete_snapshot(&self) -> Checked {
        let Some(id) = self.claim_snapshot(None) else { return Ok(()) };
        let key = self.begin(Doubt::DeleteSnapshot(id));
        let answer = self.pool.delete_snapshot(id).await;
        self.must(&format!("delete of snapshot {id}"), answer)?;
        self.drill.forest.lock().settled(key);
        let mut forest = self.drill.forest.lock();
        forest.note(Some(id.vdi), 0..0, format!("snapshot {} deleted", id.number));
        forest.delete_snapshot(id);
        Ok(())
    }

    /// Compares two snapshots of one volume and sees that every difference is in the answer.
    pub(crate) async fn diff(&self) -> Checked {
        let Some(target) = self.share_snapshot(None) else { return Ok(()) };
        let base = if self.prng.lock().chance(3, 4) { self.share_snapshot(Some(target.vdi)) } else { None };
        let (size, new) = self.content_of(target).await?;
        let old = match base {
            Some(base) => self.content_of(base).await?.1,
            None => Default::default(),
        };
        let limit = self.prng.lock().range(1..20) as usize;
        let mut extents: Vec<DiffExtent> = Vec::new();
        loop {
            let from = extents.last().map_or(0, |extent| extent.range.end());
            let answer = self.pool.diff(base, target, from, limit).await;
            let page = self.must(&format!("diff of {base:?} and {target} from {from}"), answer)?;
            let complete = page.len() < limit;
            extents.extend(page);
            if complete {
                break;
            }
        }
        let mut at = 0;
        for DiffExtent { range, data } in &extents {
            let empty = || (range.offset() / SECTOR..range.end() / SECTOR).all(|lba| !new.contains_key(&lba));
            if range.offset() < at || range.is_empty() || range.end() > size || (!data && !empty()) {
                return Err(Failure::new(format!("diff of {base:?} and {target}: {range} in {extents:?}")));
            }
            at = range.end();
        }
        let changed: BTreeSet<u64> =
            old.keys().chain(new.keys()).copied().filter(|lba| old.get(lba) != new.get(lba)).collect();
        for lba in changed.into_iter().filter(|lba| *lba < size / SECTOR) {
            // They may have been read at different times.
            let value = |content: &crate::verify::Content| content.get(&lba).copied().unwrap_or(Stamp::ZERO);
            let late = |content| self.drill.forest.lock().is_haunted(None, lba, value(content));
            if late(&old) || late(&new) {
                continue;
            }
            let inside = |extent: &DiffExtent| {
                extent.range.offset() <= lba * SECTOR && lba * SECTOR < extent.range.end()
            };
            if !extents.iter().any(inside) {
                let message = format!(
                    "diff of {base:?} and {target} misses sector {lba}: {} became {}",
                    value(&old),
                    value(&new)
                );
                let story = self.drill.forest.lock().story(target.vdi, lba);
                return Err(Failure { message, story });
            }
        }
        base.into_iter().chain([target]).for_each(|id| self.release_snapshot(id));
        Ok(())
    }

    /// Sees that the figures of space are possible.
    pub(crate) async fn space(&self) -> Checked {
        let info = self.pool.info();
        let used = info.data_used + info.metadata_used;
        if used > info.capacity || info.free > info.capacity || info.extents_free > info.extents {
            return Err(Failure::new(format!("impossible figures: {info:?}")));
        }
        if let Some(id) = self.share_volume() {
            let answer = self.pool.usage(id).await;
            let usage = self.must(&format!("usage of {id}"), answer)?;
            let size = self.drill.forest.lock().volume(id).size;
            self.release_volume(id);
            if usage.mapped > size || usage.shared > usage.mapped {
                return Err(Failure::new(format!("{id} of {size} bytes has {usage:?}")));
            }
        }
        if let Some(id) = self.share_snapshot(None) {
            let materialised = self.pool.materialise(id).await;
            let size = self.must(&format!("materialise {id}"), materialised)?.size;
            let answer = self.pool.exclusive(id).await;
            let exclusive = self.must(&format!("exclusive bytes of {id}"), answer)?;
            self.release_snapshot(id);
            if exclusive > size * 2 + 65536 {
                return Err(Failure::new(format!(
                    "{id} of {size} bytes holds {exclusive} bytes alone, metadata included"
                )));
            }
        }
        Ok(())
    }
}
