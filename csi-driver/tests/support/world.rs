//! A daemon and both plugins, and the calls that tests make of them.

use super::Daemon;
use super::plugin::Plugin;
use parallax_api::v1::{self, FilesystemState};
use parallax_csi::proto::csi::{
    self, VolumeCapability,
    controller_client::ControllerClient,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
};
use std::collections::HashMap;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use tonic::Status;
use tonic::transport::Channel;

pub const MIB: i64 = 1 << 20;
/// Planted in every secret: must never be seen in a log.
pub const CANARY: &str = "canary-5e1f0c";

pub struct World {
    pub folder: tempfile::TempDir,
    pub daemon: Daemon,
    pub controller: Plugin,
    pub node: Plugin,
}

impl World {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(folder.path()).await;
        let controller = Plugin::controller(folder.path(), &daemon.endpoint()).await;
        let node = Plugin::node(folder.path(), &daemon.endpoint()).await;
        Self { folder, daemon, controller, node }
    }

    pub fn c(&self) -> ControllerClient<Channel> {
        self.controller.controller_client()
    }

    pub fn n(&self) -> NodeClient<Channel> {
        self.node.node_client()
    }

    /// A path below kubelet's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    pub async fn create(&self, request: csi::CreateVolumeRequest) -> Result<csi::Volume, Status> {
        Ok(self.c().create_volume(request).await?.into_inner().volume.unwrap())
    }

    /// A new volume of `mib` MiB, published to the node.
    pub async fn volume(&self, name: &str, mib: i64, source: Option<csi::VolumeContentSource>) -> Volume<'_> {
        let volume = self.create(CreateRequest::new(name, mib).from(source).0).await.unwrap();
        Volume { world: self, id: volume.volume_id, name: name.to_owned(), capability: ext4() }
    }

    pub async fn snapshot(&self, volume: &str, name: &str) -> csi::Snapshot {
        let request = csi::CreateSnapshotRequest {
            source_volume_id: volume.into(),
            name: name.into(),
            secrets: secrets(),
            ..Default::default()
        };
        self.c().create_snapshot(request).await.unwrap().into_inner().snapshot.unwrap()
    }

    pub async fn attachments(&self) -> Vec<v1::Attachment> {
        let answer = self.daemon.client().node().list_attachments(v1::ListAttachmentsRequest {}).await;
        answer.unwrap().into_inner().attachments
    }

    pub async fn volumes(&self) -> Vec<v1::Volume> {
        let answer = self.daemon.client().manager().list_volumes(v1::ListVolumesRequest::default()).await;
        answer.unwrap().into_inner().volumes
    }

    pub async fn pool(&self) -> v1::Pool {
        self.daemon.client().manager().get_pool(v1::GetPoolRequest {}).await.unwrap().into_inner()
    }

    pub fn logs(&self) -> String {
        [&self.controller.log, &self.node.log].map(|log| std::fs::read_to_string(log).unwrap()).concat()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Whatever a failed test left mounted would outlive its folder.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = self.folder.path().display().to_string();
        let targets =
            mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|t| t.starts_with(&below));
        for target in targets.collect::<Vec<_>>().into_iter().rev() {
            let _ = std::process::Command::new("umount").arg("-l").arg(target).status();
        }
    }
}

pub struct CreateRequest(pub csi::CreateVolumeRequest);

impl CreateRequest {
    pub fn new(name: &str, mib: i64) -> Self {
        Self(csi::CreateVolumeRequest {
            name: name.into(),
            capacity_range: Some(csi::CapacityRange { required_bytes: mib * MIB, limit_bytes: 0 }),
            volume_capabilities: vec![ext4()],
            secrets: secrets(),
            ..Default::default()
        })
    }

    pub fn from(mut self, source: Option<csi::VolumeContentSource>) -> Self {
        self.0.volume_content_source = source;
        self
    }
}

/// One volume and its staging path.
pub struct Volume<'a> {
    pub world: &'a World,
    pub id: String,
    pub name: String,
    pub capability: VolumeCapability,
}

