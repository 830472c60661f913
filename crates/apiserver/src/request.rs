//! What a request asks for, read from its path and query: the resource, the verb, the name.

use fluyt_api::Error;
use fluyt_api::resources::{Handle, Snapshot, Subresource};
use http::Method;

/// A parsed request line.
#[derive(Clone, Debug)]
pub struct RequestInfo {
    pub verb: &'static str,
    /// Without `/api…` prefix; `None` for paths that are not resources.
    pub target: Option<Target>,
    pub path: String,
    pub query: Query,
}

/// A resource path.
#[derive(Clone, Debug)]
pub struct Target {
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub plural: String,
    pub name: String,
    pub subresource: String,
    /// What follows the subresource, for proxies, with its leading slash.
    pub rest: String,
    /// The old way to ask for a watch: a path of its own.
    pub watch: bool,
    /// A resource without namespaces was looked for in one.
    pub misplaced: bool,
    /// The table's entry; `None` for a resource that is not ours.
    pub resource: Option<Handle>,
}

/// Decoded query parameters, in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    #[must_use]
    pub fn parse(query: &str) -> Self {
        Self(
            query
                .split('&')
                .filter(|p| !p.is_empty())
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key), decode(value))
                })
                .collect(),
        )
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0
            .iter()
            .filter(move |(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    }

    /// Every parameter, in order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// A number.
    ///
    /// # Errors
    /// 400 for what is none.
    pub fn integer(&self, name: &str) -> Result<Option<i64>, Error> {
        let parse = |text: &str| {
            let why = format!("strconv.ParseInt: parsing {text:?}: invalid syntax");
            text.parse().map_err(|_| Error::bad_request(why))
        };
        self.get(name)
            .filter(|t| !t.is_empty())
            .map(parse)
            .transpose()
    }

    /// Whether a boolean option is there and set.
    #[must_use]
    pub fn flag_is_true(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1" | "True"))
    }

    /// Whether an option is there and does not say that it is off.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }
}

/// Percent-decoding, with `+` as space.
fn decode(text: &str) -> String {
    percent_decode(&text.replace('+', " "))
}

