//! Connections that go through a proxy.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use fluyt_apiserver::authn::TokenWebhookSettings;
use fluyt_apiserver::egress::Egress;
use fluyt_pki::{Authority, Identity, Usage};
use http::StatusCode;
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use crate::common::service::Service;
use crate::common::{Api, pod};
use crate::flags::client::certificates;

#[path = "../../src/egress/packets.rs"]
#[allow(dead_code)]
mod packets;

/// Whom a proxy was asked to connect to.
type Asked = Arc<Mutex<Vec<String>>>;

/// Where a pod seems to be; nobody is reached there.
const POD: &str = "192.0.2.9:8080";

/// What pods serve, without TLS.
async fn backend() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let head = read_head(&mut stream).await;
                let path = head.split(' ').nth(1).unwrap().to_owned();
                let body = json!({"served": path}).to_string();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
        }
    });
    address
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Answers a CONNECT: with a tunnel to `backend`, wherever it shall lead, or with a refusal.
pub async fn http_connect<S>(mut client: S, backend: Option<std::net::SocketAddr>, asked: Asked)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let head = read_head(&mut client).await;
    let mut words = head.split(' ');
    assert_eq!(words.next(), Some("CONNECT"));
    asked.lock().push(words.next().unwrap().to_owned());
    let Some(backend) = backend else {
        let refusal = b"HTTP/1.1 403 Forbidden\r\n\r\n";
        return client.write_all(refusal).await.unwrap();
    };
    let mut stream = TcpStream::connect(backend).await.unwrap();
    let established = b"HTTP/1.1 200 Connection established\r\n\r\n";
    client.write_all(established).await.unwrap();
    let _ = tokio::io::copy_bidirectional(&mut client, &mut stream).await;
}

fn load(directory: &Path, selections: &Value) -> anyhow::Result<Egress> {
    let document = json!({
        "apiVersion": "apiserver.k8s.io/v1beta1", "kind": "EgressSelectorConfiguration", "egressSelections": selections,
    });
    let path = directory.join("egress.yaml");
    std::fs::write(&path, document.to_string()).unwrap();
    Egress::load(&path)
}

/// Asks a pod for a page through a selection for the cluster.
async fn page(directory: &Path, connection: Value) -> (StatusCode, Value) {
    let selections = json!([{"name": "cluster", "connection": connection}]);
    let egress = load(directory, &selections).unwrap();
    let api = Api::configured(|config, _| config.dialer = egress.cluster).await;
    api.namespace().await;
    api.post("/api/v1/namespaces/n/pods", pod("p")).await;
    let status = json!({"status": {"podIP": "192.0.2.9", "podIPs": [{"ip": "192.0.2.9"}]}});
    let (code, patched) = api
        .patch("/api/v1/namespaces/n/pods/p/status", "merge-patch", status)
        .await;
    assert_eq!(code, StatusCode::OK, "{patched}");
    api.get("/api/v1/namespaces/n/pods/p:8080/proxy/page").await
}

#[tokio::test]
async fn a_pod_is_reached_by_connect_over_a_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("proxy.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (asked, backend): (Asked, _) = (Arc::default(), backend().await);
    let log = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(http_connect(stream, Some(backend), log.clone()));
        }
    });
    let transport = json!({"uds": {"udsName": socket}});
    let connection = json!({"proxyProtocol": "HTTPConnect", "transport": transport});
    let (status, page) = page(directory.path(), connection).await;
    assert_eq!((status, page), (StatusCode::OK, json!({"served": "/page"})));
    assert_eq!(*asked.lock(), [POD]);
}