impl Volume<'_> {
    pub fn with(mut self, capability: VolumeCapability) -> Self {
        self.capability = capability;
        self
    }

    pub fn staging(&self) -> PathBuf {
        self.world.path(&format!("staging/{}", self.name))
    }

    pub fn target(&self, pod: &str) -> PathBuf {
        self.world.path(&format!("pods/{pod}/{}", self.name))
    }

    pub fn stage_request(&self) -> csi::NodeStageVolumeRequest {
        csi::NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: text(&self.staging()),
            volume_capability: Some(self.capability.clone()),
            secrets: secrets(),
            ..Default::default()
        }
    }

    pub async fn stage(&self) -> Result<(), Status> {
        std::fs::create_dir_all(self.staging()).unwrap();
        self.world.n().node_stage_volume(self.stage_request()).await.map(drop)
    }

    pub async fn unstage(&self) -> Result<(), Status> {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: text(&self.staging()),
        };
        self.world.n().node_unstage_volume(request).await.map(drop)
    }

    pub async fn publish(&self, pod: &str, readonly: bool) -> Result<PathBuf, Status> {
        let target = self.target(pod);
        let request = csi::NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: text(&self.staging()),
            target_path: text(&target),
            volume_capability: Some(self.capability.clone()),
            readonly,
            secrets: secrets(),
            ..Default::default()
        };
        self.world.n().node_publish_volume(request).await.map(|_| target)
    }

    pub async fn unpublish(&self, pod: &str) -> Result<(), Status> {
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: text(&self.target(pod)),
        };
        self.world.n().node_unpublish_volume(request).await.map(drop)
    }

    pub async fn grow(&self, pod: &str, mib: i64) -> Result<(), Status> {
        let range = Some(csi::CapacityRange { required_bytes: mib * MIB, limit_bytes: 0 });
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: self.id.clone(),
            capacity_range: range,
            volume_capability: Some(self.capability.clone()),
            secrets: secrets(),
        };
        let answer = self.world.c().controller_expand_volume(request).await?.into_inner();
        assert_eq!(answer.capacity_bytes, mib * MIB);
        let request = csi::NodeExpandVolumeRequest {
            volume_id: self.id.clone(),
            volume_path: text(&self.target(pod)),
            capacity_range: range,
            secrets: secrets(),
            ..Default::default()
        };
        self.world.n().node_expand_volume(request).await.map(drop)
    }

    pub async fn stats(&self, pod: &str) -> Result<Vec<csi::VolumeUsage>, Status> {
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: self.id.clone(),
            volume_path: text(&self.target(pod)),
            ..Default::default()
        };
        Ok(self.world.n().node_get_volume_stats(request).await?.into_inner().usage)
    }

    pub async fn attached(&self) -> Option<v1::Attachment> {
        self.world.attachments().await.into_iter().find(|attachment| attachment.volume_id == self.id)
    }

    pub async fn record(&self) -> v1::Volume {
        let client = self.world.daemon.client();
        let request = v1::GetVolumeRequest { volume: self.named(), with_usage: false };
        client.manager().get_volume(request).await.unwrap().into_inner()
    }

    pub async fn state(&self) -> FilesystemState {
        self.record().await.filesystem_state()
    }

    pub async fn set_state(&self, next: FilesystemState) {
        let client = self.world.daemon.client();
        let expected = self.state().await.into();
        let request = v1::SetFilesystemStateRequest { volume: self.named(), expected, next: next.into() };
        client.manager().set_filesystem_state(request).await.unwrap();
    }

    fn named(&self) -> Option<v1::VolumeRef> {
        Some(v1::VolumeRef { by: Some(v1::volume_ref::By::Id(self.id.clone())) })
    }

    /// Gives the volume's device to `work`, behind the driver's back.
    pub async fn with_device<T>(&self, work: impl FnOnce(&Path) -> T) -> T {
        let client = self.world.daemon.client();
        let target = Some(v1::attach_request::Target::VolumeId(self.id.clone()));
        let request = v1::AttachRequest { target, read_only: false };
        let device = client.node().attach(request).await.unwrap().into_inner().device;
        let outcome = work(Path::new(&device));
        for _ in 0..100 {
            let target = Some(v1::detach_request::Target::VolumeId(self.id.clone()));
            if client.node().detach(v1::DetachRequest { target }).await.is_ok() {
                return outcome;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{device} is never released");
    }

    /// Writes behind the driver's back.
    pub async fn write_at(&self, offset: u64, bytes: &[u8]) {
        self.with_device(|device| {
            let device = std::fs::OpenOptions::new().write(true).open(device).unwrap();
            device.write_all_at(bytes, offset).unwrap();
            device.sync_all().unwrap();
        })
        .await;
    }
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

pub fn secrets() -> HashMap<String, String> {
    [("passphrase".to_owned(), CANARY.to_owned())].into()
}

pub fn capability(access: AccessType, mode: Mode) -> VolumeCapability {
    VolumeCapability { access_type: Some(access), access_mode: Some(AccessMode { mode: mode.into() }) }
}

pub fn mounted(fs_type: &str, flags: &[&str], mode: Mode) -> VolumeCapability {
    let mount_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    capability(
        AccessType::Mount(MountVolume { fs_type: fs_type.into(), mount_flags, ..Default::default() }),
        mode,
    )
}

pub fn ext4() -> VolumeCapability {
    mounted("", &[], Mode::SingleNodeMultiWriter)
}

pub fn xfs() -> VolumeCapability {
    mounted("xfs", &[], Mode::SingleNodeMultiWriter)
}

pub fn block() -> VolumeCapability {
    capability(AccessType::Block(BlockVolume {}), Mode::SingleNodeMultiWriter)
}

pub fn from_snapshot(id: &str) -> Option<csi::VolumeContentSource> {
    use csi::volume_content_source::{SnapshotSource, Type};
    Some(csi::VolumeContentSource { r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: id.into() })) })
}

pub fn from_volume(id: &str) -> Option<csi::VolumeContentSource> {
    use csi::volume_content_source::{Type, VolumeSource};
    Some(csi::VolumeContentSource { r#type: Some(Type::Volume(VolumeSource { volume_id: id.into() })) })
}
