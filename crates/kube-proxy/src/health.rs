//! `/healthz`, `/livez` and `/metrics`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

/// What the proxier has done so far.
#[derive(Clone, Default)]
pub struct Status(Arc<Counters>);

#[derive(Default)]
struct Counters {
    synced: AtomicBool,
    syncs: AtomicU64,
    failures: AtomicU64,
    /// Total time of all syncs, in microseconds.
    micros: AtomicU64,
}

impl Status {
    pub fn observe(&self, took: Duration, ok: bool) {
        self.0.synced.store(ok, Ordering::Release);
        self.0.syncs.fetch_add(1, Ordering::Relaxed);
        self.0.failures.fetch_add(u64::from(!ok), Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.0.micros.fetch_add(micros, Ordering::Relaxed);
    }

    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        let (status, text) = match path {
            "/healthz" | "/livez" if self.0.synced.load(Ordering::Acquire) => {
                (StatusCode::OK, "ok".to_owned())
            }
            "/healthz" | "/livez" => (
                StatusCode::SERVICE_UNAVAILABLE,
                "rules are not in place".to_owned(),
            ),
            "/metrics" => (StatusCode::OK, self.metrics()),
            _ => (StatusCode::NOT_FOUND, "not found".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    }

    #[allow(clippy::cast_precision_loss)]
    fn metrics(&self) -> String {
        let (syncs, failures) = (
            self.0.syncs.load(Ordering::Relaxed),
            self.0.failures.load(Ordering::Relaxed),
        );
        let seconds = self.0.micros.load(Ordering::Relaxed) as f64 / 1e6;
        format!(
            "# TYPE kubeproxy_sync_proxy_rules_duration_seconds summary\n\
             kubeproxy_sync_proxy_rules_duration_seconds_sum {seconds}\n\
             kubeproxy_sync_proxy_rules_duration_seconds_count {syncs}\n\
             # TYPE kubeproxy_sync_proxy_rules_nftables_sync_failures_total counter\n\
             kubeproxy_sync_proxy_rules_nftables_sync_failures_total {failures}\n"
        )
    }
}

/// Serves plain HTTP in the background.
///
/// # Errors
/// When the port is taken.
pub async fn serve(
    address: SocketAddr,
    status: Status,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    tokio::spawn(async move {
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(_) => continue,
                },
                () = shutdown.cancelled() => return,
            };
            let status = status.clone();
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let response = status.answer(request.uri().path());
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move {
                // A probe that hangs up is nobody's concern.
                let _ = connection.await;
            });
        }
    });
    Ok(())
}
