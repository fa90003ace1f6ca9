//! Opens again what a daemon before us had attached, so that its users notice nothing but a pause.
//!
//! The note of an attached volume says what its users have seen: the epoch that they wrote in, and how many daemons
//! have since tried to go on from there. Each try may have begun one epoch and died before it said so.
//!
//! Invariants:
//! * A volume is resumed only if nothing was lost that its users were told is written, and nobody else has opened it
//!   since. Otherwise its requests fail until it is detached: resumed, a filesystem would go on with memories of a disk
//!   that is another by now.
//! * A try is counted before it may begin an epoch.

use super::{Attached, Attachment, Handle, Opening, Openings, Target, blocking, guard};
use parallax_block::{BlockDevice, Error, ErrorKind, Result, Runtime};
use parallax_export::loop_export::{ExportKey, Limits, LoopAttachment, LoopExports, Note, Parked};
use parallax_store::{Continuity, Epoch, Kept, SnapshotId, VdiId};
use std::{collections::BTreeMap, path::PathBuf, str::FromStr, sync::Arc};

/// Note of what is not resumed any more.
const LOST: &str = "lost";

/// What users of a volume have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    epoch: Epoch,
    tries: u32,
}

impl Seen {
    fn note(self) -> Result<Note> {
        Note::new(format!("{:x}+{}", self.epoch.to_bits(), self.tries))
    }

    fn parse(note: &Note) -> Option<Self> {
        let (epoch, tries) = note.as_str().split_once('+')?;
        Some(Self {
            epoch: Epoch::from_bits(u64::from_str_radix(epoch, 16).ok()?),
            tries: tries.parse().ok()?,
        })
    }

    /// Whether an opening goes on from what was seen. The tries include the one that opened it.
    fn allows(self, continuity: Continuity) -> Result<()> {
        let lost = |why: &str| {
            let hint = "its users must close it (unmount, end the pod) before it is attached again";
            Err(Error::new(ErrorKind::Fenced, format!("{why}; {hint}")))
        };
        let Some(previous) = continuity.previous else {
            return lost("the volume has no history: it is not the one that was attached");
        };
        // Every opening begins one epoch: the next of the same grant, or the first of a later one.
        let (from, to) = (self.epoch, previous);
        let begun = match to.grant.checked_sub(from.grant) {
            Some(0) => to.open.checked_sub(from.open).map(u64::from),
            Some(grants) => Some(u64::from(grants) + u64::from(to.open) - 1),
            None => None,
        };
        match begun {
            Some(begun) if begun < u64::from(self.tries) => {}
            Some(_) => return lost("somebody else opened the volume while no daemon served it"),
            None => return lost("the volume is older than what its users have seen"),
        }
        match continuity.kept {
            Kept::Everything => Ok(()),
            Kept::Flushed => lost(
                "writes that were acknowledged and not flushed are gone: the tail in shared memory is missing",
            ),
            Kept::Doubtful => lost(
                "writes that were acknowledged and not flushed may be gone: a flush of the pool's device failed",
            ),
        }
    }
}

/// What the next daemon has to know of an opening.
pub(super) fn note_of(opening: &Opening) -> Result<Note> {
    match &opening.handle {
        Handle::Volume(vdi) => Seen { epoch: vdi.continuity().epoch, tries: 0 }.note(),
        // A snapshot never changes and its number is never used again.
        Handle::Snapshot(_) => Ok(Note::default()),
    }
}

fn target_of(key: &ExportKey) -> Result<Target> {
    let text = key.as_str();
    if text.contains('@') {
        SnapshotId::from_str(text).map(Target::Snapshot)
    } else {
        VdiId::from_str(text).map(Target::Volume)
    }
}

