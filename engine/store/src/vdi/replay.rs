//! Reads a VDI's durable state: the best root slot, then the journal behind it.
//!
//! Replay reads no data. It stops at the first block that does not continue the chain. If that block cannot be
//! read, or something else that is valid says that its group was durable, the journal is damaged and the VDI
//! does not open: records that were promised are gone.

use crate::{
    disk::Disk,
    mutants::{self, Mutant},
};
use parallax_block::{Error, ErrorKind, Result};
use parallax_format::{
    BlockAddress,
    journal::{self, BlockHeader, JournalRecord, SEGMENT_BLOCKS},
    record::{Grant, VdiRecord},
    root::{Epoch, ReplayPosition, RootSlot, SLOTS},
};
use uuid::Uuid;

/// The root slots of one grant.
pub(crate) struct Slots {
    pub(crate) grant: Grant,
    /// The newest valid one.
    pub(crate) newest: RootSlot,
    /// The highest group that any valid slot of the newest epoch calls durable.
    pub(crate) durable_group: u64,
    /// The other valid slot of the newest epoch.
    pub(crate) older: Option<RootSlot>,
    /// Why that one, which may be the newer, cannot be read.
    pub(crate) unreadable: Option<Error>,
}

impl Slots {
    /// The newest, then the other.
    pub(crate) fn both(&self) -> impl Iterator<Item = &RootSlot> {
        [&self.newest].into_iter().chain(&self.older)
    }
}

