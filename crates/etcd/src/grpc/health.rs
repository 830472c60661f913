//! `grpc.health.v1.Health`: this serves while it runs.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures::{FutureExt as _, StreamExt as _, stream};
use http::Request;
use tonic::body::Body;
use tonic::codegen::Service;

use super::raw::{self, Reply};
use super::{Member, status};

const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone)]
pub(super) struct HealthServer(Member);

impl HealthServer {
    pub fn new(member: Member) -> Self {
        Self(member)
    }
}

impl tonic::server::NamedService for HealthServer {
    const NAME: &'static str = "grpc.health.v1.Health";
}

impl Service<Request<Body>> for HealthServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Reply;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Reply {
        let serving = HealthCheckResponse { status: SERVING };
        match request.uri().path().rsplit('/').next() {
            Some("Check") => raw::unary(request, Ok(serving)),
            Some("Watch") => {
                let shutdown = self.0.0.shutdown.clone();
                let last = async move {
                    shutdown.cancelled().await;
                    Ok(HealthCheckResponse {
                        status: NOT_SERVING,
                    })
                };
                let states = stream::once(async move { Ok(serving) }).chain(last.into_stream());
                raw::streaming(request, states.boxed())
            }
            method => {
                let error = status::unknown_method(
                    <Self as tonic::server::NamedService>::NAME,
                    method.unwrap_or_default(),
                );
                raw::unary::<HealthCheckResponse>(request, Err(error))
            }
        }
    }
}
