//! Memory that outlives a process and not a boot.

use crate::World;
use parallax_block::{Error, ErrorKind, Result, Tail, TailStore};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};

/// Tails of one machine; cheap to clone, all clones are the same memory. A process that dies leaves them as
/// they are: give the same object to the next one.
#[derive(Clone)]
pub struct SimTails {
    world: World,
    memory: Arc<Mutex<Memory>>,
}

struct Memory {
    boot_id: u128,
    tails: BTreeMap<String, Arc<Mutex<Vec<u8>>>>,
    limit_bytes: u64,
}

impl SimTails {
    /// No tails, on a first boot.
    pub fn new(world: &World) -> Self {
        let boot_id = world.prng().next_u128();
        let memory = Memory { boot_id, tails: BTreeMap::new(), limit_bytes: u64::MAX };
        Self { world: world.clone(), memory: Arc::new(Mutex::new(memory)) }
    }

    /// The machine starts again: everything is gone and the boot has another identity.
    pub fn reboot(&self) {
        let boot_id = self.world.prng().next_u128();
        let mut memory = self.memory.lock();
        memory.boot_id = boot_id;
        memory.tails.clear();
    }

    /// The same memory as it is now, in another world: the same boot, other objects.
    pub fn copy(&self, world: &World) -> Self {
        let memory = self.memory.lock();
        let tails = memory
            .tails
            .iter()
            .map(|(key, bytes)| (key.clone(), Arc::new(Mutex::new(bytes.lock().clone()))))
            .collect();
        let memory = Memory { boot_id: memory.boot_id, tails, limit_bytes: memory.limit_bytes };
        Self { world: world.clone(), memory: Arc::new(Mutex::new(memory)) }
    }

    /// Names of all tails.
    pub fn keys(&self) -> Vec<String> {
        self.memory.lock().tails.keys().cloned().collect()
    }

    /// Loses one tail, as a careless cleaner of `/dev/shm` would. Whether there was one.
    pub fn lose(&self, key: &str) -> bool {
        self.memory.lock().tails.remove(key).is_some()
    }

    /// Changes the bytes of one tail. Whether there was one.
    pub fn damage(&self, key: &str, damage: impl FnOnce(&mut Vec<u8>)) -> bool {
        let tail = self.memory.lock().tails.get(key).cloned();
        tail.map(|tail| damage(&mut tail.lock())).is_some()
    }

    /// Writes past this many bytes of one tail fail for want of space.
    pub fn set_limit(&self, limit_bytes: u64) {
        self.memory.lock().limit_bytes = limit_bytes;
    }
}

impl TailStore for SimTails {
    fn boot_id(&self) -> u128 {
        self.memory.lock().boot_id
    }

    fn load(&self, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.memory.lock().tails.get(key).map(|tail| tail.lock().clone()))
    }

    fn create(&self, key: &str) -> Result<Box<dyn Tail>> {
        let mut memory = self.memory.lock();
        let bytes: Arc<Mutex<Vec<u8>>> = Arc::default();
        memory.tails.insert(key.to_owned(), bytes.clone());
        Ok(Box::new(SimTail { bytes, limit_bytes: memory.limit_bytes }))
    }

    fn remove(&self, key: &str) -> Result<()> {
        self.memory.lock().tails.remove(key);
        Ok(())
    }
}

struct SimTail {
    bytes: Arc<Mutex<Vec<u8>>>,
    limit_bytes: u64,
}

impl Tail for SimTail {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset + bytes.len() as u64;
        if end > self.limit_bytes {
            let message = format!("a simulated tail holds {} bytes, {end} were asked", self.limit_bytes);
            return Err(Error::new(ErrorKind::OutOfSpace, message));
        }
        let mut memory = self.bytes.lock();
        if memory.len() < end as usize {
            memory.resize(end as usize, 0);
        }
        memory[offset as usize..end as usize].copy_from_slice(bytes);
        Ok(())
    }
}