/// Slots of a grant of which at least one is valid; else why one of them cannot be read, if that is so.
async fn slots(disk: &Disk, vdi: Uuid, grant: Grant) -> Result<std::result::Result<Slots, Option<Error>>> {
    let mut valid = Vec::new();
    let mut unreadable = Vec::new();
    for index in 0..SLOTS {
        let at = grant.slots.offset(index).ok_or_else(|| Error::corrupt("root slots leave their extent"))?;
        let bytes = match disk.read_block(at).await {
            Ok(bytes) => bytes,
            // The other says the same, as it does when this one is torn.
            Err(error) if error.kind() == ErrorKind::Io => {
                tracing::warn!(%vdi, %error, "a root slot cannot be read");
                unreadable.push((index, error));
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Ok(slot) = RootSlot::decode(&bytes, at, disk.salt())
            && slot.vdi == vdi
            && slot.epoch.grant == grant.number
        {
            valid.push(slot);
        }
    }
    valid.sort_by_key(|slot| (slot.epoch, slot.number));
    let Some(newest) = valid.pop() else { return Ok(Err(unreadable.pop().map(|(_, error)| error))) };
    // An epoch that has begun has two valid slots. Where those of the next one would be are those of the one before, of
    // which a crash tears one at the most. If there are none, then a newer epoch may have lost both.
    let others = valid.iter().any(|slot| slot.epoch.open % 2 != newest.epoch.open % 2);
    let is_twin = |(index, _): &(u32, Error)| index / 2 == newest.epoch.open % 2;
    let (mut twin, mut unreadable): (Vec<_>, Vec<_>) = unreadable.into_iter().partition(is_twin);
    if !others && (newest.epoch.open > 1 || unreadable.len() == 2) {
        let error = unreadable.pop().map_or_else(|| Error::corrupt("neither verifies"), |(_, error)| error);
        return Err(error.context(format!(
            "two root slots of volume {vdi} beside those of epoch {} are lost, and may have been newer",
            newest.epoch
        )));
    }
    let older = valid.pop().filter(|slot| slot.epoch == newest.epoch);
    let durable_group = newest.durable_group.max(older.as_ref().map_or(0, |slot| slot.durable_group));
    Ok(Ok(Slots { grant, newest, durable_group, older, unreadable: twin.pop().map(|(_, error)| error) }))
}

/// The state that counts for a VDI: of its latest grant if any epoch of it has a valid slot, else of the one
/// before, else none.
pub(crate) async fn state(disk: &Disk, record: &VdiRecord) -> Result<Option<Slots>> {
    let mut unreadable = None;
    for grant in [record.grant, record.previous].into_iter().flatten() {
        match slots(disk, record.id, grant).await? {
            Ok(slots) => return Ok(Some(slots)),
            Err(error) => unreadable = unreadable.or(error),
        }
    }
    // The grant before is forgotten only when both slots of the latest are durable.
    if record.grant.is_some() && record.previous.is_none() {
        if let Some(error) = unreadable {
            return Err(error.context(format!("no root slot of volume '{}' can be read", record.name)));
        }
        return Err(Error::corrupt(format!(
            "no root slot of volume '{}' verifies; run `parallax check`",
            record.name
        )));
    }
    Ok(None)
}

/// What a journal holds from a position on.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    /// In order.
    pub(crate) records: Vec<JournalRecord>,
    /// Last group adopted.
    pub(crate) last_group: u64,
    /// Number of the record after the last.
    pub(crate) next_record: u64,
    /// Segments that replay met, the one ahead included.
    pub(crate) segments: Vec<BlockAddress>,
}

struct Cursor {
    segment: BlockAddress,
    number: u32,
    index: u32,
    next: Option<BlockAddress>,
}

/// Reads groups from `from` on.
pub(crate) async fn replay(
    disk: &Disk,
    vdi: Uuid,
    epoch: Epoch,
    from: ReplayPosition,
    durable_floor: u64,
) -> Result<Replayed> {
    let mut out = Replayed {
        last_group: from.group - 1,
        next_record: from.record,
        segments: vec![from.segment],
        ..Replayed::default()
    };
    let mut at = Cursor {
        segment: from.segment,
        number: from.segment_number,
        index: from.index,
        next: from.next_segment,
    };
    let mut predecessor = from.predecessor;
    let mut open: Vec<JournalRecord> = Vec::new();
    let mut open_records = 0;
    loop {
        if at.index == SEGMENT_BLOCKS {
            let Some(next) = at.next else { break };
            out.segments.push(next);
            at = Cursor { segment: next, number: at.number + 1, index: 0, next: None };
        }
        let expected = |header: &BlockHeader| {
            header.vdi == vdi
                && header.epoch == epoch
                && header.segment == at.number
                && u32::from(header.index) == at.index
                && header.group == out.last_group + 1
                && header.record == out.next_record + open_records
                && header.predecessor == predecessor
        };
        let address = at
            .segment
            .offset(at.index)
            .ok_or_else(|| Error::corrupt("a journal segment leaves its extent"))?;
        let block = read(disk, address).await;
        match block {
            Ok(Some((header, records, crc)))
                if expected(&header) || mutants::on(Mutant::ReplayIgnoresChain) =>
            {
                predecessor = crc;
                at.next = header.next_segment;
                open_records += records.len() as u64;
                open.extend(records);
                if header.last {
                    out.records.append(&mut open);
                    out.last_group = header.group;
                    out.next_record += std::mem::take(&mut open_records);
                }
                at.index += 1;
            }
            other => {
                let lost = out.last_group + 1;
                let unreadable = other.err();
                if let Some(error) = unreadable {
                    return Err(
                        error.context(format!("group {lost} of the journal of volume {vdi} cannot be read"))
                    );
                }
                let witness = witness(disk, vdi, epoch, &at).await?.max(durable_floor);
                if witness >= lost && !mutants::on(Mutant::ReplayIgnoresWitness) {
                    return Err(Error::corrupt(format!(
                        "the journal of volume {vdi} is damaged at block {address}: group {lost} was durable (so was group {witness}); run `parallax check`"
                    )));
                }
                break;
            }
        }
    }
    if mutants::on(Mutant::ReplayDropsLast) && out.records.pop().is_some() {
        out.next_record -= 1;
    }
    if let Some(next) = at.next
        && !out.segments.contains(&next)
    {
        out.segments.push(next);
    }
    Ok(out)
}

/// A block that verifies as a journal block at its address; `None` if it is anything else.
async fn read(disk: &Disk, address: BlockAddress) -> Result<Option<(BlockHeader, Vec<JournalRecord>, u32)>> {
    let bytes = disk.read_block(address).await?;
    Ok(journal::decode_block(&bytes, address, disk.salt()).ok())
}

/// The highest group that a valid block behind the cursor proves durable.
async fn witness(disk: &Disk, vdi: Uuid, epoch: Epoch, at: &Cursor) -> Result<u64> {
    let mut proved = 0;
    let mut next = at.next;
    for index in at.index + 1..SEGMENT_BLOCKS {
        let Some(address) = at.segment.offset(index) else { break };
        // A block that cannot be read here proves nothing either way.
        if let Ok(Some((header, ..))) = read(disk, address).await
            && header.vdi == vdi
            && header.epoch == epoch
            && header.segment == at.number
        {
            proved = proved.max(header.durable);
            next = header.next_segment;
        }
    }
    if let Some(next) = next {
        for index in 0..SEGMENT_BLOCKS {
            let Some(address) = next.offset(index) else { break };
            if let Ok(Some((header, ..))) = read(disk, address).await
                && header.vdi == vdi
                && header.epoch == epoch
                && header.segment == at.number + 1
            {
                proved = proved.max(header.durable);
            }
        }
    }
    Ok(proved)
}
