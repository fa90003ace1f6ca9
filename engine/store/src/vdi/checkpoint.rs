//! Checkpoints: the tree and every live snapshot become durable nodes, named by a root slot.
//!
//! 1. Seal the open group and freeze the tree at the same instant; commit the group. The journal's position
//!    after it is where replay will begin.
//! 2. Write dirty nodes, children first: snapshots in order, then the tree, then the snapshot table.
//! 3. Flush the device.
//! 4. Write the root, FUA, into the older of this epoch's two slots.
//! 5. Let go: nodes that the checkpoint *before* superseded, journal before its replay position.
//!
//! Writes go on meanwhile: a frozen node is copied before it is changed.

use super::{Mapping, Pending, Roots, VdiCore};
use crate::{
    mutants::{self, Mutant},
    space::{Run, Stamp},
    tree::{self, Missing, Superseded, Tree, Writer, count_dirty},
};
use parallax_block::{BLOCK_SIZE, BoxFuture, ErrorKind, Result, join_all};
use parallax_format::{
    BlockAddress, Entry, Node,
    node::{FANOUT, TABLE_LEVEL, blocks_at_depth},
    root::{ReplayPosition, RootSlot, TreeRoot},
    snapshot::{RECORDS_PER_LEAF, SnapshotRecord},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Journal segments that trigger a checkpoint.
pub(super) const SEGMENTS_MAX: usize = 64;
/// Writes of nodes in flight.
const WRITES_MAX: usize = 16;

/// What a checkpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Skipped if nothing has changed.
    IfChanged,
    /// Written in any case, so that the older slot holds nothing back.
    Always,
    /// The epoch ends in order.
    Release,
}

/// The VDI at one instant.
struct Frozen {
    map: Tree,
    pending: Vec<Pending>,
    deleted: BTreeSet<u64>,
    labels: BTreeMap<u64, String>,
    superseded: Vec<Superseded>,
    since: Stamp,
    size: u64,
    next_snapshot: u64,
    parent_snapshot: u64,
    unnamed_from: u64,
    snapshots: u64,
    record: u64,
}

impl Mapping {
    fn freeze(&mut self, now: Stamp) -> Frozen {
        Frozen {
            map: self.map.clone(),
            pending: self.pending.values().cloned().collect(),
            deleted: self.deleted.clone(),
            labels: self.labels.clone(),
            superseded: std::mem::take(&mut self.superseded),
            since: std::mem::replace(&mut self.superseded_since, now),
            size: self.size,
            next_snapshot: self.next_snapshot,
            parent_snapshot: self.parent_snapshot,
            unnamed_from: self.unnamed.first_key_value().map_or(0, |(number, _)| *number),
            snapshots: self.snapshots,
            record: self.next_record,
        }
    }

    /// Takes back what a checkpoint that failed had taken.
    fn restore(&mut self, superseded: Vec<Superseded>, since: Stamp) {
        self.superseded.extend(superseded);
        self.superseded_since = since;
    }

    /// Turns written nodes into links, and forgets what the table now says.
    fn settle(
        &mut self,
        done: &[u64],
        deleted: &BTreeSet<u64>,
        labels: &BTreeMap<u64, String>,
        table: TreeRoot,
    ) {
        self.pending.retain(|number, _| !done.contains(number));
        self.deleted.retain(|number| !deleted.contains(number));
        self.labels.retain(|number, label| labels.get(number) != Some(label));
        self.map.settle();
        for pending in self.pending.values_mut() {
            pending.map.settle();
        }
        self.table = table;
    }
}

impl VdiCore {
    /// Waits for a checkpoint that begins after this call.
    pub(crate) async fn checkpoint(&self) -> Result<()> {
        let core = self.me();
        self.checkpoints
            .join(self.runtime(), move || {
                let core = core.clone();
                Box::pin(async move { core.checkpoint_round(Mode::IfChanged).await })
            })
            .await
    }

    /// Starts a checkpoint in the background, unless one is waiting to begin.
    pub(crate) fn request_checkpoint(&self) {
        let core = self.me();
        self.runtime().spawn(Box::pin(async move {
            if let Err(error) = core.checkpoint().await {
                tracing::warn!(vdi = %core.id, %error, "a background checkpoint failed");
            }
        }));
    }

