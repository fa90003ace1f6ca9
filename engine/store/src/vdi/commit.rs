//! Commits: makes everything acknowledged so far durable, in two flushes that many callers share.
//!
//! 1. Seal the open group; flush the device: the group's data and the marks of its blocks are durable.
//! 2. Write the group's journal blocks; make them durable.
//!
//! A group without records needs step 1 alone.

use super::{
    Freed, Mode, VdiCore,
    journal::{Group, JournalWriter},
};
use crate::{
    mutants::{self, Mutant},
    space::Stamp,
};
use parallax_block::Result;
use std::sync::Arc;

/// A group that takes no more records, and what it sets free.
pub(super) struct Sealed {
    group: Group,
    freed: Vec<Freed>,
    since: Stamp,
}

impl super::Mapping {
    /// Closes the open group.
    pub(super) fn seal(&mut self, now: Stamp) -> Sealed {
        let next = Group { first: self.next_record, records: Vec::new() };
        Sealed {
            group: std::mem::replace(&mut self.group, next),
            freed: std::mem::take(&mut self.freed),
            since: std::mem::replace(&mut self.freed_since, now),
        }
    }

    /// Takes a group back that could not be written for lack of space.
    fn unseal(&mut self, sealed: Sealed) {
        let newer = std::mem::replace(&mut self.group, sealed.group);
        self.group.records.extend(newer.records);
        let newer = std::mem::replace(&mut self.freed, sealed.freed);
        self.freed.extend(newer);
        self.freed_since = sealed.since;
    }
}

impl VdiCore {
    /// Makes every write acknowledged before this call durable.
    pub(crate) async fn flush(self: &Arc<Self>) -> Result<()> {
        self.mapping.read().check()?;
        self.commit().await
    }

    /// Waits for a commit whose group is sealed after this call.
    pub(crate) async fn commit(&self) -> Result<()> {
        let core = self.me();
        self.commits
            .join(self.runtime(), move || {
                let core = core.clone();
                Box::pin(async move { core.commit_round().await })
            })
            .await
    }

    async fn commit_round(self: Arc<Self>) -> Result<()> {
        let is_short = {
            let mut journal = self.journal.lock().await;
            let sealed = {
                let mut mapping = self.mapping.write();
                mapping.check()?;
                mapping.seal(self.pool.space.stamp())
            };
            self.commit_sealed(&mut journal, sealed).await?;
            journal.is_short()
        };
        if is_short {
            // The pool has no room for another segment: this sets an old one free.
            for _ in 0..2 {
                if let Err(error) = self.checkpoint_round(Mode::Always).await {
                    tracing::warn!(vdi = %self.id, %error, "a journal without room could not be shortened");
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes a sealed group. On lack of space the group stays open and nothing has happened; any other failure
    /// ends the epoch.
    pub(super) async fn commit_sealed(
        self: &Arc<Self>,
        journal: &mut JournalWriter,
        mut sealed: Sealed,
    ) -> Result<()> {
        let pool = &self.pool;
        let empty = sealed.group.records.is_empty();
        if !empty && let Err(error) = journal.prepare(&pool.space, &**pool, &sealed.group).await {
            self.mapping.write().unseal(sealed);
            return Err(error.context(format!("volume {}: no room for the journal", self.id)));
        }
        if mutants::on(Mutant::TailReleasedEarly) {
            let next = sealed.group.first + sealed.group.records.len() as u64;
            self.mapping.write().tail.as_mut().map_or(Ok(()), |tail| tail.release(next))?;
        }
        if mutants::on(Mutant::FreedBeforeDurable) {
            let freed = std::mem::take(&mut sealed.freed);
            self.clone().release_freed(freed, sealed.since).await;
        }
        let skipped = if empty { Mutant::QuietFlushSkipped } else { Mutant::JournalBeforeData };
        let mut flushed = if mutants::on(skipped) { Ok(()) } else { pool.disk.flush().await };
        if flushed.is_err() && mutants::on(Mutant::FailedFlushRetried) {
            flushed = pool.disk.flush().await;
        }
        if let Err(error) = flushed {
            return Err(self.fail(&error));
        }
        if !empty {
            if let Err(error) = journal.write(&pool.disk, &sealed.group).await {
                // The write may land yet: whoever opens the volume next must not let the segments go.
                pool.space.quarantine(&journal.segments().collect::<Vec<_>>());
                return Err(self.fail(&error));
            }
            let durable = sealed.group.first + sealed.group.records.len() as u64;
            let released = {
                let mut mapping = self.mapping.write();
                mapping.durable_record = durable;
                mapping.tail.as_mut().map_or(Ok(()), |tail| tail.release(durable))
            };
            released.map_err(|error| self.fail(&error.context("writing the tail")))?;
        }
        pool.counters.commits.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if !sealed.freed.is_empty() {
            let core = self.clone();
            self.runtime()
                .spawn(Box::pin(async move { core.release_freed(sealed.freed, sealed.since).await }));
        }
        if journal.live_segments() > super::checkpoint::SEGMENTS_MAX {
            self.request_checkpoint();
        }
        Ok(())
    }

    /// Returns space whose unmapping is durable, once every I/O begun before has finished.
    async fn release_freed(self: Arc<Self>, freed: Vec<Freed>, since: Stamp) {
        if !mutants::on(Mutant::FreedBeforeReadsEnd) {
            self.quiesce().await;
        }
        for item in freed {
            let runs = match item {
                Freed::Blocks(run) => vec![run],
                Freed::Subtree(subtree) => match self.reap(subtree, since).await {
                    Ok(runs) => runs,
                    Err(error) => {
                        tracing::warn!(vdi = %self.id, %error, "discarded space stays allocated until `parallax gc`");
                        continue;
                    }
                },
            };
            if self.failure().is_some() {
                // The next epoch replays the unmap; garbage collection brings the space back.
                return;
            }
            self.pool.release_data(&runs, since).await;
        }
    }
}
