//! Who is connected, and what is offered.
//!
//! Invariant: whoever uses an export has a seat that names it, taken under the lock that also guards the
//! exports. So an export that was removed, and whose seats are empty, is used by nobody.

use super::{NbdExport, option::STRING_MAX};
use parallax_block::{Error, ErrorKind, Result};
use parallax_device::Stream;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    sync::Arc,
    task::{Poll, Waker},
};

#[derive(Default)]
pub(super) struct Registry(Mutex<State>);

#[derive(Default)]
struct State {
    exports: BTreeMap<String, NbdExport>,
    connections: HashMap<u64, Connection>,
    connections_ever: u64,
    closing: bool,
    /// Woken when a connection has gone.
    waiting: Vec<Waker>,
}

struct Connection {
    stream: Stream,
    export: Option<String>,
}

/// Which connections are meant.
#[derive(Debug, Clone, Copy)]
pub(super) enum Which<'a> {
    All,
    Using(&'a str),
}

impl Which<'_> {
    fn includes(self, connection: &Connection) -> bool {
        match self {
            Self::All => true,
            Self::Using(name) => connection.export.as_deref() == Some(name),
        }
    }
}

impl Registry {
    pub(super) fn add(&self, export: NbdExport) -> Result<()> {
        if export.name.len() > STRING_MAX || export.description.len() > STRING_MAX {
            let message = format!("names and descriptions of exports have at most {STRING_MAX} bytes");
            return Err(Error::invalid(message));
        }
        let mut state = self.0.lock();
        if state.exports.contains_key(&export.name) {
            let message = format!("an export named '{}' is being served already", export.name);
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        state.exports.insert(export.name.clone(), export);
        Ok(())
    }

    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let removed = self.0.lock().exports.remove(name);
        removed
            .map(drop)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no export named '{name}' here")))
    }

    /// Gives a new connection its seat. `None` if all are taken, or no more are admitted.
    pub(super) fn admit(self: &Arc<Self>, stream: Stream, connections_max: usize) -> Option<Seat> {
        let mut state = self.0.lock();
        if state.closing || state.connections.len() >= connections_max {
            return None;
        }
        state.connections_ever += 1;
        let id = state.connections_ever;
        state.connections.insert(id, Connection { stream, export: None });
        Some(Seat { registry: Arc::clone(self), id })
    }

    /// Admits nobody any more.
    pub(super) fn close(&self) {
        self.0.lock().closing = true;
    }

    pub(super) fn count(&self, which: Which<'_>) -> usize {
        self.0.lock().connections.values().filter(|connection| which.includes(connection)).count()
    }

    pub(super) fn for_each_stream(&self, which: Which<'_>, act: impl Fn(&Stream)) {
        let state = self.0.lock();
        state
            .connections
            .values()
            .filter(|connection| which.includes(connection))
            .for_each(|c| act(&c.stream));
    }

    /// Completes when there are no such connections.
    pub(super) async fn gone(&self, which: Which<'_>) {
        poll_fn(|cx| {
            let mut state = self.0.lock();
            if !state.connections.values().any(|connection| which.includes(connection)) {
                return Poll::Ready(());
            }
            state.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// The place of one connection; given up when dropped.
pub(super) struct Seat {
    registry: Arc<Registry>,
    id: u64,
}

impl Seat {
    /// Everything on offer, by name.
    pub(super) fn exports(&self) -> Vec<NbdExport> {
        self.registry.0.lock().exports.values().cloned().collect()
    }

    /// Looks without taking.
    pub(super) fn find(&self, name: &str) -> Option<NbdExport> {
        self.registry.0.lock().exports.get(name).cloned()
    }

    /// Takes an export: from now on this connection counts as its user.
    pub(super) fn take(&self, name: &str) -> Option<NbdExport> {
        let mut state = self.registry.0.lock();
        let export = state.exports.get(name).cloned()?;
        if let Some(connection) = state.connections.get_mut(&self.id) {
            connection.export = Some(export.name.clone());
        }
        Some(export)
    }

    /// Gives the export back, but not the seat.
    pub(super) fn leave(&self) {
        let waiting = {
            let mut state = self.registry.0.lock();
            if let Some(connection) = state.connections.get_mut(&self.id) {
                connection.export = None;
            }
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let (gone, waiting) = {
            let mut state = self.registry.0.lock();
            (state.connections.remove(&self.id), std::mem::take(&mut state.waiting))
        };
        drop(gone);
        waiting.into_iter().for_each(Waker::wake);
    }
}
