//! `grpc.health.v1.Health`: this serves while it runs.

use futures::{FutureExt as _, StreamExt as _, stream};
use http::Request;

use super::Member;
use super::raw::{self, Methods, Reply, RequestBody};

const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone)]
pub(super) struct Health(pub Member);

impl Methods for Health {
    const NAME: &'static str = "grpc.health.v1.Health";

    fn call<B: RequestBody>(&self, method: &str, request: Request<B>) -> Reply {
        let serving = HealthCheckResponse { status: SERVING };
        match method {
            "Check" => raw::unary(request, Ok(serving)),
            "Watch" => {
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
            method => raw::unknown::<Self>(method, request),
        }
    }
}