    /// Keeps dirty nodes within their bound: at half of it a checkpoint starts, at all of it writers wait.
    pub(super) async fn throttle(&self) -> Result<()> {
        let dirty = self.pool.dirty_nodes();
        if dirty > self.pool.limits.dirty_nodes_max {
            self.pool.checkpoint_all().await?;
        } else if dirty > self.pool.limits.dirty_nodes_max / 2 && self.pool.begin_background_checkpoint() {
            let pool = self.pool.clone();
            self.runtime().spawn(Box::pin(async move {
                if let Err(error) = pool.checkpoint_all().await {
                    tracing::warn!(%error, "a background checkpoint failed");
                }
                pool.end_background_checkpoint();
            }));
        }
        Ok(())
    }

    pub(crate) async fn checkpoint_round(self: &Arc<Self>, mode: Mode) -> Result<()> {
        let mut roots = self.roots.lock().await;
        let (mut frozen, replay, durable_group) = {
            let mut journal = self.journal.lock().await;
            let (sealed, frozen) = {
                let mut mapping = self.mapping.write();
                mapping.check()?;
                let unchanged = mapping.next_record == mapping.checkpointed_record
                    && mapping.superseded.is_empty()
                    && mapping.pending.is_empty()
                    && mapping.deleted.is_empty()
                    && mapping.labels.is_empty();
                // The two checkpoints of a release belong together: one between them would leave a root slot
                // that names a journal which the release then frees.
                let superfluous = mapping.draining && mode != Mode::Release;
                if superfluous || (mode == Mode::IfChanged && unchanged) {
                    return Ok(());
                }
                {
                    let now = self.pool.space.stamp();
                    mapping.unnamed.retain(|number, set| !self.pool.is_recorded(*set, self.id, *number));
                    (mapping.seal(now), mapping.freeze(now))
                }
            };
            if let Err(error) = self.commit_sealed(&mut journal, sealed).await {
                self.mapping.write().restore(frozen.superseded, frozen.since);
                return Err(error);
            }
            (frozen, journal.position()?, journal.durable_group())
        };
        let superseded = std::mem::take(&mut frozen.superseded);
        let mut table_superseded = Vec::new();
        let written = self.write_trees(&mut roots.table, &frozen, &mut table_superseded).await;
        let (map, table) = match written {
            Ok(trees) => trees,
            Err(error) => {
                self.mapping.write().restore(superseded, frozen.since);
                return Err(error.context(format!("volume {}: writing a checkpoint", self.id)));
            }
        };
        if !mutants::on(Mutant::RootBeforeNodes)
            && let Err(error) = self.pool.disk.flush().await
        {
            return Err(self.fail(&error));
        }
        let number = roots.number + 1;
        let slot = RootSlot {
            vdi: self.id.0,
            epoch: roots.epoch,
            number,
            size: frozen.size,
            map,
            table,
            next_snapshot: frozen.next_snapshot,
            snapshots: frozen.snapshots,
            parent_snapshot: frozen.parent_snapshot,
            unnamed_from: frozen.unnamed_from,
            replay,
            durable_group,
            previous: roots.previous,
            evidence: roots.evidence,
            released: mode == Mode::Release,
        };
        let turn = if mutants::on(Mutant::RootInOneSlot) { 0 } else { number };
        let at = roots.epoch.slot(roots.slots, turn);
        let fua = !mutants::on(Mutant::RootNotForced);
        if let Err(error) = self.pool.disk.write_blocks(at, slot.encode(at, self.pool.disk.salt()), fua).await
        {
            // A thin device that is full has refused it: nothing is under way.
            if error.kind() != ErrorKind::OutOfSpace {
                self.pool.space.doubt_root(Run { start: at, count: 1 });
            }
            return Err(self.fail(&error));
        }
        roots.number = number;
        self.let_go(&mut roots, frozen, superseded.into_iter().chain(table_superseded), replay, table).await;
        Ok(())
    }

