//! The web front: shows the guest book and takes entries.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use tokio_util::sync::CancellationToken;

use crate::http1::{Answer, answer, send, serve};

/// Flags of `fluyt sample-web`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[arg(long, default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// `host:port` of the store.
    #[arg(long, env = "STORE_ADDRESS", default_value = "store:6380")]
    store: String,
    #[arg(long, env = "STORE_TOKEN", hide_env_values = true)]
    token: String,
    #[arg(long, env = "GREETING", default_value = "Welcome aboard")]
    greeting: String,
    /// Name of the replica that answers.
    #[arg(long, env = "HOSTNAME", default_value = "")]
    replica: String,
}

/// Runs until shutdown.
///
/// # Errors
/// When the port is taken.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listen = args.listen;
    let args = Arc::new(args);
    serve(listen, shutdown, move |request| {
        let args = args.clone();
        async move { args.handle(request).await }
    })
    .await
}

impl Args {
    async fn handle(&self, request: Request<Bytes>) -> Answer {
        let done = match (request.method(), request.uri().path()) {
            (_, "/healthz") => return answer(StatusCode::OK, "text/plain", "ok\n"),
            (&Method::GET, "/readyz") => self
                .entries()
                .await
                .map(|_| answer(StatusCode::OK, "text/plain", "ok\n")),
            (&Method::GET, "/") => self.page().await,
            (&Method::GET, "/entries") => self.entries().await.map(|e| {
                answer(
                    StatusCode::OK,
                    "application/json",
                    serde_json::json!(e).to_string(),
                )
            }),
            (&Method::POST, "/") => self.sign(request.body()).await,
            _ => return answer(StatusCode::NOT_FOUND, "text/plain", "not found\n"),
        };
        done.unwrap_or_else(|error| {
            answer(
                StatusCode::BAD_GATEWAY,
                "text/plain",
                format!("{error:#}\n"),
            )
        })
    }

    fn to_store(&self, method: Method, body: Bytes) -> anyhow::Result<Request<Full<Bytes>>> {
        Ok(Request::builder()
            .method(method)
            .uri("/entries")
            .header(header::HOST, &self.store)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .body(Full::new(body))?)
    }

    async fn entries(&self) -> anyhow::Result<Vec<String>> {
        let (status, body) = send(&self.store, self.to_store(Method::GET, Bytes::new())?).await?;
        anyhow::ensure!(status.is_success(), "the store answers {status}");
        Ok(serde_json::from_slice(&body)?)
    }

    async fn page(&self) -> anyhow::Result<Answer> {
        let entries = self.entries().await?;
        let list: String = entries
            .iter()
            .map(|e| format!("<li>{}</li>", escape(e)))
            .collect();
        let page = format!(
            "<!doctype html><title>Guest book</title><h1>{}</h1><ul>{list}</ul>\
             <form method=post><input name=entry autofocus><button>Sign</button></form>\
             <p><small>{} entries, served by {}</small>\n",
            escape(&self.greeting),
            entries.len(),
            escape(&self.replica)
        );
        Ok(answer(StatusCode::OK, "text/html; charset=utf-8", page))
    }

    async fn sign(&self, body: &[u8]) -> anyhow::Result<Answer> {
        let text = String::from_utf8_lossy(body);
        let entry = text
            .strip_prefix("entry=")
            .map_or_else(|| text.clone().into_owned(), decode);
        if entry.trim().is_empty() {
            return Ok(answer(
                StatusCode::BAD_REQUEST,
                "text/plain",
                "an entry must not be empty\n",
            ));
        }
        let (status, _) = send(&self.store, self.to_store(Method::POST, entry.into())?).await?;
        anyhow::ensure!(status.is_success(), "the store answers {status}");
        let mut response = answer(StatusCode::SEE_OTHER, "text/plain", "");
        response
            .headers_mut()
            .insert(header::LOCATION, header::HeaderValue::from_static("/"));
        Ok(response)
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Decodes a form value.
fn decode(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                let hex = std::str::from_utf8(&hex)
                    .ok()
                    .and_then(|h| u8::from_str_radix(h, 16).ok());
                bytes.push(hex.unwrap_or(b'?'));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_values() {
        assert_eq!(decode("a+b%20%26%C3%A9"), "a b &é");
        assert_eq!(escape("<b>"), "&lt;b&gt;");
    }
}
