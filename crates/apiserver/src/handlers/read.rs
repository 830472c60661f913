//! GET, LIST and WATCH, answered from the cache.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use fluyt_api::selector::{FieldSelector, LabelSelector};
use fluyt_api::{Error, Reason};
use fluyt_etcd::{Keys, Range};
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Call;
use super::shape::Shape;
use crate::cache::{
    Change, Entry, Filter, REGISTRY, ResourceCache, Snapshot, Subscription, storage_resource,
};
use crate::http::{self as responses, Body};
use crate::metrics::{Labels, LongRunning};

/// How often an idle watch hears how far it has got.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);

pub(super) async fn get(call: &Call) -> Result<Response<Body>, Error> {
    let accepted = Shape::accepted(call)?;
    let at = call.location();
    let cache = call.server.caches.of(storage_resource(&call.resource));
    match call.info.query.get("resourceVersion") {
        // "Any" version: whatever the cache has.
        Some("0") => {}
        Some(version) if !version.is_empty() => {
            call.server.caches.wait_for(parse_version(version)?).await?
        }
        _ => {
            call.server.caches.consistent().await?;
        }
    }
    let entry = cache.get(&at.key()).ok_or_else(|| at.not_found())?;
    let entry = in_version(call, vec![entry]).await?.remove(0);
    let shape = Shape::new(&call.resource, accepted, call);
    Ok(responses::bytes(
        StatusCode::OK,
        shape.content_type(),
        shape.single(&entry),
    ))
}

/// Entries in the version that was asked for, of custom resources.
async fn in_version(call: &Call, entries: Vec<Arc<Entry>>) -> Result<Vec<Arc<Entry>>, Error> {
    let converter = &call.server.registry.converter;
    converter.entries(entries, &call.resource).await
}

fn parse_version(text: &str) -> Result<i64, Error> {
    text.parse::<i64>().ok().filter(|n| *n >= 0).ok_or_else(|| {
        Error::bad_request(format!("resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"))
    })
}

/// The filter of a list, watch or deletecollection.
///
/// # Errors
/// 400 for a malformed selector or a field that cannot select.
pub(super) fn filter(call: &Call) -> Result<Filter, Error> {
    let query = &call.info.query;
    let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default())
        .map_err(|e| Error::bad_request(format!("unable to parse requirement: {e}")))?;
    let mut fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default())
        .map_err(Error::bad_request)?;
    let stored = storage_resource(&call.resource);
    let selectable = stored.strategy().selectable_fields();
    for term in &fields.terms {
        let known = ["metadata.name", "metadata.namespace"].contains(&term.field.as_str());
        if !known && !selectable.contains(&term.field.as_str()) {
            return Err(Error::bad_request(format!(
                "Unable to find \"{}\" that match label selector \"{labels}\", field selector \"{}\": \"{}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                call.resource.group_resource(),
                query.get("fieldSelector").unwrap_or_default(),
                term.field
            )));
        }
    }
    if !call.target.name.is_empty() {
        // A watch of one object.
        fields.terms.push(fluyt_api::selector::FieldTerm {
            field: "metadata.name".into(),
            equal: true,
            value: call.target.name.clone(),
        });
    }
    let namespace = if call.resource.namespaced {
        call.target.namespace.clone()
    } else {
        String::new()
    };
    Ok(Filter {
        namespace,
        labels,
        fields,
    })
}

/// Where a chunked list goes on.
#[derive(Debug, Serialize, Deserialize)]
struct Continue {
    v: String,
    rv: i64,
    start: String,
}

impl Continue {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn decode(token: &str) -> Result<Self, Error> {
        URL_SAFE_NO_PAD
            .decode(token)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .ok_or_else(|| Error::bad_request(format!("continue key is not valid: {token}")))
    }
}