/// Percent-decoding; malformed escapes stay as they are.
#[must_use]
pub fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%')
            .then(|| text.get(i + 1..i + 3))
            .flatten()
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        if let Some(byte) = hex {
            decoded.push(byte);
            i += 3;
        } else {
            decoded.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

impl RequestInfo {
    #[must_use]
    pub fn parse(served: &Snapshot, method: &Method, path: &str, query: Option<&str>) -> Self {
        let query = Query::parse(query.unwrap_or_default());
        let target = parse_target(served, path);
        let verb = verb(method, target.as_ref(), &query);
        Self {
            verb,
            target,
            path: path.to_owned(),
            query,
        }
    }

    /// Whether the answer is an object of the API, which has several formats.
    #[must_use]
    pub fn is_api(&self) -> bool {
        let proxied = self.target.as_ref().is_some_and(Target::is_stream);
        !proxied && (self.path.starts_with("/api/") || self.path.starts_with("/apis"))
            || self.path == "/api"
    }

    /// Whether the request lasts as long as its client wants.
    #[must_use]
    pub fn is_long_running(&self) -> bool {
        self.verb == "watch" || self.target.as_ref().is_some_and(Target::is_stream)
    }

    /// Whether the answer may take long to compute: it is about more than one object.
    #[must_use]
    pub fn is_extensive(&self) -> bool {
        self.target.is_none() || matches!(self.verb, "list" | "deletecollection")
    }

    /// Whether the answer may be compressed: what is there at once, not what happens over time.
    #[must_use]
    pub fn is_compressible(&self) -> bool {
        matches!(self.verb, "get" | "list") && (self.is_api() || self.path.starts_with("/openapi/"))
    }

    /// The selector-pinned name of a list or watch, which authorization treats as the object's name.
    #[must_use]
    pub fn authorized_name(&self) -> String {
        let Some(target) = &self.target else {
            return String::new();
        };
        if target.name.is_empty() && matches!(self.verb, "list" | "watch" | "deletecollection") {
            let selector = self
                .query
                .get("fieldSelector")
                .and_then(|s| fluyt_api::selector::FieldSelector::parse(s).ok());
            return selector
                .and_then(|s| s.exact("metadata.name").map(Into::into))
                .unwrap_or_default();
        }
        target.name.clone()
    }
}

impl Target {
    /// Whether this is a way through to something that has its own formats.
    fn is_stream(&self) -> bool {
        const STREAMS: [&str; 5] = ["log", "exec", "attach", "portforward", "proxy"];
        STREAMS.contains(&self.subresource.as_str())
    }

    #[must_use]
    pub fn subresource_entry(&self) -> Option<&Subresource> {
        self.resource.as_ref()?.subresource(&self.subresource)
    }
}

/// Subresources whose remaining path belongs to what they proxy to.
const PROXIES: [&str; 1] = ["proxy"];

fn parse_target(served: &Snapshot, path: &str) -> Option<Target> {
    let mut segments = path.trim_start_matches('/').split('/');
    let (group, version) = match segments.next()? {
        "api" => (String::new(), segments.next()?.to_owned()),
        "apis" => (segments.next()?.to_owned(), segments.next()?.to_owned()),
        _ => return None,
    };
    let mut segments: Vec<String> = segments.map(percent_decode).collect();
    if segments.last().is_some_and(String::is_empty)
        && !segments.iter().any(|s| PROXIES.contains(&s.as_str()))
    {
        segments.pop();
    }
    let watch = segments.first().is_some_and(|s| s == "watch");
    if watch {
        segments.remove(0);
    }
    let mut namespace = String::new();
    // `namespaces/NS/…` scopes what follows, unless it is the namespace object itself or one of its own subresources.
    if segments.first().is_some_and(|s| s == "namespaces") && segments.len() > 2 {
        let own = segments.len() == 3 && matches!(segments[2].as_str(), "status" | "finalize");
        if !(own && group.is_empty()) {
            namespace = segments[1].clone();
            segments.drain(..2);
        }
    }
    let mut segments = segments.into_iter();
    let plural = segments.next().filter(|s| !s.is_empty())?;
    let name = segments.next().unwrap_or_default();
    let subresource = segments.next().unwrap_or_default();
    // As it was sent: what it means is the backend's to say.
    let mut rest = String::new();
    let raw: Vec<&str> = path.rsplit('/').take(segments.len()).collect();
    for segment in raw.into_iter().rev() {
        rest.push('/');
        rest.push_str(segment);
    }
    if plural == "namespaces" && namespace.is_empty() {
        namespace.clone_from(&name);
    }
    let resource = served.find(&group, &version, &plural);
    let mut misplaced = false;
    if resource
        .as_ref()
        .is_some_and(|r| !r.namespaced && r.plural != "namespaces")
    {
        misplaced = !namespace.is_empty();
        namespace.clear();
    }
    Some(Target {
        group,
        version,
        namespace,
        plural,
        name,
        subresource,
        rest,
        watch,
        misplaced,
        resource,
    })
}

fn verb(method: &Method, target: Option<&Target>, query: &Query) -> &'static str {
    let Some(target) = target else {
        return match *method {
            Method::GET => "get",
            Method::HEAD => "head",
            Method::POST => "post",
            Method::PUT => "put",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "options",
        };
    };
    match *method {
        Method::GET | Method::HEAD if target.name.is_empty() => {
            if target.watch || query.flag("watch") {
                "watch"
            } else {
                "list"
            }
        }
        Method::GET | Method::HEAD
            if (target.watch || query.flag("watch")) && target.subresource.is_empty() =>
        {
            "watch"
        }
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if target.name.is_empty() => "deletecollection",
        Method::DELETE => "delete",
        _ => "options",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: Method, path: &str, query: &str) -> (String, &'static str) {
        let info = RequestInfo::parse(&Snapshot::default(), &method, path, Some(query));
        let t = info.target.unwrap();
        (
            format!(
                "{}|{}|{}|{}|{}|{}",
                t.group, t.namespace, t.plural, t.name, t.subresource, t.rest
            ),
            info.verb,
        )
    }

    #[test]
    fn what_is_about_many_objects_is_extensive() {
        for (method, path, query, expected) in [
            (Method::GET, "/api/v1/pods", "", true),
            (Method::GET, "/api/v1/pods", "watch=1", false),
            (Method::DELETE, "/api/v1/namespaces/a/pods", "", true),
            (Method::GET, "/api/v1/namespaces/a/pods/b", "", false),
            (Method::POST, "/api/v1/namespaces/a/pods", "", false),
            (Method::GET, "/openapi/v2", "", true),
            (Method::GET, "/apis", "", true),
        ] {
            let info = RequestInfo::parse(&Snapshot::default(), &method, path, Some(query));
            assert_eq!(info.is_extensive(), expected, "{method} {path}?{query}");
        }
    }

    #[test]
    fn paths() {
        let get = Method::GET;
        assert_eq!(
            parse(get.clone(), "/api/v1/namespaces/a/pods/b/log", ""),
            ("|a|pods|b|log|".into(), "get")
        );
        assert_eq!(
            parse(get.clone(), "/api/v1/pods", "watch=true"),
            ("||pods|||".into(), "watch")
        );
        assert_eq!(
            parse(get.clone(), "/api/v1/watch/namespaces/a/pods/b", ""),
            ("|a|pods|b||".into(), "watch")
        );
        assert_eq!(
            parse(get.clone(), "/api/v1/namespaces/a", ""),
            ("|a|namespaces|a||".into(), "get")
        );
        assert_eq!(
            parse(Method::PUT, "/api/v1/namespaces/a/finalize", ""),
            ("|a|namespaces|a|finalize|".into(), "update")
        );
        assert_eq!(
            parse(get.clone(), "/apis/apps/v1/deployments", ""),
            ("apps||deployments|||".into(), "list")
        );
        assert_eq!(
            parse(get.clone(), "/api/v1/nodes/n/proxy/x/y", ""),
            ("||nodes|n|proxy|/x/y".into(), "get")
        );
        assert_eq!(
            parse(Method::DELETE, "/api/v1/namespaces/a/pods", ""),
            ("|a|pods|||".into(), "deletecollection")
        );
        assert!(
            RequestInfo::parse(&Snapshot::default(), &get, "/healthz", None)
                .target
                .is_none()
        );
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("labelSelector=a%3Db%2Cc&x=1+2&command=a&command=b&flag");
        assert_eq!(query.get("labelSelector"), Some("a=b,c"));
        assert_eq!(query.get("x"), Some("1 2"));
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["a", "b"]);
        assert!(query.flag("flag"));
        assert_eq!(percent_decode("%zz%4"), "%zz%4");
    }
}
