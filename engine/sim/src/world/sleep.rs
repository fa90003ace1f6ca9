//! A timer that somebody waits for.

use super::{Timer, TimerKey, World};
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

pub(super) struct Sleep {
    pub(super) world: World,
    pub(super) key: TimerKey,
    pub(super) armed: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.world.shared.state.lock();
        let over = state.now >= self.key.0;
        let previous = if over {
            state.timers.remove(&self.key)
        } else {
            state.timers.insert(self.key, Timer::Wake(cx.waker().clone()))
        };
        drop(state);
        drop(previous);
        self.armed = !over;
        if over { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if self.armed {
            let timer = self.world.shared.state.lock().timers.remove(&self.key);
            drop(timer);
        }
    }
}
