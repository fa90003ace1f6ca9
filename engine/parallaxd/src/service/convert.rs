//! Types of the store to messages of the protocol, and back.

use parallax_api::v1;
use parallax_block::{Error, Result};
use parallax_store::{
    DiffExtent, FilesystemState, Finding, GcProgress, Name, PoolInfo, Publication, ScrubProgress, Severity,
    SnapshotInfo, Usage, VdiInfo,
};
use std::path::Path;

pub(super) fn filesystem(state: FilesystemState) -> v1::FilesystemState {
    match state {
        FilesystemState::Blank => v1::FilesystemState::Blank,
        FilesystemState::Formatting => v1::FilesystemState::Formatting,
        FilesystemState::Formatted => v1::FilesystemState::Formatted,
    }
}

pub(super) fn filesystem_from(state: i32) -> Result<FilesystemState> {
    match v1::FilesystemState::try_from(state) {
        Ok(v1::FilesystemState::Blank) => Ok(FilesystemState::Blank),
        Ok(v1::FilesystemState::Formatting) => Ok(FilesystemState::Formatting),
        Ok(v1::FilesystemState::Formatted) => Ok(FilesystemState::Formatted),
        Ok(v1::FilesystemState::Unspecified) | Err(_) => {
            Err(Error::invalid(format!("{state} is not a filesystem state")))
        }
    }
}

pub(super) fn publication_from(publication: Option<v1::Publication>) -> Result<Publication> {
    let publication = publication.ok_or_else(|| Error::invalid("the request does not say which node"))?;
    Ok(Publication { node: Name::new(publication.node)?, read_only: publication.read_only })
}

pub(super) fn volume(info: VdiInfo, usage: Option<Usage>, fault: String) -> v1::Volume {
    v1::Volume {
        id: info.id.to_string(),
        name: info.name.as_str().to_owned(),
        size_bytes: info.size,
        created_at_ms: info.created.0,
        source_snapshot_id: info.source_snapshot.map(|id| id.to_string()).unwrap_or_default(),
        source_volume_id: info.source_vdi.map(|id| id.to_string()).unwrap_or_default(),
        filesystem_state: filesystem(info.filesystem).into(),
        attributes: info.attributes.into_iter().collect(),
        publications: info
            .publications
            .into_iter()
            .map(|publication| v1::Publication {
                node: publication.node.as_str().to_owned(),
                read_only: publication.read_only,
            })
            .collect(),
        attached: info.attached,
        headless: info.headless,
        usage: usage.map(|usage| v1::Usage {
            mapped_bytes: usage.mapped,
            shared_bytes: usage.shared,
            metadata_bytes: usage.metadata,
        }),
        logical_block_bytes: info.logical_block,
        snapshot_count: info.snapshots,
        fault,
    }
}

pub(super) fn snapshot(info: SnapshotInfo, volume_name: &str, exclusive: u64) -> v1::Snapshot {
    v1::Snapshot {
        id: info.id.to_string(),
        volume_id: info.id.vdi.to_string(),
        name: info.name.map(|name| name.as_str().to_owned()).unwrap_or_default(),
        label: info.label,
        created_at_ms: info.taken.0,
        size_bytes: info.size,
        ready: info.materialised,
        filesystem_state: filesystem(info.filesystem).into(),
        set_id: info.set.map(|set| set.to_string()).unwrap_or_default(),
        exclusive_bytes: exclusive,
        volume_name: volume_name.to_owned(),
    }
}

pub(super) fn pool(info: PoolInfo, path: &Path, volumes: &[VdiInfo]) -> v1::Pool {
    let live = || volumes.iter().filter(|volume| !volume.headless);
    v1::Pool {
        uuid: info.uuid.to_string(),
        path: path.display().to_string(),
        format_version: info.format_version,
        features: info.features,
        capacity_bytes: info.capacity,
        extent_bytes: info.extent_bytes,
        extents_total: info.extents,
        extents_free: info.extents_free,
        free_bytes: info.free,
        data_bytes_used: info.data_used,
        metadata_bytes_used: info.metadata_used,
        metadata_bytes_reserved: info.metadata_reserved,
        volume_count: live().count() as u64,
        volumes_attached: live().filter(|volume| volume.attached).count() as u64,
        provisioned_bytes: live().map(|volume| volume.size).fold(0, u64::saturating_add),
    }
}

pub(super) fn diff(extents: &[DiffExtent]) -> v1::DiffExtents {
    let extents = extents
        .iter()
        .map(|extent| v1::DiffExtent {
            offset: extent.range.offset(),
            length: extent.range.length(),
            data: extent.data,
        })
        .collect();
    v1::DiffExtents { extents }
}

pub(super) fn gc(step: GcProgress) -> v1::GcProgress {
    v1::GcProgress {
        phase: step.phase.to_owned(),
        done: step.done,
        total: step.total,
        freed_data_bytes: step.freed_data,
        freed_metadata_bytes: step.freed_metadata,
        nodes_visited: step.nodes,
    }
}

pub(super) fn scrub(step: ScrubProgress) -> v1::ScrubProgress {
    v1::ScrubProgress {
        phase: step.phase.to_owned(),
        done: step.done,
        total: step.total,
        bytes_read: step.bytes,
        nodes_verified: step.nodes,
        bad_blocks: step.bad,
        ..Default::default()
    }
}

pub(super) fn finding(finding: Finding) -> v1::Finding {
    v1::Finding {
        severity: match finding.severity {
            Severity::Leak => "leak",
            Severity::Damage => "damage",
        }
        .to_owned(),
        kind: finding.kind.to_owned(),
        detail: finding.detail,
        volumes: finding.volumes,
    }
}
