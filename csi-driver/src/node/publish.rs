//! Publishing: what was staged, shown at a pod's path.

use super::Node;
use super::device::Device;
use super::mount::{self, Options};
use super::mountinfo::{Mount, MountTable};
use crate::capability::{Access, Capability, Mode};
use crate::errors::{Result, interrupted, missing};
use crate::ids::{KubeletPath, VolumeId};
use crate::proto::csi;
use tonic::Status;

/// What NodePublishVolume asks for, checked.
struct Publish {
    id: VolumeId,
    staging: KubeletPath,
    target: KubeletPath,
    capability: Capability,
    read_only: bool,
}

impl Node {
    pub(super) async fn publish(
        &self,
        request: csi::NodePublishVolumeRequest,
    ) -> Result<csi::NodePublishVolumeResponse> {
        let target = self.kubelet.path_from("target_path", &request.target_path)?;
        let capability = Capability::parse(request.volume_capability.as_ref())?;
        if request.staging_target_path.is_empty() {
            return Err(Status::failed_precondition(
                "staging_target_path is missing: stage the volume first",
            ));
        }
        let staging = self.kubelet.path_from("staging_target_path", &request.staging_target_path)?;
        let id = super::volume_id(&request.volume_id)?;
        let asked = match &capability.access {
            Access::Block => false,
            Access::Mount { flags, .. } => Options::parse(flags).is_read_only(),
        };
        let read_only = request.readonly || capability.read_only() || asked;
        let publish = Publish { id, staging, target, capability, read_only };

        let attachment = self.attached(id).await?.ok_or_else(|| {
            Status::failed_precondition(format!("volume {id} is not attached to this node: stage it first"))
        })?;
        let device = Device::of(&attachment)?;
        let table = mount::table().await.map_err(|error| interrupted("looking at the mounts", error))?;
        publish.refuse_second_path(&table, &device)?;
        match publish.capability.is_block() {
            true => publish.show_device(&table, &device).await?,
            false => publish.show_folder(&table, &device).await?,
        }
        Ok(csi::NodePublishVolumeResponse {})
    }

    pub(super) async fn unpublish(
        &self,
        request: csi::NodeUnpublishVolumeRequest,
    ) -> Result<csi::NodeUnpublishVolumeResponse> {
        if request.volume_id.is_empty() {
            return Err(missing("volume_id"));
        }
        let target = self.kubelet.path_from("target_path", &request.target_path)?;
        self.unmount(&target).await?;
        mount::remove_target(target.as_path().to_owned())
            .await
            .map_err(|error| interrupted(format!("removing {target}"), error))?;
        Ok(csi::NodeUnpublishVolumeResponse {})
    }
}

impl Publish {
    async fn show_folder(&self, table: &MountTable, device: &Device) -> Result<()> {
        match table.at(self.staging.as_path()) {
            Some(staged) if staged.device == device.number() => {}
            Some(_) => {
                return Err(Status::failed_precondition(format!(
                    "{} shows another device than {device}, which volume {} has now: its device was lost; \
                     delete the pods that use the volume so that it is staged again",
                    self.staging, self.id
                )));
            }
            None => {
                return Err(Status::failed_precondition(format!(
                    "volume {} is not staged at {}",
                    self.id, self.staging
                )));
            }
        }
        match table.at(self.target.as_path()) {
            Some(there) if there.device == device.number() => self.settle(there).await,
            Some(there) => Err(self.taken(there)),
            None => {
                mount::make_folder(self.target.as_path())
                    .await
                    .map_err(|error| self.broken("making", error))?;
                self.bind(self.staging.as_path()).await
            }
        }
    }

    async fn show_device(&self, table: &MountTable, device: &Device) -> Result<()> {
        if device.read_only() != self.read_only && device.read_only() {
            return Err(Status::failed_precondition(format!("volume {} is staged without writing", self.id)));
        }
        let ours = device.shown(table).any(|mount| mount.target == self.target.as_path());
        match table.at(self.target.as_path()) {
            Some(there) if ours => self.settle(there).await,
            Some(there) => Err(self.taken(there)),
            None => {
                mount::make_file(self.target.as_path())
                    .await
                    .map_err(|error| self.broken("making", error))?;
                self.bind(device.path()).await
            }
        }
    }

    async fn bind(&self, source: &std::path::Path) -> Result<()> {
        let bound = mount::bind(source, self.target.as_path(), self.read_only).await;
        bound.map_err(|error| self.broken("mounting", error))
    }

    /// The right thing is there already: is it there in the right way? A bind mount becomes read-only in a second
    /// step, so a writable one may be the first half of what is asked for.
    async fn settle(&self, there: &Mount) -> Result<()> {
        match (there.read_only(), self.read_only) {
            (true, false) => Err(Status::already_exists(format!(
                "volume {} is published at {} read-only",
                self.id, self.target
            ))),
            (false, true) => {
                let changed = mount::refuse_writing(self.target.as_path()).await;
                changed.map_err(|error| self.broken("mounting", error))
            }
            _ => Ok(()),
        }
    }

    /// A volume for one pod alone is shown at one path.
    fn refuse_second_path(&self, table: &MountTable, device: &Device) -> Result<()> {
        if self.capability.mode != Mode::SinglePath {
            return Ok(());
        }
        let shown = table.of_device(device.number()).chain(device.shown(table));
        let elsewhere =
            |mount: &&Mount| mount.target != self.staging.as_path() && mount.target != self.target.as_path();
        match shown.into_iter().find(elsewhere) {
            None => Ok(()),
            Some(mount) => Err(Status::failed_precondition(format!(
                "volume {} may be used by one pod only, and is published at {}",
                self.id,
                mount.target.display()
            ))),
        }
    }

    fn taken(&self, there: &Mount) -> Status {
        Status::already_exists(format!("{} shows something else already ({})", self.target, there.kind))
    }

    fn broken(&self, doing: &str, error: std::io::Error) -> Status {
        interrupted(format!("{doing} {}", self.target), error)
    }
}
