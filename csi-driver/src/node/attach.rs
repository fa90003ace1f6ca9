//! What the node plugin asks of this machine's daemon.

use super::Node;
use crate::controller::by_id;
use crate::errors::{Result, from_manager, no_volume};
use crate::ids::VolumeId;
use parallax_api::v1::{self, attach_request, detach_request};
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

/// A device is held for moments after its last user has closed it, by whoever looks at new devices.
const RELEASED_WITHIN: Duration = Duration::from_secs(8);

impl Node {
    /// The volume; NOT_FOUND if there is none.
    pub(super) async fn volume(&self, id: VolumeId, with_usage: bool) -> Result<v1::Volume> {
        let request = v1::GetVolumeRequest { volume: Some(by_id(id)), with_usage };
        let answer = self.client.manager().get_volume(self.client.request(request)).await;
        Ok(answer.map_err(|error| from_manager(format!("looking for volume {id}"), &error))?.into_inner())
    }

    /// How the volume is attached to this machine, if it is.
    pub(super) async fn attached(&self, id: VolumeId) -> Result<Option<v1::Attachment>> {
        let request = self.client.request(v1::ListAttachmentsRequest {});
        let answer = self.client.node().list_attachments(request).await;
        let list = answer.map_err(|error| from_manager("listing what is attached", &error))?.into_inner();
        let id = id.to_string();
        Ok(list.attachments.into_iter().find(|one| one.volume_id == id && one.snapshot_id.is_empty()))
    }

    /// Attaches the volume; the same again answers with the same device.
    pub(super) async fn attach(&self, id: VolumeId, read_only: bool) -> Result<v1::Attachment> {
        if let Some(attachment) = self.attached(id).await?
            && attachment.read_only != read_only
        {
            let how = if attachment.read_only { "without writing" } else { "for writing" };
            return Err(Status::already_exists(format!("volume {id} is attached to this node {how}")));
        }
        let target = Some(attach_request::Target::VolumeId(id.to_string()));
        let request = self.client.request(v1::AttachRequest { target, read_only });
        let answer = self.client.node().attach(request).await;
        match answer {
            Ok(attachment) => Ok(attachment.into_inner()),
            Err(error) if error.code() == Code::NotFound => Err(no_volume(id)),
            Err(error) => Err(from_manager(format!("attaching volume {id}"), &error)),
        }
    }

    /// Detaches the volume; one that is not attached is detached. ABORTED while something holds the device.
    pub(super) async fn detach(&self, id: VolumeId) -> Result<()> {
        let end = Instant::now() + RELEASED_WITHIN;
        let mut pause = Duration::from_millis(20);
        loop {
            let target = Some(detach_request::Target::VolumeId(id.to_string()));
            let request = self.client.request(v1::DetachRequest { target });
            let doing = || format!("detaching volume {id}");
            match self.client.node().detach(request).await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Code::NotFound => return Ok(()),
                Err(error) if error.code() != Code::FailedPrecondition => {
                    return Err(from_manager(doing(), &error));
                }
                Err(error) if Instant::now() + pause >= end => {
                    return Err(Status::aborted(format!("{}: {}", doing(), error.message())));
                }
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }
}
