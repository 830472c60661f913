//! The kubelet's own API on port 10250 (TLS, authenticated, authorized) and its health on 10248.

mod auth;
mod logs;
mod metrics;
mod query;
mod streaming;
mod summary;
mod tls;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tracing::{debug, info};

use crate::kubelet::Kubelet;
use crate::pod::PodExt;
use auth::{Auth, User};
use query::Query;

pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;
pub type Answer = Response<Body>;

/// How long a client may take over its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

pub struct Server {
    kubelet: Arc<Kubelet>,
    secure: TcpListener,
    health: Option<TcpListener>,
    tls: tls::Tls,
    auth: Auth,
}

impl Server {
    /// Takes the ports; a port in use is an error here, before anything runs.
    pub async fn bind(kubelet: Arc<Kubelet>) -> anyhow::Result<Self> {
        let settings = &kubelet.settings;
        let listen = async |address, port| {
            TcpListener::bind((address, port))
                .await
                .with_context(|| format!("listening on {address}:{port}"))
        };
        let health = match settings.healthz_port {
            0 => None,
            port => Some(listen(settings.healthz_address, port).await?),
        };
        Ok(Server {
            secure: listen(settings.address, settings.port).await?,
            health,
            tls: tls::Tls::new(&kubelet)?,
            auth: Auth::new(kubelet.clone()),
            kubelet,
        })
    }

    pub async fn run(self) {
        let server = Arc::new(self);
        info!(port = server.kubelet.settings.port, "kubelet API is up");
        tokio::spawn(Box::pin(tls::keep_current(
            server.kubelet.clone(),
            server.tls.clone(),
        )));
        let shutdown = server.kubelet.shutdown.clone();
        loop {
            let health = async {
                match &server.health {
                    Some(listener) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                accepted = server.secure.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    let server = server.clone();
                    tokio::spawn(Box::pin(async move { server.secure_connection(stream).await }));
                }
                accepted = health => {
                    let Ok((stream, _)) = accepted else { continue };
                    tokio::spawn(Box::pin(health_connection(stream)));
                }
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn secure_connection(self: Arc<Self>, stream: tokio::net::TcpStream) {
        let _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(HEAD_TIMEOUT, self.tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(%error, "TLS handshake failed"),
            Err(_) => return debug!("TLS handshake took too long"),
        };
        let certificate = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first());
        let user = certificate.and_then(|certificate| User::of_certificate(certificate));
        let service = hyper::service::service_fn(move |request| {
            let (server, user) = (self.clone(), user.clone());
            async move { Ok::<_, Infallible>(Box::pin(server.answer(user, request)).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        if let Err(error) = connection.await {
            debug!(%error, "connection ended");
        }
    }

    /// Who is it, may they, then what they asked for.
    async fn answer(&self, certificate: Option<User>, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().to_string();
        let user = match self.auth.authenticate(certificate, request.headers()).await {
            Some(user) => user,
            None => return text(StatusCode::UNAUTHORIZED, "Unauthorized"),
        };
        if !self.auth.authorize(&user, request.method(), &path).await {
            let verb = auth::verb(request.method());
            let resource = auth::subresources(&path).last().copied().unwrap_or("proxy");
            let message = format!(
                "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{resource}])",
                user.name
            );
            return text(StatusCode::FORBIDDEN, &message);
        }
        route(&self.kubelet, &path, request).await
    }
}

async fn route(kubelet: &Arc<Kubelet>, path: &str, request: Request<Incoming>) -> Answer {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let get = request.method() == Method::GET;
    match parts.as_slice() {
        ["healthz" | "livez" | "readyz", ..] if get => text(StatusCode::OK, "ok"),
        ["pods"] if get => pods(kubelet, false),
        ["runningpods"] if get => pods(kubelet, true),
        ["configz"] if get => configz(kubelet),
        ["stats", "summary"] if get => summary::answer(kubelet).await,
        ["metrics"] if get => metrics::kubelet(kubelet),
        ["metrics", "resource"] if get => metrics::resource(kubelet).await,
        ["metrics", "cadvisor"] if get => metrics::cadvisor(kubelet).await,
        ["metrics", "probes"] if get => text(StatusCode::OK, ""),
        ["containerLogs", namespace, pod, container] if get => {
            logs::answer(kubelet, namespace, pod, container, &query).await
        }
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            streaming::exec(kubelet, namespace, pod, container, &query, request).await
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            streaming::attach(kubelet, namespace, pod, container, &query, request).await
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            streaming::port_forward(kubelet, namespace, pod, &query, request).await
        }
        ["run", namespace, pod, container] | ["run", namespace, pod, _, container]
            if request.method() == Method::POST =>
        {
            streaming::run(kubelet, namespace, pod, container, &query).await
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

async fn health_connection(stream: tokio::net::TcpStream) {
    let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
        Ok::<_, Infallible>(match request.uri().path() {
            "/healthz" | "/livez" | "/readyz" | "/healthz/ping" | "/healthz/syncloop" => {
                text(StatusCode::OK, "ok")
            }
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        })
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!(%error, "health connection ended");
    }
}

fn pods(kubelet: &Kubelet, running: bool) -> Answer {
    let pods = if running {
        kubelet.workers.active()
    } else {
        kubelet.pods()
    };
    let items: Vec<_> = pods
        .iter()
        .map(|pod| {
            let mut pod = k8s_openapi::api::core::v1::Pod::clone(pod);
            pod.status = Some(kubelet.status.current(&pod));
            pod
        })
        .filter(|pod| !running || pod.status().phase.as_deref() == Some("Running"))
        .collect();
    json(
        &serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}),
    )
}

fn configz(kubelet: &Kubelet) -> Answer {
    let settings = &kubelet.settings;
    let seconds = |duration: Duration| format!("{}s", duration.as_secs());
    json(&serde_json::json!({"kubeletconfig": {
        "staticPodPath": settings.static_pod_path, "address": settings.address, "port": settings.port,
        "containerRuntimeEndpoint": settings.runtime_endpoint, "clusterDomain": settings.cluster_domain,
        "clusterDNS": settings.cluster_dns, "maxPods": settings.max_pods, "podLogsDir": settings.pod_logs_dir,
        "evictionHard": settings.eviction_hard, "containerLogMaxFiles": settings.log_max_files,
        "nodeStatusUpdateFrequency": seconds(settings.node_status_update_frequency),
        "nodeStatusReportFrequency": seconds(settings.node_status_report_frequency),
        "nodeLeaseDurationSeconds": settings.lease_seconds,
        "imageGCHighThresholdPercent": settings.image_gc_high, "imageGCLowThresholdPercent": settings.image_gc_low,
        "serializeImagePulls": settings.serialize_image_pulls, "cgroupDriver": "cgroupfs", "cgroupRoot": settings.cgroup_root
    }}))
}

/// A whole body.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub fn text(code: StatusCode, body: &str) -> Answer {
    with_type(code, "text/plain; charset=utf-8", body.to_string())
}

pub fn json(value: &serde_json::Value) -> Answer {
    with_type(StatusCode::OK, "application/json", value.to_string())
}

pub fn with_type(code: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(full(body));
    *answer.status_mut() = code;
    let value = http::HeaderValue::from_static(kind);
    answer
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, value);
    answer
}
