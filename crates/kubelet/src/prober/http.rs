//! A single HTTP GET or TCP connect, for probes and hooks: no pool, no verification of certificates, no redirects to
//! other hosts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

pub struct Request {
    pub https: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub user_agent: &'static str,
}

pub struct Answer {
    pub code: u16,
}

pub fn headers(action: &HTTPGetAction) -> Vec<(String, String)> {
    action
        .http_headers
        .iter()
        .flatten()
        .map(|header| (header.name.clone(), header.value.clone()))
        .collect()
}

pub fn address(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Connects; the error is worded as Go's.
pub async fn connect(address: &str, timeout: Duration) -> Result<TcpStream, String> {
    match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Err(format!("dial tcp {address}: connect: connection refused"))
        }
        Ok(Err(error)) => Err(format!("dial tcp {address}: {error}")),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

pub async fn get(request: &Request, timeout: Duration) -> Result<Answer, String> {
    let address = address(&request.host, request.port);
    let scheme = if request.https { "https" } else { "http" };
    let path = if request.path.starts_with('/') {
        request.path.clone()
    } else {
        format!("/{}", request.path)
    };
    let url = format!("{scheme}://{address}{path}");
    let failed = |why: String| format!("Get \"{url}\": {why}");
    let exchange = async {
        let stream = connect(&address, timeout).await?;
        if request.https {
            let name =
                ServerName::try_from(request.host.clone()).map_err(|error| error.to_string())?;
            let stream = tokio_rustls::TlsConnector::from(tls_config())
                .connect(name, stream)
                .await
                .map_err(|error| error.to_string())?;
            send(request, &path, &address, stream).await
        } else {
            send(request, &path, &address, stream).await
        }
    };
    match tokio::time::timeout(timeout, exchange).await {
        Ok(answer) => answer.map_err(failed),
        Err(_) => Err(failed(
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into(),
        )),
    }
}

async fn send(
    request: &Request,
    path: &str,
    address: &str,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<Answer, String> {
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(text)?;
    let mut builder = hyper::Request::get(path)
        .header("Accept", "*/*")
        .header("Connection", "close")
        .header("User-Agent", request.user_agent);
    let own_host = request
        .headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("host"));
    builder = builder.header("Host", own_host.map_or(address, |(_, host)| host));
    if let Some(headers) = builder.headers_mut() {
        for (name, value) in &request.headers {
            let name: http::HeaderName =
                name.parse().map_err(|_| format!("bad header {name:?}"))?;
            let value: http::HeaderValue =
                value.parse().map_err(|_| "bad header value".to_string())?;
            headers.insert(name, value);
        }
    }
    let message = builder
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    // The connection ends with the answer's head: the body of a health check is of no interest.
    let answer = async { sender.send_request(message).await };
    let (answer, connection) = futures::future::select(Box::pin(answer), Box::pin(connection))
        .await
        .factor_answer()
        .await?;
    drop(connection);
    Ok(Answer {
        code: answer.status().as_u16(),
    })
}

/// Unpicks the race between the answer and the connection that carries it.
trait FactorAnswer {
    type Answer;
    type Connection;
    async fn factor_answer(self) -> Result<(Self::Answer, Option<Self::Connection>), String>;
}

impl<A, C, T> FactorAnswer
    for futures::future::Either<(Result<T, hyper::Error>, C), (Result<(), hyper::Error>, A)>
where
    A: Future<Output = Result<T, hyper::Error>>,
{
    type Answer = T;
    type Connection = C;

    async fn factor_answer(self) -> Result<(T, Option<C>), String> {
        match self {
            futures::future::Either::Left((answer, connection)) => {
                Ok((answer.map_err(|error| error.to_string())?, Some(connection)))
            }
            // The server closed right behind its answer, which then is in already.
            futures::future::Either::Right((_, answer)) => {
                Ok((answer.await.map_err(|error| error.to_string())?, None))
            }
        }
    }
}

fn tls_config() -> Arc<rustls::ClientConfig> {
    static CONFIG: std::sync::LazyLock<Arc<rustls::ClientConfig>> =
        std::sync::LazyLock::new(|| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .expect("ring speaks TLS 1.2 and 1.3")
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
                .with_no_client_auth();
            Arc::new(config)
        });
    CONFIG.clone()
}

/// A probe asks whether the application answers, not who it is; upstream doesn't verify either.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn server(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 4096];
                let read = stream.read(&mut buffer).await.unwrap();
                let text = String::from_utf8_lossy(&buffer[..read]).to_lowercase();
                assert!(
                    text.contains("user-agent: test/1") && text.contains("x-a: b"),
                    "{text}"
                );
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        port
    }

    fn request(port: u16) -> Request {
        Request {
            https: false,
            host: "127.0.0.1".into(),
            port,
            path: "healthz".into(),
            headers: vec![("X-A".into(), "b".into())],
            user_agent: "test/1",
        }
    }

    #[tokio::test]
    async fn answers() {
        let second = Duration::from_secs(1);
        for (text, code) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200),
            ("HTTP/1.1 500 No\r\nConnection: close\r\n\r\n", 500),
            (
                "HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
                302,
            ),
        ] {
            let port = server(text).await;
            assert_eq!(get(&request(port), second).await.unwrap().code, code);
        }
        let port = server("").await;
        let error = get(&request(port), Duration::from_millis(50))
            .await
            .err()
            .unwrap();
        assert!(error.contains("context deadline exceeded"), "{error}");
        let free = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let error = get(&request(free), second).await.err().unwrap();
        assert!(error.ends_with("connect: connection refused"), "{error}");
    }
}
