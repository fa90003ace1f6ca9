//! An operator declares that a host will not come back.

use crate::{members::slots, write};
use parallax_block::{BlockDevice, Error, ErrorKind, Result};
use parallax_format::{
    host::{self, HostSlot, Standing},
    superblock::Superblock,
};

/// Marks a host as evicted, so that others may join. Nothing proves that its I/O has ended: whoever opens its
/// volumes treats their blocks as shared.
///
/// `NotFound` if no host of that name has a slot, `FailedPrecondition` if it has left already or if it is this very
/// boot of this machine.
pub async fn evict(
    device: &dyn BlockDevice,
    superblock: &Superblock,
    name: &str,
    boot_id: u128,
) -> Result<HostSlot> {
    let slots = slots(device, superblock).await?;
    let member = slots.members.into_iter().find(|member| member.state.name == name).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("no host '{name}' has joined this pool; `parallax --pool PATH inspect hosts` shows them"),
        )
    })?;
    let mut state = member.state;
    if state.standing != Standing::Joined {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!("host '{name}' has left the pool already"),
        ));
    }
    if state.boot_id == boot_id {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!("host '{name}' is this machine: the pool can be opened as it is"),
        ));
    }
    state.standing = Standing::Evicted;
    let at = superblock.host_group(member.slot) + host::SLOT;
    write(device, at, state.encode(at, member.renewals + 1, superblock.salt)).await?;
    Ok(state)
}
