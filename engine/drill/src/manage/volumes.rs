//! Operations on volumes.

use super::{Checked, Life};
use crate::{
    Failure,
    model::{Cut, Doubt, Held, Origin, Registers, Use},
    verify::Content,
};
use parallax_block::{ErrorKind, SECTOR_SIZE};
use parallax_store::{CreateVdi, Name, SnapshotId, Source, VdiId};
use std::collections::BTreeMap;
use uuid::Uuid;

fn name(text: &str) -> Name {
    Name::new(text).expect("generated names are good")
}

impl Life {
    fn has_room(&self) -> bool {
        let forest = self.drill.forest.lock();
        forest.volumes.values().filter(|volume| !volume.headless).count() < self.drill.options.volumes_max
    }

    fn request_for(
        &self,
        name_text: &str,
        size: Option<u64>,
        source: Source,
        logical_block: u32,
    ) -> CreateVdi {
        CreateVdi {
            name: name(name_text),
            size,
            source,
            logical_block,
            attributes: BTreeMap::new(),
            at: self.timestamp(),
        }
    }

    pub(crate) async fn create_empty(&self) -> Checked {
        if !self.has_room() {
            return Ok(());
        }
        let (sectors, logical_block) = {
            let mut prng = self.prng.lock();
            let sectors = prng.range(self.drill.options.volume_sectors.clone());
            let large = prng.chance(self.drill.options.large_percent, 100);
            (sectors, if large { 4096 } else { 512 })
        };
        let size = (sectors * SECTOR_SIZE as u64).next_multiple_of(4096);
        let text = self.drill.forest.lock().next_name();
        let origin = Origin::Content(Content::new());
        let key = self.begin(Doubt::Create { name: text.clone(), size, logical_block, origin, source: None });
        let answer =
            self.pool.create_vdi(self.request_for(&text, Some(size), Source::Empty, logical_block)).await;
        if let Some(info) = self.end(key, "create", answer)? {
            if (info.size, info.name.as_str(), info.logical_block) != (size, text.as_str(), logical_block) {
                return Err(Failure::new(format!("created {info:?}, asked for {text} of {size} bytes")));
            }
            self.drill.forest.lock().add(info.id, text, size, logical_block, Registers::default());
        }
        Ok(())
    }

    /// Bytes of a clone of something that has `size`: the same, or more.
    fn clone_size(&self, size: u64) -> Option<u64> {
        let mut prng = self.prng.lock();
        prng.chance(1, 3).then(|| size + prng.range(1..64) * 4096)
    }

    /// Content of a snapshot, which is read first if it was not yet.
    pub(crate) async fn content_of(&self, id: SnapshotId) -> Checked<(u64, Content)> {
        let held = |life: &Self| {
            let forest = life.drill.forest.lock();
            let snapshot = forest.volumes.get(&id.vdi).and_then(|v| v.snapshots.get(&id.number));
            snapshot.map(|snapshot| (snapshot.size, snapshot.held.clone()))
        };
        if matches!(held(self), Some((_, Held::Cut(_)))) {
            self.inspect_snapshots(&[id]).await?;
        }
        match held(self) {
            Some((size, Held::Fixed(content))) => Ok((size, content)),
            _ => Err(Failure::new(format!("snapshot {id} went away while a manager worked with it"))),
        }
    }

    pub(crate) async fn clone_snapshot(&self) -> Checked {
        let Some(id) = self.has_room().then(|| self.share_snapshot(None)).flatten() else { return Ok(()) };
        let (size, content) = self.content_of(id).await?;
        let asked = self.clone_size(size);
        let (text, logical_block) = {
            let mut forest = self.drill.forest.lock();
            (forest.next_name(), forest.volume(id.vdi).logical_block)
        };
        let origin = Origin::Content(content.clone());
        let size = asked.unwrap_or(size);
        let source = None;
        let key = self.begin(Doubt::Create { name: text.clone(), size, logical_block, origin, source });
        let request = self.request_for(&text, asked, Source::Snapshot(id), logical_block);
        let answer = self.pool.create_vdi(request).await;
        if let Some(info) = self.end(key, &format!("clone of {id} as {text}"), answer)? {
            if (info.size, info.source_snapshot) != (size, Some(id)) {
                return Err(Failure::new(format!("the clone of {id} with {size} bytes is {info:?}")));
            }
            let mut forest = self.drill.forest.lock();
            let registers = Registers::adopted(&content, &mut forest.writes);
            forest.add(info.id, text, size, logical_block, registers);
            self.drill.count(|summary| summary.clones += 1);
        }
        self.release_snapshot(id);
        Ok(())
    }

