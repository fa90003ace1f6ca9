//! Host slots, incarnations and ballots.
//!
//! What one host needs: it joins the pool under an incarnation of its own, stands for manager, and leaves. The
//! rules for several hosts (renewal, expiry, takeover with evidence) rest on the same blocks. Until they are built,
//! **a host refuses to join while another machine's has not left**: only an operator can say that it is gone.
//!
//! Invariants:
//! * The blocks of a host's group are written only by the incarnation that its slot names; the exceptions are
//!   an operator's eviction, and a slot that this boot of this machine has under another name, which it releases.
//! * An incarnation is used once: it is higher than any that a slot, a ballot or the registry has named.
//! * A host that restarts within one boot of its machine keeps its incarnation, if that is still the highest; after
//!   a reboot, and after an orderly end, it joins anew.

#![forbid(unsafe_code)]

mod evict;
mod join;
mod members;

pub use evict::evict;
pub use join::{Applicant, join};
pub use members::{Member, members};

use parallax_block::{BLOCK_SIZE, BlockDevice, Buffer, Result, WriteOptions};
use parallax_format::{
    host::{self, HostSlot, Standing},
    superblock::Superblock,
};
use std::time::Duration;

/// An incarnation that this machine had before.
#[derive(Debug, Clone, Copy)]
struct Earlier {
    incarnation: u64,
    of_this_boot: bool,
}

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
    earlier: Vec<Earlier>,
    state: HostSlot,
    renewals: u64,
}

impl Membership {
    /// This incarnation, and those before it that were this machine's as far as the slots could tell when it
    /// joined: what proves that this machine's I/O has ended proves that theirs has.
    pub fn own_incarnations(&self) -> impl Iterator<Item = u64> {
        self.earlier.iter().map(|earlier| earlier.incarnation).chain([self.incarnation])
    }

    /// Those of them that belong to this boot of the machine.
    pub fn boot_incarnations(&self) -> impl Iterator<Item = u64> {
        let of_this_boot = self.earlier.iter().filter(|earlier| earlier.of_this_boot);
        of_this_boot.map(|earlier| earlier.incarnation).chain([self.incarnation])
    }

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
        self.state.standing = Standing::Released;
        self.renew(device, superblock, now).await
    }
}

async fn read(device: &dyn BlockDevice, block: u64) -> Result<Buffer> {
    let (buffer, result) = device.read(block * BLOCK_SIZE as u64, Buffer::zeroed(BLOCK_SIZE)).await;
    result.map(|()| buffer)
}

async fn write(device: &dyn BlockDevice, block: u64, buffer: Buffer) -> Result<()> {
    device.write(block * BLOCK_SIZE as u64, buffer, WriteOptions { fua: true }).await.1
}
