//! How full a volume is.

use super::Node;
use super::mount;
use crate::controller::bytes;
use crate::errors::{Result, interrupted, missing};
use crate::proto::csi::{self, volume_usage::Unit};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use tonic::Status;

impl Node {
    pub(super) async fn stats(
        &self,
        request: csi::NodeGetVolumeStatsRequest,
    ) -> Result<csi::NodeGetVolumeStatsResponse> {
        if request.volume_path.is_empty() {
            return Err(missing("volume_path"));
        }
        let id = super::volume_id(&request.volume_id)?;
        let nothing_there = || Status::not_found(format!("volume {id} is not at {}", request.volume_path));
        let path =
            self.kubelet.path_from("volume_path", &request.volume_path).map_err(|_| nothing_there())?;
        let failed = |error| interrupted(format!("measuring {path}"), error);
        if mount::mounted(path.as_path()).await.map_err(failed)?.is_none() {
            return Err(nothing_there());
        }
        let at = path.as_path().to_owned();
        let usage = mount::blocking(move || measure(&at)).await.map_err(failed)?;
        Ok(csi::NodeGetVolumeStatsResponse { usage })
    }
}

fn measure(path: &Path) -> io::Result<Vec<csi::VolumeUsage>> {
    if std::fs::symlink_metadata(path)?.file_type().is_block_device() {
        let total = std::fs::File::open(path)?.seek(SeekFrom::End(0))?;
        return Ok(vec![csi::VolumeUsage {
            total: bytes(total),
            unit: Unit::Bytes.into(),
            ..Default::default()
        }]);
    }
    let stat = rustix::fs::statvfs(path)?;
    let unit_bytes = stat.f_frsize;
    Ok(vec![
        csi::VolumeUsage {
            total: bytes(stat.f_blocks.saturating_mul(unit_bytes)),
            available: bytes(stat.f_bavail.saturating_mul(unit_bytes)),
            used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(unit_bytes)),
            unit: Unit::Bytes.into(),
        },
        csi::VolumeUsage {
            total: bytes(stat.f_files),
            available: bytes(stat.f_favail),
            used: bytes(stat.f_files.saturating_sub(stat.f_ffree)),
            unit: Unit::Inodes.into(),
        },
    ])
}
