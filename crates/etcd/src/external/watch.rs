//! Watches over a remote cluster that outlive connections: each remembers the first revision it has not delivered, and
//! asks for everything from there on after every break. Whole revisions are delivered, so none is cut or repeated.

use std::time::Duration;

use etcd_client::proto::PbWatchResponse;
use etcd_client::{WatchOptions, WatchResponseStream};
use tokio::sync::mpsc;

use super::{External, convert, error};
use crate::{Error, Event, KeyValue, Keys, Watch, WatchStream, WatchUpdate};

/// Updates that a receiver may leave unread before the stream is read no further.
const QUEUE: usize = 64;

/// Pauses between attempts to open a stream.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long a request for progress may stay unanswered.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The first releases in which a progress report asked for never overtakes events.
const ORDERED_PROGRESS: [[u64; 3]; 2] = [[3, 4, 25], [3, 5, 8]];

/// Number of `Event.EventType.DELETE`.
const DELETE: i32 = 1;

pub(super) fn start(store: External, watch: Watch) -> WatchStream {
    let (sender, updates) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut watcher = Watcher {
            next: watch.start_revision,
            ordered: false,
            store,
            watch,
            sender,
        };
        watcher.run().await;
    });
    WatchStream { updates }
}

/// Why a stream is not read any further.
enum End {
    /// Nobody receives.
    Unwanted,
    /// The connection broke or the server gave up: worth another stream.
    Broken(String),
    /// Nothing more can be had.
    Final(Error),
}

struct Watcher {
    store: External,
    watch: Watch,
    /// The first revision that has not been delivered.
    next: i64,
    /// The server orders progress reports with events.
    ordered: bool,
    sender: mpsc::Sender<Result<WatchUpdate, Error>>,
}