    /// Step 5: the root is durable.
    async fn let_go(
        &self,
        roots: &mut Roots,
        frozen: Frozen,
        superseded: impl Iterator<Item = Superseded>,
        replay: ReplayPosition,
        table: TreeRoot,
    ) {
        let Frozen { map, pending, deleted, labels, record, since, .. } = frozen;
        let done: Vec<u64> = pending.iter().map(|pending| pending.number).collect();
        // The frozen trees hold nodes that settling wants for itself.
        drop((map, pending));
        roots.table.settle();
        {
            let mut mapping = self.mapping.write();
            mapping.settle(&done, &deleted, &labels, table);
            mapping.checkpointed_record = record;
        }
        let mut before = std::mem::replace(&mut roots.replay, replay);
        if mutants::on(Mutant::JournalRetiredEarly) {
            before = replay;
        }
        let retired = self.journal.lock().await.retire(before.segment_number);
        let mut freed = std::mem::replace(&mut roots.waiting, superseded.collect());
        if mutants::on(Mutant::NodesReusedEarly) {
            std::mem::swap(&mut freed, &mut roots.waiting);
        }
        let freed_since = std::mem::replace(&mut roots.waiting_since, since);
        let retired_at = self.pool.space.stamp();
        let mut runs: Vec<Run> = Vec::new();
        for link in freed.iter().filter_map(Superseded::link) {
            super::discard::collect(&mut runs, link);
        }
        // Look-ups begun before may still read a superseded node.
        let core = self.me();
        self.runtime().spawn(Box::pin(async move {
            core.quiesce().await;
            core.pool.space.free(&runs, freed_since);
            core.pool.space.free(&retired, retired_at);
        }));
        self.pool.counters.checkpoints.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.pool.materialised.notify_waiters();
    }

    /// Steps 2: returns the durable block map and snapshot table.
    async fn write_trees(
        &self,
        table: &mut Tree,
        frozen: &Frozen,
        superseded: &mut Vec<Superseded>,
    ) -> Result<(TreeRoot, TreeRoot)> {
        let pool = &self.pool;
        let links: Vec<&tree::Link> =
            frozen.pending.iter().map(|pending| pending.map.root()).chain([frozen.map.root()]).collect();
        let addresses = pool.space.take_nodes(&**pool, count_dirty(links)).await?;
        let mut writer = Writer::new(pool.disk.salt(), addresses);
        let mut records = Vec::new();
        for pending in &frozen.pending {
            let link = writer.add(pending.map.root(), pending.map.depth() - 1);
            records.push(SnapshotRecord {
                number: pending.number,
                taken_ms: pending.taken_ms,
                map: TreeRoot { link, depth: pending.map.depth() },
                size: pending.size,
                set: pending.set,
                parent: pending.parent,
                filesystem: pending.filesystem,
                label: pending.label.clone(),
            });
        }
        let map = TreeRoot {
            link: writer.add(frozen.map.root(), frozen.map.depth() - 1),
            depth: frozen.map.depth(),
        };
        self.write_nodes(writer).await?;
        self.update_table(table, &records, frozen, superseded).await?;
        let addresses = pool.space.take_nodes(&**pool, count_dirty([table.root()])).await?;
        let mut writer = Writer::new(pool.disk.salt(), addresses);
        let link = writer.add(table.root(), table.depth() - 1 + TABLE_LEVEL);
        self.write_nodes(writer).await?;
        Ok((map, TreeRoot { link, depth: table.depth() }))
    }

