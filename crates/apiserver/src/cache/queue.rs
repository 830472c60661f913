//! What a watcher has still to be told.
//!
//! Changes come in groups, as the store commits them, and may have many watchers. So a change costs the feed no more than
//! to note it down, and a group costs the watcher one wake-up and one lock.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::{Change, WatchEvent};

/// A change as one watcher sees it.
pub type Told = (Change, Arc<WatchEvent>);

/// A queue up to this size keeps its memory: most watchers have nothing to be told most of the time.
const KEPT: usize = 32;

#[derive(Default)]
struct State {
    waiting: VecDeque<Told>,
    /// Nothing will be added any more.
    ended: bool,
    waker: Option<Waker>,
}

/// The end that is written to. The queue ends with it.
pub(super) struct Sender {
    state: Arc<Mutex<State>>,
    most: usize,
}

/// The end that is read. What was there when the queue ended is still to be read.
pub struct Events {
    state: Arc<Mutex<State>>,
    taken: VecDeque<Told>,
}

/// Why there is nothing to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nothing {
    Yet,
    AnyMore,
}

/// A queue that has some changes, and may have `most` waiting.
pub(super) fn queue(waiting: VecDeque<Told>, most: usize) -> (Sender, Events) {
    let state = Arc::new(Mutex::new(State {
        waiting,
        ..State::default()
    }));
    let events = Events {
        state: state.clone(),
        taken: VecDeque::new(),
    };
    (Sender { state, most }, events)
}

// === impl Sender ===

impl Sender {
    /// Adds a change, unless too many are waiting.
    pub fn send(&self, told: Told) -> bool {
        let mut state = self.state.lock();
        if state.waiting.len() >= self.most {
            return false;
        }
        state.waiting.push_back(told);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        state.ended = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

// === impl Events ===

impl Events {
    /// The next change, if it is there.
    ///
    /// # Errors
    /// When there is none.
    pub fn try_recv(&mut self) -> Result<Told, Nothing> {
        if let Some(told) = self.taken.pop_front() {
            return Ok(told);
        }
        self.take(None)
    }

    /// The next change; none when there will be no more.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Told>> {
        if let Some(told) = self.taken.pop_front() {
            return Poll::Ready(Some(told));
        }
        match self.take(Some(context.waker())) {
            Ok(told) => Poll::Ready(Some(told)),
            Err(Nothing::Yet) => Poll::Pending,
            Err(Nothing::AnyMore) => Poll::Ready(None),
        }
    }

    /// The next change; none when there will be no more.
    pub async fn recv(&mut self) -> Option<Told> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    /// Takes all that is waiting, and gives the first. When there is nothing yet, `waker` hears of what comes.
    fn take(&mut self, waker: Option<&Waker>) -> Result<Told, Nothing> {
        if self.taken.capacity() > KEPT {
            self.taken = VecDeque::new();
        }
        let mut state = self.state.lock();
        std::mem::swap(&mut self.taken, &mut state.waiting);
        match self.taken.pop_front() {
            Some(told) => Ok(told),
            None if state.ended => Err(Nothing::AnyMore),
            None => {
                if let Some(waker) = waker {
                    state.waker = Some(waker.clone());
                }
                Err(Nothing::Yet)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use fluyt_api::resources;
    use futures::task::noop_waker_ref;
    use serde_json::json;

    use super::super::Entry;
    use super::*;

    fn told(revision: i64) -> Told {
        let pods = resources::find("", "v1", "pods").unwrap();
        let object = json!({"metadata": {"name": "a", "namespace": "d"}});
        let event = WatchEvent {
            revision,
            entry: Arc::new(Entry::new(pods, "d/a", revision, Change::Added, &object)),
            previous: None,
        };
        (Change::Added, Arc::new(event))
    }

    fn revision(next: Result<Told, Nothing>) -> Result<i64, Nothing> {
        next.map(|(_, event)| event.revision)
    }

    #[test]
    fn changes_come_in_order_and_to_the_end() {
        let (sender, mut events) = queue(VecDeque::from([told(1)]), 3);
        assert!(sender.send(told(2)));
        assert_eq!(revision(events.try_recv()), Ok(1));
        assert!(sender.send(told(3)));
        assert_eq!(revision(events.try_recv()), Ok(2));
        drop(sender);
        assert_eq!(revision(events.try_recv()), Ok(3));
        assert_eq!(revision(events.try_recv()), Err(Nothing::AnyMore));
    }

    #[test]
    fn no_more_than_that_may_wait() {
        let (sender, mut events) = queue(VecDeque::new(), 2);
        assert_eq!(revision(events.try_recv()), Err(Nothing::Yet));
        assert!(sender.send(told(1)) && sender.send(told(2)));
        assert!(!sender.send(told(3)));
        assert_eq!(revision(events.try_recv()), Ok(1));
        assert!(sender.send(told(4)));
    }

    #[tokio::test]
    async fn who_waits_hears_of_what_comes_and_of_the_end() {
        let (sender, mut events) = queue(VecDeque::new(), 2);
        let reading = tokio::spawn(async move {
            let first = events.recv().await.map(|(_, event)| event.revision);
            (first, events.recv().await.is_none())
        });
        tokio::task::yield_now().await;
        assert!(sender.send(told(7)));
        tokio::task::yield_now().await;
        drop(sender);
        assert_eq!(reading.await.unwrap(), (Some(7), true));
    }

    #[test]
    fn memory_of_a_burst_is_not_kept() {
        let (sender, mut events) = queue(VecDeque::new(), 1000);
        for round in 0..3 {
            for n in 0..1000 {
                assert!(sender.send(told(n)));
            }
            let mut context = Context::from_waker(noop_waker_ref());
            while events.poll_recv(&mut context).is_ready() {}
            let waiting = events.state.lock().waiting.capacity();
            assert!(
                waiting <= KEPT && events.taken.capacity() <= KEPT,
                "{round}"
            );
        }
    }
}
