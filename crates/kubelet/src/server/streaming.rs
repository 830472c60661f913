//! exec, attach and port-forward: the runtime gives a URL, and the upgraded connection's bytes go through, whatever
//! protocol (SPDY or WebSocket) they are in. And `run`, which collects a command's output.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use tokio::net::TcpStream;
use tracing::debug;

use super::query::Query;
use super::{Answer, full, text};
use crate::kubelet::Kubelet;
use crate::kuberuntime::runtime_pod::State;
use crate::pod::PodExt;

pub async fn exec(
    kubelet: &Arc<Kubelet>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Answer {
    let id = match running(kubelet, namespace, pod, container).await {
        Ok(id) => id,
        Err(answer) => return *answer,
    };
    let tty = query.flag("tty");
    let wanted = cri::ExecRequest {
        container_id: id,
        cmd: query.all("command"),
        tty,
        stdin: query.flag("input") || query.flag("stdin"),
        stdout: query.flag("output") || query.flag("stdout"),
        // A terminal has one output only.
        stderr: !tty && (query.flag("error") || query.flag("stderr")),
    };
    match kubelet.cri.exec(wanted).await {
        Ok(answer) => proxy(&answer.url, request).await,
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.message()),
    }
}

pub async fn attach(
    kubelet: &Arc<Kubelet>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Answer {
    let id = match running(kubelet, namespace, pod, container).await {
        Ok(id) => id,
        Err(answer) => return *answer,
    };
    let tty = query.flag("tty");
    let wanted = cri::AttachRequest {
        container_id: id,
        tty,
        stdin: query.flag("input") || query.flag("stdin"),
        stdout: query.flag("output") || query.flag("stdout"),
        stderr: !tty && (query.flag("error") || query.flag("stderr")),
    };
    match kubelet.cri.attach(wanted).await {
        Ok(answer) => proxy(&answer.url, request).await,
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.message()),
    }
}

pub async fn port_forward(
    kubelet: &Arc<Kubelet>,
    namespace: &str,
    name: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Answer {
    let Some(pod) = kubelet.pod_by_name(namespace, name) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let sandbox = match kubelet.inspect(pod.uid()).await {
        Ok(runtime) => runtime.ready_sandbox().map(|sandbox| sandbox.id.clone()),
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.message()),
    };
    let Some(sandbox) = sandbox else {
        return text(StatusCode::NOT_FOUND, &format!("pod not found ({name:?})"));
    };
    let ports = query.all("port");
    let wanted = cri::PortForwardRequest {
        pod_sandbox_id: sandbox,
        port: ports
            .iter()
            .chain(&query.all("ports"))
            .flat_map(|list| list.split(','))
            .filter_map(|port| port.parse().ok())
            .collect(),
    };
    match kubelet.cri.port_forward(wanted).await {
        Ok(answer) => proxy(&answer.url, request).await,
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.message()),
    }
}

pub async fn run(
    kubelet: &Arc<Kubelet>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
) -> Answer {
    let id = match running(kubelet, namespace, pod, container).await {
        Ok(id) => id,
        Err(answer) => return *answer,
    };
    let command = query.get("cmd").unwrap_or_default();
    let command = command.split_whitespace().map(String::from).collect();
    match kubelet.cri.exec_sync(&id, command, Duration::ZERO).await {
        Ok(output) => {
            let code = if output.exit_code == 0 {
                StatusCode::OK
            } else {
                StatusCode::INTERNAL_SERVER_ERROR
            };
            let mut answer = Response::new(full([output.stdout, output.stderr].concat()));
            *answer.status_mut() = code;
            answer
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.message()),
    }
}

/// The id of the container's running instance.
async fn running(
    kubelet: &Kubelet,
    namespace: &str,
    name: &str,
    container: &str,
) -> Result<String, Box<Answer>> {
    let Some(pod) = kubelet.pod_by_name(namespace, name) else {
        return Err(Box::new(text(StatusCode::NOT_FOUND, "pod does not exist")));
    };
    let runtime = kubelet
        .inspect(pod.uid())
        .await
        .map_err(|error| Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, error.message())))?;
    let latest = runtime
        .latest(container)
        .filter(|latest| latest.state == State::Running);
    latest.map(|latest| latest.id.clone()).ok_or_else(|| {
        let message = format!("container not found ({container:?})");
        Box::new(text(StatusCode::NOT_FOUND, &message))
    })
}

/// Sends the request on to `url` and, once both sides have switched protocols, carries the bytes both ways.
async fn proxy(url: &str, mut request: Request<Incoming>) -> Answer {
    match connect(url, &mut request).await {
        Ok(answer) => answer,
        Err(why) => text(StatusCode::BAD_GATEWAY, &format!("streaming failed: {why}")),
    }
}

async fn connect(url: &str, request: &mut Request<Incoming>) -> anyhow::Result<Answer> {
    let target: http::Uri = url.parse()?;
    let authority = target
        .authority()
        .map(|a| a.to_string())
        .unwrap_or_default();
    let port = target.port_u16().unwrap_or(80);
    let host = target.host().unwrap_or_default().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "the runtime's stream ended");
        }
    });
    let path = target.path_and_query().map_or("/", |path| path.as_str());
    let mut onward = Request::builder()
        .method(request.method().clone())
        .uri(path)
        .body(Empty::<Bytes>::new())?;
    *onward.headers_mut() = request.headers().clone();
    // The runtime has its own idea of who may: whoever has the URL.
    onward.headers_mut().remove(http::header::AUTHORIZATION);
    onward
        .headers_mut()
        .insert(http::header::HOST, authority.parse()?);
    let mut answer = sender.send_request(onward).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (parts, body) = answer.into_parts();
        let body = body.map_err(std::io::Error::other).boxed_unsync();
        return Ok(Response::from_parts(parts, body));
    }
    let theirs = hyper::upgrade::on(&mut answer);
    let ours = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let (Ok(ours), Ok(theirs)) = (ours.await, theirs.await) else {
            return;
        };
        let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
        if let Err(error) = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await {
            debug!(%error, "stream ended");
        }
    });
    let (parts, _) = answer.into_parts();
    Ok(Response::from_parts(parts, full("")))
}
