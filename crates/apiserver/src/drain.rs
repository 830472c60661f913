//! How the server stops: told to, it goes on for a while, then takes no new requests and lets those that it has finish.

use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CONNECTION, HeaderMap, RETRY_AFTER, USER_AGENT};
use ::http::{HeaderValue, Response, StatusCode};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::http::{self, Body};
use crate::limits::Limits;
use crate::request::RequestInfo;

/// Requests that go on for longer are left.
const PATIENCE: Duration = Duration::from_secs(10);

/// Watches end after each other, with no more between two of them.
const GAP: Duration = Duration::from_millis(5);

/// What is answered to the end.
const ALWAYS_SERVED: [&str; 4] = ["/readyz", "/livez", "/healthz", "/metrics"];

/// The stages of the end.
pub struct Drain {
    /// New requests are not wanted any more.
    pub stopping: CancellationToken,
    /// All requests have been answered and all watches have ended, or have had their time.
    pub drained: CancellationToken,
    refuses: bool,
    requests: Mutex<Option<Held>>,
    watches: Mutex<Option<Held>>,
    /// How many watches may end.
    turns: Semaphore,
}

/// Held by whatever has to finish. Nothing is sent: the other end sees when all are gone.
pub type Held = mpsc::Sender<()>;

/// A watch that is waited for.
pub struct Watching {
    drain: Arc<Drain>,
    _held: Option<Held>,
}

// === impl Drain ===

impl Drain {
    /// Waits to be told.
    #[must_use]
    pub fn start(limits: &Limits, told: CancellationToken) -> Arc<Self> {
        let delay = limits.shutdown_delay_duration;
        let (requests, answered) = mpsc::channel(1);
        let (watches, ended) = mpsc::channel(1);
        let drain = Arc::new(Self {
            stopping: if delay.is_zero() {
                told.clone()
            } else {
                CancellationToken::new()
            },
            drained: CancellationToken::new(),
            refuses: limits.shutdown_send_retry_after,
            requests: Mutex::new(Some(requests)),
            watches: Mutex::new(Some(watches)),
            turns: Semaphore::new(0),
        });
        let (running, grace) = (
            drain.clone(),
            limits.shutdown_watch_termination_grace_period,
        );
        tokio::spawn(async move {
            told.cancelled().await;
            tokio::time::sleep(delay).await;
            running.stopping.cancel();
            tokio::join!(running.answer(answered), running.end_watches(grace, ended));
            running.drained.cancel();
        });
        drain
    }

    /// When connections are not taken any more.
    pub fn closed(&self) -> &CancellationToken {
        if self.refuses {
            &self.drained
        } else {
            &self.stopping
        }
    }

    /// Counts a request that is waited for, until what is returned is dropped.
    pub fn request(&self, info: &RequestInfo) -> Option<Held> {
        let counts = !info.is_long_running() && !is_always_served(&info.path);
        if counts { self.hold() } else { None }
    }

    /// Makes the end wait, until what is returned is dropped.
    pub fn hold(&self) -> Option<Held> {
        self.requests.lock().clone()
    }

