//! A small in-memory API server for tests of code that talks to a [`kube::Client`].
//!
//! It stores whatever it is given, without schemas: create, get, list, watch (with expiry), update, JSON and
//! merge patch, delete with finalizers, status subresource, bindings, optimistic concurrency, generations.
//! It does no defaulting, no validation and no admission.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode, header::ACCEPT};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::{Resource, client::Body};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::watch;

type FakeBody = UnsyncBoxBody<Bytes, Infallible>;

/// The server; cheap to clone, all clones are one server.
#[derive(Clone, Default)]
pub struct FakeApi {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Counts the log's entries, for watchers to wait on.
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Target, Value>,
    log: Vec<Logged>,
    /// Watches from before this version get 410.
    expired: u64,
    /// Watches opened in an earlier era have ended.
    era: u64,
    requests: Vec<String>,
    failures: HashMap<(String, String), (u16, u32)>,
}

struct Logged {
    version: u64,
    kind: &'static str,
    target: Target,
    object: Value,
}

/// What a URL names. `name` is empty for collections, `namespace` for cluster scope or all namespaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Target {
    group_version: String,
    resource: String,
    namespace: String,
    name: String,
}

#[derive(Default)]
struct Query(HashMap<String, String>);

/// An API error: code, reason, message.
struct Failure(u16, &'static str, String);

impl Default for Shared {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            version: watch::Sender::new(0),
        }
    }
}

impl FakeApi {
    pub fn new() -> Self {
        Self::default()
    }

