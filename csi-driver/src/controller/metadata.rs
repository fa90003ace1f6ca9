//! Which bytes of a snapshot exist or changed: the manager's diff of two radix trees, as a stream of extents.
//!
//! The end of the stream is the only sign that it is complete, so any error ends it with that error.

use super::Controller;
use super::answers::bytes;
use crate::errors::{Result, from_manager};
use crate::ids::SnapshotId;
use crate::proto::csi;
use parallax_api::v1;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// A stream of answers.
pub(crate) type Answers<T> = tonic::codegen::BoxStream<T>;

/// Tuples in one message, unless the caller wants fewer.
const TUPLES_MAX: usize = 4096;
/// Messages that wait for a slow reader.
const MESSAGES_AHEAD: usize = 4;

/// What to send, in the caller's terms.
struct Plan {
    capacity: i64,
    tuples: usize,
    start: u64,
    /// Extents that are holes in the target count too.
    holes: bool,
}

impl Controller {
    pub(super) async fn allocated(
        &self,
        request: csi::GetMetadataAllocatedRequest,
    ) -> Result<Answers<csi::GetMetadataAllocatedResponse>> {
        let target = self.snapshot_from("snapshot_id", &request.snapshot_id).await?;
        let plan = Plan::new(&target, request.starting_offset, request.max_results, false)?;
        let diff = self.diff(String::new(), &target, plan.start).await?;
        Ok(stream(diff, plan, |capacity, block_metadata| csi::GetMetadataAllocatedResponse {
            block_metadata_type: csi::BlockMetadataType::VariableLength.into(),
            volume_capacity_bytes: capacity,
            block_metadata,
        }))
    }

    pub(super) async fn delta(
        &self,
        request: csi::GetMetadataDeltaRequest,
    ) -> Result<Answers<csi::GetMetadataDeltaResponse>> {
        let base = self.snapshot_from("base_snapshot_id", &request.base_snapshot_id).await?;
        let target = self.snapshot_from("target_snapshot_id", &request.target_snapshot_id).await?;
        let same_volume = |a: &v1::Snapshot, b: &v1::Snapshot| {
            SnapshotId::parse(&a.id).map(SnapshotId::volume)
                == SnapshotId::parse(&b.id).map(SnapshotId::volume)
        };
        if !same_volume(&base, &target) {
            return Err(Status::invalid_argument("the two snapshots are not of one volume"));
        }
        let plan = Plan::new(&target, request.starting_offset, request.max_results, true)?;
        let diff = self.diff(base.id, &target, plan.start).await?;
        Ok(stream(diff, plan, |capacity, block_metadata| csi::GetMetadataDeltaResponse {
            block_metadata_type: csi::BlockMetadataType::VariableLength.into(),
            volume_capacity_bytes: capacity,
            block_metadata,
        }))
    }

    async fn diff(
        &self,
        base_id: String,
        target: &v1::Snapshot,
        start: u64,
    ) -> Result<Streaming<v1::DiffExtents>> {
        if !target.ready {
            return Err(Status::unavailable(format!("snapshot {} is not ready yet; ask again", target.id)));
        }
        let request =
            v1::DiffSnapshotsRequest { base_id, target_id: target.id.clone(), starting_offset: start };
        let answer = self.client.manager().diff_snapshots(self.client.unbounded(request)).await;
        Ok(answer.map_err(|error| from_manager("comparing snapshots", &error))?.into_inner())
    }
}

impl Plan {
    fn new(target: &v1::Snapshot, start: i64, max_results: i32, holes: bool) -> Result<Self> {
        let start = u64::try_from(start).map_err(|_| Status::out_of_range("starting_offset is negative"))?;
        if start > 0 && start >= target.size_bytes {
            return Err(Status::out_of_range(format!(
                "starting_offset {start} lies beyond the snapshot's {} bytes",
                target.size_bytes
            )));
        }
        let tuples = match usize::try_from(max_results) {
            Ok(0) => TUPLES_MAX,
            Ok(count) => count.min(TUPLES_MAX),
            Err(_) => return Err(Status::invalid_argument("max_results must not be negative")),
        };
        Ok(Self { capacity: bytes(target.size_bytes), tuples, start, holes })
    }

    /// The part of an extent that is asked for.
    fn tuple(&self, extent: &v1::DiffExtent) -> Option<csi::BlockMetadata> {
        let end = extent.offset.saturating_add(extent.length);
        let start = extent.offset.max(self.start);
        ((extent.data || self.holes) && start < end)
            .then(|| csi::BlockMetadata { byte_offset: bytes(start), size_bytes: bytes(end - start) })
    }
}

fn stream<T: Send + 'static>(
    mut diff: Streaming<v1::DiffExtents>,
    plan: Plan,
    answer: impl Fn(i64, Vec<csi::BlockMetadata>) -> T + Send + 'static,
) -> Answers<T> {
    let (sender, receiver) = tokio::sync::mpsc::channel(MESSAGES_AHEAD);
    tokio::spawn(async move {
        loop {
            let extents = match diff.message().await {
                Ok(Some(message)) => message.extents,
                Ok(None) => return,
                Err(error) => {
                    // Nobody is left to be told if this fails too.
                    let _ = sender.send(Err(from_manager("comparing snapshots", &error))).await;
                    return;
                }
            };
            let tuples = extents.iter().filter_map(|extent| plan.tuple(extent)).collect::<Vec<_>>();
            for chunk in tuples.chunks(plan.tuples) {
                if sender.send(Ok(answer(plan.capacity, chunk.to_vec()))).await.is_err() {
                    return;
                }
            }
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_cut_at_the_starting_offset_and_holes_count_in_a_delta_only() {
        let target = v1::Snapshot { size_bytes: 1 << 20, ..Default::default() };
        let delta = Plan::new(&target, 8192, 0, true).unwrap();
        let allocated = Plan::new(&target, 8192, 0, false).unwrap();
        let extent = |offset, length, data| v1::DiffExtent { offset, length, data };
        let tuple = |byte_offset, size_bytes| Some(csi::BlockMetadata { byte_offset, size_bytes });
        assert_eq!(delta.tuple(&extent(4096, 8192, true)), tuple(8192, 4096));
        assert_eq!(delta.tuple(&extent(0, 8192, true)), None);
        assert_eq!(delta.tuple(&extent(16384, 4096, false)), tuple(16384, 4096));
        assert_eq!(allocated.tuple(&extent(16384, 4096, false)), None);
        assert_eq!(
            Plan::new(&target, 1 << 20, 0, true).err().map(|e| e.code()),
            Some(tonic::Code::OutOfRange)
        );
    }
}