    async fn write_nodes(&self, writer: Writer) -> Result<()> {
        let (writes, nodes, spare) = writer.finish();
        let disk = &self.pool.disk;
        let places: Vec<Run> = writes
            .iter()
            .map(|(start, nodes)| Run { start: *start, count: (nodes.len() / BLOCK_SIZE) as u32 })
            .collect();
        let mut queue = writes.into_iter();
        loop {
            let batch: Vec<BoxFuture<'_, Result<()>>> = queue
                .by_ref()
                .take(WRITES_MAX)
                .map(|(address, buffer)| -> BoxFuture<'_, Result<()>> {
                    Box::pin(disk.write_blocks(address, buffer, false))
                })
                .collect();
            if batch.is_empty() {
                break;
            }
            for result in join_all(batch).await {
                // The nodes have addresses now; they cannot be written again elsewhere.
                if let Err(error) = result {
                    // Some may land yet.
                    self.pool.space.quarantine(&places);
                    return Err(self.fail(&error));
                }
            }
        }
        for (link, node) in nodes {
            disk.cache.insert(link, node);
        }
        let spare: Vec<Run> = spare.into_iter().map(|start: BlockAddress| Run { start, count: 1 }).collect();
        self.pool.space.give_back(&spare);
        Ok(())
    }

    /// Enters new snapshots, deletions and labels into the snapshot table.
    async fn update_table(
        &self,
        table: &mut Tree,
        records: &[SnapshotRecord],
        frozen: &Frozen,
        superseded: &mut Vec<Superseded>,
    ) -> Result<()> {
        enum Change<'a> {
            Put(&'a SnapshotRecord),
            Delete,
            Label(&'a str),
        }
        let mut changes: BTreeMap<u64, Change<'_>> = BTreeMap::new();
        changes.extend(frozen.labels.iter().map(|(number, label)| (*number, Change::Label(label))));
        changes.extend(records.iter().map(|record| (record.number, Change::Put(record))));
        changes.extend(frozen.deleted.iter().map(|number| (*number, Change::Delete)));
        if let Some((last, _)) = changes.last_key_value() {
            table.grow(leaf_slot(last / RECORDS_PER_LEAF) + 1);
        }
        for (number, change) in changes {
            let key = number / RECORDS_PER_LEAF;
            let at = (number % RECORDS_PER_LEAF) as usize;
            if !matches!(change, Change::Put(_))
                && (leaf_slot(key) >= blocks_at_depth(table.depth()) || !self.table_has(table, key).await?)
            {
                continue;
            }
            let mut held = Vec::new();
            loop {
                match change_leaf(&self.pool.disk, table, key, &held, superseded, |leaf| {
                    let mut record = match change {
                        Change::Put(record) => Some(record.clone()),
                        Change::Delete => None,
                        Change::Label(_) => SnapshotRecord::get(leaf, at)?,
                    };
                    if let (Change::Label(label), Some(record)) = (&change, &mut record) {
                        record.label = (*label).to_owned();
                    }
                    SnapshotRecord::put(leaf, at, record.as_ref());
                    Ok(())
                }) {
                    Ok(done) => break done?,
                    Err(missing) => held.push((missing.link, missing.load(&self.pool.disk).await?)),
                }
            }
        }
        Ok(())
    }

    async fn table_has(&self, table: &Tree, key: u64) -> Result<bool> {
        let mut held: Vec<(Entry, Arc<Node>)> = Vec::new();
        loop {
            let missing = match table.leaf(leaf_slot(key), &|link| tree::locate(&self.pool.disk, &held, link))
            {
                Ok(tree::Leaf::Hole { .. }) => return Ok(false),
                Ok(tree::Leaf::Node { .. }) => return Ok(true),
                Err(missing) => missing,
            };
            held.push((missing.link, missing.load(&self.pool.disk).await?));
        }
    }

    /// Waits for the checkpoint under way; none begins while what this gives is held.
    pub(crate) async fn no_checkpoint(&self) -> impl Drop + '_ {
        self.roots.lock().await
    }

    /// Blocks of the epoch that no tree names: root slots and journal.
    pub(crate) async fn private_runs(&self) -> Vec<Run> {
        let roots = self.roots.lock().await;
        let slots = Run { start: roots.slots, count: parallax_format::root::SLOTS };
        let mut runs: Vec<Run> = self.journal.lock().await.segments().collect();
        runs.push(slots);
        runs
    }
}

/// A tree is addressed by the words of its leaves; a leaf of the table is the `key`-th.
fn leaf_slot(key: u64) -> u64 {
    key * FANOUT as u64
}

fn change_leaf(
    disk: &crate::disk::Disk,
    table: &mut Tree,
    key: u64,
    held: &[(Entry, Arc<Node>)],
    superseded: &mut Vec<Superseded>,
    change: impl FnOnce(&mut Node) -> Result<()>,
) -> std::result::Result<Result<()>, Missing> {
    let find = |link| tree::locate(disk, held, link);
    let leaf = table.leaf_mut(leaf_slot(key), &find, superseded)?;
    Ok(change(leaf))
}
