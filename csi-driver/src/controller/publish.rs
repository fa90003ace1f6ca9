//! Allowing a node to use a volume, and taking that back.
//!
//! The manager records it; no device appears here. An unpublish is never evidence that a node has stopped
//! writing: that is for leases and fencing.

use super::volumes::by_id;
use super::{Controller, optional, shown};
use crate::capability::{Capability, Mode};
use crate::errors::{Result, from_manager, no_volume};
use crate::ids::{NodeName, VolumeId};
use crate::proto::csi;
use parallax_api::v1;
use tonic::Status;

/// Key of the publish context that tells the node to attach without writing.
pub(crate) const READ_ONLY: &str = "readOnly";

impl Controller {
    pub(super) async fn publish(
        &self,
        request: csi::ControllerPublishVolumeRequest,
    ) -> Result<csi::ControllerPublishVolumeResponse> {
        let node = NodeName::parse(&request.node_id)?;
        let capability = Capability::parse(request.volume_capability.as_ref())?;
        let id = VolumeId::parse(&request.volume_id).ok_or_else(|| no_volume(shown(&request.volume_id)))?;
        let volume = self.volume(id).await?;
        let read_only = request.readonly || capability.read_only();
        check_others(&volume, &node, read_only, &capability)?;

        let publication = v1::Publication { node: node.to_string(), read_only };
        let request = v1::PublishVolumeRequest { volume: Some(by_id(id)), publication: Some(publication) };
        let answer = self.client.manager().publish_volume(self.client.request(request)).await;
        answer.map_err(|error| from_manager(format!("publishing volume {id} to node {node}"), &error))?;
        let context = read_only.then(|| (READ_ONLY.to_owned(), "true".to_owned()));
        Ok(csi::ControllerPublishVolumeResponse { publish_context: context.into_iter().collect() })
    }

    pub(super) async fn unpublish(
        &self,
        request: csi::ControllerUnpublishVolumeRequest,
    ) -> Result<csi::ControllerUnpublishVolumeResponse> {
        let node = match request.node_id.as_str() {
            "" => None,
            text => Some(NodeName::parse(text)?),
        };
        // A volume that does not exist is published nowhere.
        let Some(id) = VolumeId::parse(&request.volume_id) else {
            return Ok(csi::ControllerUnpublishVolumeResponse {});
        };
        let node = node.map_or_else(String::new, |node| node.to_string());
        let request = v1::UnpublishVolumeRequest { volume: Some(by_id(id)), node };
        let answer = self.client.manager().unpublish_volume(self.client.request(request)).await;
        optional(answer).map_err(|error| from_manager(format!("unpublishing volume {id}"), &error))?;
        Ok(csi::ControllerUnpublishVolumeResponse {})
    }
}

/// Refuses what contradicts a publication that exists. The manager checks again, as it alone decides.
fn check_others(
    volume: &v1::Volume,
    node: &NodeName,
    read_only: bool,
    capability: &Capability,
) -> Result<()> {
    for publication in &volume.publications {
        if publication.node == node.as_str() {
            if publication.read_only != read_only {
                let now = if publication.read_only { "read-only" } else { "for writing" };
                return Err(Status::already_exists(format!(
                    "volume {} is published to node {node} {now}; unpublish it first",
                    volume.id
                )));
            }
            continue;
        }
        let hint = match capability.mode {
            Mode::MultiNode | Mode::ReadOnly => "; this version attaches a volume to one node at a time",
            Mode::SingleNode | Mode::SinglePath => "",
        };
        return Err(Status::failed_precondition(format!(
            "volume {} is published to node {}{hint}",
            volume.id, publication.node
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Access;
    use tonic::Code;

    #[test]
    fn a_second_node_is_refused_and_told_who_has_it() {
        let volume = v1::Volume {
            publications: vec![v1::Publication { node: "node-1".into(), read_only: false }],
            ..Default::default()
        };
        let capability = Capability { access: Access::Block, mode: Mode::MultiNode };
        let check = |node: &str, read_only| {
            check_others(&volume, &NodeName::parse(node).unwrap(), read_only, &capability)
        };
        assert!(check("node-1", false).is_ok());
        assert_eq!(check("node-1", true).unwrap_err().code(), Code::AlreadyExists);
        let error = check("node-2", false).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains("node-1"), "{error}");
    }
}
