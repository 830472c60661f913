//! Which protocol a client speaks, where nothing but its first bytes tells.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// What a client that speaks HTTP/2 sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream of which some bytes were read, and are read again.
pub struct Rewound<S> {
    first: Vec<u8>,
    /// How much of that is read again.
    read: usize,
    stream: S,
}

/// Whether a client speaks HTTP/2, and the stream from its beginning.
///
/// # Errors
/// When the stream breaks.
pub async fn sniff<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<(bool, Rewound<S>)> {
    let mut first = Vec::with_capacity(PREFACE.len());
    let mut is_http2 = true;
    while is_http2 && first.len() < PREFACE.len() {
        let rest = (PREFACE.len() - first.len()) as u64;
        if (&mut stream).take(rest).read_buf(&mut first).await? == 0 {
            is_http2 = false;
        }
        is_http2 &= PREFACE.starts_with(&first);
    }
    let stream = Rewound {
        first,
        read: 0,
        stream,
    };
    Ok((is_http2, stream))
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let rest = &self.first[self.read..];
        let length = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..length]);
        self.read += length;
        if self.read == self.first.len() {
            self.first = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Sends pieces one after the other, and gives back what is said of them and what is read.
    async fn sniffed(pieces: &[&[u8]]) -> (bool, Vec<u8>) {
        let (mut client, server) = tokio::io::duplex(1);
        let send = async {
            for piece in pieces {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(client);
        };
        let receive = async {
            let (is_http2, mut stream) = sniff(server).await.unwrap();
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.unwrap();
            (is_http2, read)
        };
        tokio::join!(send, receive).1
    }

    #[tokio::test]
    async fn a_preface_is_known_and_nothing_is_lost() {
        for (pieces, expected) in [
            (vec![PREFACE, b"and more"], true),
            (vec![&PREFACE[..5], &PREFACE[5..]], true),
            (vec![b"GET /health HTTP/1.1\r\n\r\n".as_slice()], false),
            (vec![b"PRI * HTTP/1.1\r\n".as_slice()], false),
            (vec![&PREFACE[..10]], false),
            (vec![b"".as_slice()], false),
        ] {
            let (is_http2, read) = sniffed(&pieces).await;
            assert_eq!(is_http2, expected, "{pieces:?}");
            assert_eq!(read, pieces.concat());
        }
    }
}