#[tokio::test]
async fn a_pod_is_reached_by_connect_over_tls_with_a_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let authority = Authority::create("proxies").unwrap();
    let identity = |name: &str| Identity {
        common_name: name.into(),
        dns_names: vec!["proxy.example".into()],
        ..Identity::default()
    };
    let serving = authority
        .issue(&identity("proxy"), Usage::Server, 1)
        .unwrap();
    let client = authority.issue(&identity("api"), Usage::Client, 1).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut roots = RootCertStore::empty();
    roots
        .add(certificates(authority.certificate_pem()).remove(0))
        .unwrap();
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
        .build()
        .unwrap();
    let key = PrivateKeyDer::from_pem_slice(serving.key_pem.as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&serving.certificate_pem), key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, backend): (Asked, _) = (Arc::default(), backend().await);
    let log = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = acceptor.accept(stream).await.unwrap();
            tokio::spawn(http_connect(stream, Some(backend), log.clone()));
        }
    });
    let tls = json!({
        "caBundle": file("ca.crt", authority.certificate_pem()), "clientCert": file("c.crt", &client.certificate_pem),
        "clientKey": file("c.key", &client.key_pem), "tlsServerName": "proxy.example",
    });
    let tcp = json!({"url": format!("https://127.0.0.1:{port}"), "tlsConfig": tls});
    let connection = json!({"proxyProtocol": "HTTPConnect", "transport": {"tcp": tcp}});
    let (status, page) = page(directory.path(), connection).await;
    assert_eq!((status, page), (StatusCode::OK, json!({"served": "/page"})));
    assert_eq!(*asked.lock(), [POD]);
}

#[tokio::test]
async fn a_proxy_that_refuses_is_heard() {
    let directory = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(http_connect(stream, None, Asked::default()));
        }
    });
    let transport = json!({"tcp": {"url": url}});
    let connection = json!({"proxyProtocol": "HTTPConnect", "transport": transport});
    let (status, refused) = page(directory.path(), connection).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let message = refused["message"].as_str().unwrap();
    let why = format!("while dialing {POD}, code 403: 403 Forbidden");
    assert!(message.ends_with(&why), "{message}");
}

/// A konnectivity server that reaches `backend`, wherever it is asked to connect to.
mod konnectivity {
    use std::convert::Infallible;
    use std::net::SocketAddr;
    use std::task::{Context, Poll};

    use futures::future::BoxFuture;
    use futures::stream::BoxStream;
    use futures::{FutureExt as _, StreamExt as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::mpsc;
    use tonic::body::Body as TonicBody;
    use tonic::codegen::{Body, Service, StdError};
    use tonic::server::{Grpc, NamedService, StreamingService};
    use tonic::{Request, Response, Status, Streaming};
    use tonic_prost::ProstCodec;

    use super::packets::{CloseResponse, Data, DialResponse, Kind, Packet, Payload};
    use super::{Asked, Bytes, TcpStream};

    const ID: i64 = 7;

    #[derive(Clone)]
    pub struct Proxy {
        /// Nobody is reached without one.
        pub backend: Option<SocketAddr>,
        pub asked: Asked,
    }

    impl NamedService for Proxy {
        const NAME: &'static str = "ProxyService";
    }

    fn packet(kind: Kind, payload: Payload) -> Result<Packet, Status> {
        Ok(Packet {
            kind: kind.into(),
            payload: Some(payload),
        })
    }

    impl Proxy {
        async fn carry(
            self,
            mut incoming: Streaming<Packet>,
            out: mpsc::Sender<Result<Packet, Status>>,
        ) {
            let Ok(Some(Packet {
                payload: Some(Payload::DialRequest(dial)),
                ..
            })) = incoming.message().await
            else {
                panic!("a tunnel begins with a dial request");
            };
            assert_eq!(dial.protocol, "tcp");
            self.asked.lock().push(dial.address);
            let mut answer = DialResponse {
                connect_id: ID,
                random: dial.random,
                ..DialResponse::default()
            };
            let Some(backend) = self.backend else {
                answer.error = "no agent available".into();
                let answer = packet(Kind::DialResponse, Payload::DialResponse(answer));
                return out.send(answer).await.unwrap();
            };
            let answer = packet(Kind::DialResponse, Payload::DialResponse(answer));
            out.send(answer).await.unwrap();
            let (mut from, mut to) = TcpStream::connect(backend).await.unwrap().into_split();
            let sending = out.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 16];
                loop {
                    // In small pieces.
                    let read = from.read(&mut buffer).await.unwrap_or_default();
                    let sent = if read == 0 {
                        let closed = CloseResponse {
                            connect_id: ID,
                            ..CloseResponse::default()
                        };
                        packet(Kind::CloseResponse, Payload::CloseResponse(closed))
                    } else {
                        let data = Data {
                            connect_id: ID,
                            data: Bytes::copy_from_slice(&buffer[..read]),
                            ..Data::default()
                        };
                        packet(Kind::Data, Payload::Data(data))
                    };
                    if sending.send(sent).await.is_err() || read == 0 {
                        return;
                    }
                }
            });
            while let Ok(Some(packet)) = incoming.message().await {
                match packet.payload {
                    Some(Payload::Data(data)) => {
                        assert_eq!(data.connect_id, ID);
                        to.write_all(&data.data).await.unwrap();
                    }
                    _ => return,
                }
            }
        }
    }

    impl StreamingService<Packet> for Proxy {
        type Response = Packet;
        type ResponseStream = BoxStream<'static, Result<Packet, Status>>;
        type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

        fn call(&mut self, request: Request<Streaming<Packet>>) -> Self::Future {
            let (out, queue) = mpsc::channel(16);
            tokio::spawn(self.clone().carry(request.into_inner(), out));
            let packets = futures::stream::unfold(queue, |mut queue| async move {
                queue.recv().await.map(|packet| (packet, queue))
            });
            async move { Ok(Response::new(packets.boxed())) }.boxed()
        }
    }

    impl<B> Service<http::Request<B>> for Proxy
    where
        B: Body + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
        B::Data: Send,
    {
        type Response = http::Response<TonicBody>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<B>) -> Self::Future {
            assert_eq!(request.uri().path(), "/ProxyService/Proxy");
            let proxy = self.clone();
            Box::pin(async move {
                let mut grpc = Grpc::new(ProstCodec::<Packet, Packet>::default());
                Ok(grpc.streaming(proxy, request).await)
            })
        }
    }
}

