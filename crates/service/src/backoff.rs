//! How long to wait before starting again what has ended.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(30);

/// What ran this long is healthy: its end is news.
const HEALTHY: Duration = Duration::from_secs(10);

/// Doubles the wait with every early end.
pub struct Restarts {
    next: Duration,
    started: Instant,
}

// === impl Restarts ===

impl Default for Restarts {
    fn default() -> Self {
        Self {
            next: Duration::ZERO,
            started: Instant::now(),
        }
    }
}

impl Restarts {
    /// To be called at each start.
    pub fn started(&mut self) {
        self.started = Instant::now();
    }

    /// To be called at each end: the wait before the next start. What ran healthily starts again at once.
    pub fn delay(&mut self) -> Duration {
        if self.started.elapsed() >= HEALTHY {
            self.next = Duration::ZERO;
        }
        let delay = self.next;
        self.next = (self.next * 2).clamp(FIRST, LONGEST);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_ends_wait_longer_and_longer() {
        let mut restarts = Restarts::default();
        restarts.started();
        let delays: Vec<u128> = (0..4).map(|_| restarts.delay().as_millis()).collect();
        assert_eq!(delays, [0, 50, 100, 200]);
        for _ in 0..20 {
            restarts.delay();
        }
        assert_eq!(restarts.delay(), LONGEST);
    }
}
