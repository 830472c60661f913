//! The store: entries in a file of one JSON string a line, each durable before it is acknowledged.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::http1::{Answer, answer, serve};

/// Flags of `fluyt sample-store`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[arg(long, default_value = "0.0.0.0:6380")]
    listen: SocketAddr,
    #[arg(long, default_value = "/data")]
    data_dir: PathBuf,
    /// Clients must send it as their bearer token.
    #[arg(long, env = "STORE_TOKEN", hide_env_values = true)]
    token: String,
}

struct Store {
    file: Mutex<File>,
    path: PathBuf,
    token: String,
}

/// Runs until shutdown.
///
/// # Errors
/// When the data directory cannot be used or the port is taken.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let store = Arc::new(Store::open(&args.data_dir, args.token).await?);
    serve(args.listen, shutdown, move |request| {
        let store = store.clone();
        async move { store.handle(request).await }
    })
    .await
}

impl Store {
    async fn open(directory: &Path, token: String) -> anyhow::Result<Self> {
        let path = directory.join("entries");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .await;
        let file = file.with_context(|| path.display().to_string())?;
        Ok(Self {
            file: Mutex::new(file),
            path,
            token,
        })
    }

    async fn handle(&self, request: Request<Bytes>) -> Answer {
        if request.uri().path() == "/healthz" {
            return answer(StatusCode::OK, "text/plain", "ok\n");
        }
        let given = request
            .headers()
            .get(http::header::AUTHORIZATION)
            .and_then(|v| v.to_str().ok());
        if given != Some(&format!("Bearer {}", self.token)) {
            return answer(StatusCode::UNAUTHORIZED, "text/plain", "unauthorized\n");
        }
        let done = match (request.method(), request.uri().path()) {
            (&Method::GET, "/entries") => self.entries().await,
            (&Method::POST, "/entries") => self.append(request.body()).await,
            _ => return answer(StatusCode::NOT_FOUND, "text/plain", "not found\n"),
        };
        match done {
            Ok(body) => answer(StatusCode::OK, "application/json", body),
            Err(error) => answer(
                StatusCode::INTERNAL_SERVER_ERROR,
                "text/plain",
                format!("{error:#}\n"),
            ),
        }
    }

    async fn entries(&self) -> anyhow::Result<String> {
        let text = tokio::fs::read_to_string(&self.path).await?;
        Ok(format!("[{}]", text.lines().collect::<Vec<_>>().join(",")))
    }

    async fn append(&self, entry: &[u8]) -> anyhow::Result<String> {
        let line = serde_json::to_string(&String::from_utf8_lossy(entry))? + "\n";
        let mut file = self.file.lock().await;
        file.write_all(line.as_bytes()).await?;
        file.sync_data().await?;
        Ok("{}".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn entries_survive_and_need_the_token() {
        let directory = tempfile::tempdir().unwrap();
        let request = |method: Method, token: &str, body: &'static str| {
            Request::builder()
                .method(method)
                .uri("/entries")
                .header("authorization", format!("Bearer {token}"))
                .body(Bytes::from_static(body.as_bytes()))
                .unwrap()
        };
        let store = Store::open(directory.path(), "t".into()).await.unwrap();
        assert_eq!(
            store
                .handle(request(Method::POST, "x", "no"))
                .await
                .status(),
            StatusCode::UNAUTHORIZED
        );
        assert_eq!(
            store
                .handle(request(Method::POST, "t", "a \"b\"\nc"))
                .await
                .status(),
            StatusCode::OK
        );
        drop(store);
        let store = Store::open(directory.path(), "t".into()).await.unwrap();
        assert_eq!(store.entries().await.unwrap(), "[\"a \\\"b\\\"\\nc\"]");
    }
}
