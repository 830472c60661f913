//! GET and LIST, answered from the cache.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fluyt_api::{Error, Reason};
use fluyt_etcd::{Keys, Range};
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Call;
use super::options::ListOptions;
use super::selection::Selection;
use super::shape::Shape;
use crate::audit::Layer;
use crate::cache::{Entry, Objects, Parts, REGISTRY, ResourceCache, Snapshot, storage_resource};
use crate::http::{self as responses, Body, View};
use crate::spans::{self, KeyValue};

pub(super) async fn get(call: &Call) -> Result<Response<Body>, Error> {
    let accepted = Shape::accepted(call)?;
    let at = call.location();
    let version = call.info.query.get("resourceVersion").unwrap_or_default();
    let step = spans::start("cacher.Get", |span| {
        let resource = storage_resource(&call.resource).storage;
        span.set("audit-id", span.audit_id());
        span.set("key", format!("/{resource}/{}", at.key()));
        span.set("resource-version", version);
    });
    let entry = spans::within(step, cached(call, version)).await?;
    let entry = entry.ok_or_else(|| at.not_found())?;
    let entry = in_version(call, vec![entry]).await?.remove(0);
    let shape = Shape::new(&call.resource, accepted, call);
    Ok(responses::bytes(
        StatusCode::OK,
        shape.content_type(),
        shape.single(&entry),
    ))
}

/// The entry as the cache has it, which is at least of a version.
async fn cached(call: &Call, version: &str) -> Result<Option<Arc<Entry>>, Error> {
    let caches = &call.server.caches;
    let feed = caches.feed(&call.resource);
    match version {
        // "Any" version: whatever the cache has.
        "0" => {}
        "" => {
            let newest = feed.consistent();
            call.record().timed(Layer::Storage, newest).await?;
        }
        version => feed.wait_for(parse_version(version)?).await?,
    }
    let cache = caches.of(storage_resource(&call.resource));
    Ok(cache.get(&call.location().key()))
}

/// Entries in the version that was asked for, of custom resources.
pub(super) async fn in_version(
    call: &Call,
    entries: Vec<Arc<Entry>>,
) -> Result<Vec<Arc<Entry>>, Error> {
    let converter = &call.server.registry.converter;
    converter.entries(entries, &call.resource).await
}

pub(super) fn parse_version(text: &str) -> Result<i64, Error> {
    text.parse::<i64>().ok().filter(|n| *n >= 0).ok_or_else(|| {
        Error::bad_request(format!("resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"))
    })
}

/// Where a chunked list goes on.
#[derive(Debug, Serialize, Deserialize)]
struct Continue {
    v: String,
    rv: i64,
    start: String,
    /// How many objects there are from `start` on, if that is told: counting them for each part would cost more than the part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    remaining: Option<usize>,
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
            .ok_or_else(|| Error::bad_request("invalid continue token: continue key is not valid"))
    }
}

