//! Snapshots of several volumes at one instant.
//!
//! The manager gives the members of one set one id and one name; a mark in the name tells a group from a single
//! snapshot. Calls about a group name its members too, so
//! nothing has to be remembered about groups here.

use super::answers::{group_of, snapshot, source_of, timestamp};
use super::{Controller, optional, shown};
use crate::errors::{Result, from_manager, missing, no_volume};
use crate::ids::{GroupName, SnapshotId, VolumeId};
use crate::params::group_label;
use crate::proto::csi;
use parallax_api::v1;
use std::collections::BTreeSet;
use tonic::Status;

impl Controller {
    pub(super) async fn create_group(
        &self,
        request: csi::CreateVolumeGroupSnapshotRequest,
    ) -> Result<csi::CreateVolumeGroupSnapshotResponse> {
        let name = GroupName::parse("name", &request.name)?;
        if request.source_volume_ids.is_empty() {
            return Err(missing("source_volume_ids"));
        }
        let label = group_label(&request.parameters)?;
        let mut sources = BTreeSet::new();
        for id in &request.source_volume_ids {
            let id = VolumeId::parse(id).ok_or_else(|| no_volume(shown(id)))?;
            if !sources.insert(id) {
                return Err(Status::invalid_argument(format!("volume {id} is named twice")));
            }
        }
        // The manager answers with the same members when the name and the volumes are the same.
        let sources = sources.into_iter().collect::<Vec<_>>();
        let taken = self.take(&sources, name.in_manager(), label).await?;
        let members = taken.iter().map(source_of).collect::<BTreeSet<_>>();
        if members != sources.iter().map(VolumeId::to_string).collect() {
            return Err(Status::already_exists(format!(
                "a group named {} exists with other members",
                request.name
            )));
        }
        let mut snapshots = Vec::with_capacity(taken.len());
        for member in taken {
            snapshots.push(self.wait_until_ready(member).await?);
        }
        Ok(csi::CreateVolumeGroupSnapshotResponse { group_snapshot: Some(group(&snapshots)?) })
    }

    pub(super) async fn delete_group(
        &self,
        request: csi::DeleteVolumeGroupSnapshotRequest,
    ) -> Result<csi::DeleteVolumeGroupSnapshotResponse> {
        let members = self.members(&request.group_snapshot_id, &request.snapshot_ids).await?;
        for (id, _) in members {
            self.drop_snapshot(id).await?;
        }
        Ok(csi::DeleteVolumeGroupSnapshotResponse {})
    }

    pub(super) async fn get_group(
        &self,
        request: csi::GetVolumeGroupSnapshotRequest,
    ) -> Result<csi::GetVolumeGroupSnapshotResponse> {
        let members = self.members(&request.group_snapshot_id, &request.snapshot_ids).await?;
        let snapshots = members.into_iter().map(|(_, snapshot)| snapshot).collect::<Vec<_>>();
        if snapshots.is_empty() || snapshots.len() != request.snapshot_ids.len() {
            return Err(Status::not_found(format!(
                "group {} does not exist, or not all of its members",
                shown(&request.group_snapshot_id)
            )));
        }
        Ok(csi::GetVolumeGroupSnapshotResponse { group_snapshot: Some(group(&snapshots)?) })
    }

    /// Those of the members named that exist; all must belong to the group.
    async fn members(&self, group: &str, ids: &[String]) -> Result<Vec<(SnapshotId, v1::Snapshot)>> {
        if group.is_empty() {
            return Err(missing("group_snapshot_id"));
        }
        let mut members = Vec::with_capacity(ids.len());
        for id in ids.iter().filter_map(|id| SnapshotId::parse(id)) {
            let by = v1::get_snapshot_request::By::Id(id.to_string());
            let request = v1::GetSnapshotRequest { by: Some(by), with_usage: false };
            let answer = self.client.manager().get_snapshot(self.client.request(request)).await;
            let found = optional(answer).map_err(|error| from_manager("looking for the snapshot", &error))?;
            let Some(found) = found else { continue };
            if group_of(&found) != group {
                return Err(Status::invalid_argument(format!(
                    "snapshot {id} does not belong to group {}",
                    shown(group)
                )));
            }
            members.push((id, found));
        }
        Ok(members)
    }
}

fn group(members: &[v1::Snapshot]) -> Result<csi::VolumeGroupSnapshot> {
    let first = members.first().ok_or_else(|| Status::unavailable("the manager took no snapshot"))?;
    Ok(csi::VolumeGroupSnapshot {
        group_snapshot_id: group_of(first).to_owned(),
        snapshots: members.iter().map(snapshot).collect(),
        creation_time: Some(timestamp(first.created_at_ms)),
        ready_to_use: members.iter().all(|member| member.ready),
    })
}