pub(super) async fn list(call: &Call) -> Result<Response<Body>, Error> {
    let accepted = Shape::accepted(call)?;
    let filter = filter(call)?;
    let query = &call.info.query;
    let limit: usize = query.get("limit").and_then(|l| l.parse().ok()).unwrap_or(0);
    let cache = call
        .server
        .caches
        .of(storage_resource(&call.resource))
        .clone();
    let (snapshot, revision, start) = match query.get("continue").filter(|c| !c.is_empty()) {
        Some(token) => {
            let token = Continue::decode(token)?;
            let (snapshot, revision) = following(call, &cache, &token).await?;
            (snapshot, revision, token.start)
        }
        None => {
            let (snapshot, revision) = first_page(call, &cache).await?;
            (snapshot, revision, String::new())
        }
    };
    let page = Page::cut(&snapshot, &filter, &start, limit);
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let Some(next) = page.next {
        metadata["continue"] = Continue {
            v: "meta.k8s.io/v1".into(),
            rv: revision,
            start: next,
        }
        .encode()
        .into();
        if filter.labels.is_everything() && filter.fields.is_everything() {
            metadata["remainingItemCount"] = page.remaining.into();
        }
    }
    let entries = in_version(call, page.entries).await?;
    let shape = Shape::new(&call.resource, accepted, call);
    let content_type = shape.content_type();
    let body = responses::streamed(futures::stream::iter(shape.list(&metadata, entries)));
    let mut response = Response::new(body);
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(content_type),
    );
    Ok(response)
}

/// The entries of one chunk.
struct Page {
    entries: Vec<Arc<Entry>>,
    /// Key of the first entry of the next chunk.
    next: Option<String>,
    remaining: usize,
}

impl Page {
    fn cut(snapshot: &Snapshot, filter: &Filter, start: &str, limit: usize) -> Self {
        let prefix = if filter.namespace.is_empty() {
            String::new()
        } else {
            format!("{}/", filter.namespace)
        };
        let from = if start.is_empty() {
            prefix.clone()
        } else {
            start.to_owned()
        };
        let mut matching = snapshot
            .entries
            .range(Arc::from(from.as_str())..)
            .map(|(_, entry)| entry)
            .take_while(|entry| entry.key.starts_with(&prefix))
            .filter(|entry| filter.matches(entry));
        let entries: Vec<Arc<Entry>> = matching
            .by_ref()
            .take(if limit == 0 { usize::MAX } else { limit })
            .cloned()
            .collect();
        let next = matching.next().map(|entry| entry.key.to_string());
        let remaining = if next.is_some() {
            1 + matching.count()
        } else {
            0
        };
        Self {
            entries,
            next,
            remaining,
        }
    }
}

/// The snapshot that a list without a continue token reads, by resourceVersion and resourceVersionMatch.
async fn first_page(call: &Call, cache: &ResourceCache) -> Result<(Snapshot, i64), Error> {
    let caches = &call.server.caches;
    let query = &call.info.query;
    let version = query.get("resourceVersion").unwrap_or_default();
    match (
        query.get("resourceVersionMatch").unwrap_or_default(),
        version,
    ) {
        ("", "") => {
            let revision = caches.consistent().await?;
            Ok((cache.snapshot(), revision))
        }
        (policy, "") => Err(invalid_match(
            policy,
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        )),
        ("Exact", "0") => Err(invalid_match(
            "Exact",
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        )),
        ("Exact", version) => {
            let revision = parse_version(version)?;
            Ok((at_revision(call, cache, revision).await?, revision))
        }
        ("" | "NotOlderThan", version) => {
            caches.wait_for(parse_version(version)?).await?;
            let revision = caches.applied();
            Ok((cache.snapshot(), revision))
        }
        (other, _) => Err(invalid_match(
            other,
            "supported values: \"Exact\", \"NotOlderThan\"",
        )),
    }
}

fn invalid_match(value: &str, detail: &str) -> Error {
    let mut errors = fluyt_api::validation::Errors::default();
    errors.invalid("resourceVersionMatch", &value.into(), detail);
    Error::invalid("meta.k8s.io", "ListOptions", "", errors.0)
}

/// Stands in a token for whatever is newest: the list goes on, but not consistently.
const INCONSISTENT: i64 = -1;

