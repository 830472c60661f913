//! Paths and their operations, of OpenAPI v3.

use std::collections::BTreeMap;

use fluyt_api::resources::{self, Resource, Subresource};
use fluyt_api::schema::Schema;
use serde_json::{Map, Value, json};

use super::parameters::{self, Parameter};
use super::schemas::{META, Schemas, refer};

/// What built-in resources answer in, and what of it is a watch.
const FORMATS: [&str; 4] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/cbor",
];
const STREAMS: [&str; 3] = [
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
    "application/cbor-seq",
];
const PATCHES: [&str; 5] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "application/apply-patch+cbor",
];
/// Custom resources know less.
const CUSTOM_FORMATS: [&str; 2] = ["application/json", "application/yaml"];
const CUSTOM_PATCHES: [&str; 3] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
];

/// Paths with their items, in order.
pub type Paths = BTreeMap<String, Value>;

/// `apps` -> `Apps`, `rbac.authorization.k8s.io` -> `RbacAuthorization`.
fn group_name(group: &str) -> String {
    match group {
        "" => "Core".to_owned(),
        group => group
            .trim_end_matches(".k8s.io")
            .split(['.', '-'])
            .map(capital)
            .collect(),
    }
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

/// `core_v1`, `rbacAuthorization_v1`.
fn tag(group: &str, version: &str) -> String {
    let name = group_name(group);
    let mut letters = name.chars();
    let first: String = letters
        .next()
        .into_iter()
        .flat_map(char::to_lowercase)
        .collect();
    let name = first + letters.as_str();
    if version.is_empty() {
        name
    } else {
        format!("{name}_{version}")
    }
}

/// The path of a document that is about finding out what there is: `/api/`, `/apis/apps/`, `/api/v1/`.
#[must_use]
pub fn discovery(schemas: &mut Schemas, path: &str) -> Paths {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (id, description, ty, tag) = match segments.as_slice() {
        ["api"] => (
            "getCoreAPIVersions".to_owned(),
            "get available API versions",
            "APIVersions",
            "core".to_owned(),
        ),
        ["apis"] => (
            "getAPIVersions".to_owned(),
            "get available API versions",
            "APIGroupList",
            "apis".to_owned(),
        ),
        ["apis", group] => (
            format!("get{}APIGroup", group_name(group)),
            "get information of a group",
            "APIGroup",
            tag(group, ""),
        ),
        [.., version] => {
            let group = if segments[0] == "api" {
                ""
            } else {
                segments[1]
            };
            (
                format!("get{}{}APIResources", group_name(group), capital(version)),
                "get available resources",
                "APIResourceList",
                tag(group, version),
            )
        }
        [] => return Paths::new(),
    };
    let schema = schemas.reference(&format!("{META}.{ty}"));
    schemas.mark(&format!("{META}.{ty}"), "", "v1", ty);
    let cbor = schemas.cbor && ty == "APIResourceList";
    let formats = if cbor { &FORMATS[..] } else { &FORMATS[..3] };
    let operation = json!({
        "operationId": id, "description": description, "tags": [tag],
        "responses": responses(READ, formats, &schema),
    });
    Paths::from([(
        format!("/{}/", path.trim_matches('/')),
        json!({"get": operation}),
    )])
}

/// A path that is not of the API proper: where, by which name and tag, what it is, and what it answers.
#[must_use]
pub fn plain(path: &str, [id, tag, text]: [&str; 3], format: &str, schema: &Value) -> Paths {
    let operation = json!({
        "operationId": id, "description": text, "tags": [tag],
        "responses": responses(READ, &[format], schema),
    });
    Paths::from([(format!("/{path}/"), json!({"get": operation}))])
}

/// All paths of a resource, whose item has the schema's name.
pub fn of(resource: &Resource, item: &str, schemas: &mut Schemas) -> Paths {
    let mut builder = Builder {
        resource,
        item,
        schemas,
        paths: Paths::new(),
        base: match resource.group {
            "" => format!("/api/{}", resource.version),
            group => format!("/apis/{group}/{}", resource.version),
        },
    };
    builder.collection();
    builder.object();
    for sub in &resource.subresources {
        if is_connection(sub) {
            builder.connection(sub);
        } else {
            builder.subresource(sub);
        }
    }
    builder.watches();
    builder.paths
}

/// Whether a subresource is a way through to something else.
fn is_connection(sub: &Subresource) -> bool {
    sub.kind.ends_with("Options") && sub.name != "log"
}

struct Builder<'a> {
    resource: &'a Resource,
    item: &'a str,
    schemas: &'a mut Schemas,
    paths: Paths,
    base: String,
}