impl Watcher {
    async fn run(&mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let before = self.next;
            match self.follow().await {
                End::Unwanted => return,
                End::Final(error) => {
                    // The receiver may be gone; then nobody needs to know.
                    let _ = self.sender.send(Err(error)).await;
                    return;
                }
                End::Broken(reason) => {
                    tracing::debug!(reason, revision = self.next, "a watch is resumed");
                }
            }
            if self.next > before {
                pause = FIRST_PAUSE;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                () = self.sender.closed() => return,
            }
        }
    }

    /// Opens a stream and reads it to its end.
    async fn follow(&mut self) -> End {
        let mut status = self.store.client.clone();
        let opened = async {
            let version = status.status().await?.version().to_owned();
            let ordered = ordered_progress(&version);
            // An old server cannot tell reliably how far it is, but every revision has an event of some key.
            let keys = if ordered {
                self.watch.keys.clone()
            } else {
                Keys::prefix("")
            };
            let (key, end) = convert::keys(&keys);
            let mut options = WatchOptions::new()
                .with_start_revision(self.next)
                .with_progress_notify();
            if let Some(end) = end {
                options = options.with_range(end);
            }
            if self.watch.prev_kv {
                options = options.with_prev_key();
            }
            let stream = self.store.watches().watch(key, Some(options)).await?;
            Ok::<_, etcd_client::Error>((stream.split(), ordered))
        };
        let opened = tokio::select! {
            opened = tokio::time::timeout(self.store.request_timeout, opened) => opened,
            () = self.sender.closed() => return End::Unwanted,
        };
        let (mut requests, mut responses) = match opened {
            Ok(Ok((stream, ordered))) => {
                self.ordered = ordered;
                stream
            }
            Ok(Err(error)) => return End::Broken(error.to_string()),
            Err(_) => return End::Broken("no answer".into()),
        };
        let mut wanted = self.store.wanted.subscribe();
        let mut created = false;
        let mut ask = true;
        loop {
            let behind = self.ordered && created && *wanted.borrow_and_update() >= self.next;
            if behind && ask {
                ask = false;
                if let Err(error) = requests.request_progress().await {
                    return End::Broken(error.to_string());
                }
            }
            let response = tokio::select! {
                response = next(&mut responses) => response,
                changed = wanted.changed() => match changed {
                    Ok(()) => {
                        ask = true;
                        continue;
                    }
                    Err(_) => return End::Final(Error::Stopped),
                },
                // A server says nothing when it has not caught up itself: it has to be asked again, as upstream does.
                () = tokio::time::sleep(ASK_AGAIN), if behind => {
                    ask = true;
                    continue;
                }
                () = self.sender.closed() => return End::Unwanted,
            };
            let response = match response {
                Ok(response) => response,
                Err(end) => return end,
            };
            created |= response.created;
            if let Err(end) = self.deliver(response).await {
                return end;
            }
        }
    }

    async fn deliver(&mut self, response: PbWatchResponse) -> Result<(), End> {
        if response.canceled {
            if response.compact_revision > 0 {
                return Err(End::Final(Error::Compacted {
                    compact_revision: response.compact_revision,
                }));
            }
            return Err(match error::meaning(&response.cancel_reason) {
                Error::Unavailable(reason) => End::Broken(reason),
                error => End::Final(error),
            });
        }
        let update = match response
            .events
            .iter()
            .filter_map(|e| e.kv.as_ref())
            .next_back()
        {
            Some(last) => {
                let revision = last.mod_revision;
                // Nothing is delivered twice, whatever the server sends after a break.
                let next = self.next;
                self.next = next.max(revision + 1);
                let events: Vec<Event> = response
                    .events
                    .into_iter()
                    .filter_map(event)
                    .filter(|e| e.kv.mod_revision >= next && self.watch.keys.contains(&e.kv.key))
                    .collect();
                if events.is_empty() {
                    WatchUpdate::Progress { revision }
                } else {
                    WatchUpdate::Events { revision, events }
                }
            }
            // Without events the header tells how far the watch is, except in the answer to its creation.
            None if self.ordered && !response.created => {
                let revision = response.header.map_or(0, |header| header.revision);
                if revision < self.next {
                    return Ok(());
                }
                self.next = revision + 1;
                WatchUpdate::Progress { revision }
            }
            None => return Ok(()),
        };
        let sent = self.sender.send(Ok(update)).await;
        sent.map_err(|_| End::Unwanted)
    }
}

async fn next(responses: &mut WatchResponseStream) -> Result<PbWatchResponse, End> {
    match responses.message().await {
        Ok(Some(response)) => Ok(response.0),
        Ok(None) => Err(End::Broken("the server ended the stream".into())),
        Err(error) => Err(End::Broken(error.to_string())),
    }
}

fn event(event: etcd_client::proto::PbEvent) -> Option<Event> {
    let kv: KeyValue = convert::key_value(event.kv?);
    Some(Event {
        kv,
        deleted: event.r#type == DELETE,
        prev: event.prev_kv.map(convert::key_value),
    })
}

/// Whether a release orders progress reports with events.
fn ordered_progress(version: &str) -> bool {
    let mut numbers = version
        .split(['.', '-', '+'])
        .map(|part| part.parse::<u64>().unwrap_or(0));
    let version = [0; 3].map(|_: u64| numbers.next().unwrap_or(0));
    let series = ORDERED_PROGRESS
        .iter()
        .find(|fixed| fixed[..2] == version[..2]);
    match series {
        Some(fixed) => version >= *fixed,
        None => version > [3, 5, 0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_with_ordered_progress() {
        for (version, ordered) in [
            ("3.4.23", false),
            ("3.4.25", true),
            ("3.5.1", false),
            ("3.5.8", true),
            ("3.5.21+git", true),
            ("3.6.0-rc.1", true),
            ("3.3.9", false),
            ("4.0.0", true),
        ] {
            assert_eq!(ordered_progress(version), ordered, "{version}");
        }
    }
}
