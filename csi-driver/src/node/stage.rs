//! Staging: the volume's device on this machine, with a filesystem mounted once for all pods.
//!
//! ```text
//! attach -- wait for the device -- look -- [format] -- [check] -- mount -- [grow]
//! ```
//!
//! Every step looks at what is there before it acts, so the whole may be repeated from any point. A step that
//! fails for good after the attach undoes the attach: the orchestrator does not unstage what it was told has
//! definitely failed.

use super::Node;
use super::device::Device;
use super::filesystem::{self, Grown};
use super::mount::{self, Options};
use super::mountinfo::Mount;
use super::signature::{self, Content, Signature};
use super::verdict::{Evidence, Verdict, decide};
use crate::capability::{Access, Capability, Filesystem};
use crate::controller::READ_ONLY;
use crate::errors::{Result, from_manager, interrupted};
use crate::ids::{KubeletPath, VolumeId};
use crate::proto::csi;
use parallax_api::v1::{self, FilesystemState};
use std::io;
use tonic::{Code, Status};

/// What NodeStageVolume asks for, checked.
struct Stage {
    id: VolumeId,
    staging: KubeletPath,
    capability: Capability,
    read_only: bool,
}

/// A filesystem to be mounted.
struct MountPlan {
    filesystem: Filesystem,
    options: Options,
    read_only: bool,
}

impl Node {
    pub(super) async fn stage(
        &self,
        request: csi::NodeStageVolumeRequest,
    ) -> Result<csi::NodeStageVolumeResponse> {
        let staging = self.kubelet.path_from("staging_target_path", &request.staging_target_path)?;
        let capability = Capability::parse(request.volume_capability.as_ref())?;
        let id = super::volume_id(&request.volume_id)?;
        let told = request.publish_context.get(READ_ONLY).is_some_and(|value| value == "true");
        let read_only = told || capability.read_only();
        let stage = Stage { id, staging, capability, read_only };
        match &stage.capability.access {
            Access::Block => self.stage_block(&stage).await?,
            Access::Mount { filesystem, flags } => {
                let options = Options::parse(flags);
                let read_only = stage.read_only || options.is_read_only();
                let plan = MountPlan { filesystem: *filesystem, options, read_only };
                self.stage_mount(&stage, &plan).await?;
            }
        }
        Ok(csi::NodeStageVolumeResponse {})
    }

    async fn stage_block(&self, stage: &Stage) -> Result<()> {
        let volume = self.volume(stage.id, false).await?;
        // The user may write anything from now on, and an empty start does not make it ours to format.
        if !stage.read_only && volume.filesystem_state() != FilesystemState::Formatted {
            self.set_state(stage.id, volume.filesystem_state(), FilesystemState::Formatted).await?;
        }
        let ready = match self.attach(stage.id, stage.read_only).await {
            Ok(attachment) => Device::wait(&attachment).await.map(drop),
            // It may have a device that is of no use any more, lost when the daemon was started again.
            Err(refusal) if refusal.code() == Code::FailedPrecondition => {
                if let Some(attachment) = self.attached(stage.id).await? {
                    self.refuse_if_published(stage.id, &attachment).await?;
                }
                Err(refusal)
            }
            Err(refusal) => return Err(refusal),
        };
        self.undo_attach_if_final(stage.id, ready).await
    }

    async fn stage_mount(&self, stage: &Stage, plan: &MountPlan) -> Result<()> {
        if self.already_staged(stage, plan).await? {
            return Ok(());
        }
        let done = self.mount_fresh(stage, plan).await;
        self.undo_attach_if_final(stage.id, done).await
    }

