//! Automatic compaction, by time or by number of revisions, as etcd's `--auto-compaction-*` flags describe it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::embedded::Embedded;
use crate::{Error, Store as _};

const HOUR: Duration = Duration::from_secs(3600);

/// How often the number of revisions is looked at.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);

/// Looks at the clock within one period.
const SAMPLES: u32 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    Periodic,
    Revision,
}

/// History to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retention {
    Period(Duration),
    Revisions(i64),
}

impl Retention {
    /// `None` keeps everything.
    pub(crate) fn parse(mode: Mode, text: &str) -> anyhow::Result<Option<Self>> {
        let context = || format!("--auto-compaction-retention: `{text}`");
        Ok(match mode {
            Mode::Revision => match text.parse::<u32>().with_context(context)? {
                0 => None,
                revisions => Some(Self::Revisions(revisions.into())),
            },
            Mode::Periodic => {
                // A bare number is hours.
                let period = match text.parse::<u32>() {
                    Ok(hours) => HOUR * hours,
                    Err(_) => duration(text)
                        .map_err(anyhow::Error::msg)
                        .with_context(context)?,
                };
                (!period.is_zero()).then_some(Self::Period(period))
            }
        })
    }

    fn interval(self) -> Duration {
        match self {
            Self::Period(period) => (period.min(HOUR) / SAMPLES).max(Duration::from_millis(1)),
            Self::Revisions(_) => REVISION_INTERVAL,
        }
    }
}

/// Go's notation of durations: `1h30m`, `500ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration like 1h30m");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let unit = rest
            .find(|c: char| c.is_ascii_alphabetic())
            .ok_or_else(wrong)?;
        let number: f64 = rest[..unit].parse().map_err(|_| wrong())?;
        rest = &rest[unit..];
        let end = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let seconds = match &rest[..end] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        total += Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        rest = &rest[end..];
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Ok(total)
}

pub(crate) async fn run(store: Arc<Embedded>, retention: Retention, shutdown: CancellationToken) {
    let mut clock = tokio::time::interval(retention.interval());
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut history = History::default();
    loop {
        tokio::select! {
            _ = clock.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let Some(target) = history
            .target(store.current_revision(), retention)
            .filter(|target| *target > store.compacted_revision())
        else {
            continue;
        };
        match store.compact(target).await {
            Ok(()) => tracing::info!(revision = target, "compacted"),
            // Somebody else was faster.
            Err(Error::Compacted { .. }) => {}
            Err(error) => tracing::warn!(%error, revision = target, "cannot compact"),
        }
    }
}

fn samples(period: Duration, interval: Duration) -> usize {
    let samples = period.as_nanos() / interval.as_nanos().max(1);
    usize::try_from(samples).unwrap_or(usize::MAX)
}

/// The revisions at the last looks at the clock.
#[derive(Default)]
struct History(VecDeque<i64>);

impl History {
    /// The revision up to which history is not to be kept any more, if that is known yet.
    fn target(&mut self, now: i64, retention: Retention) -> Option<i64> {
        match retention {
            Retention::Revisions(keep) => Some(now - keep).filter(|target| *target > 0),
            Retention::Period(period) => self.sample(now, samples(period, retention.interval())),
        }
    }

    /// Notes the present revision; that of `age` looks ago, once there have been as many.
    fn sample(&mut self, revision: i64, age: usize) -> Option<i64> {
        self.0.push_back(revision);
        (self.0.len() > age).then(|| self.0.pop_front()).flatten()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn retentions_are_hours_durations_or_revisions() {
        let parse = |mode, text| Retention::parse(mode, text).unwrap();
        assert_eq!(parse(Mode::Periodic, "0"), None);
        assert_eq!(
            parse(Mode::Periodic, "2"),
            Some(Retention::Period(2 * HOUR))
        );
        let half = Some(Retention::Period(HOUR / 2));
        assert_eq!(parse(Mode::Periodic, "30m"), half);
        assert_eq!(parse(Mode::Revision, "5"), Some(Retention::Revisions(5)));
        for wrong in ["", "x", "5", "5 m", "-1m", "1d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(duration("1h0.5m").unwrap(), HOUR + Duration::from_secs(30));
    }

    #[test]
    fn history_older_than_the_period_goes() {
        let mut history = History::default();
        let given: Vec<i64> = (1..15).filter_map(|now| history.sample(now, 10)).collect();
        assert_eq!(given, [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn the_store_keeps_the_wanted_number_of_revisions() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(directory.path()).unwrap());
        for n in 0..20 {
            let put = crate::Op::Put(crate::Put::new("key", format!("{n}")));
            let txn = crate::Txn {
                success: vec![put],
                ..Default::default()
            };
            store.txn(txn).await.unwrap();
        }
        let newest = store.current_revision();
        let old = crate::Range {
            revision: newest - 6,
            ..crate::Range::new(crate::Keys::One("key".into()))
        };
        assert!(store.range(old.clone()).await.is_ok());
        let shutdown = CancellationToken::new();
        let retention = Retention::Revisions(5);
        let running = tokio::spawn(run(store.clone(), retention, shutdown.clone()));
        // The first look is at once.
        tokio::time::timeout(Duration::from_secs(30), async {
            while store.compacted_revision() < newest - 5 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        let compact_revision = newest - 5;
        let gone = Err(Error::Compacted { compact_revision });
        assert_eq!(store.range(old).await, gone);
        shutdown.cancel();
        running.await.unwrap();
    }

    #[test]
    fn revisions_beyond_the_number_to_keep_go() {
        let mut history = History::default();
        let keep = Retention::Revisions(10);
        assert_eq!(history.target(10, keep), None);
        assert_eq!(history.target(25, keep), Some(15));
    }
}