    /// The answer to a request that comes too late.
    pub fn refusal(&self, info: &RequestInfo, headers: &HeaderMap) -> Option<Response<Body>> {
        if !self.refuses || !self.stopping.is_cancelled() || is_always_served(&info.path) {
            return None;
        }
        let agent = headers.get(USER_AGENT).map(HeaderValue::as_bytes);
        if agent.is_some_and(|agent| agent.starts_with(b"kube-apiserver/")) {
            return None;
        }
        let text = "The apiserver is shutting down, please try again later.\n";
        let mut response = http::text(StatusCode::TOO_MANY_REQUESTS, text);
        let headers = response.headers_mut();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("5"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        Some(response)
    }

    pub fn watch(self: &Arc<Self>) -> Watching {
        Watching {
            drain: self.clone(),
            _held: self.watches.lock().clone(),
        }
    }

    async fn answer(&self, mut answered: mpsc::Receiver<()>) {
        self.requests.lock().take();
        if tokio::time::timeout(PATIENCE, answered.recv())
            .await
            .is_err()
        {
            tracing::warn!("requests are still being answered; leaving them");
        }
    }

    /// Ends one watch after the other, all of them within the grace period, so that their clients do not come back all at
    /// once to the servers that there are.
    async fn end_watches(&self, grace: Duration, mut ended: mpsc::Receiver<()>) {
        let watches = self.watches.lock().take();
        let count = watches.map_or(0, |held| held.strong_count() - 1);
        let (started, mut given) = (Instant::now(), 0);
        let deadline = started + grace;
        while Instant::now() < deadline {
            let due = due(count, started.elapsed(), grace);
            self.turns.add_permits(due - given);
            given = due;
            let next = (Instant::now() + GAP).min(deadline);
            // All have ended when there is nothing more to come.
            if tokio::time::timeout_at(next, ended.recv()).await.is_ok() {
                break;
            }
        }
        self.turns.close();
    }
}

/// How many of the watches have had their turn after some time.
fn due(count: usize, elapsed: Duration, grace: Duration) -> usize {
    let fastest = elapsed.as_millis() / GAP.as_millis() + 1;
    let evenly = elapsed.as_millis() * count as u128 / grace.as_millis().max(1) + 1;
    usize::try_from(fastest.max(evenly)).map_or(count, |due| due.min(count))
}

pub fn is_always_served(path: &str) -> bool {
    ALWAYS_SERVED.iter().any(|served| path.starts_with(served))
}

// === impl Watching ===

impl Watching {
    /// Waits until it is this watch's turn to end.
    pub async fn ended(&self) {
        self.drain.stopping.cancelled().await;
        // Closed, every watch may.
        if let Ok(turn) = self.drain.turns.acquire().await {
            turn.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluyt_api::resources::Snapshot;

    fn drain(limits: Limits) -> (Arc<Drain>, CancellationToken) {
        let told = CancellationToken::new();
        (Drain::start(&limits, told.clone()), told)
    }

    fn info(path: &str) -> RequestInfo {
        RequestInfo::parse(&Snapshot::default(), &::http::Method::GET, path, None)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_waited_for() {
        let (drain, told) = drain(Limits::default());
        let request = drain.request(&info("/api/v1/pods"));
        assert!(request.is_some());
        assert!(drain.request(&info("/healthz/etcd")).is_none());
        told.cancel();
        let early = tokio::time::timeout(PATIENCE / 2, drain.drained.cancelled());
        assert!(early.await.is_err());
        drop(request);
        let start = Instant::now();
        drain.drained.cancelled().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn watches_end_after_each_other() {
        let grace = Duration::from_secs(1);
        let (drain, told) = drain(Limits {
            shutdown_watch_termination_grace_period: grace,
            ..Limits::default()
        });
        let started = Instant::now();
        let watches: Vec<_> = (0..400).map(|_| drain.watch()).collect();
        let ends = watches.into_iter().map(|watch| async move {
            watch.ended().await;
            started.elapsed()
        });
        told.cancel();
        let mut ends = futures::future::join_all(ends).await;
        ends.sort_unstable();
        assert!(ends[0] < grace / 10, "{ends:?}");
        let middle = grace * 4 / 10..grace * 6 / 10;
        assert!(middle.contains(&ends[200]), "{ends:?}");
        assert!(ends[399] <= grace, "{ends:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn few_watches_do_not_take_the_whole_time() {
        let (drain, told) = drain(Limits {
            shutdown_watch_termination_grace_period: Duration::from_secs(60),
            ..Limits::default()
        });
        let watch = drain.watch();
        told.cancel();
        let start = Instant::now();
        watch.ended().await;
        drop(watch);
        drain.drained.cancelled().await;
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn late_requests_are_refused_where_that_is_wanted() {
        let (drain, told) = drain(Limits {
            shutdown_send_retry_after: true,
            ..Limits::default()
        });
        let (pods, none) = (info("/api/v1/pods"), HeaderMap::new());
        assert!(drain.refusal(&pods, &none).is_none());
        told.cancel();
        let refusal = drain.refusal(&pods, &none).unwrap();
        assert_eq!(refusal.status(), 429);
        assert_eq!(refusal.headers()["retry-after"], "5");
        assert!(drain.refusal(&info("/readyz"), &none).is_none());
        let own = HeaderMap::from_iter([(USER_AGENT, "kube-apiserver/v1".parse().unwrap())]);
        assert!(drain.refusal(&pods, &own).is_none());
    }
}