    /// Whether the staging path shows this volume as it is asked for. Remains of an earlier attempt, or of a
    /// device that is gone, are taken away.
    async fn already_staged(&self, stage: &Stage, plan: &MountPlan) -> Result<bool> {
        let look = || format!("looking at {}", stage.staging);
        let table = mount::table().await.map_err(|error| interrupted(look(), error))?;
        let Some(mounted) = table.at(stage.staging.as_path()) else { return Ok(false) };
        let device = self.attached(stage.id).await?.as_ref().map(Device::of).transpose()?;
        let Some(device) = device.filter(|device| device.number() == mounted.device) else {
            tracing::warn!(path = %stage.staging, "what was staged here is not attached any more; unmounting it");
            self.unmount(&stage.staging).await?;
            return Ok(false);
        };
        if mounted.kind == plan.filesystem.name() && mounted.read_only() == plan.read_only {
            self.grow_if_larger(plan, &device, mounted).await?;
            return Ok(true);
        }
        if table.of_device(device.number()).count() > 1 {
            let how = if mounted.read_only() { "read-only" } else { "for writing" };
            return Err(Status::already_exists(format!(
                "volume {} is staged and in use at {} as {} {how}",
                stage.id, stage.staging, mounted.kind
            )));
        }
        tracing::info!(path = %stage.staging, "an earlier attempt left another mount here; unmounting it");
        self.unmount(&stage.staging).await?;
        Ok(false)
    }

    async fn mount_fresh(&self, stage: &Stage, plan: &MountPlan) -> Result<()> {
        let device = self.device(stage.id, stage.read_only).await?;
        let table = mount::table().await.map_err(|error| interrupted("looking at the mounts", error))?;
        let content = match table.of_device(device.number()).next() {
            None => Some(self.prepare(stage.id, plan, &device).await?),
            // Staged at another path: the kernel shows the same filesystem there too, and no tool may touch it now.
            Some(_) => None,
        };
        mount::make_folder(stage.staging.as_path())
            .await
            .map_err(|error| interrupted(format!("making {}", stage.staging), error))?;
        let device = match try_mount(plan, &device, &stage.staging).await {
            Err(error)
                if plan.read_only && error.raw_os_error() == Some(rustix::io::Errno::ROFS.raw_os_error()) =>
            {
                self.mount_unclean_read_only(stage, plan, device).await?
            }
            outcome => {
                outcome
                    .map_err(|error| interrupted(format!("mounting {device} at {}", stage.staging), error))?;
                device
            }
        };
        match content {
            Some(content) => self.grow_after_mount(plan, &device, &content, &stage.staging).await,
            None => Ok(()),
        }
    }

    /// A filesystem that was not unmounted cleanly (any clone of a running volume) needs its journal replayed,
    /// which a device without writing cannot do. It is mounted once for writing first, if that is allowed.
    async fn mount_unclean_read_only(
        &self,
        stage: &Stage,
        plan: &MountPlan,
        device: Device,
    ) -> Result<Device> {
        self.detach(stage.id).await?;
        match self.device(stage.id, false).await {
            Ok(writable) => {
                let doing = || format!("replaying the journal of {writable}");
                self.check(plan, &writable).await?;
                let recovery = MountPlan {
                    filesystem: plan.filesystem,
                    options: plan.options.clone().writable(),
                    read_only: false,
                };
                try_mount(&recovery, &writable, &stage.staging)
                    .await
                    .map_err(|error| interrupted(doing(), error))?;
                self.unmount(&stage.staging).await?;
                self.detach(stage.id).await?;
                let device = self.device(stage.id, stage.read_only).await?;
                let mounted = try_mount(plan, &device, &stage.staging).await;
                mounted
                    .map_err(|error| interrupted(format!("mounting {device} at {}", stage.staging), error))?;
                Ok(device)
            }
            Err(refusal) if refusal.code() != Code::FailedPrecondition => Err(refusal),
            Err(refusal) => {
                tracing::warn!(
                    volume = %stage.id,
                    reason = refusal.message(),
                    "mounting without replaying the journal: the latest changes may be missing"
                );
                let without = match plan.filesystem {
                    Filesystem::Ext4 => "noload",
                    Filesystem::Xfs => "norecovery",
                };
                let plan = MountPlan { options: plan.options.clone().with(without), ..*plan };
                let again = self.device(stage.id, true).await?;
                debug_assert!(device.read_only());
                let mounted = try_mount(&plan, &again, &stage.staging).await;
                mounted
                    .map_err(|error| interrupted(format!("mounting {again} at {}", stage.staging), error))?;
                Ok(again)
            }
        }
    }

