//! What a journal changes about the blocks that a VDI uses.

use parallax_format::{BlockAddress, journal::JournalRecord};
use std::{collections::BTreeMap, ops::Range};

#[derive(Default)]
pub(super) struct Overlay {
    used: Vec<BlockAddress>,
    mapped: BTreeMap<u64, BlockAddress>,
    pub(super) gone: Vec<Range<u64>>,
    /// A snapshot was cut: what was mapped before stays in use whatever follows.
    cut: bool,
}

impl Overlay {
    pub(super) fn apply(&mut self, record: &JournalRecord) {
        match record {
            JournalRecord::Map { lba, count, address } => {
                for at in 0..*count {
                    if let Some(address) = address.offset(at) {
                        self.mapped.insert(lba + u64::from(at), address);
                    }
                }
            }
            JournalRecord::Unmap { lba, count } => {
                let range = *lba..lba.saturating_add(*count);
                let mapped: Vec<u64> = self.mapped.range(range.clone()).map(|(lba, _)| *lba).collect();
                for lba in mapped {
                    self.mapped.remove(&lba);
                }
                if !self.cut {
                    self.gone.push(range);
                }
            }
            JournalRecord::Snapshot { .. } => {
                self.cut = true;
                self.used.extend(self.mapped.values());
            }
            _ => {}
        }
    }

    pub(super) fn used(&self) -> impl Iterator<Item = BlockAddress> {
        self.used.iter().chain(self.mapped.values()).copied()
    }
}
