//! `etcdserverpb.Lease`.

use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse,
    PbLeaseService, PbLeaseStatus, PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Member;
use crate::{Error, Store as _};

/// The shortest lease etcd grants, in seconds: one and a half election timeouts, rounded up.
const MIN_TTL: i64 = 2;

/// Answers a client may leave unread.
const QUEUE: usize = 16;

#[tonic::async_trait]
impl PbLeaseService for Member {
    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        let request = request.into_inner();
        let (id, ttl) = self
            .store()
            .lease_grant(request.id, request.ttl.max(MIN_TTL))
            .await?;
        self.0.metrics.lease_granted.add();
        Ok(Response::new(PbLeaseGrantResponse {
            header: Some(self.current_header()),
            id,
            ttl,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        self.store().lease_revoke(request.into_inner().id).await?;
        self.0.metrics.lease_revoked.add();
        Ok(Response::new(PbLeaseRevokeResponse {
            header: Some(self.current_header()),
        }))
    }

    type LeaseKeepAliveStream = ReceiverStream<Result<PbLeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (answers, stream) = mpsc::channel(QUEUE);
        let (member, mut requests) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            loop {
                let request = tokio::select! {
                    request = requests.message() => request,
                    () = member.0.shutdown.cancelled() => return,
                    () = answers.closed() => return,
                };
                let Ok(Some(request)) = request else { return };
                let answer = member.keep_alive(request.id).await;
                let failed = answer.is_err();
                if answers.send(answer).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        let request = request.into_inner();
        let mut response = PbLeaseTimeToLiveResponse {
            header: Some(self.current_header()),
            id: request.id,
            ttl: -1,
            ..PbLeaseTimeToLiveResponse::default()
        };
        match self.store().lease_status(request.id).await {
            Ok(lease) => {
                response.ttl = i64::try_from(lease.remaining.as_secs()).unwrap_or(i64::MAX);
                response.granted_ttl = lease.granted_ttl;
                if request.keys {
                    response.keys = lease.keys.into_iter().map(Vec::from).collect();
                }
            }
            Err(Error::LeaseNotFound) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        _: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        let leases = self.store().leases().await?;
        Ok(Response::new(PbLeaseLeasesResponse {
            header: Some(self.current_header()),
            leases: leases.into_iter().map(|id| PbLeaseStatus { id }).collect(),
        }))
    }
}

impl Member {
    /// An unknown lease is answered with a time to live of 0.
    async fn keep_alive(&self, id: i64) -> Result<PbLeaseKeepAliveResponse, Status> {
        let ttl = self.store().lease_keep_alive(id).await?;
        Ok(PbLeaseKeepAliveResponse {
            header: Some(self.current_header()),
            id,
            ttl,
        })
    }
}