/// A method with what it does.
struct Operation<'a> {
    method: &'static str,
    action: &'static str,
    /// The beginning of its name and of its description.
    verb: (&'static str, String),
    /// The end of its name.
    suffix: String,
    parameters: &'a [Parameter],
    /// The request's body, and whether there must be one.
    body: Option<(Value, bool)>,
    answers: &'a [(&'a str, &'a str)],
    answer: Value,
    streams: bool,
    kind: (&'a str, &'a str, &'a str),
}

const READ: &[(&str, &str)] = &[("200", "OK")];
const CREATED: &[(&str, &str)] = &[("200", "OK"), ("201", "Created"), ("202", "Accepted")];
const CHANGED: &[(&str, &str)] = &[("200", "OK"), ("201", "Created")];
const DELETED: &[(&str, &str)] = &[("200", "OK"), ("202", "Accepted")];

impl Builder<'_> {
    fn is_custom(&self) -> bool {
        self.resource.definition.is_some()
    }

    /// `/api/v1/namespaces/{namespace}/pods`, or without the namespace for all of them.
    fn collection_path(&self, watch: &str, namespaced: bool) -> String {
        let plural = self.resource.plural;
        if namespaced {
            format!("{}{watch}/namespaces/{{namespace}}/{plural}", self.base)
        } else {
            format!("{}{watch}/{plural}", self.base)
        }
    }

    fn object_path(&self) -> String {
        let collection = self.collection_path("", self.resource.namespaced);
        format!("{collection}/{{name}}")
    }

    fn list(&mut self) -> Value {
        self.schemas.list(self.resource, self.item)
    }

    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        let r = self.resource;
        (r.group, r.version, r.kind)
    }

    /// "Namespaced" in the names of operations.
    fn scope(&self) -> &'static str {
        if self.resource.namespaced {
            "Namespaced"
        } else {
            ""
        }
    }

    fn collection(&mut self) {
        let (resource, kind, scope) = (self.resource, self.resource.kind, self.scope());
        let item = refer(self.item);
        let mut operations = Vec::new();
        if resource.supports("list") {
            let answer = self.list();
            operations.push(self.listing(answer.clone(), format!("{scope}{kind}")));
            if resource.namespaced {
                let all = self.listing(answer, format!("{kind}ForAllNamespaces"));
                let path = self.collection_path("", false);
                self.insert(path, vec![all], &[]);
            }
        }
        if resource.supports("create") {
            operations.push(Operation {
                method: "post",
                action: "post",
                verb: ("create", format!("create{}", with_article(kind))),
                suffix: format!("{scope}{kind}"),
                parameters: parameters::WRITE,
                body: Some((item.clone(), true)),
                answers: CREATED,
                answer: item,
                streams: false,
                kind: self.gvk(),
            });
        }
        if resource.supports("deletecollection") {
            let parameters = [parameters::DELETE, &parameters::LIST[1..10]].concat();
            let operation = Operation {
                method: "delete",
                action: "deletecollection",
                verb: ("delete", format!("delete collection of {kind}")),
                suffix: format!("Collection{scope}{kind}"),
                parameters: &parameters,
                body: Some((self.delete_options(), false)),
                answers: READ,
                answer: self.status(),
                streams: false,
                kind: self.gvk(),
            };
            operations.push(operation);
            let path = self.collection_path("", resource.namespaced);
            return self.insert(path, operations, &[]);
        }
        let path = self.collection_path("", resource.namespaced);
        self.insert(path, operations, &[]);
    }

    fn listing(&self, answer: Value, suffix: String) -> Operation<'static> {
        let kind = self.resource.kind;
        let watches = self.resource.supports("watch") && !self.is_custom();
        let what = if watches { "list or watch" } else { "list" };
        Operation {
            method: "get",
            action: "list",
            verb: ("list", format!("{what} objects of kind {kind}")),
            suffix,
            parameters: parameters::LIST,
            body: None,
            answers: READ,
            answer,
            streams: !self.is_custom(),
            kind: self.gvk(),
        }
    }

    fn object(&mut self) {
        let (kind, scope) = (self.resource.kind, self.scope());
        let suffix = format!("{scope}{kind}");
        let item = refer(self.item);
        let mut operations =
            self.reads_and_changes(&self.resource.verbs, "", &suffix, &item, self.gvk());
        if self.resource.supports("delete") {
            let returned = self.resource.returns_deleted();
            let operation = Operation {
                method: "delete",
                action: "delete",
                verb: ("delete", format!("delete{}", with_article(kind))),
                suffix,
                parameters: parameters::DELETE,
                body: Some((self.delete_options(), false)),
                answers: DELETED,
                answer: if returned { item } else { self.status() },
                streams: false,
                kind: self.gvk(),
            };
            operations.push(operation);
        }
        let path = self.object_path();
        self.insert(path, operations, &[]);
    }

    /// GET, PUT and PATCH of an object or of a part of it.
    fn reads_and_changes<'a>(
        &mut self,
        verbs: &[&str],
        sub: &str,
        suffix: &str,
        item: &Value,
        kind: (&'a str, &'a str, &'a str),
    ) -> Vec<Operation<'a>> {
        let of = self.resource.kind;
        let what = if sub.is_empty() {
            format!("the specified {of}")
        } else {
            format!("{sub} of the specified {of}")
        };
        let mut operations = Vec::new();
        let base = |method, action, verb, text: &str| Operation {
            method,
            action,
            verb: (verb, format!("{text} {what}")),
            suffix: suffix.to_owned(),
            parameters: &[],
            body: None,
            answers: READ,
            answer: item.clone(),
            streams: false,
            kind,
        };
        if verbs.contains(&"get") {
            operations.push(base("get", "get", "read", "read"));
        }
        if verbs.contains(&"update") {
            operations.push(Operation {
                parameters: parameters::WRITE,
                body: Some((item.clone(), true)),
                answers: CHANGED,
                ..base("put", "put", "replace", "replace")
            });
        }
        if verbs.contains(&"patch") {
            operations.push(Operation {
                parameters: parameters::PATCH,
                body: Some((self.schemas.reference(&format!("{META}.Patch")), true)),
                answers: if self.is_custom() { READ } else { CHANGED },
                ..base("patch", "patch", "patch", "partially update")
            });
        }
        operations
    }

    fn subresource(&mut self, sub: &Subresource) {
        let resource = self.resource;
        let (group, version) = sub
            .group_version
            .unwrap_or((resource.group, resource.version));
        let own = (group, version, sub.kind) == self.gvk();
        let item = match resources::type_of(group, version, sub.kind) {
            _ if own => refer(self.item),
            Some(ty) => {
                let name = Schema::builtin().get(ty).name.to_string();
                let reference = self.schemas.reference(&name);
                self.schemas.mark(&name, group, version, sub.kind);
                reference
            }
            None => return,
        };
        let suffix = format!("{}{}{}", self.scope(), resource.kind, capital(sub.name));
        let kind = (group, version, sub.kind);
        let path = format!("{}/{}", self.object_path(), sub.name);
        if sub.name == "log" {
            let mut operations = self.reads_and_changes(&["get"], "log", &suffix, &item, kind);
            operations[0].answer = json!({"type": "string"});
            let options: Vec<Value> = parameters::options("PodLogOptions")
                .iter()
                .map(parameters::query)
                .collect();
            return self.insert(path, operations, &options);
        }
        let mut operations = self.reads_and_changes(&sub.verbs, sub.name, &suffix, &item, kind);
        if sub.verbs.contains(&"create") {
            let of = with_article(resource.kind);
            operations.push(Operation {
                method: "post",
                action: "post",
                verb: ("create", format!("create {} of{of}", sub.name)),
                suffix,
                parameters: parameters::WRITE,
                body: Some((item.clone(), true)),
                answers: CREATED,
                answer: item,
                streams: false,
                kind,
            });
        }
        // What asks to finalize a namespace is a subresource of the cluster's scope whatever the parent is.
        self.insert(path, operations, &[]);
    }

    /// A connection, with and without a path behind it.
    fn connection(&mut self, sub: &Subresource) {
        const METHODS: [(&str, &str, &str); 7] = [
            ("get", "get", "Get"),
            ("post", "create", "Post"),
            ("put", "update", "Put"),
            ("patch", "patch", "Patch"),
            ("delete", "delete", "Delete"),
            ("head", "get", "Head"),
            ("options", "get", "Options"),
        ];
        let resource = self.resource;
        let is_proxy = sub.name == "proxy";
        let with_path: &[bool] = if is_proxy { &[false, true] } else { &[false] };
        for with_path in with_path {
            let mut item = Map::new();
            for (method, verb, name) in METHODS {
                let rare = matches!(method, "head" | "options");
                if !sub.verbs.contains(&verb) || (rare && !is_proxy) {
                    continue;
                }
                let suffix = if *with_path { "WithPath" } else { "" };
                let id = format!(
                    "connect{}{}{name}{}{}{}{suffix}",
                    group_name(resource.group),
                    capital(resource.version),
                    self.scope(),
                    resource.kind,
                    capital(sub.name)
                );
                let upper = method.to_uppercase();
                let text = format!(
                    "connect {upper} requests to {} of {}",
                    sub.name, resource.kind
                );
                let operation = json!({
                    "operationId": id, "description": text,
                    "tags": [tag(resource.group, resource.version)],
                    "responses": responses(READ, &["*/*"], &json!({"type": "string"})),
                    "x-kubernetes-action": "connect",
                    "x-kubernetes-group-version-kind": {
                        "group": resource.group, "version": resource.version, "kind": sub.kind,
                    },
                });
                item.insert(method.to_owned(), operation);
            }
            let mut parameters: Vec<Value> = parameters::options(sub.kind)
                .iter()
                .map(parameters::query)
                .collect();
            parameters.extend(self.path_parameters(&self.object_path(), sub.kind));
            let mut path = format!("{}/{}", self.object_path(), sub.name);
            if *with_path {
                path.push_str("/{path}");
                parameters.push(parameters::path("path", "The path behind the proxy."));
            }
            sort(&mut parameters);
            item.insert("parameters".into(), parameters.into());
            self.paths.insert(path, item.into());
        }
    }

    /// The old paths of watches.
    fn watches(&mut self) {
        let resource = self.resource;
        if !resource.supports("watch") || self.is_custom() {
            return;
        }
        let (kind, scope) = (resource.kind, self.scope());
        let event = self.schemas.reference(&format!("{META}.WatchEvent"));
        self.mark_shared("WatchEvent");
        let of_list = format!(
            "watch individual changes to a list of {kind}. deprecated: use the 'watch' parameter with a list operation instead."
        );
        let of_one = format!(
            "watch changes to an object of kind {kind}. deprecated: use the 'watch' parameter with a list operation instead, filtered to a single item with the 'fieldSelector' parameter."
        );
        let collection = self.collection_path("/watch", resource.namespaced);
        let mut all = vec![
            (
                collection.clone(),
                "watchlist",
                format!("{scope}{kind}List"),
                of_list.clone(),
            ),
            (
                format!("{collection}/{{name}}"),
                "watch",
                format!("{scope}{kind}"),
                of_one,
            ),
        ];
        if resource.namespaced {
            let path = self.collection_path("/watch", false);
            let suffix = format!("{kind}ListForAllNamespaces");
            all.push((path, "watchlist", suffix, of_list));
        }
        for (path, action, suffix, text) in all {
            let operation = Operation {
                method: "get",
                action,
                verb: ("watch", text),
                suffix,
                parameters: parameters::LIST,
                body: None,
                answers: READ,
                answer: event.clone(),
                streams: true,
                kind: self.gvk(),
            };
            self.insert(path, vec![operation], &[]);
        }
    }

    fn delete_options(&mut self) -> Value {
        let reference = self.schemas.reference(&format!("{META}.DeleteOptions"));
        self.mark_shared("DeleteOptions");
        reference
    }

    fn status(&mut self) -> Value {
        let name = format!("{META}.Status");
        let reference = self.schemas.reference(&name);
        self.schemas.mark(&name, "", "v1", "Status");
        reference
    }

    /// Kinds that every group has.
    fn mark_shared(&mut self, kind: &str) {
        let name = format!("{META}.{kind}");
        self.schemas.mark(&name, "", "v1", kind);
        let (group, version) = (self.resource.group, self.resource.version);
        self.schemas.mark(&name, group, version, kind);
    }

    /// What stands in braces in a path.
    fn path_parameters(&self, path: &str, kind: &str) -> Vec<Value> {
        let mut parameters = Vec::new();
        if path.contains("{name}") {
            parameters.push(parameters::path("name", &format!("name of the {kind}")));
        }
        if path.contains("{namespace}") {
            let text = "object name and auth scope, such as for teams and projects";
            parameters.push(parameters::path("namespace", text));
        }
        parameters
    }

    /// Adds a path. Parameters that all its operations have stand beside them.
    fn insert(&mut self, path: String, operations: Vec<Operation<'_>>, options: &[Value]) {
        if operations.is_empty() {
            return;
        }
        let common: Vec<&str> = operations[0]
            .parameters
            .iter()
            .map(|(name, ..)| *name)
            .filter(|name| {
                let has = |o: &Operation<'_>| o.parameters.iter().any(|(n, ..)| n == name);
                operations.iter().all(has)
            })
            .collect();
        let kind = match path.rsplit('/').next() {
            Some("scale" | "eviction" | "binding" | "token") => operations[0].kind.2,
            _ => self.resource.kind,
        };
        let mut shared: Vec<Value> = self.path_parameters(&path, kind);
        if options.is_empty() {
            shared.push(parameters::query(&parameters::PRETTY));
        }
        shared.extend(options.iter().cloned());
        let lifted = operations[0].parameters.iter();
        shared.extend(
            lifted
                .filter(|p| common.contains(&p.0))
                .map(parameters::query),
        );
        sort(&mut shared);
        let mut item = Map::new();
        item.insert("parameters".into(), shared.into());
        for operation in operations {
            let method = operation.method.to_owned();
            item.insert(method, self.operation(operation, &common));
        }
        self.paths.insert(path, item.into());
    }

    fn operation(&self, operation: Operation<'_>, common: &[&str]) -> Value {
        let resource = self.resource;
        let (verb, text) = operation.verb;
        let id = format!(
            "{verb}{}{}{}",
            group_name(resource.group),
            capital(resource.version),
            operation.suffix
        );
        let mut formats: Vec<&str> = if self.is_custom() {
            CUSTOM_FORMATS.to_vec()
        } else {
            FORMATS.to_vec()
        };
        if operation.streams {
            formats.extend(STREAMS);
        }
        formats.retain(|format| self.schemas.cbor || !format.contains("cbor"));
        if operation.answer["type"] == "string" {
            formats.push("text/plain");
        }
        let (group, version, kind) = operation.kind;
        let mut described = json!({
            "operationId": id, "description": text, "tags": [tag(resource.group, resource.version)],
            "responses": responses(operation.answers, &formats, &operation.answer),
            "x-kubernetes-action": operation.action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        });
        let mut own: Vec<Value> = operation
            .parameters
            .iter()
            .filter(|p| !common.contains(&p.0))
            .map(parameters::query)
            .collect();
        sort(&mut own);
        if !own.is_empty() {
            described["parameters"] = own.into();
        }
        if let Some((schema, required)) = operation.body {
            let formats: &[&str] = match (operation.method, self.is_custom()) {
                ("patch", true) => &CUSTOM_PATCHES,
                ("patch", false) if self.schemas.cbor => &PATCHES,
                ("patch", false) => &PATCHES[..4],
                (_, true) => &CUSTOM_FORMATS,
                (_, false) => &["*/*"],
            };
            described["requestBody"] = json!({"content": content(formats, &schema)});
            if required {
                described["requestBody"]["required"] = true.into();
            }
        }
        described
    }
}

