//! `/flagz` and `/statusz`: how the server was started and how it is, for people as text, for programs as objects of
//! `config.k8s.io`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ::http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, WARNING};
use ::http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::Server;
use crate::features::{Feature, Features};
use crate::http::{self, Body, Structured};

/// As upstream calls the component.
const COMPONENT: &str = "apiserver";
const GROUP: &str = "config.k8s.io";
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];
const DEPRECATED: &str = "v1alpha1";

/// Answers the two pages; `None` for other paths and for pages whose feature is off.
pub fn handle(server: &Arc<Server>, path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
    let features = server.config.features;
    match path {
        "/flagz" if features.has(Feature::Flagz) => {
            let flags = &server.config.flags;
            let page = Page {
                kind: "Flagz",
                text: text_of_flags(flags),
                content: json!({"flags": flags}),
            };
            Some(page.answer(headers, features))
        }
        "/statusz" if features.has(Feature::Statusz) => {
            let status = Status::of(server);
            let page = Page {
                kind: "Statusz",
                text: status.text(),
                content: status.content(),
            };
            Some(page.answer(headers, features))
        }
        _ => None,
    }
}

/// The paths of the pages that there are.
pub fn paths(features: Features) -> impl Iterator<Item = &'static str> {
    [("/flagz", Feature::Flagz), ("/statusz", Feature::Statusz)]
        .into_iter()
        .filter(move |(_, feature)| features.has(*feature))
        .map(|(path, _)| path)
}

/// A page in both forms.
struct Page {
    kind: &'static str,
    text: String,
    /// The fields of the object besides its kind and metadata.
    content: Value,
}

impl Page {
    fn answer(self, headers: &HeaderMap, features: Features) -> Response<Body> {
        let wanted = http::negotiate_structured(headers, features, |group, version, kind| {
            group == GROUP && VERSIONS.contains(&version) && kind == self.kind
        });
        let (format, version) = match wanted {
            Ok(Structured::Text) => return http::text(StatusCode::OK, self.text),
            Ok(Structured::Object { format, version }) => (format, version),
            Err(error) => return http::error(&error),
        };
        let mut object = json!({
            "kind": self.kind, "apiVersion": format!("{GROUP}/{version}"), "metadata": {"name": COMPONENT},
        });
        if let (Some(object), Value::Object(content)) = (object.as_object_mut(), self.content) {
            object.extend(content);
        }
        let mut response = http::in_format(format, &object);
        let media_type = format!(
            "{};g={GROUP};v={version};as={}",
            format.media_type(),
            self.kind
        );
        if let Ok(media_type) = HeaderValue::from_str(&media_type) {
            response.headers_mut().insert(CONTENT_TYPE, media_type);
        }
        if version == DEPRECATED {
            let page = self.kind.to_lowercase();
            let warning = format!(
                "299 - \"This version of the {page} endpoint is deprecated. Please use a newer version.\""
            );
            if let Ok(warning) = HeaderValue::from_str(&warning) {
                response.headers_mut().insert(WARNING, warning);
            }
        }
        response
    }
}

/// What both texts begin with.
fn header(page: &str) -> String {
    format!(
        "\n{COMPONENT} {page}\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n"
    )
}

fn text_of_flags(flags: &BTreeMap<String, String>) -> String {
    let mut text = header("flagz");
    for (name, value) in flags {
        text.push_str(name);
        text.push('=');
        text.push_str(value);
        text.push('\n');
    }
    text
}

/// How the server is.
struct Status {
    started: jiff::Timestamp,
    up: u64,
    emulation: String,
    paths: Vec<String>,
}

/// Upstream's languages have a version of their own.
const RUNTIME: &str = "";

impl Status {
    fn of(server: &Arc<Server>) -> Self {
        let up = server.uptime().as_secs();
        // What only leads to resources is not for debugging.
        let leads = ["apis", "api", "openid", "openapi", ".well-known"];
        let all = crate::discovery::path_list(server);
        let folders: BTreeSet<String> = all
            .iter()
            .filter_map(|path| path.split('/').nth(1))
            .filter(|folder| !folder.is_empty() && !leads.contains(folder))
            .map(|folder| format!("/{folder}"))
            .collect();
        Self {
            started: jiff::Timestamp::now() - jiff::SignedDuration::from_secs(up.cast_signed()),
            up,
            emulation: format!("1.{}", server.config.served.versions.emulated),
            paths: folders.into_iter().collect(),
        }
    }

    fn text(&self) -> String {
        let up = self.up;
        format!(
            "{}\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nGo version: {RUNTIME}\nBinary version: {}\nEmulation version: {}\nPaths: {}\n",
            header("statusz"),
            self.started.strftime("%a %b %e %H:%M:%S UTC %Y"),
            up / 3600,
            up / 60 % 60,
            up % 60,
            binary_version(),
            self.emulation,
            self.paths.join(" "),
        )
    }

    fn content(&self) -> Value {
        let started = jiff::Timestamp::from_second(self.started.as_second());
        json!({
            "startTime": started.map(|t| t.to_string()).unwrap_or_default(),
            "uptimeSeconds": self.up, "goVersion": RUNTIME, "binaryVersion": binary_version(),
            "emulationVersion": self.emulation, "paths": self.paths,
        })
    }
}

fn binary_version() -> &'static str {
    crate::VERSION.trim_start_matches('v')
}