    pub(crate) async fn clone_volume(&self) -> Checked {
        let Some(of) = self.has_room().then(|| self.share_volume()).flatten() else { return Ok(()) };
        if self.drill.forest.lock().volume(of).unread.is_some() {
            self.release_volume(of);
            return Ok(());
        }
        let (text, size, logical_block, begin) = {
            let mut forest = self.drill.forest.lock();
            let (size, logical_block) = (forest.volume(of).size, forest.volume(of).logical_block);
            (forest.next_name(), size, logical_block, forest.writes.tick())
        };
        let asked = self.clone_size(size);
        let size = asked.unwrap_or(size);
        let (origin, source) = (Origin::Moment(of, begin), Some(of));
        let key = self.begin(Doubt::Create { name: text.clone(), size, logical_block, origin, source });
        let answer =
            self.pool.create_vdi(self.request_for(&text, asked, Source::Vdi(of), logical_block)).await;
        let cut = self.drill.forest.lock().cut(of, begin);
        let made = self.end(key, &format!("clone of volume {of} as {text}"), answer)?;
        self.release_volume(of);
        let Some(info) = made else { return Ok(()) };
        if (info.size, info.source_vdi) != (size, Some(of)) {
            return Err(Failure::new(format!("the clone of {of} with {size} bytes is {info:?}")));
        }
        {
            // Until it has been read, a death leaves its content as open as before.
            let mut forest = self.drill.forest.lock();
            forest.add(info.id, text, size, logical_block, Registers::default());
            let volume = forest.volume(info.id);
            (volume.source, volume.held, volume.unread) = (source, Use::Alone, Some(cut.clone()));
            self.drill.count(|summary| summary.clones += 1);
        }
        self.read_clone(info.id, &cut).await
    }

    async fn read_clone(&self, id: VdiId, cut: &Cut) -> Checked {
        let what = format!("clone {id}");
        let attached = self.pool.attach(id).await;
        let Some(volume) = self.accept(&format!("attaching {what}"), attached)? else {
            self.release_volume(id);
            return Ok(());
        };
        let found = self.read_all(&*volume, &what).await?;
        let mut forest = self.drill.forest.lock();
        crate::verify::judge_cut(&forest, id, &what, cut, &found)?;
        let registers = Registers::adopted(&found, &mut forest.writes);
        let model = forest.volume(id);
        (model.registers, model.handle, model.unread) = (registers, Some(volume), None);
        model.held.release();
        Ok(())
    }

    pub(crate) async fn delete_volume(&self) -> Checked {
        let Some(id) = self.claim_volume(Some(false)) else { return Ok(()) };
        let key = self.begin(Doubt::Delete(id));
        let answer = self.pool.delete_vdi(id).await;
        self.must("delete", answer)?;
        self.drill.forest.lock().settled(key);
        let mut forest = self.drill.forest.lock();
        forest.note(Some(id), 0..0, "deleted");
        forest.delete(id);
        Ok(())
    }

    pub(crate) async fn rename(&self) -> Checked {
        let Some(id) = self.claim_volume(None) else { return Ok(()) };
        let text = self.drill.forest.lock().next_name();
        let key = self.begin(Doubt::Rename(id, text.clone()));
        let answer = self.pool.rename_vdi(id, name(&text)).await;
        if self.end(key, "rename", answer)?.is_some() {
            self.drill.forest.lock().volume(id).name = text;
        }
        self.release_volume(id);
        Ok(())
    }

    pub(crate) async fn resize(&self) -> Checked {
        let Some(id) = self.claim_volume(None) else { return Ok(()) };
        let more = match self.prng.lock().range(0..4) {
            0 => 4 << 20,
            sectors => sectors * 4096,
        };
        let size = self.drill.forest.lock().volume(id).size + more;
        let key = self.begin(Doubt::Resize(id, size));
        let answer = self.pool.resize_vdi(id, size).await;
        if let Some(info) = self.end(key, "resize", answer)? {
            let mut forest = self.drill.forest.lock();
            let volume = forest.volume(id);
            volume.size = size;
            let seen = volume.handle.as_ref().map_or(size, |handle| handle.geometry().capacity);
            if (info.size, seen) != (size, size) && !self.drill.is_struck() {
                let message = format!("{id} was resized to {size}, is {info:?} with a capacity of {seen}");
                return Err(Failure::new(message));
            }
        }
        self.release_volume(id);
        Ok(())
    }

