//! Tunnels by HTTP's `CONNECT`.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::dial::Connection;

/// Longest answer of a proxy, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Makes a connection to a proxy one to `address`.
///
/// # Errors
/// When the proxy does not connect.
pub(super) async fn tunnel(
    mut connection: Connection,
    proxy: &str,
    address: &str,
) -> io::Result<Connection> {
    let request = format!("CONNECT {address} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    connection.flush().await?;
    let answer = read_head(&mut connection).await.map_err(|why| {
        io::Error::other(format!(
            "reading HTTP response from CONNECT to {address} via proxy {proxy} failed: {why}"
        ))
    })?;
    let (code, reason) = status(&answer).ok_or_else(|| {
        io::Error::other(format!(
            "reading HTTP response from CONNECT to {address} via proxy {proxy} failed: malformed HTTP response"
        ))
    })?;
    if code != 200 {
        return Err(io::Error::other(format!(
            "proxy error from {proxy} while dialing {address}, code {code}: {code} {reason}"
        )));
    }
    Ok(connection)
}

/// Reads up to the empty line and no further, since what follows is the tunnel's.
async fn read_head(connection: &mut Connection) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_ANSWER {
            return Err(io::Error::other("the headers are too long"));
        }
        head.push(connection.read_u8().await?);
    }
    Ok(head)
}

fn status(head: &[u8]) -> Option<(u16, String)> {
    let line = head.split(|b| *b == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?.trim_end();
    let mut words = line.splitn(3, ' ');
    words.next().filter(|word| word.starts_with("HTTP/1."))?;
    let code = words.next()?.parse().ok()?;
    Some((code, words.next().unwrap_or_default().to_owned()))
}
