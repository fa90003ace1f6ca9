//! Locks by key, taken around services that take none.
//!
//! Nobody waits: the orchestrator repeats a call that is answered ABORTED, and a queue of repeated calls on one
//! volume would only grow. A key is held by its guard and forgotten with it, so the table is as large as the
//! number of calls under way.

use std::collections::HashSet;
use std::fmt::Display;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use tonic::Status;

/// One lock for each key in use.
#[derive(Debug)]
pub struct KeyedLocks<K: Eq + Hash>(Arc<Mutex<HashSet<K>>>);

impl<K: Eq + Hash> Clone for KeyedLocks<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Eq + Hash> Default for KeyedLocks<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash + Clone + Display> KeyedLocks<K> {
    /// Takes the lock of `key`, or answers ABORTED when it is taken.
    pub fn try_lock(&self, key: K) -> Result<Guard<K>, Status> {
        // A panic while the set is borrowed cannot leave it half changed.
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !held.insert(key.clone()) {
            return Err(crate::errors::pending(key));
        }
        Ok(Guard { locks: self.clone(), key })
    }
}

/// Holds one key until dropped.
#[derive(Debug)]
pub struct Guard<K: Eq + Hash> {
    locks: KeyedLocks<K>,
    key: K,
}

impl<K: Eq + Hash> Drop for Guard<K> {
    fn drop(&mut self) {
        self.locks.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_operation_on_one_key_is_aborted_and_others_go_on() {
        let locks = KeyedLocks::default();
        let first = locks.try_lock("volume a".to_owned()).unwrap();
        let second = locks.try_lock("volume a".to_owned()).unwrap_err();
        assert_eq!(second.code(), tonic::Code::Aborted);
        assert!(second.message().contains("volume a"));
        drop(locks.try_lock("volume b".to_owned()).unwrap());
        drop(first);
        drop(locks.try_lock("volume a".to_owned()).unwrap());
        assert!(locks.0.lock().unwrap().is_empty());
    }
}