#[tokio::test]
async fn a_pod_is_reached_through_a_konnectivity_server() {
    for reachable in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("konnectivity.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let incoming = futures::stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let asked = Asked::default();
        let backend = backend().await;
        let proxy = konnectivity::Proxy {
            backend: reachable.then_some(backend),
            asked: asked.clone(),
        };
        let server = tonic::transport::Server::builder().add_service(proxy);
        tokio::spawn(server.serve_with_incoming(incoming));
        let transport = json!({"uds": {"udsName": socket}});
        let connection = json!({"proxyProtocol": "GRPC", "transport": transport});
        let (status, page) = page(directory.path(), connection).await;
        assert_eq!(*asked.lock(), [POD]);
        if reachable {
            assert_eq!((status, page), (StatusCode::OK, json!({"served": "/page"})));
        } else {
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            let message = page["message"].as_str().unwrap();
            assert!(message.ends_with("no agent available"), "{message}");
        }
    }
}

#[tokio::test]
async fn webhooks_of_the_control_plane_have_a_selection_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("proxy.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let hook = Service::start(|_, review| {
        let status = json!({"authenticated": true, "user": {"username": "wizard"}});
        (
            200,
            json!({"apiVersion": review["apiVersion"], "kind": "TokenReview", "status": status}),
        )
    })
    .await;
    let (asked, address): (Asked, _) = (Arc::default(), hook.address);
    let log = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(http_connect(stream, Some(address), log.clone()));
        }
    });
    let transport = json!({"uds": {"udsName": socket}});
    let connection = json!({"proxyProtocol": "HTTPConnect", "transport": transport});
    let selections = json!([
        {"name": "controlplane", "connection": connection},
        {"name": "cluster", "connection": {"proxyProtocol": "Direct"}},
        {"name": "etcd", "connection": {"proxyProtocol": "Direct"}},
    ]);
    let egress = load(directory.path(), &selections).unwrap();
    let api = Api::configured(|config, _| {
        config.control_plane = egress.control_plane;
        config.authentication.webhook = Some(TokenWebhookSettings {
            kubeconfig: hook.kubeconfig(&directory),
            version: "v1",
            cache_ttl: std::time::Duration::from_secs(60),
        });
    })
    .await;
    let (status, found) = api.whoami("magic").await;
    assert_eq!(status, StatusCode::CREATED, "{found}");
    assert_eq!(found["username"], "wizard");
    assert_eq!(*asked.lock(), [address.to_string()]);
}

#[tokio::test]
async fn a_file_that_is_not_there_is_told_of() {
    let Err(error) = Egress::load(Path::new("/none/egress.yaml")) else {
        panic!("there is no such file");
    };
    assert_eq!(
        error.to_string(),
        "egress-selector-config-file /none/egress.yaml does not exist"
    );
}
