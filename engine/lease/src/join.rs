//! A host joins a pool.

use crate::{
    Earlier, Membership,
    members::{Slots, slots},
    write,
};
use parallax_block::{BlockDevice, Error, ErrorKind, Result};
use parallax_format::{
    host::{self, Ballot, HostSlot, Standing},
    superblock::{HOST_SLOTS_MAX, Superblock},
};
use std::time::Duration;

/// Who joins.
#[derive(Debug, Clone, Copy)]
pub struct Applicant<'a> {
    /// Name of the host; no two machines at one pool may have the same.
    pub name: &'a str,
    /// Boot of its machine.
    pub boot_id: u128,
    /// Its boottime clock.
    pub now: Duration,
    /// Lowest incarnation that the registry leaves free.
    pub incarnation_floor: u64,
    /// Lowest manager epoch that the registry leaves free.
    pub epoch_floor: u64,
}

/// Joins: takes the slot of this name, or a free one, and stands for manager.
///
/// `FailedPrecondition` while a host of another boot has joined and not left; nothing is written then.
pub async fn join(
    device: &dyn BlockDevice,
    superblock: &Superblock,
    applicant: Applicant<'_>,
) -> Result<Membership> {
    let slots = slots(device, superblock).await?;
    let joined = |state: &HostSlot| state.standing == Standing::Joined;
    let mine = |state: &HostSlot| state.name == applicant.name || state.boot_id == applicant.boot_id;
    if let Some(other) = slots.members.iter().find(|member| joined(&member.state) && !mine(&member.state)) {
        return Err(refused(&other.state.name));
    }
    let ours = slots.members.iter().find(|member| member.state.name == applicant.name);
    let floor = applicant.incarnation_floor.max(slots.incarnation_max + 1);
    // Whatever an older incarnation writes counts less than what a newer one has written, so it may not go on.
    let keep = ours.filter(|ours| {
        joined(&ours.state) && ours.state.boot_id == applicant.boot_id && ours.state.incarnation + 1 == floor
    });
    let slot = match ours {
        Some(ours) => ours.slot,
        None => free_slot(&slots).ok_or_else(|| {
            Error::new(
                ErrorKind::Exhausted,
                format!("all {} host slots of the pool are taken", superblock.host_slots),
            )
        })?,
    };
    let incarnation = keep.map_or(floor, |ours| ours.state.incarnation);
    let state = HostSlot {
        name: applicant.name.to_owned(),
        incarnation,
        boot_id: applicant.boot_id,
        renewed_ms: applicant.now.as_millis() as u64,
        standing: Standing::Joined,
    };
    let mut membership = Membership {
        slot,
        incarnation,
        kept: keep.is_some(),
        manager_epoch: epoch_above(slots.epoch_max.max(applicant.epoch_floor.saturating_sub(1)), slot),
        earlier: slots
            .members
            .iter()
            .filter(|member| mine(&member.state) && member.state.standing != Standing::Evicted)
            .map(|member| Earlier {
                incarnation: member.state.incarnation,
                of_this_boot: member.state.boot_id == applicant.boot_id,
            })
            .collect(),
        state,
        renewals: ours.map_or(0, |ours| ours.renewals),
    };
    membership.renew(device, superblock, applicant.now).await?;
    let at = superblock.host_group(slot) + host::BALLOT;
    let ballot = Ballot { incarnation, epoch: membership.manager_epoch };
    write(device, at, ballot.encode(at, superblock.salt)).await?;
    alone(device, superblock, &applicant, &mut membership).await?;
    Ok(membership)
}

/// Looks again after writing: of two hosts that join at the same time, at least one sees the other, and leaves. Slots that
/// this machine has under other names are released, so that they do not keep it out after its next boot.
async fn alone(
    device: &dyn BlockDevice,
    superblock: &Superblock,
    applicant: &Applicant<'_>,
    membership: &mut Membership,
) -> Result<()> {
    let mut ours = false;
    for member in slots(device, superblock).await?.members {
        if member.slot == membership.slot {
            ours = member.state == membership.state;
            continue;
        }
        if member.state.standing != Standing::Joined {
            continue;
        }
        if member.state.boot_id != applicant.boot_id {
            membership.release(device, superblock, applicant.now).await?;
            return Err(refused(&member.state.name));
        }
        let at = superblock.host_group(member.slot) + host::SLOT;
        let state = HostSlot { standing: Standing::Released, ..member.state };
        write(device, at, state.encode(at, member.renewals + 1, superblock.salt)).await?;
    }
    if ours {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Busy, "another host has taken the same slot at this moment; try again"))
}

fn refused(name: &str) -> Error {
    Error::new(
        ErrorKind::FailedPrecondition,
        format!(
            "host '{name}' has joined this pool and has not left it; two machines at one pool would destroy it. Stop \
             Parallax on '{name}'. If that machine is switched off, or cut off from the device, and will stay so: \
             `parallax pool evict PATH {name}`. If '{name}' is this machine under another name, use that name"
        ),
    )
}

/// The lowest manager epoch above `epoch` that only the host of this slot may stand for: two hosts that have seen the
/// same ballots never choose the same.
fn epoch_above(epoch: u64, slot: u32) -> u64 {
    let first = epoch + 1;
    let hosts = u64::from(HOST_SLOTS_MAX);
    first + (u64::from(slot) + hosts - first % hosts) % hosts
}

/// A slot for a host that has none: one never used, else one that its host has left, else one that is torn.
fn free_slot(slots: &Slots) -> Option<u32> {
    let left = slots.members.iter().find(|member| member.state.standing != Standing::Joined);
    slots.empty.first().copied().or(left.map(|member| member.slot)).or(slots.torn.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_of_two_slots_never_coincide_and_rise() {
        for slot in 0..HOST_SLOTS_MAX {
            for seen in [0, 1, 62, 63, 64, 65, 1000] {
                let epoch = epoch_above(seen, slot);
                assert!(epoch > seen && epoch <= seen + u64::from(HOST_SLOTS_MAX), "{seen} {slot}: {epoch}");
                assert_eq!(epoch % u64::from(HOST_SLOTS_MAX), u64::from(slot));
            }
        }
    }
}
