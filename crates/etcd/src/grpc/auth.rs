//! `etcdserverpb.Auth` of a server on which authentication is off and has no users: who may connect is for client
//! certificates to say.

use etcd_client::proto::{
    PbAuthDisableResponse, PbAuthRoleListResponse, PbAuthUserListResponse, PbResponseHeader,
};
use http::Request;
use tonic::Status;

use super::Member;
use super::raw::{self, Methods, Reply, RequestBody};
use super::status::{precondition, unknown_method};

#[derive(Clone, PartialEq, prost::Message)]
struct AuthStatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<PbResponseHeader>,
    #[prost(bool, tag = "2")]
    enabled: bool,
    #[prost(uint64, tag = "3")]
    auth_revision: u64,
}

#[derive(Clone)]
pub(super) struct Auth(pub Member);

impl Auth {
    fn refusal(method: &str) -> Status {
        match method {
            "AuthEnable" => precondition("root user does not exist"),
            "Authenticate" => precondition("authentication is not enabled"),
            "UserGet" | "UserDelete" | "UserChangePassword" | "UserGrantRole"
            | "UserRevokeRole" => precondition("user name not found"),
            "RoleGet" | "RoleDelete" | "RoleGrantPermission" | "RoleRevokePermission" => {
                precondition("role name not found")
            }
            "UserAdd" | "RoleAdd" => Status::unimplemented(
                "etcdserver: users and roles are not supported; use client certificates",
            ),
            _ => unknown_method(Self::NAME, method),
        }
    }
}

impl Methods for Auth {
    const NAME: &'static str = "etcdserverpb.Auth";

    fn call<B: RequestBody>(&self, method: &str, request: Request<B>) -> Reply {
        let header = Some(self.0.current_header());
        match method {
            "AuthStatus" => {
                let status = AuthStatusResponse {
                    header,
                    enabled: false,
                    auth_revision: 1,
                };
                raw::unary(request, Ok(status))
            }
            "AuthDisable" => raw::unary(request, Ok(PbAuthDisableResponse { header })),
            "UserList" => {
                let users = PbAuthUserListResponse {
                    header,
                    users: Vec::new(),
                };
                raw::unary(request, Ok(users))
            }
            "RoleList" => {
                let roles = PbAuthRoleListResponse {
                    header,
                    roles: Vec::new(),
                };
                raw::unary(request, Ok(roles))
            }
            method => raw::unary::<AuthStatusResponse>(request, Err(Self::refusal(method))),
        }
    }
}