/// The entries that the rest of a chunked list is cut from, and their revision.
async fn following(
    call: &Call,
    cache: &ResourceCache,
    token: &Continue,
) -> Result<(Snapshot, i64), Error> {
    let caches = &call.server.caches;
    if token.rv == INCONSISTENT {
        let revision = caches.consistent().await?;
        return Ok((cache.snapshot(), revision));
    }
    let outdated = || {
        let go_on = Continue {
            rv: INCONSISTENT,
            v: token.v.clone(),
            start: token.start.clone(),
        };
        Error {
            continue_token: go_on.encode(),
            ..Error::expired(CONTINUE_TOO_OLD)
        }
    };
    // What has not changed since could still be shown, but clients are promised that tokens end with the revision.
    let probe = Range {
        revision: token.rv,
        limit: 1,
        ..Range::new(Keys::One(REGISTRY.into()))
    };
    match caches.store().range(probe).await {
        Err(fluyt_etcd::Error::Compacted { .. }) => return Err(outdated()),
        Err(other) => return Err(Error::internal(other)),
        Ok(_) => {}
    }
    match at_revision(call, cache, token.rv).await {
        Ok(snapshot) => Ok((snapshot, token.rv)),
        // Compacted since the probe.
        Err(error) if error.reason == Reason::Expired => Err(outdated()),
        Err(error) => Err(error),
    }
}

const CONTINUE_TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// All entries as of a revision: the present ones if nothing has changed since, else those of the store's history.
async fn at_revision(call: &Call, cache: &ResourceCache, revision: i64) -> Result<Snapshot, Error> {
    let caches = &call.server.caches;
    caches.wait_for(revision).await?;
    let snapshot = cache.snapshot();
    if snapshot.revision <= revision {
        return Ok(snapshot);
    }
    let prefix = format!("{REGISTRY}{}/", cache.resource().storage);
    let range = Range {
        revision,
        ..Range::new(Keys::prefix(prefix.clone()))
    };
    let result = caches.store().range(range).await.map_err(|e| match e {
        fluyt_etcd::Error::Compacted { .. } => {
            Error::expired("The resourceVersion for the provided list is too old.")
        }
        other => Error::internal(other),
    })?;
    let mut entries = imbl::OrdMap::new();
    for kv in result.kvs {
        let Some(key) = kv
            .key
            .get(prefix.len()..)
            .and_then(|k| std::str::from_utf8(k).ok())
        else {
            continue;
        };
        let entry = caches
            .entry(&cache.resource(), key, &kv)
            .await
            .map_err(Error::internal)?;
        entries.insert(Arc::from(key), Arc::new(entry));
    }
    Ok(Snapshot { entries, revision })
}

pub(super) async fn watch(call: &Call) -> Result<Response<Body>, Error> {
    let accepted = Shape::accepted(call)?;
    let filter = filter(call)?;
    let query = &call.info.query;
    let cache = call
        .server
        .caches
        .of(storage_resource(&call.resource))
        .clone();
    let initial = query.flag("sendInitialEvents");
    if initial && query.get("resourceVersionMatch") != Some("NotOlderThan") {
        let mut errors = fluyt_api::validation::Errors::default();
        errors.forbidden("resourceVersionMatch", "resourceVersionMatch is required when sendInitialEvents is set, and must be NotOlderThan");
        return Err(Error::invalid("meta.k8s.io", "ListOptions", "", errors.0));
    }
    let version = query.get("resourceVersion").unwrap_or_default();
    let from_state = initial || version.is_empty() || version == "0";
    if version.is_empty() {
        call.server.caches.consistent().await?;
    } else {
        call.server.caches.wait_for(parse_version(version)?).await?;
    }
    let shape = Shape::new(&call.resource, accepted, call);
    let (present, as_of, subscription) = if from_state {
        let (present, revision, subscription) = cache.subscribe_with_state(filter);
        (
            present,
            revision.max(call.server.caches.applied()),
            subscription,
        )
    } else {
        let revision = parse_version(version)?;
        match cache.subscribe(filter, revision) {
            Some(subscription) => (Vec::new(), revision, subscription),
            // Upstream reports this inside the stream.
            None => {
                let line = shape.gone(revision);
                return Ok(stream_response(&shape, responses::full(line)));
            }
        }
    };
    let seconds = match query
        .get("timeoutSeconds")
        .and_then(|t| t.parse::<u64>().ok())
    {
        Some(seconds) if seconds > 0 => seconds,
        _ => {
            let least = call.server.config.limits.min_request_timeout.max(1);
            least + rand::random_range(0..least)
        }
    };
    let present = in_version(call, present).await?;
    let labels = Labels::of(&call.info, &call.parts.headers);
    let metrics = &call.server.metrics;
    let watch = WatchStream {
        _running: labels.map(|labels| metrics.long_running(labels)),
        server: call.server.clone(),
        shape,
        subscription,
        bookmarks: query.flag("allowWatchBookmarks"),
        deadline: tokio::time::Instant::now() + Duration::from_secs(seconds),
        shutdown: call.server.shutdown.clone(),
        at: as_of,
    };
    let mut response = stream_response(&watch.shape, responses::full(""));
    *response.body_mut() = watch.into_body(present, initial);
    Ok(response)
}

