//! Who is in a pool, and an operator's word that somebody will not come back. Both work on a device on which this
//! process has no pool open.

use super::{Pool, create::read_superblock};
use crate::{Environment, HostInfo, Name};
use parallax_block::{BlockDevice, Result, ResultExt};
use parallax_lease::Member;
use std::sync::Arc;

impl Pool {
    /// Hosts that have a slot, in order of slots. Only reads.
    pub async fn hosts(device: &dyn BlockDevice) -> Result<Vec<HostInfo>> {
        let superblock = read_superblock(device).await.context(|| "looking for hosts")?;
        let members = parallax_lease::members(device, &superblock).await.context(|| "looking for hosts")?;
        let manager = members.iter().filter_map(|member| Some(member.ballot?.epoch)).max();
        Ok(members.into_iter().map(|member| info(member, manager)).collect())
    }

    /// Declares that a host will not come back, so that others may join. The caller answers for it: that machine
    /// must be unable to reach the device.
    pub async fn evict_host(
        device: Arc<dyn BlockDevice>,
        environment: &Environment,
        name: &Name,
    ) -> Result<()> {
        let superblock = read_superblock(&*device).await.context(|| "evicting a host")?;
        let boot_id = environment.tails.boot_id();
        parallax_lease::evict(&*device, &superblock, name.as_str(), boot_id).await.map(drop)
    }
}

fn info(member: Member, manager: Option<u64>) -> HostInfo {
    let Member { slot, state, renewals, ballot } = member;
    let epoch = ballot.filter(|ballot| ballot.incarnation == state.incarnation).map(|ballot| ballot.epoch);
    HostInfo {
        slot,
        name: Name::trusted(state.name),
        incarnation: state.incarnation,
        boot_id: state.boot_id,
        standing: state.standing,
        renewals,
        manager: epoch.is_some() && epoch == manager,
        manager_epoch: epoch,
    }
}
