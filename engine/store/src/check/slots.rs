//! What a root slot says, compared with the grant, with the epoch before and with its twin.
//!
//! Each of these follows from the order in which `vdi::open` and `vdi::checkpoint` write: none of them may be wrong in a
//! pool that is sound, whenever its daemon was killed.

use super::{Check, called};
use crate::{Severity, registry::Known, vdi::replay::Slots};
use parallax_format::{
    record::VdiRecord,
    root::{Evidence, RootSlot},
};

impl Check<'_> {
    /// Grants, epochs, checkpoint numbers, and what the slots say of snapshots.
    pub(super) async fn reign(&mut self, record: &VdiRecord, slots: &Slots) {
        let name = called(record);
        let places = format!("root slots at {}", slots.grant.slots);
        let mut wrong = Vec::new();
        for slot in slots.both() {
            wrong.extend(epoch(slot).map(|what| ("epoch", what)));
            wrong.extend(snapshots(slot).map(|what| ("lineage", what)));
            let at = slot.epoch.slot(slots.grant.slots, slot.number);
            let bytes = self.disk.read_block(at).await;
            let here = bytes.and_then(|bytes| RootSlot::decode(&bytes, at, self.disk.salt())).ok();
            if here.is_none_or(|here| here.vdi != slot.vdi || here.number < slot.number) {
                wrong.push(("epoch", format!("checkpoint {} is not in its place, {at}", slot.number)));
            }
        }
        if let Some(older) = &slots.older {
            wrong.extend(twins(older, &slots.newest).map(|what| ("epoch", what.to_owned())));
        }
        for (kind, what) in wrong {
            self.find(Severity::Damage, kind, format!("{places}: {what}"), &[&name]);
        }
    }

    /// Grants of a volume, whether or not any slot of them verifies.
    pub(super) fn grants(&mut self, record: &VdiRecord, known: &Known) {
        let Some(latest) = record.grant else { return };
        let name = called(record);
        let before = record.previous;
        if before.is_some_and(|before| before.number >= latest.number) {
            let detail = format!("root slots at {}: the grant is no later than the one before", latest.slots);
            self.find(Severity::Damage, "epoch", detail, &[&name]);
        }
        for grant in [Some(latest), before].into_iter().flatten() {
            if grant.incarnation >= known.incarnation {
                let detail = format!(
                    "root slots at {}: granted to incarnation {}, and the next to be handed out is {}",
                    grant.slots, grant.incarnation, known.incarnation
                );
                self.find(Severity::Damage, "epoch", detail, &[&name]);
            }
        }
    }

    /// Sources of clones. One that is not known has been deleted.
    pub(super) fn sources(&mut self, known: &Known) {
        for record in known.vdis.values() {
            if let Some((vdi, number)) = record.source_snapshot
                && self.next_snapshots.get(&vdi).is_some_and(|next| number >= *next)
            {
                let detail =
                    format!("it was cloned from snapshot {number} of {vdi}, which has had none such");
                self.find(Severity::Damage, "lineage", detail, &[&called(record)]);
            }
        }
    }
}

