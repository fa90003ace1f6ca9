//! Deadlines of one reactor, in boottime.

use super::{Message, Shared, with_current};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

/// Orders timers by deadline; the number tells equal ones apart.
pub(crate) type TimerKey = (Duration, u64);

/// What a timer and its future share.
pub(crate) struct Alarm {
    rung: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Alarm {
    pub(crate) fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        let waker = self.waker.lock().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The table of a reactor.
#[derive(Default)]
pub(crate) struct Timers(BTreeMap<TimerKey, Arc<Alarm>>);

impl Timers {
    pub(crate) fn insert(&mut self, key: TimerKey, alarm: Arc<Alarm>) {
        self.0.insert(key, alarm);
    }

    pub(crate) fn remove(&mut self, key: TimerKey) {
        self.0.remove(&key);
    }

    pub(crate) fn first(&self) -> Option<Duration> {
        self.0.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Takes one whose deadline has passed.
    pub(crate) fn pop_due(&mut self, now: Duration) -> Option<Arc<Alarm>> {
        (self.first()? <= now).then(|| self.0.pop_first().map(|(_, alarm)| alarm))?
    }
}

/// Completes at its deadline.
pub(crate) struct Sleep {
    home: Arc<Shared>,
    key: TimerKey,
    alarm: Option<Arc<Alarm>>,
}

impl Sleep {
    pub(crate) fn new(home: Arc<Shared>, deadline: Duration) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Self { home, key: (deadline, NUMBER.fetch_add(1, Ordering::Relaxed)), alarm: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(alarm) = &self.alarm {
            *alarm.waker.lock() = Some(cx.waker().clone());
            // Read after the waker is in place, so that a ring in between is not missed.
            return if alarm.rung.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending };
        }
        if super::boottime() >= self.key.0 {
            return Poll::Ready(());
        }
        let alarm =
            Arc::new(Alarm { rung: AtomicBool::new(false), waker: Mutex::new(Some(cx.waker().clone())) });
        self.alarm = Some(Arc::clone(&alarm));
        let (key, home) = (self.key, &self.home);
        let remote = with_current(|local| match local {
            Some(local) if Arc::ptr_eq(&local.shared, home) => {
                local.timers.borrow_mut().insert(key, alarm);
                None
            }
            _ => Some(alarm),
        });
        if let Some(alarm) = remote {
            home.send(Message::Timer(key, alarm));
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let Some(alarm) = self.alarm.take() else { return };
        if alarm.rung.load(Ordering::Acquire) {
            return;
        }
        let (key, home) = (self.key, &self.home);
        let remote = with_current(|local| match local {
            Some(local) if Arc::ptr_eq(&local.shared, home) => {
                local.timers.borrow_mut().remove(key);
                false
            }
            _ => true,
        });
        if remote {
            home.send(Message::DropTimer(key));
        }
    }
}