pub(super) async fn list(call: &Call) -> Result<Response<Body>, Error> {
    let accepted = Shape::accepted(call)?;
    let options = ListOptions::of_list(&call.info.query)?;
    let selection = Selection::of(call)?;
    let step = spans::start("cacher.GetList", |span| {
        let (group, plural) = (call.resource.group, call.resource.plural);
        span.set("audit-id", span.audit_id());
        span.set("type", [plural, group].join(".").trim_end_matches('.'));
    });
    let paging = page(call, &options, &selection);
    let (page, revision) = spans::within(step, paging).await?;
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if call.resource.definition.is_some() && accepted.view == View::Object {
        // Lists of custom resources always have it.
        metadata["continue"] = "".into();
    }
    if let Some(next) = page.next {
        metadata["continue"] = Continue {
            v: "meta.k8s.io/v1".into(),
            rv: revision,
            start: next,
            remaining: page.remaining,
        }
        .encode()
        .into();
        if let Some(remaining) = page.remaining {
            metadata["remainingItemCount"] = remaining.into();
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

/// The part of a list that is asked for, and of which revision it is.
async fn page(
    call: &Call,
    options: &ListOptions,
    selection: &Selection,
) -> Result<(Page, i64), Error> {
    let cache = call.server.caches.of(storage_resource(&call.resource));
    let (source, revision, token) = if options.continue_token.is_empty() {
        let (source, revision) = first_page(call, &cache, options).await?;
        (source, revision, None)
    } else {
        if !["", "0"].contains(&&*options.resource_version) {
            let why = "specifying resource version is not allowed when using continue";
            return Err(Error::bad_request(why));
        }
        let token = Continue::decode(&options.continue_token)?;
        let (source, revision) = following(call, &cache, &token).await?;
        (source, revision, Some(token))
    };
    // Whoever takes what the cache has takes all of it.
    let limit = match options.resource_version.as_str() {
        "0" => 0,
        _ => options.limit,
    };
    let part = Part {
        selection,
        start: token.as_ref().map_or("", |token| &token.start),
        limit: if limit == 0 { usize::MAX } else { limit },
        expected: token.as_ref().and_then(|token| token.remaining),
    };
    let page = match source {
        Source::Cache(snapshot) => part.cut(call, snapshot).await?,
        Source::Store => {
            let step = spans::start("List(recursive=true) etcd3", |span| {
                span.set("audit-id", span.audit_id());
                span.set("key", format!("/{}/", cache.resource().storage));
                span.set("resourceVersion", revision.to_string());
                span.set("limit", options.limit as u64);
            });
            let reading = part.read(call, &cache, revision);
            let read = spans::within(step, reading).await;
            read.map_err(|error| match &token {
                Some(token) if error.reason == Reason::Expired => outdated(token),
                _ => error,
            })?
        }
    };
    if let Some(span) = spans::current() {
        let count = KeyValue::new("count", page.entries.len() as u64);
        span.event("Filtered items", vec![count]);
    }
    Ok((page, revision))
}

/// The entries of one part of a list.
#[derive(Default)]
struct Page {
    entries: Vec<Arc<Entry>>,
    /// Key of the first entry of the next part.
    next: Option<String>,
    /// How many entries there are from there on, when nothing selects them.
    remaining: Option<usize>,
}

/// Keys that are read from the store at once.
const BATCH: usize = 500;

/// Which part of a list is wanted.
struct Part<'a> {
    selection: &'a Selection,
    /// The key to begin with.
    start: &'a str,
    limit: usize,
    /// How many entries there are from `start` on, if somebody has counted.
    expected: Option<usize>,
}

impl Part<'_> {
    /// Of a snapshot.
    async fn cut(&self, call: &Call, snapshot: Snapshot) -> Result<Page, Error> {
        let filter = &self.selection.filter;
        let objects = self.selection.judge(call, snapshot.objects).await?;
        let mut matching = objects.select(filter, self.start);
        let entries: Vec<Arc<Entry>> = matching.by_ref().take(self.limit).cloned().collect();
        let next = matching.next().map(|entry| entry.key.to_string());
        let remaining = (next.is_some() && self.selection.selects_all()).then(|| {
            let first = self.start.is_empty();
            let all = self
                .expected
                .or_else(|| first.then(|| objects.count(&filter.namespace)));
            match all {
                Some(all) => all.saturating_sub(entries.len()),
                None => 1 + matching.count(),
            }
        });
        Ok(Page {
            entries,
            next,
            remaining,
        })
    }

    /// Of the store's history.
    async fn read(&self, call: &Call, cache: &ResourceCache, revision: i64) -> Result<Page, Error> {
        let caches = &call.server.caches;
        let resource = cache.resource();
        let filter = &self.selection.filter;
        let root = format!("{REGISTRY}{}/", resource.storage);
        let mut prefix = root.clone();
        if !filter.namespace.is_empty() {
            prefix.push_str(&filter.namespace);
            prefix.push('/');
        }
        let batch = match self.selection.selects_all() {
            true => BATCH.min(self.limit.saturating_add(1)),
            false => BATCH,
        };
        let start = format!("{root}{}", self.start).into();
        let keys = Keys::prefix(prefix).starting_at(start);
        let mut parts = Parts::new(
            caches.feed(&resource).store().clone(),
            keys,
            revision,
            batch,
        );
        let (mut page, mut total) = (Page::default(), None);
        let record = call.record();
        loop {
            let part = record.timed(Layer::Storage, parts.next()).await;
            let Some(part) = part.map_err(too_old)? else {
                break;
            };
            total.get_or_insert(part.count);
            let mut entries = Vec::with_capacity(part.kvs.len());
            for kv in part.kvs {
                let key = kv.key.get(root.len()..);
                let Some(key) = key.and_then(|k| std::str::from_utf8(k).ok()) else {
                    continue;
                };
                let decoding = caches.entry(&resource, key, &kv);
                let entry = record.timed(Layer::Decoding, decoding).await;
                entries.push(Arc::new(entry.map_err(Error::internal)?));
            }
            let objects = Objects::of(&resource, entries);
            let objects = self.selection.judge(call, objects).await?;
            for entry in objects.select(filter, "") {
                if page.entries.len() == self.limit {
                    page.next = Some(entry.key.to_string());
                    break;
                }
                page.entries.push(entry.clone());
            }
            if page.next.is_some() {
                break;
            }
        }
        if page.next.is_some() && self.selection.selects_all() {
            let all = total.and_then(|total| usize::try_from(total).ok());
            page.remaining = all.map(|all| all.saturating_sub(page.entries.len()));
        }
        Ok(page)
    }
}

/// What a list is read from.
enum Source {
    Cache(Snapshot),
    /// What the cache has forgotten.
    Store,
}

/// What a list without a continue token is read from, by resourceVersion and resourceVersionMatch.
async fn first_page(
    call: &Call,
    cache: &ResourceCache,
    options: &ListOptions,
) -> Result<(Source, i64), Error> {
    let feed = call.server.caches.feed(&call.resource);
    if options.resource_version.is_empty() {
        let newest = feed.consistent();
        let revision = call.record().timed(Layer::Storage, newest).await?;
        return Ok((Source::Cache(cache.snapshot()), revision));
    }
    let version = parse_version(&options.resource_version).map_err(|error| {
        Error::bad_request(format!("invalid resource version: {}", error.message))
    })?;
    if options.is_exact() {
        return Ok((at_revision(call, cache, version).await?, version));
    }
    feed.wait_for(version).await?;
    let revision = feed.applied();
    Ok((Source::Cache(cache.snapshot()), revision))
}

/// Stands in a token for whatever is newest: the list goes on, but not consistently.
const INCONSISTENT: i64 = -1;

/// The entries that the rest of a chunked list is cut from, and their revision.
async fn following(
    call: &Call,
    cache: &ResourceCache,
    token: &Continue,
) -> Result<(Source, i64), Error> {
    let feed = call.server.caches.feed(&call.resource);
    if token.rv == INCONSISTENT {
        let newest = feed.consistent();
        let revision = call.record().timed(Layer::Storage, newest).await?;
        return Ok((Source::Cache(cache.snapshot()), revision));
    }
    // What has not changed since could still be shown, but clients are promised that tokens end with the revision.
    let probe = Range {
        revision: token.rv,
        limit: 1,
        ..Range::new(Keys::One(REGISTRY.into()))
    };
    match feed.store().range(probe).await {
        Err(fluyt_etcd::Error::Compacted { .. }) => return Err(outdated(token)),
        Err(other) => return Err(Error::internal(other)),
        Ok(_) => {}
    }
    Ok((at_revision(call, cache, token.rv).await?, token.rv))
}

/// The list cannot go on consistently; how it can otherwise.
fn outdated(token: &Continue) -> Error {
    let go_on = Continue {
        rv: INCONSISTENT,
        v: token.v.clone(),
        start: token.start.clone(),
        // Of what is there by then nobody has counted.
        remaining: None,
    };
    Error {
        continue_token: go_on.encode(),
        ..Error::expired(CONTINUE_TOO_OLD)
    }
}

const CONTINUE_TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// Where all entries are as of a revision.
async fn at_revision(call: &Call, cache: &ResourceCache, revision: i64) -> Result<Source, Error> {
    let feed = call.server.caches.feed(&call.resource);
    feed.wait_for(revision).await?;
    Ok(match cache.snapshot_at(revision) {
        Some(snapshot) => Source::Cache(snapshot),
        None => Source::Store,
    })
}

fn too_old(error: fluyt_etcd::Error) -> Error {
    match error {
        fluyt_etcd::Error::Compacted { .. } => {
            Error::expired("The resourceVersion for the provided list is too old.")
        }
        other => Error::internal(other),
    }
}