    /// Brings the device to where it can be mounted; answers with what is on it.
    async fn prepare(&self, id: VolumeId, plan: &MountPlan, device: &Device) -> Result<Content> {
        // Shared with whatever tool is started: no second plugin formats while one is at work.
        let lock = device.lock()?;
        let evidence = self.evidence(id, device).await?;
        match decide(&evidence, plan.filesystem) {
            Verdict::Mount => {}
            Verdict::Adopt => self.set_state(id, evidence.state, FilesystemState::Formatted).await?,
            Verdict::Format { .. } if plan.read_only => {
                return Err(Status::failed_precondition(format!(
                    "volume {id} has no filesystem yet and is to be mounted read-only: nothing could be in it; \
                     mount it for writing first"
                )));
            }
            Verdict::Format { fresh } => {
                if evidence.state == FilesystemState::Blank {
                    self.set_state(id, FilesystemState::Blank, FilesystemState::Formatting).await?;
                }
                let held =
                    lock.try_clone().map_err(|error| interrupted(format!("locking {device}"), error))?;
                filesystem::make(plan.filesystem, device, held, fresh).await?;
                self.set_state(id, FilesystemState::Formatting, FilesystemState::Formatted).await?;
                tracing::info!(volume = %id, %device, filesystem = %plan.filesystem, "formatted");
            }
            Verdict::Refuse(why) => {
                return Err(Status::failed_precondition(format!("volume {id} cannot be mounted: {why}")));
            }
        }
        let content = look(device).await?;
        if !device.read_only() && matches!(content.filesystem(), Some(Signature::Ext(ext)) if ext.needs_check)
        {
            filesystem::check_ext(device, lock).await?;
        }
        Ok(content)
    }

    async fn check(&self, plan: &MountPlan, device: &Device) -> Result<()> {
        match plan.filesystem {
            Filesystem::Ext4 => filesystem::check_ext(device, device.lock()?).await,
            Filesystem::Xfs => Ok(()),
        }
    }

    async fn evidence(&self, id: VolumeId, device: &Device) -> Result<Evidence> {
        // Counting what is mapped walks the volume's tree: only a blank one's matters, and that is tiny.
        let volume = self.volume(id, false).await?;
        let state = volume.filesystem_state();
        let mapped_bytes = match state {
            FilesystemState::Blank => {
                let usage = self.volume(id, true).await?.usage;
                usage
                    .ok_or_else(|| Status::unavailable("the daemon did not say what the volume maps"))?
                    .mapped_bytes
            }
            _ => 0,
        };
        Ok(Evidence {
            state,
            mapped_bytes,
            content: look(device).await?,
            blkid: filesystem::blkid(device).await,
        })
    }

    /// Compare-and-set of the volume's record. A loser finds out here and begins again.
    pub(super) async fn set_state(
        &self,
        id: VolumeId,
        expected: FilesystemState,
        next: FilesystemState,
    ) -> Result<()> {
        let request = v1::SetFilesystemStateRequest {
            volume: Some(crate::controller::by_id(id)),
            expected: expected.into(),
            next: next.into(),
        };
        let answer = self.client.manager().set_filesystem_state(self.client.request(request)).await;
        answer.map(drop).map_err(|error| match error.code() {
            // Somebody else moved it between our look and now.
            Code::FailedPrecondition => {
                interrupted(format!("recording the state of volume {id}"), error.message())
            }
            _ => from_manager(format!("recording the state of volume {id}"), &error),
        })
    }

    /// The volume's device, attached in the way that is asked for. An attachment of the other kind that nothing
    /// is mounted from is a remainder, and is replaced.
    async fn device(&self, id: VolumeId, read_only: bool) -> Result<Device> {
        if let Some(attachment) = self.attached(id).await?
            && attachment.read_only != read_only
        {
            self.detach(id).await?;
        }
        Device::wait(&self.attach(id, read_only).await?).await
    }

    async fn grow_if_larger(&self, plan: &MountPlan, device: &Device, mounted: &Mount) -> Result<()> {
        if plan.read_only || !spans_less(&look(device).await?, device)? {
            return Ok(());
        }
        match filesystem::grow(plan.filesystem, device, &mounted.target).await? {
            Grown::Full => {}
            Grown::NotPermitted => tracing::warn!(%device, "the filesystem grows when it is staged afresh"),
        }
        Ok(())
    }

