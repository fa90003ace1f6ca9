//! Operations on volumes and snapshots, chosen by what the model has, judged by what it expects.
//!
//! A manager holds what it works with, alone or shared, so that two never contradict each other; lanes go on with their
//! requests all the while. Each operation that changes something durable is a doubt until it is answered.

mod snapshots;
mod volumes;

use crate::{
    Failure,
    life::Life,
    model::{Doubt, Use},
    options::Verb,
};
use parallax_block::{ErrorKind, Result as Answer, Runtime};
use parallax_store::{SnapshotId, Timestamp, VdiId};

pub(crate) type Checked<T = ()> = Result<T, Failure>;

impl Life {
    /// Does one operation.
    pub(crate) async fn operation(&self) -> Checked {
        let nothing_to_write_to = {
            let forest = self.drill.forest.lock();
            forest.volumes.values().all(|volume| volume.handle.is_none())
        };
        let verb = if nothing_to_write_to {
            let empty = self.drill.forest.lock().volumes.values().all(|volume| volume.headless);
            if empty { Verb::CreateEmpty } else { Verb::Attach }
        } else {
            self.verb()
        };
        match verb {
            Verb::CreateEmpty => self.create_empty().await,
            Verb::CloneSnapshot => self.clone_snapshot().await,
            Verb::CloneVolume => self.clone_volume().await,
            Verb::DeleteVolume => self.delete_volume().await,
            Verb::Rename => self.rename().await,
            Verb::Resize => self.resize().await,
            Verb::Revert => self.revert().await,
            Verb::Attach => self.attach().await,
            Verb::Detach => self.detach().await,
            Verb::Snapshot => self.snapshot(1).await,
            Verb::SnapshotSet => self.snapshot(3).await,
            Verb::Inspect => self.inspect().await,
            Verb::Label => self.label().await,
            Verb::DeleteSnapshot => self.delete_snapshot().await,
            Verb::Diff => self.diff().await,
            Verb::Space => self.space().await,
            Verb::Collect => self.collect().await,
            Verb::Refused => self.refused().await,
        }
    }

    fn verb(&self) -> Verb {
        let verbs = &self.drill.options.verbs;
        let mut at = self.prng.lock().range(0..verbs.iter().map(|(_, weight)| weight).sum::<u64>().max(1));
        for (verb, weight) in verbs {
            if at < *weight {
                return *verb;
            }
            at -= weight;
        }
        Verb::Attach
    }

    /// Some volume that is not headless and that no manager works with, held alone.
    fn claim_volume(&self, attached: Option<bool>) -> Option<VdiId> {
        self.claim(attached, Use::alone)
    }

    /// Some volume that is not headless, held together with others that share it.
    fn share_volume(&self) -> Option<VdiId> {
        if self.drill.options.sharing { self.claim(None, Use::share) } else { self.claim_volume(None) }
    }

    fn claim(&self, attached: Option<bool>, how: fn(&mut Use) -> bool) -> Option<VdiId> {
        let mut forest = self.drill.forest.lock();
        let free: Vec<VdiId> = forest
            .volumes
            .iter()
            .filter(|(_, volume)| !volume.headless && how(&mut volume.held.clone()))
            .filter(|(_, volume)| attached.is_none_or(|wanted| wanted == volume.handle.is_some()))
            .map(|(id, _)| *id)
            .collect();
        if free.is_empty() {
            return None;
        }
        let id = *self.prng.lock().pick(&free);
        how(&mut forest.volume(id).held).then_some(id)
    }

    fn release_volume(&self, id: VdiId) {
        if let Some(volume) = self.drill.forest.lock().volumes.get_mut(&id) {
            volume.held.release();
        }
    }

    /// Some snapshot that no manager works with, held alone.
    fn claim_snapshot(&self, of: Option<VdiId>) -> Option<SnapshotId> {
        self.pick_snapshot(of, Use::alone)
    }

    /// Some snapshot, held together with others that read it.
    fn share_snapshot(&self, of: Option<VdiId>) -> Option<SnapshotId> {
        if self.drill.options.sharing { self.pick_snapshot(of, Use::share) } else { self.claim_snapshot(of) }
    }

    fn pick_snapshot(&self, of: Option<VdiId>, how: fn(&mut Use) -> bool) -> Option<SnapshotId> {
        let mut forest = self.drill.forest.lock();
        let free: Vec<SnapshotId> = forest
            .volumes
            .iter()
            .filter(|(id, _)| of.is_none_or(|of| of == **id))
            .flat_map(|(id, volume)| {
                volume.snapshots.iter().map(move |(number, snapshot)| (*id, *number, snapshot))
            })
            .filter(|(_, _, snapshot)| how(&mut snapshot.used.clone()))
            .map(|(vdi, number, _)| SnapshotId { vdi, number })
            .collect();
        if free.is_empty() {
            return None;
        }
        let id = *self.prng.lock().pick(&free);
        forest.volume(id.vdi).snapshots.get_mut(&id.number).is_some_and(|s| how(&mut s.used)).then_some(id)
    }

