//! Creating, deleting, validating, finding and listing volumes.

use super::answers::{content_source, published_nodes, topology, volume};
use super::sizes::Range;
use super::{Controller, optional, shown};
use crate::capability::Capability;
use crate::errors::{Result, from_manager, missing, no_snapshot, no_volume};
use crate::ids::{Name, SnapshotId, VolumeId};
use crate::params::{LogicalBlock, VolumeParams, refuse_mutable};
use crate::proto::csi::{self, volume_content_source};
use crate::{TOPOLOGY_KEY, errors};
use parallax_api::v1::{self, create_volume_request, volume_ref};
use tonic::{Code, Status};

/// Most entries of one page; the caller comes back with a token.
pub(crate) const PAGE_MAX: u32 = 500;

/// What a new volume starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Snapshot(SnapshotId),
    Volume(VolumeId),
}

impl Source {
    fn parse(source: Option<&csi::VolumeContentSource>) -> Result<Option<Self>> {
        use volume_content_source::Type;
        let Some(source) = source else { return Ok(None) };
        match source.r#type.as_ref().ok_or_else(|| missing("volume_content_source.type"))? {
            Type::Snapshot(source) => match source.snapshot_id.as_str() {
                "" => Err(missing("volume_content_source.snapshot.snapshot_id")),
                id => {
                    SnapshotId::parse(id).map(Self::Snapshot).map(Some).ok_or_else(|| no_snapshot(shown(id)))
                }
            },
            Type::Volume(source) => match source.volume_id.as_str() {
                "" => Err(missing("volume_content_source.volume.volume_id")),
                id => VolumeId::parse(id).map(Self::Volume).map(Some).ok_or_else(|| no_volume(shown(id))),
            },
        }
    }

    /// Whether `volume` was made from it.
    fn is_of(source: Option<Self>, volume: &v1::Volume) -> bool {
        match source {
            None => content_source(volume).is_none(),
            Some(Self::Volume(id)) => volume.source_volume_id == id.to_string(),
            Some(Self::Snapshot(id)) => {
                volume.source_volume_id.is_empty() && volume.source_snapshot_id == id.to_string()
            }
        }
    }
}

/// What CreateVolume asks for, checked.
struct Wanted {
    name: Name,
    range: Range,
    source: Option<Source>,
    params: VolumeParams,
}

impl Wanted {
    fn parse(request: &csi::CreateVolumeRequest) -> Result<Self> {
        Capability::parse_all(&request.volume_capabilities)?;
        refuse_mutable(&request.mutable_parameters)?;
        Ok(Self {
            name: Name::parse("name", &request.name)?,
            range: Range::parse(request.capacity_range.as_ref())?,
            source: Source::parse(request.volume_content_source.as_ref())?,
            params: VolumeParams::parse(&request.parameters)?,
        })
    }

    /// A volume of this name exists: is it the one that is asked for?
    fn check(&self, found: &v1::Volume) -> Result<()> {
        let refuse = |why: String| {
            Err(Status::already_exists(format!(
                "a volume named {} exists, {why}; its id is {}",
                self.name, found.id
            )))
        };
        if !self.range.holds(found.size_bytes) {
            return refuse(format!(
                "with {} bytes, which is outside of the range that is asked for",
                found.size_bytes
            ));
        }
        if !Source::is_of(self.source, found) {
            return refuse("made from another source".to_owned());
        }
        match self.params.logical_block {
            Some(block) if found.logical_block_bytes != block.bytes() => {
                refuse(format!("with sectors of {} bytes", found.logical_block_bytes))
            }
            // Without a word in the class a clone keeps its source's sectors and a new volume has the default.
            None if self.source.is_none() && found.logical_block_bytes != LogicalBlock::default().bytes() => {
                refuse(format!("with sectors of {} bytes", found.logical_block_bytes))
            }
            _ => Ok(()),
        }
    }
}

impl Controller {
    pub(super) async fn create_volume(
        &self,
        request: csi::CreateVolumeRequest,
    ) -> Result<csi::CreateVolumeResponse> {
        let wanted = Wanted::parse(&request)?;
        let pool = self.pool().await?;
        require_topology(request.accessibility_requirements.as_ref(), &pool.uuid)?;
        let found = match self.volume_named(&wanted.name).await? {
            Some(found) => found,
            None => self.make(&wanted, &pool).await?,
        };
        wanted.check(&found)?;
        Ok(csi::CreateVolumeResponse { volume: Some(volume(&found, &pool.uuid)) })
    }

