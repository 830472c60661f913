//! Back ends, and how events get to them: at once, or in batches from a bounded queue.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::batch::{Batch, Batching};
use super::event::Event;
use super::log::{Log, LogSettings};
use super::policy::Level;
use super::webhook::{Webhook, WebhookSettings};
use crate::dial::ControlPlane;

/// How events are delivered to one back end.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub mode: Mode,
    pub batching: Batching,
    pub truncation: Option<Truncation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Queued; what does not fit into the queue is lost, and requests never wait.
    Batch,
    /// The request waits.
    Blocking,
    /// The request waits, and fails when its arrival cannot be recorded.
    BlockingStrict,
}

/// Limits of what is sent, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Truncation {
    pub max_event: usize,
    pub max_batch: usize,
}

/// Takes events for good.
pub(super) trait Sink: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    fn write(&self, events: Vec<Event>) -> BoxFuture<'_, Result<(), String>>;
}

/// One back end with its delivery.
pub(super) struct Backend {
    sink: Arc<Truncating>,
    mode: Mode,
    queue: Option<Batch>,
}

impl Backend {
    pub(super) fn log(
        settings: &LogSettings,
        delivery: &Delivery,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Self> {
        Ok(Self::new(
            Box::new(Log::open(settings)?),
            delivery,
            shutdown,
        ))
    }

    pub(super) fn webhook(
        settings: &WebhookSettings,
        network: &ControlPlane,
        delivery: &Delivery,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Self> {
        Ok(Self::new(
            Box::new(Webhook::new(settings, network)?),
            delivery,
            shutdown,
        ))
    }

    fn new(sink: Box<dyn Sink>, delivery: &Delivery, shutdown: &CancellationToken) -> Self {
        let sink = Arc::new(Truncating {
            sink,
            limits: delivery.truncation,
        });
        let queue = (delivery.mode == Mode::Batch)
            .then(|| Batch::spawn(sink.clone(), &delivery.batching, shutdown.clone()));
        Self {
            sink,
            mode: delivery.mode,
            queue,
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self.queue {
            Some(_) => "buffered",
            None => self.sink.sink.name(),
        }
    }

    pub(super) fn is_strict(&self) -> bool {
        self.mode == Mode::BlockingStrict
    }

    pub(super) async fn take(&self, event: Event) -> Result<(), String> {
        match &self.queue {
            Some(queue) => queue.push(event),
            None => self.sink.write(vec![event]).await,
        }
    }
}

/// Keeps events and batches small by leaving out objects.
pub(super) struct Truncating {
    sink: Box<dyn Sink>,
    limits: Option<Truncation>,
}

impl Truncating {
    pub(super) async fn write(&self, events: Vec<Event>) -> Result<(), String> {
        let Some(limits) = self.limits else {
            return self.sink.write(events).await;
        };
        let (mut batch, mut batch_size, mut lost) = (Vec::new(), 0, 0);
        let mut outcome = Ok(());
        for mut event in events {
            let mut size = size(&event);
            if size > limits.max_event && event.level >= Level::Request {
                truncate(&mut event);
                size = self::size(&event);
            }
            if size > limits.max_event {
                lost += 1;
                continue;
            }
            if !batch.is_empty() && batch_size + size > limits.max_batch {
                let full = std::mem::take(&mut batch);
                outcome = outcome.and(self.sink.write(full).await);
                batch_size = 0;
            }
            batch_size += size;
            batch.push(event);
        }
        if !batch.is_empty() {
            outcome = outcome.and(self.sink.write(batch).await);
        }
        if lost > 0 {
            return Err(format!("{lost} events are too large even after truncating"));
        }
        outcome
    }
}

fn size(event: &Event) -> usize {
    serde_json::to_vec(event).map_or(0, |bytes| bytes.len())
}

fn truncate(event: &mut Event) {
    event.request_object = None;
    event.response_object = None;
    event
        .annotations
        .insert("audit.k8s.io/truncated".into(), "true".into());
}
