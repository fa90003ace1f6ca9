//! Tails in the memory beside a recorded disk.

use super::{
    history::{Event, Memory},
    recorder::Recorder,
};
use parallax_block::{Result, Tail, TailStore};

impl TailStore for Recorder {
    fn boot_id(&self) -> u128 {
        self.boot()
    }

    fn load(&self, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.tails(None, |tails| tails.get(key).cloned()))
    }

    fn create(&self, key: &str) -> Result<Box<dyn Tail>> {
        let event = Event::TailCreated { key: key.to_owned() };
        self.tails(Some(event.clone()), |tails| apply(tails, &event));
        Ok(Box::new(RecordedTail { recorder: self.clone(), key: key.to_owned() }))
    }

    fn remove(&self, key: &str) -> Result<()> {
        let event = Event::TailRemoved { key: key.to_owned() };
        self.tails(Some(event.clone()), |tails| apply(tails, &event));
        Ok(())
    }
}

struct RecordedTail {
    recorder: Recorder,
    key: String,
}

impl Tail for RecordedTail {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let event = Event::TailWritten { key: self.key.clone(), offset, bytes: bytes.to_vec() };
        self.recorder.tails(Some(event.clone()), |tails| apply(tails, &event));
        Ok(())
    }
}

/// What an event does to the tails: nothing, unless it is about them.
pub(super) fn apply(tails: &mut Memory, event: &Event) {
    match event {
        Event::TailCreated { key } => {
            tails.insert(key.clone(), Vec::new());
        }
        Event::TailWritten { key, offset, bytes } => {
            // A tail that was removed while somebody held it is memory without a name.
            let Some(tail) = tails.get_mut(key) else { return };
            let (start, end) = (*offset as usize, *offset as usize + bytes.len());
            if tail.len() < end {
                tail.resize(end, 0);
            }
            tail[start..end].copy_from_slice(bytes);
        }
        Event::TailRemoved { key } => {
            tails.remove(key);
        }
        _ => {}
    }
}