    pub(crate) async fn revert(&self) -> Checked {
        let Some(id) = self.claim_volume(Some(false)) else { return Ok(()) };
        let Some(to) = self.claim_snapshot(Some(id)) else {
            self.release_volume(id);
            return Ok(());
        };
        let (_, content) = self.content_of(to).await?;
        let key = self.begin(Doubt::Revert(id, content.clone()));
        let answer = self.pool.revert_vdi(id, to).await;
        if let Some(info) = self.end(key, &format!("revert to {to}"), answer)? {
            let mut forest = self.drill.forest.lock();
            let registers = Registers::adopted(&content, &mut forest.writes);
            let volume = forest.volume(id);
            volume.registers = registers;
            volume.unflushed.clear();
            if volume.size != info.size {
                return Err(Failure::new(format!("a revert changed the size of {info:?}")));
            }
            self.drill.count(|summary| summary.reverts += 1);
        }
        self.release_snapshot(to);
        self.release_volume(id);
        Ok(())
    }

    pub(crate) async fn attach(&self) -> Checked {
        let Some(id) = self.claim_volume(Some(false)) else { return Ok(()) };
        let unread = self.drill.forest.lock().volume(id).unread.clone();
        if let Some(cut) = unread {
            return self.read_clone(id, &cut).await;
        }
        let answer = self.pool.attach(id).await;
        if let Some(volume) = self.accept("attach", answer)? {
            let mut forest = self.drill.forest.lock();
            forest.note(Some(id), 0..0, "attached");
            forest.volume(id).handle = Some(volume);
        }
        self.release_volume(id);
        Ok(())
    }

    pub(crate) async fn detach(&self) -> Checked {
        let Some(id) = self.claim_volume(Some(true)) else { return Ok(()) };
        let (handle, begin) = {
            let mut forest = self.drill.forest.lock();
            let begin = forest.note(Some(id), 0..0, "detach");
            (forest.volume(id).handle.take(), begin)
        };
        if let Some(handle) = handle {
            let answer = handle.detach().await;
            self.must("detach", answer)?;
        }
        {
            let mut forest = self.drill.forest.lock();
            forest.note(Some(id), 0..0, "detached");
            let (writes, volume) = forest.split(id);
            volume.flushed(begin, writes);
        }
        self.release_volume(id);
        Ok(())
    }

    /// What must be refused, and how.
    pub(crate) async fn refused(&self) -> Checked {
        let nobody = VdiId(Uuid::from_u128(0xdead));
        let unknown = self.pool.delete_vdi(nobody).await.err().map(|error| error.kind());
        if unknown != Some(ErrorKind::NotFound) {
            return Err(Failure::new(format!("deleting a volume that never was: {unknown:?}")));
        }
        let Some(id) = self.claim_volume(Some(true)) else { return Ok(()) };
        let (text, size) = {
            let mut forest = self.drill.forest.lock();
            let volume = forest.volume(id);
            (volume.name.clone(), volume.size)
        };
        let taken = self.pool.create_vdi(self.request_for(&text, Some(4096), Source::Empty, 512)).await;
        let busy = self.pool.delete_vdi(id).await;
        let twice = self.pool.attach(id).await.map(drop);
        let shrunk = self.pool.resize_vdi(id, size - 4096).await.map(drop);
        let missing = SnapshotId { vdi: id, number: u64::MAX };
        let gone = self.pool.delete_snapshot(missing).await;
        self.release_volume(id);
        for (what, answer, expected) in [
            ("creating a name that is taken", taken.map(drop), ErrorKind::AlreadyExists),
            ("deleting an attached volume", busy, ErrorKind::Busy),
            ("attaching twice", twice, ErrorKind::Busy),
            ("shrinking", shrunk, ErrorKind::InvalidArgument),
            ("deleting a snapshot that never was", gone, ErrorKind::NotFound),
        ] {
            let kind = answer.err().map(|error| error.kind());
            if kind != Some(expected) && !self.drill.is_struck() {
                return Err(Failure::new(format!("{what}: {kind:?}, expected {expected:?}")));
            }
        }
        Ok(())
    }
}
