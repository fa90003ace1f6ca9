//! One lock for each target, made when it is first wanted and forgotten when nobody waits for it.

use super::Target;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};
use tokio::sync::OwnedMutexGuard;

/// Locks by target.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<HashMap<Target, Weak<tokio::sync::Mutex<()>>>>);

impl Locks {
    /// Waits until nobody else works on `target`.
    pub(super) async fn lock(&self, target: Target) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(&target).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::default();
                    locks.insert(target, Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parallax_store::VdiId;
    use std::time::Duration;

    #[tokio::test]
    async fn one_target_waits_and_another_does_not() {
        let locks = Locks::default();
        let (one, other) = (Target::Volume(VdiId(uuid(1))), Target::Volume(VdiId(uuid(2))));
        let held = locks.lock(one).await;
        let _free = locks.lock(other).await;
        let waits = tokio::time::timeout(Duration::from_millis(20), locks.lock(one)).await;
        assert!(waits.is_err());
        drop(held);
        tokio::time::timeout(Duration::from_secs(5), locks.lock(one)).await.unwrap();
    }

    fn uuid(number: u128) -> uuid::Uuid {
        uuid::Uuid::from_u128(number)
    }
}
