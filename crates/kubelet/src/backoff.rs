//! Exponential backoff per key, forgotten after twice its longest delay: how long a crashed container or a failed
//! pull waits for the next try.

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

pub struct Backoff {
    initial: Duration,
    max: Duration,
    entries: Mutex<HashMap<String, Entry>>,
}

#[derive(Clone, Copy)]
struct Entry {
    delay: Duration,
    updated: Timestamp,
}

impl Backoff {
    pub fn new(initial: Duration, max: Duration) -> Self {
        Backoff {
            initial,
            max,
            entries: Mutex::default(),
        }
    }

    /// How much longer to wait at `now` for a try after the failure at `failed_at`; `None` when it may go ahead.
    pub fn remaining(&self, key: &str, failed_at: Timestamp, now: Timestamp) -> Option<Wait> {
        let entry = self.entries.lock().get(key).copied()?;
        if self.expired(&entry, failed_at) {
            return None;
        }
        let since = Duration::try_from(now.duration_since(failed_at)).unwrap_or_default();
        let remaining = entry
            .delay
            .checked_sub(since)
            .filter(|left| !left.is_zero())?;
        Some(Wait {
            delay: entry.delay,
            remaining,
        })
    }

    /// Notes a try at `now` after the failure at `failed_at`: the next one waits twice as long.
    pub fn next(&self, key: &str, failed_at: Timestamp, now: Timestamp) {
        let mut entries = self.entries.lock();
        let delay = match entries.get(key) {
            Some(entry) if !self.expired(entry, failed_at) => (entry.delay * 2).min(self.max),
            _ => self.initial,
        };
        entries.insert(
            key.to_string(),
            Entry {
                delay,
                updated: now,
            },
        );
        if entries.len() > 1024 {
            let max = self.max;
            entries.retain(|_, entry| age(entry.updated, now) <= max * 2);
        }
    }

    /// Forgets keys that begin with `prefix`.
    pub fn forget(&self, prefix: &str) {
        self.entries
            .lock()
            .retain(|key, _| !key.starts_with(prefix));
    }

    /// It ran well for long enough to begin anew.
    fn expired(&self, entry: &Entry, failed_at: Timestamp) -> bool {
        age(entry.updated, failed_at) > self.max * 2
    }
}

/// What to wait: the whole delay (for messages) and what is left of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wait {
    pub delay: Duration,
    pub remaining: Duration,
}

fn age(from: Timestamp, to: Timestamp) -> Duration {
    let age: SignedDuration = to.duration_since(from);
    Duration::try_from(age).unwrap_or_default()
}

/// A delay as Go prints it: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_cap_and_begins_anew_after_a_good_run() {
        let backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
        let start = Timestamp::from_second(1_000_000).unwrap();
        let at = |seconds: i64| start + SignedDuration::from_secs(seconds);
        assert_eq!(
            backoff.remaining("k", at(0), at(0)),
            None,
            "the first restart is at once"
        );
        let mut time = 0;
        for delay in [10, 20, 40, 80, 160, 300, 300] {
            backoff.next("k", at(time), at(time));
            let wait = backoff.remaining("k", at(time), at(time + 1)).unwrap();
            assert_eq!(wait.delay.as_secs(), delay);
            assert_eq!(wait.remaining.as_secs(), delay - 1);
            time += i64::try_from(delay).unwrap();
            assert_eq!(
                backoff.remaining("k", at(time - delay as i64), at(time)),
                None
            );
        }
        // It then ran for eleven minutes.
        assert_eq!(backoff.remaining("k", at(time + 660), at(time + 660)), None);
        backoff.next("k", at(time + 660), at(time + 660));
        let wait = backoff
            .remaining("k", at(time + 660), at(time + 660))
            .unwrap();
        assert_eq!(wait.delay.as_secs(), 10);
        backoff.forget("k");
        assert_eq!(backoff.remaining("k", at(time + 660), at(time + 660)), None);
    }

    #[test]
    fn durations_as_go_prints_them() {
        for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3600, "1h0m0s")] {
            assert_eq!(go_duration(Duration::from_secs(seconds)), text);
        }
    }
}