    async fn make(&self, wanted: &Wanted, pool: &v1::Pool) -> Result<v1::Volume> {
        let (source_size, source_block, source) = match wanted.source {
            None => (None, None, None),
            Some(Source::Volume(id)) => {
                let volume = self.volume(id).await?;
                let source = create_volume_request::Source::VolumeId(id.to_string());
                (Some(volume.size_bytes), Some(volume.logical_block_bytes), Some(source))
            }
            Some(Source::Snapshot(id)) => {
                let snapshot = self.snapshot(id).await?;
                let source = create_volume_request::Source::SnapshotId(id.to_string());
                (Some(snapshot.size_bytes), None, Some(source))
            }
        };
        let size = wanted.range.choose(source_size)?;
        if size > pool.capacity_bytes {
            return Err(Status::out_of_range(format!(
                "{size} bytes were asked for, but the whole pool has {}: such a volume could never be filled",
                pool.capacity_bytes
            )));
        }
        let block = wanted.params.logical_block.map(LogicalBlock::bytes).or(source_block);
        let request = v1::CreateVolumeRequest {
            name: wanted.name.to_string(),
            size_bytes: size,
            source,
            attributes: wanted.params.attributes.clone(),
            logical_block_bytes: block.unwrap_or_default(),
        };
        let answer = self.client.manager().create_volume(self.client.request(request)).await;
        match answer {
            Ok(volume) => Ok(volume.into_inner()),
            // Another controller made it between our look and our request: the caller compares it.
            Err(error) if error.code() == Code::AlreadyExists => self
                .volume_named(&wanted.name)
                .await?
                .ok_or_else(|| errors::pending(format!("the volume named {}", wanted.name))),
            Err(error) => Err(from_manager(format!("creating volume {}", wanted.name), &error)),
        }
    }

    pub(super) async fn delete_volume(
        &self,
        request: csi::DeleteVolumeRequest,
    ) -> Result<csi::DeleteVolumeResponse> {
        // What is no id of ours never existed, and deleting it has succeeded.
        let Some(id) = VolumeId::parse(&request.volume_id) else { return Ok(csi::DeleteVolumeResponse {}) };
        let request = v1::DeleteVolumeRequest { volume: Some(by_id(id)) };
        let answer = self.client.manager().delete_volume(self.client.request(request)).await;
        optional(answer).map_err(|error| from_manager(format!("deleting volume {id}"), &error))?;
        Ok(csi::DeleteVolumeResponse {})
    }

