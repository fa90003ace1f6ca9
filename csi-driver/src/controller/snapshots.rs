//! Taking, deleting, finding and listing snapshots.

use super::answers::{snapshot, source_of};
use super::volumes::{bad_token, by_id, page};
use super::{Controller, optional, shown};
use crate::errors::{Result, from_manager, missing, no_snapshot, no_volume};
use crate::ids::{GroupName, Name, SnapshotId, VolumeId};
use crate::params::snapshot_label;
use crate::proto::csi;
use parallax_api::v1::{self, get_snapshot_request};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

/// A snapshot is ready within moments; whoever asks again later is told then.
const READY_WITHIN: Duration = Duration::from_secs(4);

impl Controller {
    pub(super) async fn create_snapshot(
        &self,
        request: csi::CreateSnapshotRequest,
    ) -> Result<csi::CreateSnapshotResponse> {
        let name = Name::parse("name", &request.name)?;
        if GroupName::marks(name.as_str()) {
            return Err(Status::invalid_argument(format!(
                "{name} is how groups are named; choose another name"
            )));
        }
        if request.source_volume_id.is_empty() {
            return Err(missing("source_volume_id"));
        }
        let label = snapshot_label(&request.parameters)?;
        let found = match self.snapshot_named(&name).await? {
            Some(found) => found,
            None => {
                let source = VolumeId::parse(&request.source_volume_id)
                    .ok_or_else(|| no_volume(shown(&request.source_volume_id)))?;
                self.volume(source).await?;
                let taken = self.take(&[source], &name, label).await?;
                taken.into_iter().next().ok_or_else(|| Status::unavailable("the manager took no snapshot"))?
            }
        };
        if source_of(&found) != request.source_volume_id {
            return Err(Status::already_exists(format!(
                "a snapshot named {name} exists of volume {}; its id is {}",
                source_of(&found),
                found.id
            )));
        }
        let found = self.wait_until_ready(found).await?;
        Ok(csi::CreateSnapshotResponse { snapshot: Some(snapshot(&found)) })
    }

    pub(super) async fn delete_snapshot(
        &self,
        request: csi::DeleteSnapshotRequest,
    ) -> Result<csi::DeleteSnapshotResponse> {
        if request.snapshot_id.is_empty() {
            return Err(missing("snapshot_id"));
        }
        // What is no id of ours never existed, and deleting it has succeeded.
        if let Some(id) = SnapshotId::parse(&request.snapshot_id) {
            self.drop_snapshot(id).await?;
        }
        Ok(csi::DeleteSnapshotResponse {})
    }

    pub(super) async fn list_snapshots(
        &self,
        request: csi::ListSnapshotsRequest,
    ) -> Result<csi::ListSnapshotsResponse> {
        let limit = page(request.max_entries)?;
        let after = match request.starting_token.as_str() {
            "" => String::new(),
            token => SnapshotId::parse(token).ok_or_else(bad_token)?.to_string(),
        };
        if !request.snapshot_id.is_empty() {
            return self.list_one(&request.snapshot_id, &request.source_volume_id).await;
        }
        let volume = match request.source_volume_id.as_str() {
            "" => None,
            // No such volume has no snapshots.
            text => match VolumeId::parse(text) {
                Some(id) => Some(by_id(id)),
                None => return Ok(csi::ListSnapshotsResponse::default()),
            },
        };
        let request = v1::ListSnapshotsRequest { volume, limit, after, with_usage: false };
        let answer = self.client.manager().list_snapshots(self.client.request(request)).await;
        let page =
            optional(answer).map_err(|error| from_manager("listing snapshots", &error))?.unwrap_or_default();
        let next_token = match page.snapshots.last() {
            Some(last) if page.more => last.id.clone(),
            _ => String::new(),
        };
        Ok(csi::ListSnapshotsResponse { entries: page.snapshots.iter().map(entry).collect(), next_token })
    }

    async fn list_one(&self, id: &str, source: &str) -> Result<csi::ListSnapshotsResponse> {
        let found = match SnapshotId::parse(id) {
            Some(id) => self.find_snapshot(get_snapshot_request::By::Id(id.to_string())).await?,
            None => None,
        };
        let found = found.filter(|found| source.is_empty() || source_of(found) == source);
        Ok(csi::ListSnapshotsResponse {
            entries: found.iter().map(entry).collect(),
            next_token: String::new(),
        })
    }

    pub(super) async fn get_snapshot(
        &self,
        request: csi::GetSnapshotRequest,
    ) -> Result<csi::GetSnapshotResponse> {
        let found = self.snapshot_from("snapshot_id", &request.snapshot_id).await?;
        Ok(csi::GetSnapshotResponse { snapshot: Some(snapshot(&found)) })
    }

    /// Takes one snapshot of each volume, all at one instant.
    pub(super) async fn take(
        &self,
        of: &[VolumeId],
        name: &Name,
        label: String,
    ) -> Result<Vec<v1::Snapshot>> {
        let request = v1::CreateSnapshotsRequest {
            volumes: of.iter().copied().map(by_id).collect(),
            label,
            name: name.to_string(),
        };
        let answer = self.client.manager().create_snapshots(self.client.request(request)).await;
        Ok(answer
            .map_err(|error| from_manager(format!("taking snapshot {name}"), &error))?
            .into_inner()
            .snapshots)
    }

    /// Looks again until the snapshot is ready, for a moment; then answers as it is.
    pub(super) async fn wait_until_ready(&self, mut found: v1::Snapshot) -> Result<v1::Snapshot> {
        let end = Instant::now() + READY_WITHIN;
        let mut pause = Duration::from_millis(5);
        while !found.ready && Instant::now() < end {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(400));
            let id = SnapshotId::parse(&found.id).ok_or_else(|| no_snapshot(&found.id))?;
            found = self.snapshot(id).await?;
        }
        Ok(found)
    }

    /// Deletes a snapshot; one that does not exist is deleted.
    pub(super) async fn drop_snapshot(&self, id: SnapshotId) -> Result<()> {
        let request = v1::DeleteSnapshotRequest { id: id.to_string() };
        let answer = self.client.manager().delete_snapshot(self.client.request(request)).await;
        optional(answer).map_err(|error| from_manager(format!("deleting snapshot {id}"), &error))?;
        Ok(())
    }

    /// The snapshot that a caller named in `field`.
    pub(super) async fn snapshot_from(&self, field: &str, id: &str) -> Result<v1::Snapshot> {
        if id.is_empty() {
            return Err(missing(field));
        }
        self.snapshot(SnapshotId::parse(id).ok_or_else(|| no_snapshot(shown(id)))?).await
    }

    pub(super) async fn snapshot(&self, id: SnapshotId) -> Result<v1::Snapshot> {
        let found = self.find_snapshot(get_snapshot_request::By::Id(id.to_string())).await?;
        found.ok_or_else(|| no_snapshot(id))
    }

    async fn snapshot_named(&self, name: &Name) -> Result<Option<v1::Snapshot>> {
        self.find_snapshot(get_snapshot_request::By::Name(name.to_string())).await
    }

    async fn find_snapshot(&self, by: get_snapshot_request::By) -> Result<Option<v1::Snapshot>> {
        let request = v1::GetSnapshotRequest { by: Some(by), with_usage: false };
        let answer = self.client.manager().get_snapshot(self.client.request(request)).await;
        optional(answer).map_err(|error| from_manager("looking for the snapshot", &error))
    }
}

fn entry(found: &v1::Snapshot) -> csi::list_snapshots_response::Entry {
    csi::list_snapshots_response::Entry { snapshot: Some(snapshot(found)) }
}