fn sort(parameters: &mut [Value]) {
    parameters.sort_by(|a, b| {
        let key = |p: &Value| (p["name"].to_string(), p["in"].to_string());
        key(a).cmp(&key(b))
    });
}

fn content(formats: &[&str], schema: &Value) -> Value {
    formats
        .iter()
        .map(|format| ((*format).to_owned(), json!({"schema": schema})))
        .collect::<Map<_, _>>()
        .into()
}

fn responses(answers: &[(&str, &str)], formats: &[&str], schema: &Value) -> Value {
    let mut all: Map<String, Value> = answers
        .iter()
        .map(|(code, description)| {
            let response = json!({"description": description, "content": content(formats, schema)});
            ((*code).to_owned(), response)
        })
        .collect();
    all.insert("401".into(), json!({"description": "Unauthorized"}));
    all.into()
}

/// " a Pod", " an Ingress", " Endpoints".
fn with_article(noun: &str) -> String {
    let lower = noun.to_lowercase();
    if lower.ends_with('s') && !lower.ends_with("ss") {
        return format!(" {noun}");
    }
    let article = if lower.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!(" {article} {noun}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluyt_api::resources::find;

    fn paths(group: &str, version: &str, plural: &str) -> Paths {
        let resource = find(group, version, plural).unwrap();
        let mut schemas = Schemas::new(false);
        let item = &Schema::builtin().get(resource.ty.unwrap()).name;
        of(resource, item, &mut schemas)
    }

    #[test]
    fn operations_have_upstreams_names() {
        let pods = paths("", "v1", "pods");
        let id = |path: &str, method: &str| pods[path][method]["operationId"].clone();
        let one = "/api/v1/namespaces/{namespace}/pods/{name}";
        assert_eq!(id(one, "get"), "readCoreV1NamespacedPod");
        assert_eq!(id("/api/v1/pods", "get"), "listCoreV1PodForAllNamespaces");
        let proxy = format!("{one}/proxy/{{path}}");
        assert_eq!(
            id(&proxy, "head"),
            "connectCoreV1HeadNamespacedPodProxyWithPath"
        );
        let collection = "/api/v1/namespaces/{namespace}/pods";
        assert_eq!(
            id(collection, "delete"),
            "deleteCoreV1CollectionNamespacedPod"
        );
        let roles = paths("rbac.authorization.k8s.io", "v1", "clusterroles");
        let operation = &roles["/apis/rbac.authorization.k8s.io/v1/clusterroles"]["post"];
        assert_eq!(
            operation["operationId"],
            "createRbacAuthorizationV1ClusterRole"
        );
        assert_eq!(operation["tags"], json!(["rbacAuthorization_v1"]));
    }

    #[test]
    fn parameters_of_all_operations_stand_beside_them() {
        let pods = paths("", "v1", "pods");
        let eviction = &pods["/api/v1/namespaces/{namespace}/pods/{name}/eviction"];
        let names: Vec<&str> = eviction["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["name"].as_str().unwrap())
            .collect();
        let all = [
            "dryRun",
            "fieldManager",
            "fieldValidation",
            "name",
            "namespace",
            "pretty",
        ];
        assert_eq!(names, all);
        assert!(eviction["post"]["parameters"].is_null());
    }

    #[test]
    fn articles() {
        assert_eq!(with_article("Pod"), " a Pod");
        assert_eq!(with_article("Ingress"), " an Ingress");
        assert_eq!(with_article("Endpoints"), " Endpoints");
    }
}