    pub(super) async fn validate(
        &self,
        request: csi::ValidateVolumeCapabilitiesRequest,
    ) -> Result<csi::ValidateVolumeCapabilitiesResponse> {
        if request.volume_capabilities.is_empty() {
            return Err(missing("volume_capabilities"));
        }
        self.volume_from("volume_id", &request.volume_id).await?;
        let verdict = Capability::parse_all(&request.volume_capabilities)
            .and_then(|_| VolumeParams::parse(&request.parameters))
            .and_then(|_| refuse_mutable(&request.mutable_parameters));
        Ok(match verdict {
            Ok(()) => csi::ValidateVolumeCapabilitiesResponse {
                confirmed: Some(csi::validate_volume_capabilities_response::Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                }),
                message: String::new(),
            },
            Err(refusal) => csi::ValidateVolumeCapabilitiesResponse {
                confirmed: None,
                message: refusal.message().to_owned(),
            },
        })
    }

    pub(super) async fn get_volume(
        &self,
        request: csi::ControllerGetVolumeRequest,
    ) -> Result<csi::ControllerGetVolumeResponse> {
        let found = self.volume_from("volume_id", &request.volume_id).await?;
        let pool = self.pool().await?;
        Ok(csi::ControllerGetVolumeResponse {
            status: Some(csi::controller_get_volume_response::VolumeStatus {
                published_node_ids: published_nodes(&found),
            }),
            volume: Some(volume(&found, &pool.uuid)),
        })
    }

    pub(super) async fn list_volumes(
        &self,
        request: csi::ListVolumesRequest,
    ) -> Result<csi::ListVolumesResponse> {
        let limit = page(request.max_entries)?;
        let after = match request.starting_token.as_str() {
            "" => String::new(),
            token => VolumeId::parse(token).ok_or_else(bad_token)?.to_string(),
        };
        let pool = self.pool().await?;
        let request = v1::ListVolumesRequest { limit, after, with_usage: false, with_headless: false };
        let answer = self.client.manager().list_volumes(self.client.request(request)).await;
        let page = answer.map_err(|error| from_manager("listing volumes", &error))?.into_inner();
        let next_token = match page.volumes.last() {
            Some(last) if page.more => last.id.clone(),
            _ => String::new(),
        };
        let entry = |found: &v1::Volume| csi::list_volumes_response::Entry {
            volume: Some(volume(found, &pool.uuid)),
            status: Some(csi::list_volumes_response::VolumeStatus {
                published_node_ids: published_nodes(found),
            }),
        };
        Ok(csi::ListVolumesResponse { entries: page.volumes.iter().map(entry).collect(), next_token })
    }

    /// The volume that a caller named in `field`; NOT_FOUND if there is none.
    pub(super) async fn volume_from(&self, field: &str, id: &str) -> Result<v1::Volume> {
        if id.is_empty() {
            return Err(missing(field));
        }
        self.volume(VolumeId::parse(id).ok_or_else(|| no_volume(shown(id)))?).await
    }

    /// A volume that has not been deleted.
    pub(super) async fn volume(&self, id: VolumeId) -> Result<v1::Volume> {
        let found = self.find(by_id(id)).await?;
        found.filter(|volume| !volume.headless).ok_or_else(|| no_volume(id))
    }

    async fn volume_named(&self, name: &Name) -> Result<Option<v1::Volume>> {
        self.find(v1::VolumeRef { by: Some(volume_ref::By::Name(name.to_string())) }).await
    }

    async fn find(&self, volume: v1::VolumeRef) -> Result<Option<v1::Volume>> {
        let request = v1::GetVolumeRequest { volume: Some(volume), with_usage: false };
        let answer = self.client.manager().get_volume(self.client.request(request)).await;
        optional(answer).map_err(|error| from_manager("looking for the volume", &error))
    }
}

/// Names a volume to the manager.
pub(crate) fn by_id(id: VolumeId) -> v1::VolumeRef {
    v1::VolumeRef { by: Some(volume_ref::By::Id(id.to_string())) }
}

/// Entries of a page, from `max_entries`.
pub(crate) fn page(max_entries: i32) -> Result<u32> {
    match u32::try_from(max_entries) {
        Ok(0) => Ok(PAGE_MAX),
        Ok(count) => Ok(count.min(PAGE_MAX)),
        Err(_) => Err(Status::invalid_argument("max_entries must not be negative")),
    }
}

/// A token that we did not hand out.
pub(crate) fn bad_token() -> Status {
    Status::aborted("starting_token is not one of ours; start again without it")
}

/// One of the topologies that are asked for must reach our pool.
fn require_topology(wanted: Option<&csi::TopologyRequirement>, pool: &str) -> Result<()> {
    let Some(wanted) = wanted else { return Ok(()) };
    if wanted.requisite.is_empty() || wanted.requisite.iter().any(|topology| reaches(topology, pool)) {
        return Ok(());
    }
    Err(Status::resource_exhausted(format!(
        "none of the nodes that are allowed reaches pool {pool} ({TOPOLOGY_KEY} differs)"
    )))
}

/// Whether a node of this topology reaches the pool. Other keys than ours say nothing about it.
pub(crate) fn reaches(wanted: &csi::Topology, pool: &str) -> bool {
    let ours = topology(pool);
    wanted.segments.get(TOPOLOGY_KEY).is_none_or(|value| ours.segments.get(TOPOLOGY_KEY) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topologies_of_other_pools_are_exhausted() {
        let requirement =
            |pool: &str| csi::TopologyRequirement { requisite: vec![topology(pool)], preferred: vec![] };
        assert!(require_topology(None, "a").is_ok());
        assert!(require_topology(Some(&requirement("a")), "a").is_ok());
        let error = require_topology(Some(&requirement("b")), "a").unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted);
    }

    #[test]
    fn a_page_is_bounded() {
        assert_eq!(page(0).unwrap(), PAGE_MAX);
        assert_eq!(page(3).unwrap(), 3);
        assert_eq!(page(i32::MAX).unwrap(), PAGE_MAX);
        assert_eq!(page(-1).unwrap_err().code(), Code::InvalidArgument);
    }
}
