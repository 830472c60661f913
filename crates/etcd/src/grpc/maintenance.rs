//! `etcdserverpb.Maintenance`.

use etcd_client::proto::{
    PbAlarmMember, PbAlarmRequest, PbAlarmResponse, PbDefragmentRequest, PbDefragmentResponse,
    PbDowngradeRequest, PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest,
    PbHashResponse, PbMaintenanceService, PbMoveLeaderRequest, PbMoveLeaderResponse,
    PbSnapshotRequest, PbSnapshotResponse, PbStatusRequest, PbStatusResponse,
};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::status::precondition;
use super::{ETCD_VERSION, Member};
use crate::embedded::Alarm;

/// Numbers of `AlarmRequest.AlarmAction`.
const ACTIVATE: i32 = 1;
const DEACTIVATE: i32 = 2;

/// Numbers of `AlarmType`.
const NOSPACE: i32 = 1;
const CORRUPT: i32 = 2;

impl Member {
    /// The first alarm that is raised.
    pub fn alarm(&self) -> Option<String> {
        self.store().alarms().first().map(error)
    }

    fn raised(&self) -> Vec<PbAlarmMember> {
        let number = |alarm| match alarm {
            Alarm::NoSpace => NOSPACE,
            Alarm::Corrupt => CORRUPT,
        };
        let alarms = self.store().alarms().into_iter();
        alarms
            .map(|alarm| PbAlarmMember {
                member_id: self.0.identity.member_id,
                alarm: number(alarm),
            })
            .collect()
    }
}

#[tonic::async_trait]
impl PbMaintenanceService for Member {
    async fn alarm(
        &self,
        request: Request<PbAlarmRequest>,
    ) -> Result<Response<PbAlarmResponse>, Status> {
        let request = request.into_inner();
        let mine = request.member_id == 0 || request.member_id == self.0.identity.member_id;
        let of_kind = |alarm: &PbAlarmMember| request.alarm == 0 || alarm.alarm == request.alarm;
        let mut alarms: Vec<_> = self.raised().into_iter().filter(of_kind).collect();
        match request.action {
            ACTIVATE if mine && request.alarm == NOSPACE => {
                self.store().set_no_space(true).await?;
                alarms = self.raised();
            }
            ACTIVATE => {
                return Err(Status::unimplemented(
                    "etcdserver: only the alarm NOSPACE of this member can be raised",
                ));
            }
            // The answer is what was disarmed. Damage is not made good by a request.
            DEACTIVATE => {
                alarms.retain(|alarm| mine && alarm.alarm == NOSPACE);
                if !alarms.is_empty() {
                    self.store().set_no_space(false).await?;
                }
            }
            _ => alarms.retain(|_| mine),
        }
        Ok(Response::new(PbAlarmResponse {
            header: Some(self.current_header()),
            alarms,
        }))
    }

    async fn status(
        &self,
        _: Request<PbStatusRequest>,
    ) -> Result<Response<PbStatusResponse>, Status> {
        let header = self.current_header();
        let size = i64::try_from(self.store().size()).unwrap_or(i64::MAX);
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
            errors: self.store().alarms().iter().map(error).collect(),
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
            compact_revision: hash.compact_revision,
            hash_revision: hash.revision,
        }))
    }

    type SnapshotStream = BoxStream<'static, Result<PbSnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        _: Request<PbSnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let header = self.current_header();
        let parts = ReceiverStream::new(self.store().snapshot()).map(move |part| {
            let part = part?;
            Ok(PbSnapshotResponse {
                header: Some(header),
                remaining_bytes: part.remaining,
                blob: part.bytes.into(),
                ..PbSnapshotResponse::default()
            })
        });
        Ok(Response::new(parts.boxed()))
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

/// An alarm in the words of etcd's status.
fn error(alarm: &Alarm) -> String {
    match alarm {
        Alarm::NoSpace => "NOSPACE".into(),
        Alarm::Corrupt => "CORRUPT".into(),
    }
}
