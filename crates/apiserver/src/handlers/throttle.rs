//! Connections that carry no more than so many bytes a second, or as many as they can when that is 0.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;

/// Read at a time, unless the rate is so low that it would take longer than a tenth of a second.
const BUFFER: u64 = 16 << 10;

/// Copies in both directions until both have ended, each with `rate` bytes a second.
pub(super) async fn copy_bidirectional<A, B>(mut a: A, mut b: B, rate: u64) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    if rate == 0 {
        return tokio::io::copy_bidirectional(&mut a, &mut b)
            .await
            .map(drop);
    }
    let (from_a, to_a) = tokio::io::split(a);
    let (from_b, to_b) = tokio::io::split(b);
    tokio::try_join!(copy(from_a, to_b, rate), copy(from_b, to_a, rate))?;
    Ok(())
}

/// Copies until the end, which it passes on.
pub(super) async fn copy<R, W>(mut from: R, mut to: W, rate: u64) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    if rate == 0 {
        tokio::io::copy(&mut from, &mut to).await?;
        return to.shutdown().await;
    }
    let size = (rate / 10).clamp(1, BUFFER);
    let mut buffer = vec![0; usize::try_from(size).unwrap_or(1)];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        let next = Instant::now() + time_of(read, rate);
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        tokio::time::sleep_until(next).await;
    }
}

/// How long so many bytes take.
#[expect(clippy::cast_precision_loss, reason = "it need not be exact")]
fn time_of(bytes: usize, rate: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_take_their_time() {
        let (mut client, near) = tokio::io::duplex(1 << 20);
        let (far, mut server) = tokio::io::duplex(1 << 20);
        let started = Instant::now();
        let copying = tokio::spawn(copy_bidirectional(near, far, 1000));
        client.write_all(&[7; 5000]).await.unwrap();
        let mut received = vec![0; 5000];
        server.read_exact(&mut received).await.unwrap();
        // The other direction has a rate of its own.
        server.write_all(b"done").await.unwrap();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"done");
        let took = started.elapsed().as_secs_f64();
        assert!((4.8..5.2).contains(&took), "{took}");
        drop((client, server));
        copying.await.unwrap().unwrap();
    }
}
