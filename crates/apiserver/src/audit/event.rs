//! `audit.k8s.io/v1` `Event`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ::http::HeaderMap;
use ::http::header::USER_AGENT;
use ::http::request::Parts;
use serde::Serialize;
use serde_json::Value;

use super::policy::Level;
use crate::authz::Question;
use crate::listen::PeerAddress;
use crate::request::RequestInfo;
use crate::user::{User, user_info};

/// Longer user agents are cut.
const MAX_AGENT: usize = 1024;

/// When an event is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Stage {
    RequestReceived,
    /// The answer's head is sent; only of requests that take long.
    ResponseStarted,
    ResponseComplete,
    Panic,
}

/// One event. Fields are in upstream's order.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    kind: &'static str,
    api_version: &'static str,
    pub level: Level,
    #[serde(rename = "auditID")]
    pub audit_id: String,
    pub stage: Stage,
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    pub verb: &'static str,
    pub user: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impersonated_user: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication_metadata: Option<Value>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_agent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_ref: Option<ObjectRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_status: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_object: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_object: Option<Value>,
    pub request_received_timestamp: String,
    pub stage_timestamp: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The object that a request is about.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
}

/// The id under which a request is recorded, which its sender may have chosen.
#[derive(Clone, Debug)]
pub struct AuditId(pub String);

impl Event {
    pub(super) fn of(
        info: &RequestInfo,
        parts: &Parts,
        user: Option<&User>,
        question: &Question,
        level: Level,
    ) -> Self {
        let now = micro_time();
        let uri = parts.uri.path_and_query();
        let is_resource = !question.resource.is_empty();
        Self {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level,
            audit_id: parts
                .extensions
                .get::<AuditId>()
                .map(|id| id.0.clone())
                .unwrap_or_default(),
            stage: Stage::RequestReceived,
            request_uri: uri.map(ToString::to_string).unwrap_or_default(),
            verb: info.verb,
            user: user.map_or_else(|| Value::Object(serde_json::Map::new()), user_info),
            impersonated_user: None,
            authentication_metadata: None,
            source_ips: source_ips(parts),
            user_agent: user_agent(&parts.headers),
            object_ref: is_resource.then(|| ObjectRef {
                resource: question.resource.clone(),
                namespace: question.namespace.clone(),
                name: question.name.clone(),
                api_group: question.group.clone(),
                api_version: question.version.clone(),
                subresource: question.subresource.clone(),
                ..ObjectRef::default()
            }),
            response_status: None,
            request_object: None,
            response_object: None,
            request_received_timestamp: now.clone(),
            stage_timestamp: now,
            annotations: BTreeMap::new(),
        }
    }

    /// Upstream's format of one line for people.
    pub(super) fn legacy(&self) -> String {
        use std::fmt::Write as _;
        let text = |value: &Value, field: &str| value[field].as_str().map(str::to_owned);
        let groups = |user: &Value| {
            let list: Vec<String> = user["groups"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|g| format!("{:?}", g.as_str().unwrap_or_default()))
                .collect();
            if list.is_empty() {
                "<none>".to_owned()
            } else {
                list.join(",")
            }
        };
        let none = || "<none>".to_owned();
        let response = self
            .response_status
            .as_ref()
            .and_then(|status| status["code"].as_u64())
            .map_or_else(|| "<deferred>".to_owned(), |code| code.to_string());
        let namespace = self.object_ref.as_ref().map(|o| o.namespace.clone());
        let as_user = self.impersonated_user.as_ref();
        let mut line = format!("{} AUDIT:", self.stage_timestamp);
        let quoted = |text: String| format!("{text:?}");
        for (key, value) in [
            ("id", quoted(self.audit_id.clone())),
            ("stage", quoted(format!("{:?}", self.stage))),
            (
                "ip",
                quoted(
                    self.source_ips
                        .first()
                        .cloned()
                        .unwrap_or_else(|| "<unknown>".into()),
                ),
            ),
            ("method", quoted(self.verb.to_owned())),
            (
                "user",
                quoted(text(&self.user, "username").unwrap_or_else(none)),
            ),
            (
                "groups",
                format!("\"{}\"", groups(&self.user).replace('"', "\\\"")),
            ),
            (
                "as",
                quoted(
                    as_user
                        .and_then(|u| text(u, "username"))
                        .unwrap_or_else(|| "<self>".into()),
                ),
            ),
            (
                "asgroups",
                format!(
                    "\"{}\"",
                    as_user
                        .map_or_else(|| "<lookup>".to_owned(), |u| groups(u).replace('"', "\\\""))
                ),
            ),
            ("user-agent", quoted(self.user_agent.clone())),
            (
                "namespace",
                quoted(namespace.filter(|n| !n.is_empty()).unwrap_or_else(none)),
            ),
            ("uri", quoted(self.request_uri.clone())),
            ("response", quoted(response)),
        ] {
            // Writing to a string cannot fail.
            let _ = write!(line, " {key}={value}");
        }
        line
    }
}

/// The time as events show it.
pub(super) fn micro_time() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
        .to_string()
}

/// Who a client says it is.
pub(crate) fn user_agent(headers: &HeaderMap) -> String {
    let agent = headers
        .get(USER_AGENT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    match agent.get(..MAX_AGENT) {
        Some(cut) if agent.len() > MAX_AGENT => format!("{cut}...TRUNCATED"),
        _ => agent.to_owned(),
    }
}

/// Where a request comes from, by what proxies on the way say, and the peer.
pub(crate) fn source_ips(parts: &Parts) -> Vec<String> {
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok());
    let mut ips: Vec<IpAddr> = Vec::new();
    for part in header("x-forwarded-for").unwrap_or_default().split(',') {
        ips.extend(part.trim().parse::<IpAddr>().ok());
    }
    let real = header("x-real-ip").and_then(|text| text.parse().ok());
    let peer = parts.extensions.get::<PeerAddress>();
    for ip in real.into_iter().chain(peer.map(|p| p.0.ip())) {
        if ips.last() != Some(&ip) {
            ips.push(ip);
        }
    }
    ips.iter().map(ToString::to_string).collect()
}
