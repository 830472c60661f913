//! `etcdserverpb.Maintenance`.

use etcd_client::proto::{
    PbAlarmRequest, PbAlarmResponse, PbDefragmentRequest, PbDefragmentResponse, PbDowngradeRequest,
    PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest, PbHashResponse,
    PbMaintenanceService, PbMoveLeaderRequest, PbMoveLeaderResponse, PbSnapshotRequest,
    PbSnapshotResponse, PbStatusRequest, PbStatusResponse,
};
use tonic::{Request, Response, Status};

use super::status::precondition;
use super::{ETCD_VERSION, Member};

/// Number of `AlarmRequest.AlarmAction.ACTIVATE`.
const ACTIVATE: i32 = 1;

#[tonic::async_trait]
impl PbMaintenanceService for Member {
    /// This store raises no alarms: there are none to list or to disarm.
    async fn alarm(
        &self,
        request: Request<PbAlarmRequest>,
    ) -> Result<Response<PbAlarmResponse>, Status> {
        if request.into_inner().action == ACTIVATE {
            return Err(Status::unimplemented(
                "etcdserver: alarms cannot be raised by clients here",
            ));
        }
        Ok(Response::new(PbAlarmResponse {
            header: Some(self.current_header()),
            alarms: Vec::new(),
        }))
    }

    async fn status(
        &self,
        _: Request<PbStatusRequest>,
    ) -> Result<Response<PbStatusResponse>, Status> {
        let header = self.current_header();
        let size = i64::try_from(self.store().size()?).unwrap_or(i64::MAX);
        // There is no log of proposals apart from the revisions.
        let index = header.revision.unsigned_abs();
        Ok(Response::new(PbStatusResponse {
            version: ETCD_VERSION.into(),
            db_size: size,
            db_size_in_use: size,
            leader: header.member_id,
            raft_index: index,
            raft_applied_index: index,
            raft_term: header.raft_term,
            header: Some(header),
            ..PbStatusResponse::default()
        }))
    }

    async fn defragment(
        &self,
        _: Request<PbDefragmentRequest>,
    ) -> Result<Response<PbDefragmentResponse>, Status> {
        self.store().defragment().await?;
        Ok(Response::new(PbDefragmentResponse {
            header: Some(self.current_header()),
        }))
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Result<Response<PbHashResponse>, Status> {
        let hash = self.store().hash(0).await?;
        Ok(Response::new(PbHashResponse {
            header: Some(self.header(hash.revision)),
            hash: hash.hash,
        }))
    }

    async fn hash_kv(
        &self,
        request: Request<PbHashKvRequest>,
    ) -> Result<Response<PbHashKvResponse>, Status> {
        let hash = self.store().hash(request.into_inner().revision).await?;
        Ok(Response::new(PbHashKvResponse {
            header: Some(self.current_header()),
            hash: hash.hash,
            // etcd's "never compacted" is -1.
            compact_revision: match hash.compact_revision {
                0 => -1,
                revision => revision,
            },
            hash_revision: hash.revision,
        }))
    }

    type SnapshotStream = tokio_stream::Empty<Result<PbSnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        _: Request<PbSnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented(
            "etcdserver: snapshots over gRPC are not supported yet",
        ))
    }

    async fn move_leader(
        &self,
        request: Request<PbMoveLeaderRequest>,
    ) -> Result<Response<PbMoveLeaderResponse>, Status> {
        if request.into_inner().target_id != self.0.identity.member_id {
            return Err(precondition("bad leader transferee"));
        }
        Ok(Response::new(PbMoveLeaderResponse {
            header: Some(self.current_header()),
        }))
    }

    async fn downgrade(
        &self,
        _: Request<PbDowngradeRequest>,
    ) -> Result<Response<PbDowngradeResponse>, Status> {
        Err(Status::unimplemented(
            "etcdserver: this store has no other version to downgrade to",
        ))
    }
}