    /// A clone or restore may have been made larger than what it came from.
    async fn grow_after_mount(
        &self,
        plan: &MountPlan,
        device: &Device,
        content: &Content,
        staging: &KubeletPath,
    ) -> Result<()> {
        if plan.read_only || !spans_less(content, device)? {
            return Ok(());
        }
        if filesystem::grow(plan.filesystem, device, staging.as_path()).await? == Grown::NotPermitted {
            // Nobody uses it yet, so it can be unmounted for it.
            self.unmount(staging).await?;
            filesystem::grow_ext_unmounted(device, device.lock()?).await?;
            let again = try_mount(plan, device, staging).await;
            again.map_err(|error| interrupted(format!("mounting {device} at {staging}"), error))?;
        }
        tracing::info!(%device, "the filesystem was smaller than its volume and was grown");
        Ok(())
    }

    /// A failure that the orchestrator takes for final must leave nothing attached.
    async fn undo_attach_if_final(&self, id: VolumeId, outcome: Result<()>) -> Result<()> {
        let Err(failure) = outcome else { return Ok(()) };
        if matches!(failure.code(), Code::Aborted | Code::Unavailable) {
            return Err(failure);
        }
        match self.detach(id).await {
            Ok(()) => Err(failure),
            Err(second) => Err(Status::aborted(format!("{}; and {}", failure.message(), second.message()))),
        }
    }

    pub(super) async fn unmount(&self, path: &KubeletPath) -> Result<()> {
        mount::unmount_all(path.as_path())
            .await
            .map_err(|error| interrupted(format!("unmounting {path}"), error))
    }

    pub(super) async fn unstage(
        &self,
        request: csi::NodeUnstageVolumeRequest,
    ) -> Result<csi::NodeUnstageVolumeResponse> {
        let staging = self.kubelet.path_from("staging_target_path", &request.staging_target_path)?;
        let id = VolumeId::parse(&request.volume_id);
        if let Some(id) = id
            && let Some(attachment) = self.attached(id).await?
        {
            self.refuse_if_published(id, &attachment).await?;
        }
        self.unmount(&staging).await?;
        // What is no id of ours was never attached.
        if let Some(id) = id {
            self.detach(id).await?;
        }
        Ok(csi::NodeUnstageVolumeResponse {})
    }

    /// A raw device that a pod has at hand may be closed just now: the daemon would let it go.
    async fn refuse_if_published(&self, id: VolumeId, attachment: &v1::Attachment) -> Result<()> {
        let Ok(device) = Device::of(attachment) else { return Ok(()) };
        let table = mount::table().await.map_err(|error| interrupted("looking at the mounts", error))?;
        match device.shown(&table).next() {
            None => Ok(()),
            Some(mount) => Err(Status::failed_precondition(format!(
                "volume {id} is still published at {}",
                mount.target.display()
            ))),
        }
    }
}

async fn try_mount(plan: &MountPlan, device: &Device, staging: &KubeletPath) -> io::Result<()> {
    let options = if plan.read_only { plan.options.clone().read_only() } else { plan.options.clone() };
    let options = match plan.filesystem {
        // A clone has the identity of what it came from, and both may be mounted here.
        Filesystem::Xfs => options.with("nouuid"),
        Filesystem::Ext4 => options,
    };
    mount::mount(device.path(), staging.as_path(), plan.filesystem.name(), &options).await
}

async fn look(device: &Device) -> Result<Content> {
    let opened = device.clone();
    mount::blocking(move || signature::probe(&opened.open()?))
        .await
        .map_err(|error| interrupted(format!("reading {device}"), error))
}

/// Whether a filesystem leaves at least a block of its device unused.
fn spans_less(content: &Content, device: &Device) -> Result<bool> {
    let spans = match content.filesystem() {
        Some(Signature::Ext(ext)) => ext.bytes,
        Some(Signature::Xfs { bytes, .. }) => bytes,
        _ => return Ok(false),
    };
    let bytes = device.bytes().map_err(|error| interrupted(format!("measuring {device}"), error))?;
    Ok(bytes >= spans.saturating_add(4096))
}
