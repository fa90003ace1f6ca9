//! The pool that every call finds: one volume `data`, one snapshot `kept` of it, nothing else.
//!
//! Its id is another on every run. In an input `ID` stands for it, in bytes an id that no volume has, as long as any.

use super::{call, outcome};
use crate::{Input, Outcome, Seed};
use parallax_api::{
    client::Client,
    v1::{self, volume_ref::By},
};
use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

const ID: &str = "11111111-2222-3333-4444-555555555555";

/// A service on a socket, and the daemon behind it.
pub struct Pool {
    client: Client,
    socket: PathBuf,
    deadline: Duration,
    /// Id of the volume `data`.
    id: Mutex<String>,
}

impl Pool {
    /// Makes it through `client`; calls go to `socket`. Panics if the daemon does not do as it is told.
    pub async fn new(client: Client, socket: &Path, deadline: Duration) -> Self {
        let pool = Self { client, socket: socket.to_owned(), deadline, id: Mutex::default() };
        pool.begin_anew().await;
        pool
    }

    async fn begin_anew(&self) {
        let client = &self.client;
        let mut manager = client.manager();
        let all = v1::ListSnapshotsRequest::default();
        let snapshots = manager.list_snapshots(client.request(all)).await.expect("snapshots are listed");
        for snapshot in snapshots.into_inner().snapshots {
            let request = v1::DeleteSnapshotRequest { id: snapshot.id };
            manager.delete_snapshot(client.request(request)).await.expect("a snapshot is deleted");
        }
        let all = v1::ListVolumesRequest::default();
        let volumes = manager.list_volumes(client.request(all)).await.expect("volumes are listed");
        for volume in volumes.into_inner().volumes {
            let by = || Some(v1::VolumeRef { by: Some(By::Id(volume.id.clone())) });
            let request = v1::UnpublishVolumeRequest { volume: by(), node: String::new() };
            manager.unpublish_volume(client.request(request)).await.expect("a volume is unpublished");
            let request = v1::DeleteVolumeRequest { volume: by() };
            manager.delete_volume(client.request(request)).await.expect("a volume is deleted");
        }
        let request =
            v1::CreateVolumeRequest { name: "data".into(), size_bytes: 4 << 20, ..Default::default() };
        let volume = manager.create_volume(client.request(request)).await.expect("a volume is created");
        let id = volume.into_inner().id;
        let by = v1::VolumeRef { by: Some(By::Id(id.clone())) };
        let request =
            v1::CreateSnapshotsRequest { volumes: vec![by], label: "first".into(), name: "kept".into() };
        manager.create_snapshots(client.request(request)).await.expect("a snapshot is taken");
        *self.id.lock().unwrap_or_else(PoisonError::into_inner) = id;
    }

    /// Makes the call that `bytes` are. What an accepted one has changed is undone.
    pub async fn called(&self, bytes: &[u8]) -> Outcome {
        let id = self.id.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let bytes = replaced(bytes, ID.as_bytes(), id.as_bytes());
        match outcome(call(&self.socket, &bytes, self.deadline).await) {
            Outcome::Accepted => {
                self.begin_anew().await;
                Outcome::Accepted
            }
            Outcome::Refused(words) => Outcome::Refused(words.replace(&id, "ID")),
        }
    }
}

/// A valid call of the method that `line` names; edits change its message.
pub fn seed(name: &'static str, line: &str, message: &str) -> Seed {
    let line = format!("{line}\n");
    let message = Input::parse(&message.replace("ID", ID)).and_then(|input| input.apply(&[]));
    let message = message.expect("the seed is well written");
    let bytes = [line.as_bytes(), &message].concat();
    let message = line.len()..bytes.len() + 1;
    Seed::within(name, bytes, message)
}

/// Other bytes of the same length instead of each `from`.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for at in 0..bytes.len().saturating_sub(from.len() - 1) {
        if bytes[at..].starts_with(from) {
            bytes[at..at + from.len()].copy_from_slice(to);
        }
    }
    bytes
}
