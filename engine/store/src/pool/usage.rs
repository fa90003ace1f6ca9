//! How much space things take.

use super::Pool;
use crate::{
    SnapshotId, Usage, VdiId,
    disk::Disk,
    vdi::{replay, table},
};
use parallax_block::{BLOCK_SIZE, Error, ErrorKind, Result};
use parallax_format::{Entry, record::VdiRecord, root::TreeRoot};

/// How often a walk is tried again because the pool needed the space that was held for it.
const TRIES: u32 = 8;

/// A subtree at a place: its link and the level of the node behind it.
#[derive(Debug, Clone, Copy)]
struct At {
    link: Entry,
    level: u8,
}

impl Pool {
    /// Walks while nodes are kept as they are.
    async fn held<T, F: Future<Output = Result<T>>>(&self, walk: impl Fn() -> F) -> Result<T> {
        for _ in 1..TRIES {
            let hold = self.core.space.hold_nodes();
            match walk().await {
                Err(error) if error.kind() == ErrorKind::Corrupt && !hold.stands() => {}
                other => return other,
            }
        }
        let text = "the pool is too full to tell how much space is used; free some space first";
        Err(Error::new(ErrorKind::Busy, text))
    }

    /// Space of a VDI; walks its tree as of its last checkpoint, after making one.
    pub async fn usage(&self, id: VdiId) -> Result<Usage> {
        self.held(|| self.usage_now(id)).await
    }

    async fn usage_now(&self, id: VdiId) -> Result<Usage> {
        let Some(root) = self.durable_map(id).await? else { return Ok(Usage::default()) };
        let disk = &self.core.disk;
        let (mut mapped, mut shared, mut nodes) = (0u64, 0u64, 0u64);
        let mut stack = vec![(root.link, root.depth - 1, root.link.is_ro())];
        while let Some((link, level, ro)) = stack.pop() {
            if link.is_hole() {
                continue;
            }
            nodes += 1;
            let node = disk.node(link, level).await?;
            for word in node.words() {
                let entry = Entry::from_raw(*word);
                if entry.is_hole() {
                    continue;
                }
                let ro = ro || entry.is_ro();
                if level > 0 {
                    stack.push((entry, level - 1, ro));
                } else {
                    mapped += 1;
                    shared += u64::from(ro);
                }
            }
        }
        let block = BLOCK_SIZE as u64;
        Ok(Usage { mapped: mapped * block, shared: shared * block, metadata: nodes * block })
    }

    /// The block map of a VDI as of now.
    async fn durable_map(&self, id: VdiId) -> Result<Option<TreeRoot>> {
        let record = self.core.record(id)?;
        if self.core.open_core(id).is_none() {
            if record.grant.is_none() {
                return Ok(Some(record.initial.tree()));
            }
            if let Some(slot) = self.released_slot(id).await? {
                return Ok(Some(slot.map));
            }
        }
        self.core
            .with(id, |core| async move {
                core.checkpoint().await?;
                let slots = replay::state(&core.pool.disk, &core.pool.record(id)?).await?;
                Ok(slots.map(|slots| slots.newest.map))
            })
            .await
    }

    /// Bytes that only this snapshot holds: what the next garbage collection after its deletion frees.
    ///
    /// Compares with every snapshot of the VDI, with the VDI itself, and with every VDI that was cloned from it,
    /// directly or not; subtrees that are the same are skipped whole.
    pub async fn exclusive(&self, id: SnapshotId) -> Result<u64> {
        self.held(|| self.exclusive_now(id)).await
    }

    async fn exclusive_now(&self, id: SnapshotId) -> Result<u64> {
        let target = self.materialised(id).await?;
        let _pin = self.pin(id).await?;
        let mut family = vec![id.vdi];
        let known = self.core.known();
        // Clones of clones; ends, since each VDI is added once.
        let mut at = 0;
        while at < family.len() {
            let of = family[at];
            let origin =
                |record: &VdiRecord| record.source_snapshot.map(|(vdi, _)| vdi).or(record.source_vdi);
            let mine = known.vdis.get(&of.0).and_then(origin);
            let related =
                known.vdis.values().filter(|record| origin(record) == Some(of.0) || mine == Some(record.id));
            for record in related {
                if !family.contains(&VdiId(record.id)) {
                    family.push(VdiId(record.id));
                }
            }
            at += 1;
        }
        let mut others = Vec::new();
        for vdi in family {
            let map = match self.durable_map(vdi).await {
                // Deleted meanwhile: it shares nothing any more.
                Err(error) if error.kind() == ErrorKind::NotFound && vdi != id.vdi => continue,
                other => other?,
            };
            if let Some(root) = map {
                others.push(At { link: root.link, level: root.depth - 1 });
            }
            let Ok(Some(table)) = self.durable_table(vdi).await else { continue };
            let mut after = 0;
            loop {
                let records = table::records(&self.core.disk, table, after, 1024).await?;
                let Some(last) = records.last() else { break };
                after = last.number;
                others.extend(
                    records
                        .iter()
                        .filter(|record| (vdi, record.number) != (id.vdi, id.number))
                        .map(|record| At { link: record.map.link, level: record.map.depth - 1 }),
                );
            }
        }
        let root = At { link: target.map.link, level: target.map.depth - 1 };
        let blocks = exclusive_below(&self.core.disk, root, others).await?;
        Ok(blocks * BLOCK_SIZE as u64)
    }

    async fn durable_table(&self, id: VdiId) -> Result<Option<TreeRoot>> {
        if let Some(core) = self.core.open_core(id) {
            return Ok(Some(core.mapping.read().table));
        }
        Ok(replay::state(&self.core.disk, &self.core.record(id)?).await?.map(|slots| slots.newest.table))
    }
}

async fn exclusive_below(disk: &Disk, target: At, others: Vec<At>) -> Result<u64> {
    let mut exclusive = 0u64;
    let mut stack = vec![(target, others)];
    while let Some((target, others)) = stack.pop() {
        if target.link.is_hole() {
            continue;
        }
        // Others may be deeper where they have grown: the same place is then down their first links.
        let mut same_place = Vec::new();
        for mut other in others {
            while other.level > target.level && !other.link.is_hole() {
                other =
                    At { link: disk.node(other.link, other.level).await?.entry(0), level: other.level - 1 };
            }
            if !other.link.is_hole() {
                same_place.push(other);
            }
        }
        if same_place.iter().any(|other| other.level == target.level && other.link.same_target(target.link)) {
            continue;
        }
        same_place.sort_by_key(|other| other.link.raw() & !(1 << 63));
        same_place.dedup_by(|a, b| a.link.same_target(b.link) && a.level == b.level);
        let node = disk.node(target.link, target.level).await?;
        exclusive += 1;
        let mut nodes = Vec::new();
        for other in same_place {
            if other.level == target.level {
                nodes.push(disk.node(other.link, other.level).await?);
            }
        }
        for (at, word) in node.words().iter().enumerate() {
            let entry = Entry::from_raw(*word);
            if entry.is_hole() {
                continue;
            }
            if target.level == 0 {
                exclusive += u64::from(!nodes.iter().any(|node| node.entry(at).same_target(entry)));
                continue;
            }
            let level = target.level - 1;
            let below = nodes.iter().map(|node| At { link: node.entry(at), level }).collect();
            stack.push((At { link: entry, level }, below));
        }
    }
    Ok(exclusive)
}