fn stream_response(shape: &Shape, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(shape.watch_content_type()),
    );
    response.headers_mut().insert(
        http::header::CACHE_CONTROL,
        http::HeaderValue::from_static("no-cache, private"),
    );
    response
}

/// A watch being sent.
struct WatchStream {
    server: Arc<crate::Server>,
    shape: Shape,
    subscription: Subscription,
    bookmarks: bool,
    deadline: tokio::time::Instant,
    shutdown: tokio_util::sync::CancellationToken,
    /// The client has seen everything up to here.
    at: i64,
    _running: Option<LongRunning>,
}

impl WatchStream {
    fn into_body(self, present: Vec<Arc<Entry>>, initial: bool) -> Body {
        use futures::StreamExt as _;
        let mut lead: Vec<Bytes> = present
            .iter()
            .map(|e| self.shape.event(Change::Added, e))
            .collect();
        if initial && self.bookmarks {
            lead.push(self.shape.bookmark(self.at, true));
        }
        let rest = futures::stream::unfold(Some(self), |watch| async move {
            let mut watch = watch?;
            match watch.next().await {
                Next::Line(line) => {
                    let metrics = &watch.server.metrics;
                    metrics.event(&watch.shape.resource, line.len());
                    Some((line, Some(watch)))
                }
                Next::Last(line) => Some((line, None)),
                Next::End => None,
            }
        });
        responses::streamed(futures::stream::iter(lead).chain(rest))
    }

    async fn next(&mut self) -> Next {
        let bookmark_at = tokio::time::Instant::now() + BOOKMARK_PERIOD;
        tokio::select! {
            biased;
            event = self.subscription.events.recv() => match event {
                Some((change, event)) => {
                    self.at = event.revision;
                    self.line(change, &event).await
                }
                None => Next::Last(self.shape.gone(self.at)),
            },
            () = self.shutdown.cancelled() => Next::End,
            () = tokio::time::sleep_until(self.deadline) => Next::End,
            () = tokio::time::sleep_until(bookmark_at), if self.bookmarks => {
                // Read first: what is applied by now has been queued before.
                let applied = self.server.caches.applied();
                match self.subscription.events.try_recv() {
                    Ok((change, event)) => {
                        self.at = event.revision;
                        self.line(change, &event).await
                    }
                    Err(_) => {
                        self.at = self.at.max(applied);
                        Next::Line(self.shape.bookmark(self.at, false))
                    }
                }
            }
        }
    }

    async fn line(&self, change: Change, event: &crate::cache::WatchEvent) -> Next {
        // An object that stopped matching is reported in its last matching state, at the revision of the change.
        let entry = if change == Change::Deleted && !event.deleted {
            let last = event.previous.as_ref().unwrap_or(&event.entry);
            Arc::new(last.at_revision(event.revision))
        } else {
            event.entry.clone()
        };
        let own_version = entry
            .version
            .is_none_or(|v| v == self.shape.resource.version);
        if own_version && Arc::ptr_eq(&entry, &event.entry) && self.shape.is_plain() {
            return Next::Line(self.shape.shared(change, event));
        }
        let converter = &self.server.registry.converter;
        match converter.entries(vec![entry], &self.shape.resource).await {
            Ok(mut entries) => Next::Line(self.shape.event(change, &entries.remove(0))),
            Err(error) => Next::Last(self.shape.event_of("ERROR", &error.to_status())),
        }
    }
}

enum Next {
    Line(Bytes),
    Last(Bytes),
    End,
}
