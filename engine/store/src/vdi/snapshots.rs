//! Snapshots of one VDI: cut, list, label, delete.

use super::{Pending, VdiCore, encode, table};
use crate::{
    generation::Closed,
    mutants::{self, Mutant},
};
use parallax_block::{Error, ErrorKind, Result};
use parallax_format::{
    journal::{JournalRecord, LABEL_MAX},
    node::{blocks_at_depth, depth_for},
    record::Filesystem,
    root::TreeRoot,
    snapshot::SnapshotRecord,
};
use parking_lot::RwLockWriteGuard;
use uuid::Uuid;

/// A snapshot that is being cut.
pub(crate) struct Cut {
    pub(crate) taken_ms: i64,
    pub(crate) filesystem: Filesystem,
    pub(crate) set: Uuid,
    pub(crate) label: String,
}

/// A snapshot, materialised or not.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) record: SnapshotRecord,
    pub(crate) materialised: bool,
}

impl Pending {
    fn listed(&self) -> Listed {
        Listed {
            record: SnapshotRecord {
                number: self.number,
                taken_ms: self.taken_ms,
                // Nobody looks at the tree of a snapshot before it is materialised.
                map: TreeRoot { link: parallax_format::Entry::HOLE, depth: self.map.depth() },
                size: self.size,
                set: self.set,
                parent: self.parent,
                filesystem: self.filesystem,
                label: self.label.clone(),
            },
            materialised: false,
        }
    }
}

/// Refuses labels that the format cannot hold.
pub(crate) fn check_label(label: &str) -> Result<()> {
    if label.len() > LABEL_MAX || label.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "the label is not at most {LABEL_MAX} bytes of text without control characters"
        )));
    }
    Ok(())
}

impl VdiCore {
    /// Cuts a snapshot of every member at one instant: all look-ups are excluded together, so there is no
    /// moment between the members. Returns each one's number and what must drain before it is complete.
    pub(crate) fn cut(members: &[(&Self, Cut)]) -> Result<Vec<(u64, Closed)>> {
        // Locks are taken in order of id; callers sort.
        let mut locked: Vec<(RwLockWriteGuard<'_, super::Mapping>, &Cut)> = Vec::new();
        for (core, cut) in members {
            let mapping = core.mapping.write();
            mapping.check()?;
            if mapping.draining {
                // Its last root may be on its way: nobody would look at the record.
                return Err(Error::new(ErrorKind::Fenced, format!("volume {} is being closed", core.id)));
            }
            locked.push((mapping, cut));
        }
        let records: Vec<Vec<u8>> = locked
            .iter()
            .map(|(mapping, cut)| {
                encode(&JournalRecord::Snapshot {
                    number: mapping.next_snapshot,
                    taken_ms: cut.taken_ms,
                    filesystem: cut.filesystem,
                    set: cut.set,
                    label: cut.label.clone(),
                })
            })
            .collect();
        if locked
            .iter()
            .zip(&records)
            .any(|((mapping, _), record)| !mapping.has_room(std::slice::from_ref(record)))
        {
            return Err(Error::new(ErrorKind::Exhausted, "the tail is full"));
        }
        let mut done = Vec::new();
        for ((mapping, cut), record) in locked.iter_mut().zip(records) {
            let closed = mapping.generations.close();
            let number = mapping.cut(cut.taken_ms, cut.filesystem, cut.set, cut.label.clone());
            mapping.append(vec![record])?;
            done.push((number, closed));
        }
        Ok(done)
    }

    /// Live snapshots with numbers above `after`, in order, at most `limit`.
    pub(crate) async fn snapshots(&self, after: u64, limit: usize) -> Result<Vec<Listed>> {
        let mut out = Vec::new();
        let mut from = after;
        while out.len() < limit {
            // The overlay and the root it lies over are taken at one instant. The ticket keeps the table's nodes from
            // being reused while they are read.
            let (root, pending, deleted, labels, _ticket) = {
                let mapping = self.mapping.read();
                let pending: Vec<Listed> = mapping
                    .pending
                    .range(from + 1..)
                    .take(limit)
                    .map(|(_, pending)| pending.listed())
                    .collect();
                let ticket = mapping.generations.enter();
                (mapping.table, pending, mapping.deleted.clone(), mapping.labels.clone(), ticket)
            };
            let want = limit - out.len();
            let records = table::records(&self.pool.disk, root, from, want).await?;
            let full = records.len() == want;
            let last = records.last().map_or(from, |record| record.number);
            out.extend(
                records
                    .into_iter()
                    .filter(|record| !deleted.contains(&record.number))
                    .filter(|record| !pending.iter().any(|p| p.record.number == record.number))
                    .map(|mut record| {
                        if let Some(label) = labels.get(&record.number) {
                            record.label.clone_from(label);
                        }
                        Listed { record, materialised: true }
                    }),
            );
            if !full {
                // Pending snapshots are the youngest: they follow everything in the table.
                out.extend(pending);
                break;
            }
            from = last;
        }
        out.truncate(limit);
        Ok(out)
    }

    /// One live snapshot.
    pub(crate) async fn snapshot(&self, number: u64) -> Result<Listed> {
        let found = if number == 0 { vec![] } else { self.snapshots(number - 1, 1).await? };
        found.into_iter().find(|listed| listed.record.number == number).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("volume {} has no snapshot {number}; `parallax snap-list` shows them", self.id),
            )
        })
    }

    pub(crate) async fn delete_snapshot(&self, number: u64) -> Result<()> {
        self.snapshot(number).await?;
        let record = encode(&JournalRecord::SnapshotDeleted { number });
        let records = if mutants::on(Mutant::DeletionNotRecorded) { vec![] } else { vec![record] };
        self.change(0..0, &records, |mapping, _| {
            mapping.delete_snapshot(number);
            Ok(())
        })
        .await?;
        self.commit().await
    }

    pub(crate) async fn label_snapshot(&self, number: u64, label: &str) -> Result<()> {
        check_label(label)?;
        self.snapshot(number).await?;
        let record = encode(&JournalRecord::SnapshotLabel { number, label: label.to_owned() });
        self.change(0..0, &[record], |mapping, _| {
            mapping.label_snapshot(number, label);
            Ok(())
        })
        .await?;
        self.commit().await
    }

    /// Grows. The new size counts once it is durable.
    pub(crate) async fn resize(&self, size: u64) -> Result<()> {
        // One after the other: of two the smaller must not come last.
        let _alone = self.growing.lock().await;
        if size <= self.mapping.read().size {
            return self.commit().await;
        }
        let record = encode(&JournalRecord::Resize { size });
        let records = if mutants::on(Mutant::GrowthNotRecorded) { vec![] } else { vec![record] };
        self.change(0..0, &records, |mapping, _| {
            mapping.resize(size);
            Ok(())
        })
        .await?;
        self.commit().await
    }
}

