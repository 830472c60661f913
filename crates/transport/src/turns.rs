//! Sending in turns.
//!
//! HTTP/2 writes the answer to each request when it is there. When many are there at once, as after a commit that they all
//! waited for, each of them is a system call, a TLS record and a packet of its own, which cost more than some requests do.
//! A connection here sends in turns: what is written in one poll of its task is kept until its next one, and other tasks
//! that are ready run in between. With nothing else to run that is at once.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What may wait to be sent, in bytes. With one more write it is still no more than what TLS takes at once, and TCP makes one
/// packet of on a fast way.
const WAITING: usize = 48 << 10;

/// A write of this size is worth sending on its own: it fills a TLS record.
const LARGE: usize = 16 << 10;

/// How many times the task of a connection was polled.
#[derive(Clone, Default)]
pub struct Turns(Arc<AtomicU64>);

impl Turns {
    /// Runs what uses the stream of these turns. Nothing else may: what is written is sent only in a later poll of this.
    pub async fn run<F: Future>(&self, connection: F) -> F::Output {
        // Boxed, since it would be in this future twice: as what is passed and as what is polled.
        let mut connection = Box::pin(connection);
        poll_fn(|context| {
            // Only the connection's own task looks at it.
            self.0.fetch_add(1, Ordering::Relaxed);
            connection.as_mut().poll(context)
        })
        .await
    }

    fn current(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A stream that sends in turns.
pub struct InTurns<S> {
    stream: S,
    turns: Turns,
    waiting: Vec<u8>,
    /// How much of that is sent.
    sent: usize,
    /// The turn in which sending was asked for.
    asked: Option<u64>,
}

/// A stream to be used by what [`Turns::run`] runs, and by nothing else.
pub fn in_turns<S>(stream: S) -> (InTurns<S>, Turns) {
    let turns = Turns::default();
    let stream = InTurns {
        stream,
        turns: turns.clone(),
        waiting: Vec::new(),
        sent: 0,
        asked: None,
    };
    (stream, turns)
}

impl<S: AsyncWrite + Unpin> InTurns<S> {
    /// Sends what is waiting.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.waiting.len() {
            let rest = &self.waiting[self.sent..];
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        spare::give_back(std::mem::take(&mut self.waiting));
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// What is waiting, with room for more.
    fn room(&mut self, length: usize) -> &mut Vec<u8> {
        if self.waiting.capacity() == 0 && length > 0 {
            self.waiting = spare::take();
        }
        self.waiting.reserve(length);
        &mut self.waiting
    }

    fn poll_room(&mut self, context: &mut Context<'_>, wanted: usize) -> Poll<io::Result<()>> {
        if self.waiting.len() >= WAITING || wanted >= LARGE {
            ready!(self.poll_send(context))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for InTurns<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for InTurns<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_room(context, bytes.len()))?;
        if bytes.len() >= LARGE {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        }
        self.room(bytes.len()).extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = parts.iter().map(|part| part.len()).sum();
        ready!(self.poll_room(context, length))?;
        if length >= LARGE {
            return Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        }
        let waiting = self.room(length);
        for part in parts {
            waiting.extend_from_slice(part);
        }
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let turn = self.turns.current();
        match self.asked {
            Some(asked) if asked != turn => {
                ready!(self.poll_send(context))?;
                self.asked = None;
                Pin::new(&mut self.stream).poll_flush(context)
            }
            Some(_) => Poll::Ready(Ok(())),
            None if self.waiting.is_empty() => Pin::new(&mut self.stream).poll_flush(context),
            None => {
                self.asked = Some(turn);
                // The task's next turn comes after those of others that are ready.
                context.waker().wake_by_ref();
                Poll::Ready(Ok(()))
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Memory of what was sent. Most connections are idle most of the time, and there may be thousands: it is kept by the
/// threads, of which there are few.
mod spare {
    use std::cell::RefCell;

    use super::{LARGE, WAITING};

    thread_local! {
        static SPARE: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
    }

    pub fn take() -> Vec<u8> {
        let spare = SPARE.with_borrow_mut(Option::take);
        spare.unwrap_or_else(|| Vec::with_capacity(LARGE))
    }

    pub fn give_back(mut bytes: Vec<u8>) {
        if bytes.capacity() < LARGE || bytes.capacity() > WAITING + LARGE {
            return;
        }
        bytes.clear();
        SPARE.set(Some(bytes));
    }
}

#[cfg(test)]
mod tests;
