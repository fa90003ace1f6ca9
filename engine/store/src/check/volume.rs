//! One volume: its grants, its root slots, its journal, its trees.

use super::{Check, PRIVATE, REACHED, called, overlay::Overlay, tree::Walk};
use crate::{Severity, vdi::replay};
use parallax_block::Result;
use parallax_format::{
    BlockAddress,
    journal::SEGMENT_BLOCKS,
    node::TABLE_LEVEL,
    record::{ExtentKind, VdiRecord},
    root::{RootSlot, SLOTS},
};

impl Check<'_> {
    pub(super) async fn vdi(&mut self, record: &VdiRecord) -> Result<()> {
        self.own.clear();
        self.of_family = self.family(record.id);
        let name = called(record);
        let state = match replay::state(self.disk, record).await {
            Ok(state) => state,
            Err(error) => {
                let grants = [record.grant, record.previous].into_iter().flatten();
                let places: Vec<String> = grants.map(|grant| grant.slots.to_string()).collect();
                let detail = format!("root slots at {}: {error}", places.join(" and "));
                self.find(Severity::Damage, "root-slot", detail, &[&name]);
                return Ok(());
            }
        };
        if let Some(grant) = record.grant {
            self.private(grant.slots, SLOTS, &name);
        }
        let Some(slots) = state else {
            return self
                .tree(
                    record.initial.tree(),
                    0,
                    Walk { size: record.size, strict: true, gone: &[], next_snapshot: 1 },
                    &name,
                )
                .await;
        };
        self.private(slots.grant.slots, SLOTS, &name);
        self.reign(record, &slots).await;
        self.next_snapshots.insert(record.id, slots.newest.next_snapshot);
        if slots.older.is_none() && record.previous.is_none() {
            let detail = format!("one of the root slots at {} does not verify", slots.grant.slots);
            self.find(Severity::Leak, "root-slot-copy", detail, &[&name]);
        }
        self.slot(&slots.newest, slots.durable_group, true, &name).await?;
        if let Some(older) = &slots.older {
            // Shares everything with the newest, so it is walked for reach, not for sharing.
            self.slot(older, slots.durable_group, false, &name).await?;
        }
        Ok(())
    }

    async fn slot(&mut self, slot: &RootSlot, durable: u64, newest: bool, name: &str) -> Result<()> {
        let mut overlay = Overlay::default();
        if !slot.released {
            match replay::replay(self.disk, slot.vdi, slot.epoch, slot.replay, durable).await {
                Ok(journal) => {
                    for segment in &journal.segments {
                        self.private(*segment, SEGMENT_BLOCKS, name);
                    }
                    journal.records.iter().for_each(|record| overlay.apply(record));
                }
                Err(error) => {
                    let at = slot.replay.segment;
                    let detail = format!("the journal from block {at} on: {error}");
                    self.find_at(Severity::Damage, "journal", at, detail, name);
                }
            }
        }
        let walk =
            Walk { size: slot.size, strict: newest, gone: &overlay.gone, next_snapshot: slot.next_snapshot };
        let before = self.findings.listed().len();
        self.records = 0;
        self.tree(slot.table, TABLE_LEVEL, walk, name).await?;
        if newest && self.findings.listed().len() == before && self.records != slot.snapshots {
            let place = match slot.table.link.address() {
                Some(root) => format!("the table at {root}"),
                None => "the empty table".to_owned(),
            };
            let detail = format!(
                "{place} has {} snapshots, the root slot of checkpoint {} says {}",
                self.records, slot.number, slot.snapshots
            );
            self.find(Severity::Damage, "snapshot-table", detail, &[name]);
        }
        self.tree(slot.map, 0, walk, name).await?;
        if newest {
            for address in overlay.used() {
                self.reach(address, ExtentKind::Data, 0, name);
                self.claim(address, name);
            }
        }
        Ok(())
    }

    fn private(&mut self, start: BlockAddress, count: u32, name: &str) {
        for at in 0..count {
            if let Some(address) = start.offset(at)
                && self.own.insert(address)
                && let Some(before) = self.reach(address, ExtentKind::Metadata, PRIVATE, name)
                && before & REACHED != 0
            {
                let detail = format!("block {address} is one volume's own, and something else uses it");
                self.find_at(Severity::Damage, "block-shared", address, detail, name);
            }
        }
    }
}