impl Openings {
    /// Takes over what the holder keeps, and serves it.
    pub(super) async fn take_over(
        &self,
        directory: PathBuf,
        runtime: Arc<dyn Runtime>,
        limits: Limits,
        holder: PathBuf,
    ) -> Result<Arc<LoopExports>> {
        let mut takeover =
            blocking(move || LoopExports::take_over(&directory, runtime, limits, &holder)).await?;
        let parked: Vec<Parked> = takeover.parked().cloned().collect();
        let mut tries = Vec::new();
        for export in &parked {
            if let Some(seen) = Seen::parse(&export.note) {
                let counted = Seen { tries: seen.tries.saturating_add(1), ..seen };
                tries.push((export.key.clone(), counted.note()?));
            }
        }
        let mut takeover = blocking(move || takeover.annotate(tries).map(|()| takeover)).await?;
        let mut devices = BTreeMap::new();
        let mut openings = BTreeMap::new();
        let mut notes = Vec::new();
        for export in parked {
            let key = export.key.clone();
            let resumed = self.resume(&export).await;
            match &resumed {
                Ok(opening) => {
                    notes.push((key.clone(), note_of(opening)?));
                    openings.insert(key.clone(), Arc::clone(opening));
                }
                // Its users see errors from now on. A daemon after us must not let them go on.
                Err(_) => notes.push((key.clone(), Note::new(LOST)?)),
            }
            let device = resumed.map(|opening| Arc::clone(&opening.device) as Arc<dyn BlockDevice>);
            devices.insert(key, device);
        }
        let loops = blocking(move || {
            takeover.annotate(notes)?;
            takeover.serve(devices)
        })
        .await?;
        for shown in loops.list() {
            self.adopt(shown, &mut openings)?;
        }
        for (key, reason) in loops.lost() {
            let target = target_of(&key)?;
            guard(&self.lost).insert(target, reason);
            // One that was opened but does not fit its block device.
            let opened = guard(&self.attached).get_mut(&target).and_then(|attached| attached.opening.take());
            if let Some(opening) = opened {
                self.close(&opening).await?;
            }
        }
        Ok(Arc::new(loops))
    }

    async fn resume(&self, parked: &Parked) -> Result<Arc<Opening>> {
        let opening = self.open(target_of(&parked.key)?).await?;
        let allowed = match &opening.handle {
            Handle::Snapshot(_) => Ok(()),
            Handle::Volume(vdi) => match Seen::parse(&parked.note) {
                Some(seen) => Seen { tries: seen.tries.saturating_add(1), ..seen }.allows(vdi.continuity()),
                None => Err(Error::corrupt("nothing is known of what its users have seen")),
            },
        };
        match allowed {
            Ok(()) => Ok(opening),
            Err(error) => {
                self.close(&opening).await?;
                Err(error)
            }
        }
    }

    fn adopt(&self, shown: LoopAttachment, openings: &mut BTreeMap<ExportKey, Arc<Opening>>) -> Result<()> {
        let target = target_of(&shown.key)?;
        let opening = openings.remove(&shown.key);
        let shown = Attached { target, loop_device: shown };
        guard(&self.attached).insert(target, Attachment { opening, shown });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(grant: u32, open: u32) -> Epoch {
        Epoch { grant, open }
    }

    fn opened_after(previous: Option<Epoch>, kept: Kept) -> Continuity {
        Continuity { epoch: epoch(99, 1), previous, kept }
    }

    #[test]
    fn a_note_comes_back_as_it_was() {
        let seen = Seen { epoch: epoch(7, 3), tries: 12 };
        assert_eq!(Seen::parse(&seen.note().unwrap()), Some(seen));
        assert_eq!(Seen::parse(&Note::default()), None);
    }

    #[test]
    fn a_volume_that_nobody_else_opened_is_resumed() {
        let seen = Seen { epoch: epoch(4, 1), tries: 1 };
        seen.allows(opened_after(Some(epoch(4, 1)), Kept::Everything)).unwrap();
        // Two daemons before this one began an epoch each and died before they said so.
        let seen = Seen { tries: 3, ..seen };
        seen.allows(opened_after(Some(epoch(6, 1)), Kept::Everything)).unwrap();
        seen.allows(opened_after(Some(epoch(4, 3)), Kept::Everything)).unwrap();
    }

    #[test]
    fn a_volume_that_changed_meanwhile_is_never_resumed() {
        let seen = Seen { epoch: epoch(4, 2), tries: 1 };
        for previous in [Some(epoch(5, 1)), Some(epoch(4, 3)), Some(epoch(4, 1)), Some(epoch(3, 9)), None] {
            let refused = seen.allows(opened_after(previous, Kept::Everything)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Fenced, "{previous:?}");
        }
    }

    #[test]
    fn a_volume_that_may_have_lost_writes_is_never_resumed() {
        let seen = Seen { epoch: epoch(4, 2), tries: 1 };
        for (kept, why) in
            [(Kept::Flushed, "the tail in shared memory is missing"), (Kept::Doubtful, "a flush")]
        {
            let refused = seen.allows(opened_after(Some(epoch(4, 2)), kept)).unwrap_err();
            assert!(refused.to_string().contains("acknowledged and not flushed"), "{refused}");
            assert!(refused.to_string().contains(why), "{refused}");
        }
    }
}
