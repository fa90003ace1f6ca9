//! Requests that a test keeps back, to make a race happen on purpose.

use super::{Request, SimDisk};
use std::{collections::BTreeMap, future::Future, sync::Arc};

/// Where in its life a request is kept back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldAt {
    /// Before it takes effect.
    Submission,
    /// After it has taken effect, before anybody hears of it.
    Answer,
}

type Predicate = Box<dyn Fn(&Request) -> bool + Send>;

#[derive(Default)]
pub(crate) struct Holds {
    last: u64,
    active: BTreeMap<u64, Rule>,
}

struct Rule {
    at: HoldAt,
    which: Predicate,
    caught: Vec<Arc<Request>>,
}

impl Holds {
    pub(crate) fn add(&mut self, at: HoldAt, which: Predicate) -> u64 {
        self.last += 1;
        self.active.insert(self.last, Rule { at, which, caught: Vec::new() });
        self.last
    }

    /// Whether a hold keeps this request back here; the first that matches does.
    pub(crate) fn catch(&mut self, at: HoldAt, request: &Arc<Request>) -> bool {
        let rule = self.active.values_mut().find(|rule| rule.at == at && (rule.which)(request));
        rule.map(|rule| rule.caught.push(request.clone())).is_some()
    }

    fn caught(&self, id: u64) -> &[Arc<Request>] {
        self.active.get(&id).map_or(&[], |rule| &rule.caught)
    }
}

/// A hold on some requests. Dropping it releases them.
#[must_use = "dropping a hold releases what it keeps back"]
pub struct Hold {
    disk: SimDisk,
    id: u64,
}

impl Hold {
    pub(crate) fn new(disk: SimDisk, id: u64) -> Self {
        Self { disk, id }
    }

    /// What it keeps back now, in order of arrival.
    pub fn held(&self) -> Vec<Request> {
        let state = self.disk.inner.state.lock();
        state.holds.caught(self.id).iter().map(|request| (**request).clone()).collect()
    }

    /// Waits until it keeps back at least `count` requests.
    pub fn caught(&self, count: usize) -> impl Future<Output = ()> + Send + use<> {
        let id = self.id;
        self.disk.watch(move |state| state.holds.caught(id).len() >= count)
    }

    /// Lets everything go that it has caught so far, and goes on catching.
    pub fn let_go(&self) {
        let (at, caught) = {
            let mut state = self.disk.inner.state.lock();
            let Some(rule) = state.holds.active.get_mut(&self.id) else { return };
            (rule.at, std::mem::take(&mut rule.caught))
        };
        self.go_on(at, &caught);
    }

    /// Ends the hold.
    pub fn release(self) {}

    fn go_on(&self, at: HoldAt, requests: &[Arc<Request>]) {
        for request in requests {
            self.disk.inner.world.note_held(self.disk.held_key(request.number), None);
            match at {
                HoldAt::Submission => self.disk.schedule(request.number),
                HoldAt::Answer => self.disk.answer(request.number),
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let rule = self.disk.inner.state.lock().holds.active.remove(&self.id);
        if let Some(rule) = rule {
            self.go_on(rule.at, &rule.caught);
        }
    }
}