impl super::Mapping {
    pub(super) fn cut(&mut self, taken_ms: i64, filesystem: Filesystem, set: Uuid, label: String) -> u64 {
        let number = self.next_snapshot;
        self.next_snapshot += 1;
        let pending = Pending {
            number,
            taken_ms,
            map: self.map.clone(),
            size: self.size,
            set,
            parent: std::mem::replace(&mut self.parent_snapshot, number),
            filesystem,
            label,
        };
        self.pending.insert(number, pending);
        if !set.is_nil() {
            self.unnamed.insert(number, set);
        }
        if !mutants::on(Mutant::SnapshotKeepsWritable) {
            self.map.share();
        }
        self.snapshots += 1;
        number
    }

    /// Deleting one twice is no harm, and replay may.
    pub(super) fn delete_snapshot(&mut self, number: u64) {
        self.pending.remove(&number);
        self.unnamed.remove(&number);
        // A checkpoint may be writing it into the table right now, so the table is told in any case.
        if self.deleted.insert(number) {
            self.snapshots = self.snapshots.saturating_sub(1);
        }
    }

    pub(super) fn label_snapshot(&mut self, number: u64, label: &str) {
        if let Some(pending) = self.pending.get_mut(&number) {
            label.clone_into(&mut pending.label);
        }
        self.labels.insert(number, label.to_owned());
    }

    pub(super) fn resize(&mut self, size: u64) {
        self.size = size;
        self.map.grow(size / parallax_block::BLOCK_SIZE as u64);
        debug_assert!(
            blocks_at_depth(self.map.depth()) >= blocks_at_depth(depth_for(size / 4096).min(4)),
            "the tree covers the size"
        );
    }
}

impl VdiCore {
    /// Puts the tree of a materialised snapshot in the place of the present one. Nothing else may use the VDI.
    /// Maps nothing any more.
    pub(crate) async fn empty(self: &std::sync::Arc<Self>) -> Result<()> {
        // Snapshots that are cut and not written yet begin from the map that goes.
        self.checkpoint().await?;
        self.revert(0, TreeRoot { link: parallax_format::Entry::HOLE, depth: 1 }).await
    }

    pub(crate) async fn revert(self: &std::sync::Arc<Self>, number: u64, root: TreeRoot) -> Result<()> {
        {
            let mut mapping = self.mapping.write();
            mapping.check()?;
            let size = mapping.size;
            mapping.map =
                crate::tree::Tree::new(TreeRoot { link: root.link.with_ro(), ..root }, 0, &self.pool.dirty);
            mapping.resize(size);
            mapping.parent_snapshot = number;
        }
        // There is no record for this: the next two checkpoints say it, and the journal before is behind them.
        for _ in 0..2 {
            if let Err(error) = self.checkpoint_round(super::Mode::Always).await {
                // Whoever asked is told that it did not happen, so nothing may write the new map later.
                self.stop("reverting it failed");
                return Err(error);
            }
        }
        Ok(())
    }
}
