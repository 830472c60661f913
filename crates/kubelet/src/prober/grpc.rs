//! The gRPC health checking protocol (grpc.health.v1), client side.

use std::time::Duration;

use tonic::transport::Endpoint;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

/// Asks whether `service` (the whole server when empty) is serving.
pub async fn check(
    host: &str,
    port: u16,
    service: String,
    timeout: Duration,
) -> Result<(), String> {
    let address = super::http::address(host, port);
    let call = async {
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| error.to_string())?
            .user_agent("kube-probe/1.36")
            .map_err(|error| error.to_string())?
            .connect()
            .await
            .map_err(|error| {
                format!("error: this health check can't connect to {address}: {error}")
            })?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|error| error.to_string())?;
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let request = tonic::Request::new(HealthCheckRequest { service });
        let answer = client.unary(request, path, codec).await;
        let status = answer.map_err(|error| format!("error: health rpc probe failed: {error}"))?;
        match status.into_inner().status {
            SERVING => Ok(()),
            other => Err(format!(
                "service unhealthy (responded with \"{}\")",
                name(other)
            )),
        }
    };
    tokio::time::timeout(timeout, call)
        .await
        .unwrap_or_else(|_| {
            Err(format!(
                "timeout: health rpc did not complete within {timeout:?}"
            ))
        })
}

fn name(status: i32) -> &'static str {
    match status {
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    }
}
