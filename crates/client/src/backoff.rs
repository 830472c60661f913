//! Exponential backoff with jitter.

use std::time::Duration;

/// Delays that double from `start` to `cap`, each lengthened by up to `jitter` of itself.
#[derive(Debug, Clone)]
pub struct Backoff {
    start: Duration,
    cap: Duration,
    jitter: f64,
    next: Duration,
}

impl Backoff {
    /// `jitter` is a fraction: 0.5 lengthens every delay by 0 to 50 %.
    pub fn new(start: Duration, cap: Duration, jitter: f64) -> Self {
        Self {
            start,
            cap,
            jitter,
            next: start,
        }
    }

    /// For requests that a server refuses or drops: quick at first, because a master in the same process
    /// is up within milliseconds; 30 s at most, as client-go's reflector.
    pub fn for_requests() -> Self {
        Self::new(Duration::from_millis(50), Duration::from_secs(30), 0.5)
    }

    /// The delay to wait now.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (self.next * 2).min(self.cap);
        delay.mul_f64(1.0 + self.jitter * rand::random::<f64>())
    }

    /// Start over after a success.
    pub fn reset(&mut self) {
        self.next = self.start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_cap_and_resets() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(35), 0.0);
        let delays: Vec<u64> = (0..4)
            .map(|_| backoff.next_delay().as_millis() as u64)
            .collect();
        assert_eq!(delays, [10, 20, 35, 35]);
        backoff.reset();
        assert_eq!(backoff.next_delay(), Duration::from_millis(10));
    }

    #[test]
    fn jitter_only_lengthens() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(1), 0.5);
        for _ in 0..100 {
            let delay = backoff.next_delay();
            assert!(delay >= Duration::from_secs(1) && delay <= Duration::from_millis(1500));
        }
    }
}
