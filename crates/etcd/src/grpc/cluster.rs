//! `etcdserverpb.Cluster`: one member, which nobody can join.

use etcd_client::proto::{
    PbClusterService, PbMember, PbMemberAddRequest, PbMemberAddResponse, PbMemberListRequest,
    PbMemberListResponse, PbMemberPromoteRequest, PbMemberPromoteResponse, PbMemberRemoveRequest,
    PbMemberRemoveResponse, PbMemberUpdateRequest, PbMemberUpdateResponse,
};
use tonic::{Request, Response, Status};

use super::Member;
use super::status::precondition;

impl Member {
    fn check_member(&self, id: u64) -> Result<(), Status> {
        if id == self.0.identity.member_id {
            return Ok(());
        }
        Err(Status::not_found("etcdserver: member not found"))
    }
}

#[tonic::async_trait]
impl PbClusterService for Member {
    async fn member_add(
        &self,
        _: Request<PbMemberAddRequest>,
    ) -> Result<Response<PbMemberAddResponse>, Status> {
        Err(Status::unimplemented(
            "etcdserver: this store is of one member; use an etcd cluster for more",
        ))
    }

    async fn member_remove(
        &self,
        request: Request<PbMemberRemoveRequest>,
    ) -> Result<Response<PbMemberRemoveResponse>, Status> {
        self.check_member(request.into_inner().id)?;
        Err(precondition(
            "re-configuration failed due to not enough started members",
        ))
    }

    async fn member_update(
        &self,
        request: Request<PbMemberUpdateRequest>,
    ) -> Result<Response<PbMemberUpdateResponse>, Status> {
        self.check_member(request.into_inner().id)?;
        Err(Status::unimplemented(
            "etcdserver: this store has no peer URLs",
        ))
    }

    async fn member_list(
        &self,
        _: Request<PbMemberListRequest>,
    ) -> Result<Response<PbMemberListResponse>, Status> {
        let options = &self.0.options;
        Ok(Response::new(PbMemberListResponse {
            header: Some(self.current_header()),
            members: vec![PbMember {
                id: self.0.identity.member_id,
                name: options.name.clone(),
                peer_ur_ls: Vec::new(),
                client_ur_ls: options.advertise_client_urls.clone(),
                is_learner: false,
            }],
        }))
    }

    async fn member_promote(
        &self,
        request: Request<PbMemberPromoteRequest>,
    ) -> Result<Response<PbMemberPromoteResponse>, Status> {
        self.check_member(request.into_inner().id)?;
        Err(precondition("can only promote a learner member"))
    }
}
