use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Mutex;
use std::task::{Wake, Waker};

use proptest::prelude::*;
use tokio::io::AsyncWriteExt as _;

use super::*;

/// What was sent, a piece for each write; takes no more than it is said to.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Ends>>);

#[derive(Default)]
struct Ends {
    sent: Vec<Vec<u8>>,
    /// How much each next write takes; 0 is not ready. All of it once there are none.
    takes: VecDeque<usize>,
    flushed: usize,
    shut: bool,
}

impl Wire {
    fn sent(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().sent.clone()
    }

    fn takes(&self, takes: impl IntoIterator<Item = usize>) {
        self.0.lock().unwrap().takes = takes.into_iter().collect();
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut ends = self.0.lock().unwrap();
        let takes = ends.takes.pop_front().unwrap_or(usize::MAX);
        if takes == 0 {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let taken = &bytes[..bytes.len().min(takes)];
        ends.sent.push(taken.to_vec());
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().unwrap().flushed += 1;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().unwrap().shut = true;
        Poll::Ready(Ok(()))
    }
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicU64);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection that is polled by hand: in each turn it writes what there is, and flushes after each piece, as HTTP/2 does.
struct Connection {
    stream: InTurns<Wire>,
    turns: Turns,
    wire: Wire,
    woken: Arc<Woken>,
}

impl Connection {
    fn new() -> Self {
        let wire = Wire::default();
        let (stream, turns) = in_turns(wire.clone());
        Self {
            stream,
            turns,
            wire,
            woken: Arc::default(),
        }
    }

    fn turn(&mut self, pieces: &[&[u8]]) -> u64 {
        let before = self.woken.0.load(Ordering::Relaxed);
        let waker = Waker::from(self.woken.clone());
        let mut context = Context::from_waker(&waker);
        let stream = &mut self.stream;
        let mut step = |context: &mut Context<'_>| {
            for piece in pieces {
                let written = Pin::new(&mut *stream).poll_write(context, piece);
                assert!(matches!(written, Poll::Ready(Ok(n)) if n == piece.len()));
                let _ = Pin::new(&mut *stream).poll_flush(context);
            }
            let _ = Pin::new(&mut *stream).poll_flush(context);
            Poll::<()>::Pending
        };
        let turn = self.turns.run(poll_fn(&mut step));
        assert!(pin!(turn).poll(&mut context).is_pending());
        self.woken.0.load(Ordering::Relaxed) - before
    }
}

#[test]
fn what_is_written_in_a_turn_is_sent_together_in_the_next() {
    let mut connection = Connection::new();
    assert_eq!(
        connection.turn(&[b"one ", b"two "]),
        1,
        "another turn is asked for"
    );
    assert!(connection.wire.sent().is_empty());
    // What was written before the first flush of this turn would go as well; what comes after it waits.
    assert_eq!(connection.turn(&[b"three "]), 0);
    assert_eq!(connection.wire.sent(), [b"one two three ".to_vec()]);
    assert_eq!(connection.turn(&[]), 0, "there is nothing to send");
    assert_eq!(connection.wire.sent().len(), 1);
}

#[test]
fn what_the_stream_does_not_take_goes_later() {
    let mut connection = Connection::new();
    connection.wire.takes([2, 0, 3]);
    connection.turn(&[b"abcdef"]);
    connection.turn(&[]);
    assert_eq!(connection.wire.sent(), [b"ab".to_vec()]);
    connection.turn(&[]);
    assert_eq!(connection.wire.sent().concat(), b"abcdef");
}

#[test]
fn large_writes_go_at_once_and_in_order() {
    let mut connection = Connection::new();
    let large = vec![b'l'; LARGE];
    connection.turn(&[b"small", &large]);
    assert_eq!(connection.wire.sent(), [b"small".to_vec(), large]);
}

#[test]
fn no_more_waits_than_may() {
    let mut connection = Connection::new();
    let piece = vec![b'p'; LARGE - 1];
    let pieces = vec![piece.as_slice(); 10];
    connection.turn(&pieces);
    let sent = connection.wire.sent().concat().len();
    assert!(sent + WAITING + LARGE >= 10 * piece.len(), "{sent}");
}

#[tokio::test]
async fn what_waits_is_sent_before_the_end() {
    let (mut stream, turns) = in_turns(Wire::default());
    turns
        .run(async {
            stream.write_all(b"last words").await.unwrap();
            stream.shutdown().await.unwrap();
        })
        .await;
    let ends = stream.stream.0.lock().unwrap();
    assert_eq!(ends.sent, [b"last words".to_vec()]);
    assert!(ends.shut);
}

/// On one thread, so that tasks run in the order in which they became ready.
#[tokio::test(flavor = "current_thread")]
async fn other_tasks_add_to_a_turn() {
    let wire = Wire::default();
    let (mut stream, turns) = in_turns(wire.clone());
    let (sender, mut pieces) = tokio::sync::mpsc::unbounded_channel::<Vec<u8>>();
    let connection = tokio::spawn(async move {
        let write = poll_fn(move |context| {
            while let Poll::Ready(piece) = pieces.poll_recv(context) {
                let Some(piece) = piece else {
                    return Poll::Ready(());
                };
                assert!(Pin::new(&mut stream).poll_write(context, &piece).is_ready());
            }
            let _ = Pin::new(&mut stream).poll_flush(context);
            Poll::Pending
        });
        turns.run(write).await;
    });
    tokio::task::yield_now().await;
    // The connection is ready first; each of the others is only when it has had its turn.
    sender.send(vec![0]).unwrap();
    for n in 1..5 {
        let sender = sender.clone();
        tokio::spawn(async move { sender.send(vec![n]).unwrap() });
    }
    while wire.sent().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(wire.sent(), [vec![0, 1, 2, 3, 4]]);
    drop(sender);
    connection.await.unwrap();
}

proptest! {
    #[test]
    fn nothing_is_lost_doubled_or_reordered(
        turns in prop::collection::vec(prop::collection::vec(0..40_000_usize, 0..6), 1..8),
        takes in prop::collection::vec(0..30_000_usize, 0..30),
    ) {
        let (mut stream, own) = in_turns(Wire::default());
        stream.stream.takes(takes);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut expected = Vec::new();
        runtime.block_on(own.run(async {
            let mut next = 0_u8;
            for pieces in turns {
                for length in pieces {
                    next = next.wrapping_add(1);
                    let piece = vec![next; length];
                    expected.extend_from_slice(&piece);
                    stream.write_all(&piece).await.unwrap();
                    stream.flush().await.unwrap();
                }
                tokio::task::yield_now().await;
            }
            stream.shutdown().await.unwrap();
        }));
        let ends = stream.stream.0.lock().unwrap();
        prop_assert!(ends.sent.concat() == expected);
    }
}
