//! Host slots, incarnations and ballots.
//!
//! What one host needs: it joins the pool under an incarnation of its own, stands for manager, and leaves. The
//! rules for several hosts (renewal, expiry, takeover with evidence) rest on the same blocks.
//!
//! Invariants:
//! * The blocks of a host's group are written only by the incarnation that its slot names.
//! * An incarnation is used once: it is higher than any that a slot, a ballot or the registry has named.
//! * A host that restarts within one boot of its machine keeps its incarnation; after a reboot, and after an
//!   orderly end, it joins anew.

#![forbid(unsafe_code)]

use parallax_block::{BLOCK_SIZE, BlockDevice, Buffer, Error, ErrorKind, Result, WriteOptions};
use parallax_format::{
    host::{self, Ballot, HostSlot},
    superblock::Superblock,
};
use std::time::Duration;

/// A host's membership of a pool.
#[derive(Debug, Clone)]
pub struct Membership {
    /// Which group is ours.
    pub slot: u32,
    /// Under which incarnation.
    pub incarnation: u64,
    /// Whether the incarnation was kept from a process of the same boot.
    pub kept: bool,
    /// Manager epoch that we have stood for.
    pub manager_epoch: u64,
    state: HostSlot,
    renewals: u64,
}

/// Who joins.
#[derive(Debug, Clone, Copy)]
pub struct Applicant<'a> {
    /// Name of the host.
    pub name: &'a str,
    /// Boot of its machine.
    pub boot_id: u128,
    /// Its boottime clock.
    pub now: Duration,
    /// Lowest incarnation that the registry leaves free.
    pub incarnation_floor: u64,
}

async fn read(device: &dyn BlockDevice, block: u64) -> Result<Buffer> {
    let (buffer, result) = device.read(block * BLOCK_SIZE as u64, Buffer::zeroed(BLOCK_SIZE)).await;
    result.map(|()| buffer)
}

async fn write(device: &dyn BlockDevice, block: u64, buffer: Buffer) -> Result<()> {
    device.write(block * BLOCK_SIZE as u64, buffer, WriteOptions { fua: true }).await.1
}

/// Joins: takes the slot of this name, or a free one, and stands for manager.
pub async fn join(
    device: &dyn BlockDevice,
    superblock: &Superblock,
    applicant: Applicant<'_>,
) -> Result<Membership> {
    let mut ours: Option<(u32, HostSlot, u64)> = None;
    let mut free: Option<u32> = None;
    let mut incarnation_max = applicant.incarnation_floor.saturating_sub(1);
    let mut epoch_max = 0;
    for slot in 0..superblock.host_slots {
        let group = superblock.host_group(slot);
        let at = group + host::SLOT;
        match HostSlot::decode(&read(device, at).await?, at, superblock.salt) {
            Ok((state, renewals)) => {
                incarnation_max = incarnation_max.max(state.incarnation);
                if state.name == applicant.name {
                    ours = Some((slot, state, renewals));
                } else if state.released && free.is_none() {
                    free = Some(slot);
                }
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => free = free.or(Some(slot)),
            Err(error) => return Err(error),
        }
        let at = group + host::BALLOT;
        if let Ok(ballot) = Ballot::decode(&read(device, at).await?, at, superblock.salt) {
            incarnation_max = incarnation_max.max(ballot.incarnation);
            epoch_max = epoch_max.max(ballot.epoch);
        }
    }
    let (slot, kept, renewals) = match ours {
        Some((slot, state, renewals)) if !state.released && state.boot_id == applicant.boot_id => {
            (slot, Some(state.incarnation), renewals)
        }
        Some((slot, _, renewals)) => (slot, None, renewals),
        None => {
            let slot = free.ok_or_else(|| {
                Error::new(
                    ErrorKind::Exhausted,
                    format!("all {} host slots of the pool are taken", superblock.host_slots),
                )
            })?;
            (slot, None, 0)
        }
    };
    let incarnation = kept.unwrap_or(incarnation_max + 1);
    let state = HostSlot {
        name: applicant.name.to_owned(),
        incarnation,
        boot_id: applicant.boot_id,
        renewed_ms: applicant.now.as_millis() as u64,
        released: false,
    };
    let mut membership =
        Membership { slot, incarnation, kept: kept.is_some(), manager_epoch: epoch_max + 1, state, renewals };
    membership.renew(device, superblock, applicant.now).await?;
    let at = superblock.host_group(slot) + host::BALLOT;
    let ballot = Ballot { incarnation, epoch: membership.manager_epoch };
    write(device, at, ballot.encode(at, superblock.salt)).await?;
    Ok(membership)
}

impl Membership {
    /// Renews the slot.
    pub async fn renew(
        &mut self,
        device: &dyn BlockDevice,
        superblock: &Superblock,
        now: Duration,
    ) -> Result<()> {
        self.renewals += 1;
        self.state.renewed_ms = now.as_millis() as u64;
        let at = superblock.host_group(self.slot) + host::SLOT;
        write(device, at, self.state.encode(at, self.renewals, superblock.salt)).await
    }

    /// Leaves: nothing is held any more.
    pub async fn release(
        &mut self,
        device: &dyn BlockDevice,
        superblock: &Superblock,
        now: Duration,
    ) -> Result<()> {
        self.state.released = true;
        self.renew(device, superblock, now).await
    }
}
