//! Any number of watches on one stream.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::proto::{PbWatchRequest, PbWatchRequestUnion, PbWatchResponse};
use futures::StreamExt as _;
use futures::stream::{AbortHandle, BoxStream, SelectAll, abortable};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::super::metrics::{Held, Number};
use super::super::{Member, convert};
use super::frames::{self, Frames};
use crate::embedded::{Follower, Revision};
use crate::{Error, Event, Keys, Store as _, Watch, WatchUpdate};

/// The id of a watch that was not made, and of progress that is about all of a stream's watches.
const NO_WATCH: i64 = -1;

/// Numbers of `WatchCreateRequest.FilterType`.
const NOPUT: i32 = 0;
const NODELETE: i32 = 1;

/// The client reads no more.
pub(super) struct Gone;

type Update = (i64, Result<WatchUpdate, Error>);

/// One stream with its watches. Those that have caught up share one position; each of the others reads history by
/// itself until it gets there.
pub(super) struct Session<'a> {
    member: &'a Member,
    pieces: mpsc::Sender<Bytes>,
    frames: Frames,
    follower: Follower,
    watches: HashMap<i64, Active<'a>>,
    /// Of the watches that are behind.
    updates: SelectAll<BoxStream<'static, Update>>,
    /// Watches that have ended by themselves. As in etcd their ids stay taken until the client cancels them.
    ended: HashSet<i64>,
    /// Where the search for a free id starts.
    next_id: i64,
    /// The client asked for progress at this revision, and not all watches are there yet.
    progress_wanted: Option<i64>,
    _counted: Held<'a>,
}

struct Active<'a> {
    keys: Keys,
    /// Ends its reading of history, while it is behind.
    behind: Option<AbortHandle>,
    /// Nothing up to here is to be sent (any more).
    position: i64,
    filters: Vec<i32>,
    fragment: bool,
    prev_kv: bool,
    progress_notify: bool,
    /// When it last said anything.
    heard: Instant,
    _counted: Held<'a>,
}

impl Active<'_> {
    fn wants(&self, event: &Event) -> bool {
        let unwanted = if event.deleted { NODELETE } else { NOPUT };
        !self.filters.contains(&unwanted) && self.keys.contains(&event.kv.key)
    }

    fn catch_up(&mut self) {
        if let Some(abort) = self.behind.take() {
            abort.abort();
        }
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.catch_up();
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

/// An event that several watches may want, encoded when the first of them does.
struct Shared<'a> {
    event: &'a Event,
    plain: OnceCell<Bytes>,
    with_previous: OnceCell<Bytes>,
}

impl<'a> Shared<'a> {
    fn new(event: &'a Event) -> Self {
        Self {
            event,
            plain: OnceCell::new(),
            with_previous: OnceCell::new(),
        }
    }

    fn encoded(&self, follower: &Follower, prev_kv: bool) -> Result<Bytes, Error> {
        if !prev_kv {
            let plain = self.plain.get_or_init(|| frames::event(self.event, None));
            return Ok(plain.clone());
        }
        if let Some(encoded) = self.with_previous.get() {
            return Ok(encoded.clone());
        }
        let encoded = frames::event(self.event, follower.previous(self.event)?);
        Ok(self.with_previous.get_or_init(|| encoded).clone())
    }
}

impl<'a> Session<'a> {
    pub fn new(member: &'a Member, pieces: mpsc::Sender<Bytes>) -> Self {
        Self {
            member,
            pieces,
            frames: Frames::default(),
            follower: member.store().follow(),
            watches: HashMap::new(),
            updates: SelectAll::new(),
            ended: HashSet::new(),
            next_id: 0,
            progress_wanted: None,
            _counted: Number::hold(member, |m| &m.watch_streams),
        }
    }

