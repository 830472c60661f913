//! Commands on their way to the writer.
//!
//! A channel wakes its receiver for whatever arrives. The writer waits for as many commands as it expects, and to be woken
//! for each of them costs more than what most of them do.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A queue of one receiver.
pub struct Queue<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    items: VecDeque<T>,
    /// How many the receiver sleeps for; 0 while it does not.
    wanted: usize,
    closed: bool,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let state = Mutex::new(State {
            items: VecDeque::new(),
            wanted: 0,
            closed: false,
        });
        Self(Arc::new(Shared {
            state,
            changed: Condvar::new(),
        }))
    }
}

impl<T> Queue<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing that is done under the lock can panic half-way.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item, unless the queue is closed: then it is given back.
    pub fn send(&self, item: T) -> Result<(), T> {
        let mut state = self.lock();
        if state.closed {
            return Err(item);
        }
        state.items.push_back(item);
        if state.wanted > 0 && state.items.len() >= state.wanted {
            state.wanted = 0;
            drop(state);
            self.0.changed.notify_one();
        }
        Ok(())
    }

    /// Nothing can be added any more.
    pub fn close(&self) {
        self.lock().closed = true;
        self.0.changed.notify_one();
    }

    /// Waits until there are `wanted` items, the queue is closed, or the time has come. Takes at most `most` of those that
    /// are there into `taken`; false when there are none and never will be.
    pub fn receive(
        &self,
        wanted: usize,
        most: usize,
        deadline: Option<Instant>,
        taken: &mut Vec<T>,
    ) -> bool {
        let mut state = self.lock();
        while state.items.len() < wanted && !state.closed {
            state.wanted = wanted;
            state = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                Some(rest) if rest.is_zero() => break,
                Some(rest) => {
                    let waited = self.0.changed.wait_timeout(state, rest);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.0.changed.wait(state);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
        state.wanted = 0;
        let count = state.items.len().min(most);
        taken.extend(state.items.drain(..count));
        count > 0 || !state.closed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon(millis: u64) -> Option<Instant> {
        Some(Instant::now() + Duration::from_millis(millis))
    }

    fn receive(queue: &Queue<u32>, wanted: usize, deadline: Option<Instant>) -> (bool, Vec<u32>) {
        let mut taken = Vec::new();
        let open = queue.receive(wanted, 10, deadline, &mut taken);
        (open, taken)
    }

    #[test]
    fn what_waits_is_taken_in_order_and_in_part() {
        let queue = Queue::default();
        for n in 0..12 {
            queue.send(n).unwrap();
        }
        assert_eq!(receive(&queue, 1, None), (true, (0..10).collect()));
        assert_eq!(receive(&queue, 0, None), (true, vec![10, 11]));
        assert_eq!(receive(&queue, 0, None), (true, vec![]));
    }

    #[test]
    fn the_receiver_is_woken_once_for_as_many_as_it_wants() {
        let queue = Queue::default();
        let receiver = queue.clone();
        let thread = std::thread::spawn(move || receive(&receiver, 3, None));
        while queue.lock().wanted == 0 {
            std::thread::yield_now();
        }
        queue.send(1).unwrap();
        queue.send(2).unwrap();
        assert_eq!(queue.lock().wanted, 3, "it sleeps on");
        queue.send(3).unwrap();
        assert_eq!(thread.join().unwrap(), (true, vec![1, 2, 3]));
    }

    #[test]
    fn fewer_are_taken_when_the_time_has_come() {
        let queue = Queue::default();
        queue.send(1).unwrap();
        assert_eq!(receive(&queue, 2, soon(5)), (true, vec![1]));
        assert_eq!(receive(&queue, 2, soon(5)), (true, vec![]));
    }

    #[test]
    fn a_closed_queue_gives_what_it_has() {
        let queue = Queue::default();
        let receiver = queue.clone();
        let thread = std::thread::spawn(move || receive(&receiver, 5, None));
        queue.send(1).unwrap();
        queue.close();
        assert_eq!(queue.send(2), Err(2));
        assert_eq!(thread.join().unwrap(), (true, vec![1]));
        assert_eq!(receive(&queue, 5, None), (false, vec![]));
    }
}