    /// A client of this server.
    pub fn client(&self) -> kube::Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move { Ok::<_, Infallible>(fake.serve(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Put an object there as if a user had created it.
    pub fn insert<K: Resource<DynamicType = ()> + Serialize + DeserializeOwned>(
        &self,
        object: K,
    ) -> K {
        let target = target_of(&object);
        let value = serde_json::to_value(object).unwrap_or_default();
        let stored = self.change(|state| state.create(target, value));
        stored
            .and_then(|stored| serde_json::from_value(stored).ok())
            .expect("the fake API takes every object that is not there yet")
    }

    /// Overwrite an object including its status, as several users together could have.
    pub fn update<K: Resource<DynamicType = ()> + Serialize>(&self, object: &K) {
        let target = target_of(object);
        let value = serde_json::to_value(object).unwrap_or_default();
        self.change(|state| Some(state.put(&target, value)));
    }

    /// Remove an object at once, whatever its finalizers.
    pub fn remove<K: Resource<DynamicType = ()>>(&self, object: &K) {
        let target = target_of(object);
        self.change(|state| {
            state.remove(&target);
            None
        });
    }

    pub fn get<K>(&self, namespace: &str, name: &str) -> Option<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let target = Target {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..collection_of::<K>()
        };
        let state = self.shared.state.lock();
        let object = state.objects.get(&target)?;
        serde_json::from_value(object.clone()).ok()
    }

    pub fn list<K: Resource<DynamicType = ()> + DeserializeOwned>(&self) -> Vec<K> {
        let collection = collection_of::<K>();
        let state = self.shared.state.lock();
        let of_kind = state
            .objects
            .iter()
            .filter(|(target, _)| target.is_in(&collection));
        of_kind
            .filter_map(|(_, object)| serde_json::from_value(object.clone()).ok())
            .collect()
    }

    /// All requests so far, as `VERB /path`, without reads.
    pub fn writes(&self) -> Vec<String> {
        let state = self.shared.state.lock();
        let writes = state
            .requests
            .iter()
            .filter(|request| !request.starts_with("GET"));
        writes.cloned().collect()
    }

    /// All requests so far, as `VERB /path?query`.
    pub fn requests(&self) -> Vec<String> {
        self.shared.state.lock().requests.clone()
    }

    /// Answer the next `times` requests of `method` to `path` with `code`.
    pub fn fail(&self, method: &str, path: &str, code: u16, times: u32) {
        let key = (method.to_owned(), path.to_owned());
        self.shared.state.lock().failures.insert(key, (code, times));
    }

    /// End all watches and forget the past: they can't go on from where they were.
    pub fn expire_watches(&self) {
        self.change(|state| {
            state.version += 1;
            state.expired = state.version;
            state.era += 1;
            None
        });
    }

    /// End all watches; they can go on.
    pub fn end_watches(&self) {
        self.change(|state| {
            state.version += 1;
            state.era += 1;
            None
        });
    }

    /// Wait until `condition` holds for what the server stores.
    pub async fn until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let mut version = self.shared.version.subscribe();
        let wait = async {
            while !condition(self) {
                let _ = version.changed().await;
            }
        };
        let patience = std::time::Duration::from_secs(20);
        if tokio::time::timeout(patience, wait).await.is_err() {
            panic!("never happened: {what}; writes: {:#?}", self.writes());
        }
    }

    fn change(&self, change: impl FnOnce(&mut State) -> Option<Value>) -> Option<Value> {
        let mut state = self.shared.state.lock();
        let result = change(&mut state);
        self.shared.version.send_replace(state.version);
        result
    }

    async fn serve(&self, request: Request<Body>) -> Response<FakeBody> {
        let (parts, body) = request.into_parts();
        let body = body
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        let path = parts.uri.path().to_owned();
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let accept = parts
            .headers
            .get(ACCEPT)
            .and_then(|accept| accept.to_str().ok());
        let metadata_only = accept.is_some_and(|accept| accept.contains("PartialObjectMetadata"));
        {
            let mut state = self.shared.state.lock();
            let uri = parts.uri.path_and_query().map(ToString::to_string);
            let uri = uri.unwrap_or_default();
            state.requests.push(match parts.method {
                Method::GET => format!("GET {uri}"),
                ref other => format!("{other} {path}"),
            });
            if let Some((code, times)) = state
                .failures
                .get_mut(&(parts.method.to_string(), path.clone()))
                && *times > 0
            {
                *times -= 1;
                return answer(Err(Failure(
                    *code,
                    "Injected",
                    "injected failure".to_owned(),
                )));
            }
        }
        let Some((target, subresource)) = Target::parse(&path) else {
            return answer(self.shared.state.lock().discovery(&path));
        };
        let is_watch = query.get("watch").is_some_and(|watch| watch != "false");
        if is_watch && parts.method == Method::GET {
            return self.watch(target, &query, metadata_only);
        }
        let mut result = Ok(Value::Null);
        self.change(|state| {
            result = match parts.method {
                Method::GET if target.name.is_empty() => state.list(&target, &query, metadata_only),
                Method::GET => state.read(&target),
                Method::DELETE if target.name.is_empty() => {
                    state.delete_collection(&target, &query)
                }
                Method::DELETE => state.delete(&target, &body),
                _ => match serde_json::from_slice(&body) {
                    Err(error) => Err(Failure(400, "BadRequest", error.to_string())),
                    Ok(sent) => {
                        let patch_type = parts.headers.get("content-type");
                        let patch_type = patch_type.and_then(|value| value.to_str().ok());
                        state.write(
                            &parts.method,
                            target,
                            &subresource,
                            sent,
                            patch_type.unwrap_or(""),
                        )
                    }
                },
            };
            None
        });
        if metadata_only {
            result = result.map(strip_to_metadata);
        }
        answer(result)
    }

    fn watch(&self, target: Target, query: &Query, metadata_only: bool) -> Response<FakeBody> {
        let from: u64 = query
            .get("resourceVersion")
            .and_then(|v| v.parse().ok())
            .unwrap_or(0);
        let (era, expired) = {
            let state = self.shared.state.lock();
            (state.era, state.expired)
        };
        if from < expired {
            return answer(Err(Failure(
                410,
                "Expired",
                "too old resource version".to_owned(),
            )));
        }
        let shared = Arc::clone(&self.shared);
        let selector = (query.get("fieldSelector"), query.get("labelSelector"));
        let cursor = (from, shared.version.subscribe(), target, selector);
        let events = stream::unfold(cursor, move |(from, mut version, target, selector)| {
            let shared = Arc::clone(&shared);
            async move {
                loop {
                    let (lines, seen) = {
                        let state = shared.state.lock();
                        if state.era != era {
                            return None;
                        }
                        let lines = state.events_after(from, &target, &selector, metadata_only);
                        (lines, state.version)
                    };
                    if !lines.is_empty() {
                        return Some((lines, (seen, version, target, selector)));
                    }
                    version.changed().await.ok()?;
                }
            }
        });
        let frames = events.map(|lines| Ok(Frame::data(Bytes::from(lines))));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

fn answer(result: Result<Value, Failure>) -> Response<FakeBody> {
    let (code, value) = match result {
        Ok(value) => (200, value),
        Err(Failure(code, reason, message)) => {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": message, "reason": reason, "code": code});
            (code, status)
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
    response
}

fn collection_of<K: Resource<DynamicType = ()>>() -> Target {
    Target {
        group_version: K::api_version(&()).into_owned(),
        resource: K::plural(&()).into_owned(),
        ..Target::default()
    }
}

fn target_of<K: Resource<DynamicType = ()>>(object: &K) -> Target {
    Target {
        namespace: object.meta().namespace.clone().unwrap_or_default(),
        name: object.meta().name.clone().unwrap_or_default(),
        ..collection_of::<K>()
    }
}

fn strip_to_metadata(mut object: Value) -> Value {
    if object.get("items").is_some() {
        return object;
    }
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"].take()})
}

fn matches(object: &Value, fields: Option<&str>, labels: Option<&str>) -> bool {
    let lookup = |path: &str| {
        let found = path.split('.').fold(object, |value, part| &value[part]);
        found.as_str().unwrap_or_default().to_owned()
    };
    let terms = |selector: &str| -> Vec<(String, bool, String)> {
        let terms = selector.split(',').filter(|term| !term.is_empty());
        terms
            .map(|term| match term.split_once("!=") {
                Some((key, value)) => (key.to_owned(), false, value.to_owned()),
                None => {
                    let (key, value) = term.split_once('=').unwrap_or((term, ""));
                    (
                        key.to_owned(),
                        true,
                        value.trim_start_matches('=').to_owned(),
                    )
                }
            })
            .collect()
    };
    let fields_match = terms(fields.unwrap_or_default())
        .iter()
        .all(|(path, equal, value)| (lookup(path) == *value) == *equal);
    let labels_match = terms(labels.unwrap_or_default())
        .iter()
        .all(|(key, equal, value)| {
            let label = object["metadata"]["labels"][key.as_str()].as_str();
            (label == Some(value)) == *equal
        });
    fields_match && labels_match
}

// === impl Target ===

impl Target {
    /// The target and subresource of a path; `None` for paths that name no resource.
    fn parse(path: &str) -> Option<(Self, String)> {
        let mut segments = path.trim_matches('/').split('/');
        let group_version = match segments.next()? {
            "api" => segments.next()?.to_owned(),
            "apis" => format!("{}/{}", segments.next()?, segments.next()?),
            _ => return None,
        };
        let rest: Vec<&str> = segments.collect();
        let is_subresource = |segment: &str| segment == "status" || segment == "finalize";
        let (namespace, rest) = match rest.as_slice() {
            ["namespaces", namespace, resource, ..] if !is_subresource(resource) => {
                (*namespace, &rest[2..])
            }
            _ => ("", &rest[..]),
        };
        let target = Self {
            group_version,
            resource: (*rest.first()?).to_owned(),
            namespace: namespace.to_owned(),
            name: rest.get(1).copied().unwrap_or_default().to_owned(),
        };
        Some((target, rest.get(2).copied().unwrap_or_default().to_owned()))
    }

    fn is_in(&self, collection: &Target) -> bool {
        self.group_version == collection.group_version
            && self.resource == collection.resource
            && (collection.namespace.is_empty() || self.namespace == collection.namespace)
            && (collection.name.is_empty() || self.name == collection.name)
    }

    fn not_found(&self) -> Failure {
        Failure(
            404,
            "NotFound",
            format!("{} {:?} not found", self.resource, self.name),
        )
    }
}

// === impl Query ===

impl Query {
    fn parse(query: &str) -> Self {
        let decode = |text: &str| {
            text.replace("%2C", ",")
                .replace("%3D", "=")
                .replace("%21", "!")
                .replace("%2F", "/")
                .replace('+', " ")
        };
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        Self(
            pairs
                .map(|(key, value)| (decode(key), decode(value)))
                .collect(),
        )
    }

    fn get(&self, key: &str) -> Option<String> {
        self.0.get(key).cloned()
    }
}

// === impl State ===

impl State {
    fn log(&mut self, kind: &'static str, target: &Target, object: &Value) {
        self.log.push(Logged {
            version: self.version,
            kind,
            target: target.clone(),
            object: object.clone(),
        });
    }

    fn events_after(
        &self,
        from: u64,
        target: &Target,
        (fields, labels): &(Option<String>, Option<String>),
        metadata_only: bool,
    ) -> String {
        let news = self.log.iter().filter(|logged| logged.version > from);
        let relevant = news.filter(|logged| {
            logged.target.is_in(target)
                && matches(&logged.object, fields.as_deref(), labels.as_deref())
        });
        relevant
            .map(|logged| {
                let mut object = logged.object.clone();
                if metadata_only {
                    object = strip_to_metadata(object);
                }
                format!("{}\n", json!({"type": logged.kind, "object": object}))
            })
            .collect()
    }

    fn create(&mut self, mut target: Target, mut object: Value) -> Option<Value> {
        self.version += 1;
        let meta = &mut object["metadata"];
        if target.name.is_empty() {
            let prefix = meta["generateName"].as_str().unwrap_or_default();
            target.name = format!("{prefix}{:05}", self.version);
            meta["name"] = json!(target.name);
        }
        if self.objects.contains_key(&target) {
            return None;
        }
        if !target.namespace.is_empty() {
            meta["namespace"] = json!(target.namespace);
        }
        if meta["uid"].is_null() {
            meta["uid"] = json!(format!("uid-{}", self.version));
        }
        if meta["creationTimestamp"].is_null() {
            meta["creationTimestamp"] = json!(now());
        }
        if meta["generation"].is_null() {
            meta["generation"] = json!(1);
        }
        meta["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(target.clone(), object.clone());
        self.log("ADDED", &target, &object);
        Some(object)
    }

    fn put(&mut self, target: &Target, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let meta = &object["metadata"];
        let finalizers = meta["finalizers"]
            .as_array()
            .is_some_and(|list| !list.is_empty());
        let spec_finalizers = object["spec"]["finalizers"]
            .as_array()
            .is_some_and(|list| !list.is_empty());
        if !meta["deletionTimestamp"].is_null()
            && !finalizers
            && !spec_finalizers
            && !is_graceful(meta)
        {
            self.objects.remove(target);
            self.log("DELETED", target, &object);
        } else {
            self.objects.insert(target.clone(), object.clone());
            self.log("MODIFIED", target, &object);
        }
        object
    }

    fn remove(&mut self, target: &Target) {
        if let Some(mut object) = self.objects.remove(target) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.log("DELETED", target, &object);
        }
    }

    fn read(&self, target: &Target) -> Result<Value, Failure> {
        self.objects
            .get(target)
            .cloned()
            .ok_or_else(|| target.not_found())
    }

    fn list(&self, target: &Target, query: &Query, metadata_only: bool) -> Result<Value, Failure> {
        let (fields, labels) = (query.get("fieldSelector"), query.get("labelSelector"));
        let items: Vec<Value> = self
            .objects
            .iter()
            .filter(|(key, object)| {
                key.is_in(target) && matches(object, fields.as_deref(), labels.as_deref())
            })
            .map(|(_, object)| match metadata_only {
                true => strip_to_metadata(object.clone()),
                false => object.clone(),
            })
            .collect();
        Ok(json!({"kind": "List", "apiVersion": "v1",
            "metadata": {"resourceVersion": self.version.to_string()}, "items": items}))
    }

    fn delete_collection(&mut self, target: &Target, query: &Query) -> Result<Value, Failure> {
        let list = self.list(target, query, false)?;
        for item in list["items"].as_array().into_iter().flatten() {
            let one = Target {
                name: item["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                namespace: item["metadata"]["namespace"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                ..target.clone()
            };
            self.delete(&one, b"")?;
        }
        Ok(
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 200,
            "message": "", "reason": ""}),
        )
    }

    fn delete(&mut self, target: &Target, body: &[u8]) -> Result<Value, Failure> {
        let options: Value = serde_json::from_slice(body).unwrap_or_default();
        let mut object = self.read(target)?;
        let wanted = &options["preconditions"];
        for (field, wanted) in [
            ("uid", &wanted["uid"]),
            ("resourceVersion", &wanted["resourceVersion"]),
        ] {
            if !wanted.is_null() && *wanted != object["metadata"][field] {
                return Err(Failure(
                    409,
                    "Conflict",
                    format!("precondition failed: {field}"),
                ));
            }
        }
        let extra = match options["propagationPolicy"].as_str() {
            Some("Orphan") => Some("orphan"),
            Some("Foreground") => Some("foregroundDeletion"),
            _ => None,
        };
        let meta = &mut object["metadata"];
        let mut finalizers = meta["finalizers"].as_array().cloned().unwrap_or_default();
        finalizers.extend(
            extra
                .map(|name| json!(name))
                .filter(|name| !finalizers.contains(name)),
        );
        let spec_finalizers = object["spec"]["finalizers"]
            .as_array()
            .is_some_and(|list| !list.is_empty());
        if finalizers.is_empty() && !spec_finalizers {
            self.remove(target);
            return Ok(object);
        }
        object["metadata"]["finalizers"] = json!(finalizers);
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = json!(now());
        }
        Ok(self.put(target, object))
    }

    fn write(
        &mut self,
        method: &Method,
        target: Target,
        subresource: &str,
        sent: Value,
        patch_type: &str,
    ) -> Result<Value, Failure> {
        if *method == Method::POST && subresource == "binding" {
            let mut pod = self.read(&target)?;
            if pod["spec"]["nodeName"].is_string() {
                return Err(Failure(
                    409,
                    "Conflict",
                    "pod is already assigned to a node".to_owned(),
                ));
            }
            pod["spec"]["nodeName"] = sent["target"]["name"].clone();
            return Ok(self.put(&target, pod));
        }
        if *method == Method::POST {
            let name = sent["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let target = Target { name, ..target };
            let taken = Failure(
                409,
                "AlreadyExists",
                format!("{:?} already exists", target.name),
            );
            return self.create(target, sent).ok_or(taken);
        }
        let stored = self.read(&target)?;
        let mut new = stored.clone();
        if *method == Method::PUT {
            new = sent;
        } else if patch_type.contains("json-patch") {
            let operations: json_patch::Patch = serde_json::from_value(sent)
                .map_err(|error| Failure(400, "BadRequest", error.to_string()))?;
            json_patch::patch(&mut new, &operations)
                .map_err(|error| Failure(422, "Invalid", error.to_string()))?;
        } else {
            json_patch::merge(&mut new, &sent);
        }
        let version = &new["metadata"]["resourceVersion"];
        if version.as_str().is_some_and(|version| !version.is_empty())
            && *version != stored["metadata"]["resourceVersion"]
        {
            return Err(Failure(
                409,
                "Conflict",
                "the object has been modified".to_owned(),
            ));
        }
        let mut merged = match subresource {
            "status" => {
                let mut merged = stored.clone();
                merged["status"] = new["status"].take();
                merged
            }
            _ => {
                if !stored["status"].is_null() {
                    new["status"] = stored["status"].clone();
                }
                new
            }
        };
        for field in [
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "generation",
            "namespace",
            "name",
        ] {
            merged["metadata"][field] = stored["metadata"][field].clone();
        }
        if merged["spec"] != stored["spec"] {
            let generation = stored["metadata"]["generation"].as_i64().unwrap_or(0);
            merged["metadata"]["generation"] = json!(generation + 1);
        }
        Ok(self.put(&target, merged))
    }

    /// Discovery of the resources that have objects.
    fn discovery(&self, path: &str) -> Result<Value, Failure> {
        let group_versions: std::collections::BTreeSet<&str> = self
            .objects
            .keys()
            .map(|key| key.group_version.as_str())
            .collect();
        let (base, group_version) = match path.trim_matches('/').split_once('/') {
            None => (path.trim_matches('/'), None),
            Some((base, group_version)) => (base, Some(group_version)),
        };
        match (base, group_version) {
            ("api", None) => Ok(json!({"kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": []})),
            ("apis", None) => {
                let groups: Vec<Value> = group_versions
                    .iter()
                    .filter_map(|gv| Some((gv, gv.split_once('/')?)))
                    .map(|(gv, (group, version))| {
                        let version = json!({"groupVersion": gv, "version": version});
                        json!({"name": group, "versions": [version], "preferredVersion": version})
                    })
                    .collect();
                Ok(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
            }
            ("api" | "apis", Some(group_version)) => {
                let mut resources = BTreeMap::new();
                for (key, object) in &self.objects {
                    if key.group_version == group_version {
                        resources.insert(
                            &key.resource,
                            (object["kind"].clone(), !key.namespace.is_empty()),
                        );
                    }
                }
                let verbs = [
                    "create",
                    "delete",
                    "deletecollection",
                    "get",
                    "list",
                    "patch",
                    "update",
                    "watch",
                ];
                let resources: Vec<Value> = resources
                    .into_iter()
                    .map(|(name, (kind, namespaced))| {
                        json!({"name": name, "singularName": "", "kind": kind,
                            "namespaced": namespaced, "verbs": verbs})
                    })
                    .collect();
                Ok(json!({"kind": "APIResourceList", "apiVersion": "v1",
                    "groupVersion": group_version, "resources": resources}))
            }
            _ => Err(Failure(404, "NotFound", format!("no resource at {path}"))),
        }
    }
}

/// Whether a grace period is running: the object stays until it is deleted with period 0.
fn is_graceful(meta: &Value) -> bool {
    meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) > 0
}

fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}
