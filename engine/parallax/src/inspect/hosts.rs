//! Host groups: who is in the pool, and who is its manager.

use super::medium::{Medium, text};
use crate::failure::Outcome;
use parallax_format::host::{self, Ballot, HostSlot, Standing};
use serde_json::{Value, json};

pub(super) fn hosts(medium: &Medium) -> Outcome<Value> {
    let superblock = medium.superblock()?;
    let mut shown = Vec::new();
    let mut manager: Option<(u64, String)> = None;
    for slot in 0..superblock.host_slots {
        let group = superblock.host_group(slot);
        let at = group + host::SLOT;
        let bytes = medium.physical(at)?;
        if bytes.iter().all(|byte| *byte == 0) {
            continue;
        }
        let (state, renewals) = match HostSlot::decode(&bytes, at, superblock.salt) {
            Ok(found) => found,
            Err(error) => {
                shown.push(json!({ "slot": slot, "at_block": at, "error": text(error) }));
                continue;
            }
        };
        let at = group + host::BALLOT;
        let ballot = Ballot::decode(&medium.physical(at)?, at, superblock.salt)
            .ok()
            .filter(|ballot| ballot.incarnation == state.incarnation);
        if let Some(ballot) =
            ballot.filter(|ballot| manager.as_ref().is_none_or(|(best, _)| *best < ballot.epoch))
        {
            manager = Some((ballot.epoch, state.name.clone()));
        }
        shown.push(json!({
            "slot": slot,
            "name": state.name,
            "standing": standing(state.standing),
            "incarnation": state.incarnation,
            "boot": format!("{:032x}", state.boot_id),
            "slot_writes": renewals,
            "manager_epoch": ballot.map(|ballot| ballot.epoch),
        }));
    }
    Ok(json!({
        "slots": superblock.host_slots,
        "manager": manager.map(|(_, name)| name),
        "hosts": shown,
    }))
}

fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Joined => "joined",
        Standing::Released => "released",
        Standing::Evicted => "evicted",
    }
}
