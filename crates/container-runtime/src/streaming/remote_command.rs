//! Exec and attach over channels: stdin, stdout, stderr, error and resize.
//!
//! See upstream's `k8s.io/apimachinery/pkg/util/remotecommand` for the protocols' versions: from v3 there is a resize
//! channel, from v4 the error channel carries a `Status`, v5 can close a channel over WebSocket.

use std::sync::Arc;
use std::time::Duration;

use fluyt_transport::spdy;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::{Grant, Wanted};
use crate::runtime::{Error, ExecStreams, Runtime, TerminalSize};

/// The protocols of SPDY connections, best first.
pub const PROTOCOLS: [&str; 4] = [
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];

/// How long a client may take to open its streams.
const OPENING: Duration = Duration::from_secs(30);

/// Runs what was granted with the client's streams; the answer is for the error channel.
pub async fn run(
    grant: Grant,
    streams: ExecStreams,
    runtime: &Arc<Runtime>,
) -> std::result::Result<i32, Error> {
    match grant {
        Grant::Exec {
            container,
            command,
            streams: wanted,
        } => runtime.exec(&container, command, wanted.tty, streams).await,
        Grant::Attach { container, .. } => runtime.attach(&container, streams).await.map(|()| 0),
        Grant::PortForward { .. } => Err(Error::InvalidArgument(
            "a port forward has no command".to_owned(),
        )),
    }
}

/// What goes over the error channel at the end.
pub fn status(result: &std::result::Result<i32, Error>, as_status: bool) -> Vec<u8> {
    if !as_status {
        return match result {
            Ok(0) => Vec::new(),
            Ok(code) => {
                format!("command terminated with non-zero exit code: exit code {code}").into_bytes()
            }
            Err(error) => error.to_string().into_bytes(),
        };
    }
    let status = match result {
        Ok(0) => json!({ "metadata": {}, "status": "Success" }),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit code {code}"),
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Err(error) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("Internal error occurred: error executing command in container: {error}"),
            "reason": "InternalError",
            "details": { "causes": [{ "message": format!("error executing command in container: {error}") }] },
            "code": 500,
        }),
    };
    status.to_string().into_bytes()
}

/// A terminal size as clients send it: `{"Width":80,"Height":24}`.
pub fn parse_size(text: &[u8]) -> Option<TerminalSize> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Size {
        width: u16,
        height: u16,
    }
    let size: Size = serde_json::from_slice(text).ok()?;
    Some(TerminalSize {
        columns: size.width,
        rows: size.height,
    })
}

/// Serves a SPDY connection, on which the client opens a stream per channel.
pub async fn over_spdy(
    mut connection: spdy::Connection,
    grant: Grant,
    protocol: Option<&str>,
    runtime: &Arc<Runtime>,
) {
    let wanted = match &grant {
        Grant::Exec { streams, .. } | Grant::Attach { streams, .. } => *streams,
        Grant::PortForward { .. } => return,
    };
    let has_resize = matches!(protocol, Some("v4.channel.k8s.io" | "v3.channel.k8s.io"));
    let opened = tokio::time::timeout(OPENING, open(&mut connection, wanted, has_resize)).await;
    let Ok(Some((streams, mut error))) = opened else {
        tracing::debug!("the client did not open its streams");
        return;
    };
    let result = tokio::select! {
        result = run(grant, streams, runtime) => result,
        // A client that goes takes its process's streams along.
        () = drain(&mut connection) => return,
    };
    let status = status(&result, protocol == Some("v4.channel.k8s.io"));
    let _ = error.write_all(&status).await;
    let _ = error.shutdown().await;
    connection.close().await;
}

async fn drain(connection: &mut spdy::Connection) {
    while connection.accept().await.is_some() {}
}

async fn open(
    connection: &mut spdy::Connection,
    wanted: Wanted,
    has_resize: bool,
) -> Option<(ExecStreams, spdy::Stream)> {
    let (resize_sender, resize) = mpsc::channel(4);
    let mut streams = ExecStreams {
        stdin: None,
        stdout: None,
        stderr: None,
        resize,
    };
    let mut error = None;
    let mut missing = 1
        + usize::from(wanted.stdin)
        + usize::from(wanted.stdout)
        + usize::from(wanted.stderr && !wanted.tty)
        + usize::from(wanted.tty && has_resize);
    let mut resize_sender = Some(resize_sender);
    while missing > 0 {
        let stream = connection.accept().await?;
        match stream.header("streamtype") {
            Some("error") => error = Some(stream),
            Some("stdin") => {
                streams.stdin = Some(Box::new(stream) as Box<dyn AsyncRead + Send + Unpin>)
            }
            Some("stdout") => {
                streams.stdout = Some(Box::new(stream) as Box<dyn AsyncWrite + Send + Unpin>)
            }
            Some("stderr") => streams.stderr = Some(Box::new(stream)),
            Some("resize") => {
                if let Some(sender) = resize_sender.take() {
                    tokio::spawn(read_sizes(stream, sender));
                }
            }
            _ => continue,
        }
        missing -= 1;
    }
    Some((streams, error?))
}

/// The resize stream is JSON values one after the other.
async fn read_sizes(mut stream: spdy::Stream, sizes: mpsc::Sender<TerminalSize>) {
    let mut text = Vec::new();
    let mut chunk = [0; 512];
    while let Ok(length) = stream.read(&mut chunk).await {
        if length == 0 || text.len() > 4096 {
            return;
        }
        text.extend_from_slice(&chunk[..length]);
        while let Some(end) = text.iter().position(|byte| *byte == b'}') {
            let value: Vec<u8> = text.drain(..=end).collect();
            if let Some(size) = parse_size(&value)
                && sizes.send(size).await.is_err()
            {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_told_as_clients_parse_it() {
        let status: serde_json::Value = serde_json::from_slice(&status(&Ok(3), true)).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(status["details"]["causes"][0]["message"], "3");
    }

    #[test]
    fn sizes_are_parsed() {
        assert_eq!(
            parse_size(br#"{"Width":80,"Height":24}"#),
            Some(TerminalSize {
                columns: 80,
                rows: 24
            })
        );
    }
}
