//! When those who are turned away should come again: later, the more of them there are.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

/// Seconds, at most.
const MAX: i64 = 32;

/// What levels have turned away lately.
#[derive(Default)]
pub(super) struct RetryAfter(Mutex<HashMap<String, Stats>>);

struct Stats {
    /// Seconds and how many were turned away in them, before the present one.
    history: VecDeque<(i64, i64)>,
    second: i64,
    count: i64,
    seconds: i64,
    raised: i64,
}

impl RetryAfter {
    /// Notes one more, and tells when to come again.
    pub(super) fn note(&self, level: &str) -> u32 {
        let now = jiff::Timestamp::now().as_second();
        let mut levels = self.0.lock();
        let stats = levels.entry(level.to_owned()).or_insert_with(|| Stats {
            history: VecDeque::new(),
            second: now,
            count: 0,
            seconds: 1,
            raised: 0,
        });
        stats.note(now);
        u32::try_from(stats.seconds).unwrap_or(1)
    }
}

impl Stats {
    fn note(&mut self, now: i64) {
        if now == self.second {
            self.count += 1;
            return;
        }
        self.history.push_back((self.second, self.count));
        let kept = (2 * self.seconds).min(MAX);
        while self
            .history
            .front()
            .is_some_and(|(at, _)| self.second - at > kept)
        {
            self.history.pop_front();
        }
        (self.second, self.count) = (now, 1);
        let recent = self
            .history
            .iter()
            .filter(|(at, _)| now - at <= self.seconds);
        let dropped: i64 = recent.map(|(_, count)| count).sum();
        if now - self.raised >= self.seconds && dropped >= 3 * self.seconds {
            self.seconds = (self.seconds * 2).min(MAX);
            self.raised = now;
        } else if dropped < self.seconds && self.seconds > 1 {
            self.seconds -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crowds_are_sent_away_for_longer() {
        let mut stats = Stats {
            history: VecDeque::new(),
            second: 0,
            count: 0,
            seconds: 1,
            raised: 0,
        };
        for second in 1..60 {
            for _ in 0..200 {
                stats.note(second);
            }
        }
        assert_eq!(stats.seconds, MAX);
        for second in (100..2000).step_by(40) {
            stats.note(second);
        }
        assert_eq!(stats.seconds, 1);
    }
}
