//! A queue of keys with client-go's guarantees: a key is queued once however often it is added, is given to
//! one worker at a time, and comes back if it was added while a worker had it.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

/// First and largest delay of [`WorkQueue::add_rate_limited`].
const BASE_DELAY: Duration = Duration::from_millis(5);
const MAX_DELAY: Duration = Duration::from_secs(1000);

/// A de-duplicating queue with delays; cheap to clone, all clones are one queue.
pub struct WorkQueue<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

struct State<T> {
    ready: VecDeque<T>,
    /// Waiting to be processed: in `ready`, or in `processing` and to be queued again.
    dirty: HashSet<T>,
    processing: HashSet<T>,
    /// When each delayed key is due; the heap may hold superseded entries.
    due: HashMap<T, Instant>,
    timers: BinaryHeap<Reverse<(Instant, u64)>>,
    timer_keys: HashMap<u64, T>,
    next_timer: u64,
    failures: HashMap<T, u32>,
    closed: bool,
}

impl<T: Eq + Hash + Clone> WorkQueue<T> {
    pub fn new() -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            processing: HashSet::new(),
            due: HashMap::new(),
            timers: BinaryHeap::new(),
            timer_keys: HashMap::new(),
            next_timer: 0,
            failures: HashMap::new(),
            closed: false,
        };
        let shared = Shared {
            state: Mutex::new(state),
            wake: Notify::new(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Queue `key` now, unless it is queued already.
    pub fn add(&self, key: T) {
        self.shared.state.lock().add(key);
        self.shared.wake.notify_one();
    }

    /// Queue `key` after `delay`; of several delays of one key the shortest counts.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.shared.state.lock().add_at(key, Instant::now() + delay);
        // A waiting worker must learn about the earlier deadline.
        self.shared.wake.notify_one();
    }

    /// Queue `key` after a delay that doubles with every call until [`forget`](Self::forget).
    pub fn add_rate_limited(&self, key: T) {
        let failures = {
            let mut state = self.shared.state.lock();
            let count = state.failures.entry(key.clone()).or_insert(0);
            *count += 1;
            *count - 1
        };
        let delay = BASE_DELAY
            .saturating_mul(2u32.saturating_pow(failures))
            .min(MAX_DELAY);
        self.add_after(key, delay);
    }

    /// Reset the backoff of `key`.
    pub fn forget(&self, key: &T) {
        self.shared.state.lock().failures.remove(key);
    }

    /// How often `key` was added rate-limited since it was last forgotten.
    pub fn num_requeues(&self, key: &T) -> u32 {
        self.shared
            .state
            .lock()
            .failures
            .get(key)
            .copied()
            .unwrap_or(0)
    }

    /// The next key; call [`done`](Self::done) with it afterwards. `None` once the queue is shut down.
    pub async fn get(&self) -> Option<T> {
        loop {
            let woken = self.shared.wake.notified();
            let next_due = {
                let mut state = self.shared.state.lock();
                if state.closed {
                    // Pass the news on to the next waiting worker.
                    self.shared.wake.notify_one();
                    return None;
                }
                let next_due = state.promote_due(Instant::now());
                if let Some(key) = state.take() {
                    if !state.ready.is_empty() {
                        self.shared.wake.notify_one();
                    }
                    return Some(key);
                }
                next_due
            };
            match next_due {
                None => woken.await,
                Some(due) => {
                    tokio::select! {
                        () = woken => {}
                        () = tokio::time::sleep_until(due) => {}
                    }
                }
            }
        }
    }

    /// The worker that got `key` has finished with it.
    pub fn done(&self, key: &T) {
        let mut state = self.shared.state.lock();
        state.processing.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            self.shared.wake.notify_one();
        }
    }

    /// Make every `get` return `None`.
    pub fn shut_down(&self) {
        self.shared.state.lock().closed = true;
        self.shared.wake.notify_waiters();
        self.shared.wake.notify_one();
    }

    /// Keys that wait for a worker, without the delayed ones.
    pub fn len(&self) -> usize {
        self.shared.state.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Eq + Hash + Clone> Default for WorkQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Clone for WorkQueue<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

// === impl State ===

impl<T: Eq + Hash + Clone> State<T> {
    fn add(&mut self, key: T) {
        if self.closed || !self.dirty.insert(key.clone()) {
            return;
        }
        if !self.processing.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn add_at(&mut self, key: T, at: Instant) {
        if self.closed || self.due.get(&key).is_some_and(|due| *due <= at) {
            return;
        }
        let id = self.next_timer;
        self.next_timer += 1;
        self.due.insert(key.clone(), at);
        self.timer_keys.insert(id, key);
        self.timers.push(Reverse((at, id)));
    }

    /// Move keys whose delay is over to `ready`; says when the next one is due.
    fn promote_due(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Reverse((at, id))) = self.timers.peek().copied() {
            let current = self.timer_keys.get(&id).and_then(|key| self.due.get(key)) == Some(&at);
            if current && at > now {
                return Some(at);
            }
            self.timers.pop();
            if let Some(key) = self.timer_keys.remove(&id)
                && current
            {
                self.due.remove(&key);
                self.add(key);
            }
        }
        None
    }

    fn take(&mut self) -> Option<T> {
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.processing.insert(key.clone());
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_queued_once() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.get().await, Some("a"));
        assert_eq!(queue.get().await, Some("b"));
    }

    #[tokio::test]
    async fn a_key_added_while_processed_comes_back_after_done() {
        let queue = WorkQueue::new();
        queue.add("a");
        let key = queue.get().await.unwrap();
        queue.add("a");
        assert_eq!(queue.len(), 0, "one worker per key");
        queue.done(&key);
        assert_eq!(queue.get().await, Some("a"));
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_shortest_delay_counts() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(9));
        queue.add_after("a", Duration::from_secs(3));
        queue.add_after("a", Duration::from_secs(5));
        assert_eq!(queue.get().await, Some("a"));
        assert_eq!(start.elapsed().as_secs(), 3);
        queue.done(&"a");
        let more = tokio::time::timeout(Duration::from_secs(60), queue.get()).await;
        assert!(more.is_err(), "superseded delays must not fire");
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_worker_notices_an_earlier_deadline() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        queue.add_after("late", Duration::from_secs(100));
        let worker = tokio::spawn({
            let queue = queue.clone();
            async move { queue.get().await }
        });
        tokio::task::yield_now().await;
        queue.add_after("early", Duration::from_secs(1));
        assert_eq!(worker.await.unwrap(), Some("early"));
        assert_eq!(start.elapsed().as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_and_forget_resets() {
        let queue = WorkQueue::new();
        let mut waited = Vec::new();
        for _ in 0..3 {
            let start = Instant::now();
            queue.add_rate_limited("a");
            let key = queue.get().await.unwrap();
            waited.push(start.elapsed().as_millis());
            queue.done(&key);
        }
        assert_eq!(waited, [5, 10, 20]);
        assert_eq!(queue.num_requeues(&"a"), 3);
        queue.forget(&"a");
        assert_eq!(queue.num_requeues(&"a"), 0);
        for _ in 0..40 {
            queue.add_rate_limited("b");
        }
        assert_eq!(queue.num_requeues(&"b"), 40);
    }

    #[tokio::test]
    async fn shut_down_ends_all_workers() {
        let queue = WorkQueue::<u8>::new();
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.get().await })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.shut_down();
        for worker in workers {
            assert_eq!(worker.await.unwrap(), None);
        }
    }
}
