//! What the test daemon has: volumes and snapshots as sparse files, attachments as loop devices.

use parallax_api::v1::{self, FilesystemState};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::process::Command;
use tonic::Status;
use uuid::Uuid;

pub type Result<T> = std::result::Result<T, Status>;

#[derive(Default)]
pub struct Shop {
    pub folder: PathBuf,
    pub pool: Uuid,
    pub volumes: BTreeMap<String, v1::Volume>,
    pub snapshots: BTreeMap<String, v1::Snapshot>,
    pub attachments: BTreeMap<String, v1::Attachment>,
    pub last_snapshot: u64,
    /// Calls to fail with this answer from now on, by name of the method.
    pub failing: BTreeMap<&'static str, Status>,
}

impl Shop {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, pool: Uuid::new_v4(), ..Self::default() }
    }

    pub fn fail(&self, method: &str) -> Result<()> {
        self.failing.get(method).cloned().map_or(Ok(()), Err)
    }

    pub fn file(&self, id: &str) -> PathBuf {
        self.folder.join(id)
    }

    pub fn find(&self, volume: Option<v1::VolumeRef>) -> Result<v1::Volume> {
        use v1::volume_ref::By;
        let by = volume
            .and_then(|volume| volume.by)
            .ok_or_else(|| Status::invalid_argument("no volume is named"))?;
        let found = match &by {
            By::Id(id) => self.volumes.get(id),
            By::Name(name) => self.volumes.values().find(|volume| volume.name == *name && !volume.headless),
        };
        found.cloned().ok_or_else(|| Status::not_found(format!("no volume {by:?}")))
    }

    pub fn create(&mut self, request: v1::CreateVolumeRequest) -> Result<v1::Volume> {
        use v1::create_volume_request::Source;
        if let Some(found) =
            self.volumes.values().find(|volume| volume.name == request.name && !volume.headless)
        {
            let same = found.size_bytes == request.size_bytes;
            return if same { Ok(found.clone()) } else { Err(Status::already_exists("the name is taken")) };
        }
        let mut volume = v1::Volume {
            id: Uuid::new_v4().to_string(),
            name: request.name,
            size_bytes: request.size_bytes,
            attributes: request.attributes,
            filesystem_state: FilesystemState::Blank.into(),
            logical_block_bytes: if request.logical_block_bytes == 0 {
                512
            } else {
                request.logical_block_bytes
            },
            ..Default::default()
        };
        match request.source {
            None => self.copy(None, &volume.id),
            Some(Source::VolumeId(id)) => {
                let source = self.volumes.get(&id).ok_or_else(|| Status::not_found("no source"))?;
                volume.filesystem_state = source.filesystem_state;
                self.copy(Some(&id), &volume.id);
                volume.source_volume_id = id;
            }
            Some(Source::SnapshotId(id)) => {
                let source = self.snapshots.get(&id).ok_or_else(|| Status::not_found("no source"))?;
                volume.filesystem_state = source.filesystem_state;
                self.copy(Some(&id), &volume.id);
                volume.source_snapshot_id = id;
            }
        }
        self.grow_file(&volume.id, volume.size_bytes);
        self.volumes.insert(volume.id.clone(), volume.clone());
        Ok(volume)
    }

    pub fn delete(&mut self, volume: Option<v1::VolumeRef>) -> Result<()> {
        let volume = match self.find(volume) {
            Err(error) if error.code() == tonic::Code::NotFound => return Ok(()),
            found => found?,
        };
        if !volume.publications.is_empty() || self.attachments.contains_key(&volume.id) {
            return Err(Status::failed_precondition("it is in use"));
        }
        self.volumes.remove(&volume.id);
        std::fs::remove_file(self.file(&volume.id)).unwrap();
        Ok(())
    }

    pub fn snapshot(&mut self, request: v1::CreateSnapshotsRequest) -> Result<Vec<v1::Snapshot>> {
        let named = self.snapshots.values().filter(|s| s.name == request.name && !s.name.is_empty()).cloned();
        let named = named.collect::<Vec<_>>();
        if !named.is_empty() {
            return Ok(named);
        }
        // As the daemon does: a name is kept by a set, even of one.
        let is_set = request.volumes.len() > 1 || !request.name.is_empty();
        let set = if is_set { Uuid::new_v4().to_string() } else { String::new() };
        let mut taken = Vec::new();
        for volume in request.volumes {
            let volume = self.find(Some(volume))?;
            self.last_snapshot += 1;
            let snapshot = v1::Snapshot {
                id: format!("{}@{}", volume.id, self.last_snapshot),
                volume_id: volume.id.clone(),
                name: request.name.clone(),
                label: request.label.clone(),
                created_at_ms: 1_700_000_000_000,
                size_bytes: volume.size_bytes,
                ready: true,
                filesystem_state: volume.filesystem_state,
                set_id: set.clone(),
                ..Default::default()
            };
            self.copy(Some(&volume.id), &snapshot.id);
            self.snapshots.insert(snapshot.id.clone(), snapshot.clone());
            taken.push(snapshot);
        }
        Ok(taken)
    }

    pub fn resize(&mut self, volume: Option<v1::VolumeRef>, bytes: u64) -> Result<v1::Volume> {
        let id = self.find(volume)?.id;
        self.grow_file(&id, bytes);
        if let Some(attachment) = self.attachments.get_mut(&id) {
            attachment.size_bytes = bytes;
            run("losetup", &["-c", &attachment.device]);
        }
        let volume = self.volumes.get_mut(&id).unwrap();
        volume.size_bytes = bytes;
        Ok(volume.clone())
    }

    pub fn mapped_bytes(&self, id: &str) -> u64 {
        std::fs::metadata(self.file(id)).unwrap().blocks() * 512
    }

    pub fn attach(&mut self, id: &str, read_only: bool) -> Result<v1::Attachment> {
        let volume = self.volumes.get(id).ok_or_else(|| Status::not_found("no such volume"))?.clone();
        if let Some(attachment) = self.attachments.get(id) {
            return match attachment.read_only == read_only {
                true => Ok(attachment.clone()),
                false => Err(Status::already_exists("it is attached in another way")),
            };
        }
        let file = self.file(id);
        let sector = volume.logical_block_bytes.to_string();
        let mut args = vec!["--find", "--show", "-b", &sector];
        if read_only {
            args.push("-r");
        }
        args.push(file.to_str().unwrap());
        let attachment = v1::Attachment {
            volume_id: id.to_owned(),
            device: run("losetup", &args),
            read_only,
            transport: "loop".to_owned(),
            size_bytes: volume.size_bytes,
            ..Default::default()
        };
        self.attachments.insert(id.to_owned(), attachment.clone());
        Ok(attachment)
    }

    pub fn detach(&mut self, id: &str) -> Result<()> {
        let Some(attachment) = self.attachments.get(id) else { return Ok(()) };
        // An exclusive open is refused while a filesystem is mounted from the device.
        let exclusive = rustix::fs::OFlags::EXCL.bits() as i32;
        if std::fs::OpenOptions::new().read(true).custom_flags(exclusive).open(&attachment.device).is_err() {
            return Err(Status::failed_precondition("something holds the device open"));
        }
        run("losetup", &["-d", &attachment.device]);
        self.attachments.remove(id);
        Ok(())
    }

    pub fn detach_everything(&mut self) {
        for attachment in std::mem::take(&mut self.attachments).into_values() {
            let _ = Command::new("losetup").args(["-d", &attachment.device]).status();
        }
    }

    fn copy(&self, from: Option<&str>, to: &str) {
        let to = self.file(to);
        match from {
            None => drop(std::fs::File::create(to).unwrap()),
            Some(from) => {
                // What the kernel still holds for a loop device has to reach the file first.
                if let Some(attachment) = self.attachments.get(from) {
                    run("blockdev", &["--flushbufs", &attachment.device]);
                }
                let from = self.file(from);
                run("cp", &["--sparse=always", from.to_str().unwrap(), to.to_str().unwrap()]);
            }
        }
    }

    fn grow_file(&self, id: &str, bytes: u64) {
        std::fs::OpenOptions::new().write(true).open(self.file(id)).unwrap().set_len(bytes).unwrap();
    }
}

/// Runs a tool that must succeed, and answers with what it printed.
pub fn run(tool: &str, args: &[&str]) -> String {
    let output = Command::new(tool).args(args).output().unwrap();
    assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
