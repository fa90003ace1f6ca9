//! Reads who is in the pool.

use crate::read;
use parallax_block::{BlockDevice, ErrorKind, Result};
use parallax_format::{
    host::{self, Ballot, HostSlot},
    superblock::Superblock,
};

/// A host that has a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub slot: u32,
    /// What it says.
    pub state: HostSlot,
    /// How often it was written.
    pub renewals: u64,
    /// Highest manager epoch that the host has stood for, and under which incarnation.
    pub ballot: Option<Ballot>,
}

/// All slots of a pool.
pub(crate) struct Slots {
    pub(crate) members: Vec<Member>,
    /// Never used.
    pub(crate) empty: Vec<u32>,
    /// Hold something that does not verify: a write that a power cut has torn, most likely.
    pub(crate) torn: Vec<u32>,
    /// The highest incarnation and the highest manager epoch that any ballot names, whoever's.
    pub(crate) incarnation_max: u64,
    pub(crate) epoch_max: u64,
}

/// Every host that has a slot, in order of slots.
pub async fn members(device: &dyn BlockDevice, superblock: &Superblock) -> Result<Vec<Member>> {
    Ok(slots(device, superblock).await?.members)
}

pub(crate) async fn slots(device: &dyn BlockDevice, superblock: &Superblock) -> Result<Slots> {
    let mut slots =
        Slots { members: Vec::new(), empty: Vec::new(), torn: Vec::new(), incarnation_max: 0, epoch_max: 0 };
    for slot in 0..superblock.host_slots {
        let group = superblock.host_group(slot);
        let at = group + host::BALLOT;
        let ballot = Ballot::decode(&read(device, at).await?, at, superblock.salt).ok();
        if let Some(ballot) = ballot {
            slots.incarnation_max = slots.incarnation_max.max(ballot.incarnation);
            slots.epoch_max = slots.epoch_max.max(ballot.epoch);
        }
        let at = group + host::SLOT;
        let bytes = read(device, at).await?;
        match HostSlot::decode(&bytes, at, superblock.salt) {
            Ok((state, renewals)) => {
                slots.incarnation_max = slots.incarnation_max.max(state.incarnation);
                slots.members.push(Member { slot, state, renewals, ballot });
            }
            Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
            // Formatting fills the host groups with zeroes.
            Err(_) if bytes.iter().all(|byte| *byte == 0) => slots.empty.push(slot),
            Err(_) => slots.torn.push(slot),
        }
    }
    Ok(slots)
}