    /// Returns when the client is gone, or nothing is served any more.
    pub async fn run(mut self, mut requests: Streaming<PbWatchRequest>) -> Result<(), Gone> {
        let interval = self.member.0.options.progress_interval;
        let mut progress = tokio::time::interval(interval.max(Duration::from_millis(1)) / 2);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shutdown = self.member.0.shutdown.clone();
        let mut open = true;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = self.pieces.closed() => return Err(Gone),
                request = requests.message(), if open => match request {
                    Ok(Some(request)) => self.request(request).await?,
                    // The client sends no more, and may go on to read.
                    Ok(None) => open = false,
                    Err(_) => return Err(Gone),
                },
                Some((id, update)) = self.updates.next(), if !self.updates.is_empty() => self.update(id, update).await?,
                batch = self.follower.read() => match batch {
                    Ok(batch) => self.publish(&batch).await?,
                    Err(Error::Compacted { compact_revision }) => self.lose(compact_revision).await?,
                    Err(_) => return Ok(()),
                },
                _ = progress.tick() => self.notify(interval).await?,
            }
            self.flush().await?;
        }
    }

    async fn send(&mut self, response: PbWatchResponse, events: &[Bytes]) -> Result<(), Gone> {
        self.frames.push(&response, events);
        if self.frames.is_full() {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Gone> {
        if self.frames.is_empty() {
            return Ok(());
        }
        let piece = self.frames.take();
        self.pieces.send(piece).await.map_err(|_| Gone)
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
                let response = PbWatchResponse {
                    canceled: true,
                    ..self.response(id, revision)
                };
                self.send(response, &[]).await?;
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
        let mut active = Active {
            keys: request.keys,
            behind: None,
            position: start_revision - 1,
            filters: request.filters,
            fragment: request.fragment,
            prev_kv: request.prev_kv,
            progress_notify: request.progress_notify,
            heard: Instant::now(),
            _counted: Number::hold(self.member, |m| &m.watchers),
        };
        if active.position < self.follower.position() {
            let watch = Watch {
                keys: active.keys.clone(),
                start_revision,
                prev_kv: active.prev_kv,
            };
            let stream = match store.watch(watch).await {
                Ok(stream) => stream,
                Err(error) => return self.refuse(revision, &error.to_string()).await,
            };
            let (updates, abort) = abortable(ReceiverStream::new(stream.updates));
            self.updates
                .push(updates.map(move |update| (id, update)).boxed());
            active.behind = Some(abort);
        }
        self.watches.insert(id, active);
        let response = PbWatchResponse {
            created: true,
            ..self.response(id, revision)
        };
        self.send(response, &[]).await
    }

    async fn refuse(&mut self, revision: i64, reason: &str) -> Result<(), Gone> {
        let response = PbWatchResponse {
            created: true,
            canceled: true,
            cancel_reason: reason.into(),
            ..self.response(NO_WATCH, revision)
        };
        self.send(response, &[]).await
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

    /// What a watch that is behind has read.
    async fn update(&mut self, id: i64, update: Result<WatchUpdate, Error>) -> Result<(), Gone> {
        // What was on its way when the watch was cancelled or had caught up.
        let Some(watch) = self.watches.get(&id).filter(|w| w.behind.is_some()) else {
            return Ok(());
        };
        let position = match update {
            Ok(WatchUpdate::Progress { revision }) => revision,
            Ok(WatchUpdate::Events { revision, events }) => {
                let wanted = events.into_iter().filter(|event| watch.wants(event));
                let events: Vec<Bytes> = wanted
                    .map(|mut event| {
                        let prev = event.prev.take();
                        frames::event(&event, prev)
                    })
                    .collect();
                self.deliver(id, revision, &events).await?;
                revision
            }
            Err(error) => {
                self.end(id, error).await?;
                return self.report_progress().await;
            }
        };
        if let Some(watch) = self.watches.get_mut(&id) {
            watch.position = position;
            if position >= self.follower.position() {
                watch.catch_up();
            }
        }
        self.report_progress().await
    }

    /// New revisions, for all watches that have caught up.
    async fn publish(&mut self, batch: &[Arc<Revision>]) -> Result<(), Gone> {
        let shared: Vec<Shared<'_>> = batch
            .iter()
            .flat_map(|revision| &revision.events)
            .map(Shared::new)
            .collect();
        let revision = self.follower.position();
        let mut selected: Vec<(i64, Result<Vec<Bytes>, Error>)> = Vec::new();
        for (id, watch) in self.watches.iter().filter(|(_, w)| w.behind.is_none()) {
            let wanted = shared.iter().filter(|shared| {
                shared.event.kv.mod_revision > watch.position && watch.wants(shared.event)
            });
            let encoded = wanted.map(|shared| shared.encoded(&self.follower, watch.prev_kv));
            let encoded: Result<Vec<Bytes>, Error> = encoded.collect();
            if !matches!(&encoded, Ok(events) if events.is_empty()) {
                selected.push((*id, encoded));
            }
        }
        for (id, events) in selected {
            match events {
                Ok(events) => self.deliver(id, revision, &events).await?,
                Err(error) => self.end(id, error).await?,
            }
        }
        self.report_progress().await
    }

    /// History that was not sent yet is gone.
    async fn lose(&mut self, compact_revision: i64) -> Result<(), Gone> {
        let lost = self
            .watches
            .iter()
            .filter(|(_, w)| w.behind.is_none() && self.position(w) + 1 < compact_revision);
        for id in lost.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end(id, Error::Compacted { compact_revision }).await?;
        }
        self.follower.skip_to(compact_revision - 1);
        self.report_progress().await
    }

    /// Ends a watch that cannot be served any more.
    async fn end(&mut self, id: i64, error: Error) -> Result<(), Gone> {
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
        self.send(response, &[]).await
    }

    async fn deliver(&mut self, id: i64, revision: i64, events: &[Bytes]) -> Result<(), Gone> {
        let Some(watch) = self.watches.get_mut(&id).filter(|_| !events.is_empty()) else {
            return Ok(());
        };
        watch.heard = Instant::now();
        let max_bytes = if watch.fragment {
            self.member.0.options.max_request_bytes
        } else {
            usize::MAX
        };
        let parts = frames::fragments(events, max_bytes);
        let last = parts.len() - 1;
        for (i, events) in parts.into_iter().enumerate() {
            let response = PbWatchResponse {
                fragment: i < last,
                ..self.response(id, revision)
            };
            self.send(response, events).await?;
        }
        Ok(())
    }

    /// Up to where everything that a watch wants was sent.
    fn position(&self, watch: &Active<'_>) -> i64 {
        match watch.behind {
            Some(_) => watch.position,
            None => watch.position.max(self.follower.position()),
        }
    }

    /// Answers a progress request once every watch of the stream has sent all up to the revision.
    async fn report_progress(&mut self) -> Result<(), Gone> {
        let Some(revision) = self.progress_wanted else {
            return Ok(());
        };
        if self.watches.values().any(|w| self.position(w) < revision) {
            return Ok(());
        }
        self.progress_wanted = None;
        let response = self.response(NO_WATCH, revision);
        self.send(response, &[]).await
    }

    /// Tells the revision to the watches that asked for it and have been silent.
    async fn notify(&mut self, interval: Duration) -> Result<(), Gone> {
        let now = Instant::now();
        let revision = self.member.store().current_revision();
        let due = self.watches.iter().filter(|(_, watch)| {
            watch.progress_notify
                && self.position(watch) >= revision
                && now.duration_since(watch.heard) >= interval
        });
        for id in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            if let Some(watch) = self.watches.get_mut(&id) {
                watch.heard = now;
            }
            let response = self.response(id, revision);
            self.send(response, &[]).await?;
        }
        Ok(())
    }
}
