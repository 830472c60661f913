//! `etcdserverpb.Watch`: any number of watches on one stream.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use etcd_client::proto::{
    PbEvent, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService,
};
use futures::StreamExt as _;
use futures::stream::{AbortHandle, BoxStream, SelectAll, abortable};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::metrics::Number;
use super::{Member, convert};
use crate::{Error, Event, Keys, Store as _, Watch, WatchUpdate};

/// Answers a client may leave unread before its watches stop reading.
const QUEUE: usize = 16;

/// The id of a watch that was not made, and of progress that is about all of a stream's watches.
const NO_WATCH: i64 = -1;

/// Numbers of `WatchCreateRequest.FilterType`.
const NOPUT: i32 = 0;
const NODELETE: i32 = 1;

/// Number of `Event.EventType.DELETE`.
const DELETE: i32 = 1;

#[tonic::async_trait]
impl PbWatchService for Member {
    type WatchStream = ReceiverStream<Result<PbWatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (answers, stream) = mpsc::channel(QUEUE);
        let member = self.clone();
        tokio::spawn(async move {
            let _counted = Number::hold(&member, |m| &m.watch_streams);
            let mut session = Session {
                member: &member,
                answers,
                watches: HashMap::new(),
                updates: SelectAll::new(),
                ended: HashSet::new(),
                next_id: 0,
                progress_wanted: None,
            };
            // The client went away: nobody is left to tell.
            let Err(Gone) = session.run(request.into_inner()).await else {
                return;
            };
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// The client reads no more.
struct Gone;

type Update = (i64, Result<WatchUpdate, Error>);

/// One stream with its watches.
struct Session<'a> {
    member: &'a Member,
    answers: mpsc::Sender<Result<PbWatchResponse, Status>>,
    watches: HashMap<i64, Active<'a>>,
    updates: SelectAll<BoxStream<'static, Update>>,
    /// Watches that have ended by themselves. As in etcd their ids stay taken until the client cancels them.
    ended: HashSet<i64>,
    /// Where the search for a free id starts.
    next_id: i64,
    /// The client asked for progress at this revision, and not all watches are there yet.
    progress_wanted: Option<i64>,
}

struct Active<'a> {
    keys: Keys,
    abort: AbortHandle,
    /// Everything up to here was sent.
    position: i64,
    filters: Vec<i32>,
    fragment: bool,
    progress_notify: bool,
    /// When it last said anything.
    heard: Instant,
    _counted: super::metrics::Held<'a>,
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

/// `WatchCreateRequest`, which has no public name.
struct Create {
    keys: Keys,
    start_revision: i64,
    progress_notify: bool,
    filters: Vec<i32>,
    prev_kv: bool,
    watch_id: i64,
    fragment: bool,
}

impl Session<'_> {
    async fn run(&mut self, mut requests: Streaming<PbWatchRequest>) -> Result<(), Gone> {
        let interval = self.member.0.options.progress_interval;
        let mut progress = tokio::time::interval(interval.max(Duration::from_millis(1)) / 2);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = true;
        loop {
            tokio::select! {
                () = self.member.0.shutdown.cancelled() => return Ok(()),
                () = self.answers.closed() => return Err(Gone),
                request = requests.message(), if open => match request {
                    Ok(Some(request)) => self.request(request).await?,
                    // The client sends no more, and may go on to read.
                    Ok(None) => open = false,
                    Err(_) => return Err(Gone),
                },
                Some((id, update)) = self.updates.next(), if !self.updates.is_empty() => self.update(id, update).await?,
                _ = progress.tick() => self.notify(interval).await?,
            }
        }
    }

    async fn send(&mut self, response: PbWatchResponse) -> Result<(), Gone> {
        self.answers.send(Ok(response)).await.map_err(|_| Gone)
    }

    fn response(&self, id: i64, revision: i64) -> PbWatchResponse {
        PbWatchResponse {
            header: Some(self.member.header(revision)),
            watch_id: id,
            ..PbWatchResponse::default()
        }
    }

    async fn request(&mut self, request: PbWatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(PbWatchRequestUnion::CreateRequest(request)) => {
                // No key stands for the smallest one.
                let key = if request.key.is_empty() {
                    vec![0]
                } else {
                    request.key
                };
                self.create(Create {
                    keys: convert::keys(key, request.range_end),
                    start_revision: request.start_revision,
                    progress_notify: request.progress_notify,
                    filters: request.filters,
                    prev_kv: request.prev_kv,
                    watch_id: request.watch_id,
                    fragment: request.fragment,
                })
                .await
            }
            Some(PbWatchRequestUnion::CancelRequest(request)) => {
                let id = request.watch_id;
                if self.watches.remove(&id).is_none() && !self.ended.remove(&id) {
                    return Ok(());
                }
                let revision = self.member.store().current_revision();
                self.send(PbWatchResponse {
                    canceled: true,
                    ..self.response(id, revision)
                })
                .await?;
                self.report_progress().await
            }
            Some(PbWatchRequestUnion::ProgressRequest(_)) => {
                self.progress_wanted = Some(self.member.store().current_revision());
                self.report_progress().await
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, request: Create) -> Result<(), Gone> {
        let store = self.member.store();
        let revision = store.current_revision();
        if request.keys.is_empty() {
            return self.refuse(revision, "mvcc: watcher range is empty").await;
        }
        if request.watch_id != 0 && self.taken(request.watch_id) {
            let reason = "mvcc: duplicate watch ID provided on the WatchStream";
            return self.refuse(revision, reason).await;
        }
        let id = if request.watch_id == 0 {
            self.free_id()
        } else {
            request.watch_id
        };
        let start_revision = if request.start_revision > 0 {
            request.start_revision
        } else {
            revision + 1
        };
        let watch = Watch {
            keys: request.keys.clone(),
            start_revision,
            prev_kv: request.prev_kv,
        };
        let stream = match store.watch(watch).await {
            Ok(stream) => stream,
            Err(error) => return self.refuse(revision, &error.to_string()).await,
        };
        let (updates, abort) = abortable(ReceiverStream::new(stream.updates));
        self.updates
            .push(updates.map(move |update| (id, update)).boxed());
        self.watches.insert(
            id,
            Active {
                keys: request.keys,
                abort,
                position: start_revision - 1,
                filters: request.filters,
                fragment: request.fragment,
                progress_notify: request.progress_notify,
                heard: Instant::now(),
                _counted: Number::hold(self.member, |m| &m.watchers),
            },
        );
        self.send(PbWatchResponse {
            created: true,
            ..self.response(id, revision)
        })
        .await
    }

    async fn refuse(&mut self, revision: i64, reason: &str) -> Result<(), Gone> {
        self.send(PbWatchResponse {
            created: true,
            canceled: true,
            cancel_reason: reason.into(),
            ..self.response(NO_WATCH, revision)
        })
        .await
    }

    fn taken(&self, id: i64) -> bool {
        self.watches.contains_key(&id) || self.ended.contains(&id)
    }

    fn free_id(&mut self) -> i64 {
        while self.taken(self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    async fn update(&mut self, id: i64, update: Result<WatchUpdate, Error>) -> Result<(), Gone> {
        // What was on its way when the watch was cancelled.
        let Some(watch) = self.watches.get_mut(&id) else {
            return Ok(());
        };
        match update {
            Ok(WatchUpdate::Progress { revision }) => watch.position = revision,
            Ok(WatchUpdate::Events { revision, events }) => {
                watch.position = revision;
                let events: Vec<PbEvent> = events
                    .into_iter()
                    .filter(|e| {
                        let unwanted = if e.deleted { NODELETE } else { NOPUT };
                        !watch.filters.contains(&unwanted) && watch.keys.contains(&e.kv.key)
                    })
                    .map(event)
                    .collect();
                if !events.is_empty() {
                    watch.heard = Instant::now();
                    let fragment = watch.fragment;
                    self.deliver(id, revision, events, fragment).await?;
                }
            }
            Err(error) => {
                self.watches.remove(&id);
                self.ended.insert(id);
                let revision = self.member.store().current_revision();
                let mut response = PbWatchResponse {
                    canceled: true,
                    ..self.response(id, revision)
                };
                match error {
                    Error::Compacted { compact_revision } => {
                        response.compact_revision = compact_revision;
                        // As etcd has it.
                        response.header = Some(self.member.header(0));
                    }
                    error => response.cancel_reason = error.to_string(),
                }
                self.send(response).await?;
            }
        }
        self.report_progress().await
    }

    async fn deliver(
        &mut self,
        id: i64,
        revision: i64,
        events: Vec<PbEvent>,
        fragment: bool,
    ) -> Result<(), Gone> {
        if !fragment {
            return self
                .send(PbWatchResponse {
                    events,
                    ..self.response(id, revision)
                })
                .await;
        }
        let parts = fragments(events, self.member.0.options.max_request_bytes);
        let last = parts.len().saturating_sub(1);
        for (i, events) in parts.into_iter().enumerate() {
            self.send(PbWatchResponse {
                events,
                fragment: i < last,
                ..self.response(id, revision)
            })
            .await?;
        }
        Ok(())
    }

    /// Answers a progress request once every watch of the stream has sent all up to the revision.
    async fn report_progress(&mut self) -> Result<(), Gone> {
        let Some(revision) = self.progress_wanted else {
            return Ok(());
        };
        if self.watches.values().any(|w| w.position < revision) {
            return Ok(());
        }
        self.progress_wanted = None;
        self.send(self.response(NO_WATCH, revision)).await
    }

    /// Tells the revision to the watches that asked for it and have been silent.
    async fn notify(&mut self, interval: Duration) -> Result<(), Gone> {
        let now = Instant::now();
        let revision = self.member.store().current_revision();
        let mut due = Vec::new();
        for (id, watch) in &mut self.watches {
            if watch.progress_notify
                && watch.position >= revision
                && now.duration_since(watch.heard) >= interval
            {
                watch.heard = now;
                due.push(*id);
            }
        }
        for id in due {
            self.send(self.response(id, revision)).await?;
        }
        Ok(())
    }
}

/// Cuts events into parts of at most `max_bytes`, each of at least one event.
fn fragments(events: Vec<PbEvent>, max_bytes: usize) -> Vec<Vec<PbEvent>> {
    let mut parts: Vec<Vec<PbEvent>> = Vec::new();
    let mut size = 0;
    for event in events {
        let bytes = event.encoded_len();
        match parts.last_mut() {
            Some(part) if size + bytes <= max_bytes => {
                size += bytes;
                part.push(event);
            }
            _ => {
                size = bytes;
                parts.push(vec![event]);
            }
        }
    }
    parts
}

fn event(event: Event) -> PbEvent {
    let mut kv = event.kv;
    if event.deleted {
        kv.value = Bytes::new();
    }
    PbEvent {
        r#type: if event.deleted { DELETE } else { 0 },
        kv: Some(convert::key_value(kv)),
        prev_kv: event.prev.map(convert::key_value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_are_bounded_and_lose_nothing() {
        let event = |n: usize| PbEvent {
            kv: Some(etcd_client::proto::PbKeyValue {
                value: vec![1; n],
                ..Default::default()
            }),
            ..PbEvent::default()
        };
        let parts = fragments(vec![event(10), event(10), event(100), event(10)], 50);
        let sizes: Vec<usize> = parts.iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 1, 1]);
    }
}
