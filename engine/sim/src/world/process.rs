//! Tasks that a `kill -9` takes together.

use super::{ProcessId, Task, TaskId, World};
use parallax_block::{BoxFuture, Runtime};
use std::{future::Future, time::Duration};

/// Tasks that live and die together; give it to a store as its runtime.
#[derive(Clone)]
pub struct Process {
    pub(super) world: World,
    pub(super) id: ProcessId,
}

impl Process {
    /// `kill -9`: every task is dropped, none is told. Tasks that it starts from now on are dropped at once.
    /// Requests that it had in flight at a disk go on.
    pub fn kill(&self) {
        let dead: Vec<Task> = {
            let mut state = self.world.shared.state.lock();
            state.processes.remove(&self.id);
            let ids: Vec<TaskId> =
                state.tasks.iter().filter(|(_, task)| task.process == self.id).map(|(id, _)| *id).collect();
            ids.iter().filter_map(|id| state.tasks.remove(id)).collect()
        };
        drop(dead);
    }

    /// Whether it has not been killed.
    pub fn is_alive(&self) -> bool {
        self.world.shared.state.lock().processes.contains_key(&self.id)
    }

    /// Starts a named task.
    pub fn spawn_named(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        self.world.spawn_in(self.id, name.to_owned(), Box::pin(task));
    }
}

impl Runtime for Process {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.world.spawn_in(self.id, String::new(), task);
    }

    fn now(&self) -> Duration {
        self.world.now()
    }

    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()> {
        self.world.sleep(delay)
    }
}