    fn release_snapshot(&self, id: SnapshotId) {
        let mut forest = self.drill.forest.lock();
        if let Some(snapshot) = forest.volumes.get_mut(&id.vdi).and_then(|v| v.snapshots.get_mut(&id.number))
        {
            snapshot.used.release();
        }
    }

    fn begin(&self, doubt: Doubt) -> u64 {
        let mut forest = self.drill.forest.lock();
        forest.note(None, 0..0, format!("begin {}", summary(&doubt)));
        forest.doubt(doubt)
    }

    /// Ends a doubt. `None` if there was no room, which only a tight pool may say.
    fn end<T>(&self, key: u64, what: &str, answer: Answer<T>) -> Checked<Option<T>> {
        {
            let open = answer.as_ref().is_err_and(|error| self.drill.may_fail(error));
            let mut forest = self.drill.forest.lock();
            if !open {
                forest.settled(key);
            }
            forest.note(None, 0..0, format!("{what}: {}", if answer.is_ok() { "done" } else { "failed" }));
        }
        self.accept(what, answer)
    }

    fn accept<T>(&self, what: &str, answer: Answer<T>) -> Checked<Option<T>> {
        match answer {
            Ok(value) => Ok(Some(value)),
            // After a fault nobody knows whether it was refused or has failed half-way: then its doubt stays open.
            Err(error)
                if self.drill.options.tight
                    && error.kind() == ErrorKind::OutOfSpace
                    && !self.drill.may_fail(&error) =>
            {
                self.drill.count(|summary| summary.out_of_space += 1);
                Ok(None)
            }
            Err(error) => Err(self.drill.trouble(what, &error)),
        }
    }

    /// For operations that must succeed in a full pool too.
    fn must<T>(&self, what: &str, answer: Answer<T>) -> Checked<T> {
        answer.map_err(|error| self.drill.trouble(what, &error))
    }

    fn timestamp(&self) -> Timestamp {
        Timestamp(self.drill.world.now().as_millis() as i64)
    }

    pub(crate) async fn collect(&self) -> Checked {
        if !self.claim_collection() {
            return Ok(());
        }
        self.drill.forest.lock().note(None, 0..0, "collect garbage");
        let answer = self.pool.collect_garbage().await;
        self.collecting.store(false, std::sync::atomic::Ordering::Relaxed);
        self.drill.forest.lock().note(None, 0..0, "garbage collected");
        self.drill.count(|summary| summary.collections += 1);
        match answer {
            // The pool collects by itself when it is too full to open a volume.
            Err(error) if error.kind() == ErrorKind::Busy => Ok(()),
            other => self.must("garbage collection", other).map(drop),
        }
    }

    /// Deletes everything and sees all space come back.
    pub(crate) async fn empty(&self) -> Checked {
        let detached: Vec<_> =
            self.drill.forest.lock().volumes.values_mut().filter_map(|volume| volume.handle.take()).collect();
        for volume in detached {
            self.must("detach before the end", volume.detach().await)?;
        }
        loop {
            let volume = {
                let forest = self.drill.forest.lock();
                forest.volumes.iter().find(|(_, volume)| !volume.headless).map(|(id, _)| *id)
            };
            let snapshot = self.claim_snapshot(None);
            let volume_first = self.prng.lock().chance(1, 2);
            match (volume, snapshot) {
                (Some(id), snapshot) if volume_first || snapshot.is_none() => {
                    if let Some(snapshot) = snapshot {
                        self.release_snapshot(snapshot);
                    }
                    self.must("delete of a volume at the end", self.pool.delete_vdi(id).await)?;
                    self.drill.forest.lock().delete(id);
                }
                (_, Some(id)) => {
                    self.must("delete of a snapshot at the end", self.pool.delete_snapshot(id).await)?;
                    self.drill.forest.lock().delete_snapshot(id);
                }
                (None, None) => break,
                (Some(_), None) => {}
            }
        }
        self.must("garbage collection at the end", self.pool.collect_garbage().await)?;
        let info = self.pool.info();
        let left = self.pool.vdis();
        if !left.is_empty() || info.data_used != 0 {
            let message =
                format!("everything was deleted and collected, but {left:?} are left, and {info:?}");
            return Err(Failure::new(message));
        }
        Ok(())
    }
}

fn summary(doubt: &Doubt) -> String {
    match doubt {
        Doubt::Create { name, size, source, .. } => format!("create {name} of {size} bytes from {source:?}"),
        Doubt::Delete(id) => format!("delete volume {id}"),
        Doubt::Rename(id, name) => format!("rename {id} to {name}"),
        Doubt::Resize(id, size) => format!("resize {id} to {size}"),
        Doubt::Revert(id, _) => format!("revert {id}"),
        Doubt::Snapshot { vdis, .. } => format!("snapshot of {vdis:?}"),
        Doubt::Label(id, _) => format!("label {id}"),
        Doubt::DeleteSnapshot(id) => format!("delete snapshot {id}"),
    }
}