fn told<const N: usize>(claims: [(bool, &'static str); N]) -> impl Iterator<Item = &'static str> {
    claims.into_iter().filter_map(|(holds, what)| (!holds).then_some(what))
}

fn epoch(slot: &RootSlot) -> impl Iterator<Item = String> {
    let previous = slot.previous;
    told([
        (slot.epoch.open > 0, "an epoch is not open"),
        (previous.is_none_or(|(before, _)| before < slot.epoch), "the epoch before is no earlier"),
        (
            previous.is_none_or(|(_, group)| group < slot.replay.group),
            "the journal begins before the end of the one before",
        ),
        (previous.is_none() == (slot.evidence == Evidence::First), "its evidence is for another takeover"),
        (slot.durable_group + 1 >= slot.replay.group, "replay begins behind a group that was not durable"),
    ])
    .map(move |what| format!("epoch {}, checkpoint {}: {what}", slot.epoch, slot.number))
}

fn snapshots(slot: &RootSlot) -> impl Iterator<Item = String> {
    let next = slot.next_snapshot;
    told([
        (next > 0, "snapshots are counted from 1"),
        (slot.parent_snapshot < next.max(1), "the map descends from a snapshot that was not taken yet"),
        (slot.unnamed_from < next.max(1), "a snapshot that was not taken yet is without a name"),
        (slot.snapshots < next.max(1), "more snapshots live than were ever taken"),
    ])
    .map(move |what| format!("checkpoint {}, next snapshot {next}: {what}", slot.number))
}

/// Two checkpoints of one epoch, one after the other.
fn twins(older: &RootSlot, newest: &RootSlot) -> impl Iterator<Item = &'static str> {
    told([
        (older.number + 1 == newest.number, "its two checkpoints do not follow each other"),
        (
            older.previous == newest.previous && older.evidence == newest.evidence,
            "its two checkpoints disagree about how it began",
        ),
        (
            older.replay.segment_number <= newest.replay.segment_number
                && older.replay.group <= newest.replay.group
                && older.replay.record <= newest.replay.record
                && older.durable_group <= newest.durable_group,
            "its journal goes backwards",
        ),
        (older.next_snapshot <= newest.next_snapshot, "snapshots are numbered backwards"),
        (older.size <= newest.size, "the volume has become smaller"),
        (newest.released || !older.released, "it went on after its end"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use parallax_format::{
        BlockAddress, Entry, ExtentId,
        root::{Epoch, ReplayPosition, TreeRoot},
    };
    use uuid::Uuid;

    fn sound() -> RootSlot {
        let empty = TreeRoot { link: Entry::HOLE, depth: 1 };
        let replay = ReplayPosition {
            segment: BlockAddress::new(ExtentId::new(1).unwrap(), 16).unwrap(),
            next_segment: None,
            segment_number: 2,
            index: 3,
            group: 10,
            record: 20,
            predecessor: 0,
        };
        RootSlot {
            vdi: Uuid::from_u128(1),
            epoch: Epoch { grant: 2, open: 2 },
            number: 8,
            size: 8192,
            map: empty,
            table: empty,
            next_snapshot: 5,
            snapshots: 4,
            parent_snapshot: 4,
            unnamed_from: 0,
            replay,
            durable_group: 9,
            previous: Some((Epoch { grant: 2, open: 1 }, 5)),
            evidence: Evidence::Released,
            released: false,
        }
    }

    #[test]
    fn a_slot_that_contradicts_itself_is_told_apart_from_a_sound_one() {
        assert_eq!(epoch(&sound()).chain(snapshots(&sound())).count(), 0);
        let lies: [fn(&mut RootSlot); 9] = [
            |slot| slot.epoch.open = 0,
            |slot| slot.previous = Some((slot.epoch, 5)),
            |slot| slot.previous = Some((Epoch { grant: 2, open: 1 }, slot.replay.group)),
            |slot| slot.evidence = Evidence::First,
            |slot| slot.durable_group = slot.replay.group - 2,
            |slot| slot.next_snapshot = 0,
            |slot| slot.parent_snapshot = slot.next_snapshot,
            |slot| slot.unnamed_from = slot.next_snapshot,
            |slot| slot.snapshots = slot.next_snapshot,
        ];
        for (at, lie) in lies.into_iter().enumerate() {
            let mut slot = sound();
            lie(&mut slot);
            assert!(epoch(&slot).chain(snapshots(&slot)).count() > 0, "lie {at}: {slot:?}");
        }
    }

    #[test]
    fn twins_follow_each_other() {
        let newest = sound();
        let older = RootSlot { number: newest.number - 1, ..sound() };
        assert_eq!(twins(&older, &newest).count(), 0);
        let lies: [fn(&mut RootSlot); 7] = [
            |older| older.number -= 1,
            |older| older.previous = None,
            |older| older.evidence = Evidence::None,
            |older| older.replay.group += 1,
            |older| older.next_snapshot += 1,
            |older| older.size += 4096,
            |older| older.released = true,
        ];
        for (at, lie) in lies.into_iter().enumerate() {
            let mut older = older.clone();
            lie(&mut older);
            assert_eq!(twins(&older, &newest).count(), 1, "lie {at}");
        }
    }
}
