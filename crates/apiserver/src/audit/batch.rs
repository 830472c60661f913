//! A bounded queue of events, and the task that empties it in batches.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backend::Truncating;
use super::event::Event;

/// Batches that are on their way at the same time: a back end that hangs must not collect them all.
const IN_FLIGHT: usize = 16;

/// How events are gathered.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    pub buffer: usize,
    pub max_size: usize,
    pub max_wait: Duration,
    /// Batches per second, and how many may go at once after a pause.
    pub throttle: Option<(f64, u32)>,
    /// Whether batches may overtake each other.
    pub concurrent: bool,
}

pub(super) struct Batch(mpsc::Sender<Event>);

impl Batch {
    pub(super) fn spawn(
        sink: Arc<Truncating>,
        settings: &Batching,
        shutdown: CancellationToken,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(settings.buffer.max(1));
        let task = Task {
            sink,
            settings: *settings,
            receiver,
            tokens: settings.throttle.map_or(0.0, |(_, burst)| f64::from(burst)),
            refilled: Instant::now(),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
        };
        tokio::spawn(task.run(shutdown));
        Self(sender)
    }

    pub(super) fn push(&self, event: Event) -> Result<(), String> {
        self.0
            .try_send(event)
            .map_err(|_| "audit buffer queue blocked".into())
    }
}

struct Task {
    sink: Arc<Truncating>,
    settings: Batching,
    receiver: mpsc::Receiver<Event>,
    tokens: f64,
    refilled: Instant,
    in_flight: Arc<Semaphore>,
}

impl Task {
    async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let first = tokio::select! {
                first = self.receiver.recv() => first,
                () = shutdown.cancelled() => break,
            };
            let Some(first) = first else { return };
            let batch = self.gather(first, &shutdown).await;
            self.throttle().await;
            self.deliver(batch).await;
        }
        // Nothing that was taken is lost with the server.
        self.receiver.close();
        let mut rest = Vec::new();
        while let Ok(event) = self.receiver.try_recv() {
            rest.push(event);
        }
        for batch in rest.chunks(self.settings.max_size.max(1)) {
            self.deliver(batch.to_vec()).await;
        }
    }

    /// As many events as a batch holds, or as come within the time.
    async fn gather(&mut self, first: Event, shutdown: &CancellationToken) -> Vec<Event> {
        let mut batch = vec![first];
        let deadline = Instant::now() + self.settings.max_wait;
        while batch.len() < self.settings.max_size {
            let next = tokio::select! {
                next = self.receiver.recv() => next,
                () = tokio::time::sleep_until(deadline) => None,
                () = shutdown.cancelled() => None,
            };
            match next {
                Some(event) => batch.push(event),
                None => break,
            }
        }
        batch
    }

    /// Waits until another batch may go.
    async fn throttle(&mut self) {
        let Some((rate, burst)) = self.settings.throttle else {
            return;
        };
        let refill = |tokens: f64, since: Instant| {
            (tokens + since.elapsed().as_secs_f64() * rate).min(f64::from(burst))
        };
        self.tokens = refill(self.tokens, self.refilled);
        self.refilled = Instant::now();
        if self.tokens < 1.0 {
            let wait = Duration::from_secs_f64((1.0 - self.tokens) / rate.max(f64::EPSILON));
            tokio::time::sleep(wait).await;
            self.tokens = refill(self.tokens, self.refilled);
            self.refilled = Instant::now();
        }
        self.tokens -= 1.0;
    }

    async fn deliver(&self, batch: Vec<Event>) {
        let report = |outcome: Result<(), String>| {
            if let Err(error) = outcome {
                tracing::error!(error, "Error in audit plugin");
            }
        };
        if !self.settings.concurrent {
            return report(self.sink.write(batch).await);
        }
        let Ok(permit) = self.in_flight.clone().acquire_owned().await else {
            return;
        };
        let sink = self.sink.clone();
        tokio::spawn(async move {
            report(sink.write(batch).await);
            drop(permit);
        });
    }
}
