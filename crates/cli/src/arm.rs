//! A client of the service's ARM API.

use std::io::IsTerminal as _;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use indicatif::{ProgressBar, ProgressStyle};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use crate::credentials::Credentials;
use crate::{Failure, Result};

/// The version of the API that we speak.
const API_VERSION: &str = "2026-08-01";

/// Seconds that the service may keep us waiting for news of an operation.
const WAIT: &str = "wait=30";

/// A connection to the service.
pub struct Arm {
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    credentials: Credentials,
}

/// An answer: body, and where to follow the operation that it began.
pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
    operation: Option<String>,
}

// === impl Arm ===

impl Arm {
    pub fn connect() -> Result<Self> {
        let credentials = Credentials::load()?;
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(credentials.ca.as_bytes()) {
            roots.add(certificate.map_err(|e| {
                Failure::new(format!(
                    "the credentials are damaged ({e}): run 'fluyt login' again"
                ))
            })?)?;
        }
        let tls = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .build();
        Ok(Self {
            http: Client::builder(TokioExecutor::new()).build(connector),
            credentials,
        })
    }

    /// The path of a resource group.
    pub fn group(&self, group: &str) -> String {
        format!(
            "/subscriptions/{}/resourceGroups/{}",
            self.credentials.subscription,
            encode(group)
        )
    }

    /// The path of all groups.
    pub fn groups(&self) -> String {
        format!(
            "/subscriptions/{}/resourceGroups",
            self.credentials.subscription
        )
    }

    /// The path of clusters: of a group, or all.
    pub fn clusters(&self, group: Option<&str>) -> String {
        let scope = group.map_or_else(
            || format!("/subscriptions/{}", self.credentials.subscription),
            |g| self.group(g),
        );
        format!("{scope}/providers/Microsoft.ContainerService/managedClusters")
    }

    pub fn cluster(&self, group: &str, name: &str) -> String {
        format!("{}/{}", self.clusters(Some(group)), encode(name))
    }

    pub fn pools(&self, group: &str, cluster: &str) -> String {
        format!("{}/agentPools", self.cluster(group, cluster))
    }

    pub fn pool(&self, group: &str, cluster: &str, name: &str) -> String {
        format!("{}/{}", self.pools(group, cluster), encode(name))
    }

    pub fn versions(&self) -> String {
        format!(
            "/subscriptions/{}/providers/Microsoft.ContainerService/locations/local/kubernetesVersions",
            self.credentials.subscription
        )
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        Ok(self.send(Method::GET, path, None).await?.body)
    }

    /// Sends a request to a path of the API.
    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        let url = format!(
            "{}{path}?api-version={API_VERSION}",
            self.credentials.endpoint
        );
        self.send_to(method, &url, body, None).await
    }

    async fn send_to(
        &self,
        method: Method,
        url: &str,
        body: Option<&Value>,
        prefer: Option<&str>,
    ) -> Result<Answer> {
        let mut request = Request::builder()
            .method(method)
            .uri(url)
            .header(
                header::AUTHORIZATION,
                format!("Bearer {}", self.credentials.token),
            )
            .header(
                header::USER_AGENT,
                concat!("fluyt/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(prefer) = prefer {
            request = request.header("prefer", prefer);
        }
        let bytes = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                serde_json::to_vec(body)?
            }
            None => Vec::new(),
        };
        let response = self
            .http
            .request(request.body(Full::new(bytes.into()))?)
            .await
            .map_err(|error| {
                Failure::new(format!(
                    "The service at {} can't be reached: {}. Is 'fluyt serve' running?",
                    self.credentials.endpoint,
                    innermost(&error)
                ))
            })?;
        let status = response.status();
        let operation = response
            .headers()
            .get("azure-asyncoperation")
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned);
        let bytes = response.into_body().collect().await?.to_bytes();
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes)?
        };
        if status.is_success() {
            return Ok(Answer {
                status,
                body,
                operation,
            });
        }
        Err(failure(
            &body["error"],
            if status == StatusCode::NOT_FOUND {
                3
            } else {
                1
            },
        ))
    }

    /// Follows an operation to its end, showing what it does.
    pub async fn finish(&self, answer: &Answer, title: &str) -> Result {
        let Some(url) = &answer.operation else {
            return Ok(());
        };
        let bar = progress(title);
        let mut seen = String::new();
        let outcome = loop {
            // Not asked again and again: the service answers when there is news.
            let news = self
                .send_to(Method::GET, &format!("{url}&seen={seen}"), None, Some(WAIT))
                .await;
            let body = match news {
                Ok(answer) => answer.body,
                Err(failure) => break Err(failure),
            };
            match body["status"].as_str() {
                Some("InProgress") => {}
                Some("Succeeded") => break Ok(()),
                _ => break Err(failure(&body["error"], 1)),
            }
            body["properties"]["stepId"]
                .as_str()
                .unwrap_or_default()
                .clone_into(&mut seen);
            let step = body["properties"]["step"].as_str().unwrap_or_default();
            bar.set_message(if step.is_empty() {
                title.to_owned()
            } else {
                format!("{title}: {step}")
            });
        };
        bar.finish_and_clear();
        outcome
    }
}

fn failure(error: &Value, code: u8) -> Failure {
    let text = |key: &str| error[key].as_str().unwrap_or("Unknown");
    Failure {
        code,
        message: format!("({}) {}", text("code"), text("message")),
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// A spinner with the time that has passed, or nothing where nobody looks.
fn progress(title: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]") {
        bar.set_style(style);
    }
    bar.set_message(title.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A name as a segment of a path.
fn encode(name: &str) -> String {
    let plain =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~' | b'(' | b')');
    name.bytes()
        .map(|b| {
            if plain(b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

/// A resource as az shows it: its properties beside its name, and its resource group.
pub fn flatten(resource: &Value) -> Value {
    let Value::Object(map) = resource else {
        return resource.clone();
    };
    let mut flat = serde_json::Map::new();
    for (key, value) in map {
        match (key.as_str(), value) {
            ("properties", Value::Object(properties)) => flat.extend(properties.clone()),
            _ => drop(flat.insert(key.clone(), value.clone())),
        }
    }
    let mut segments = map
        .get("id")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .split('/');
    if segments
        .by_ref()
        .any(|s| s.eq_ignore_ascii_case("resourceGroups"))
        && let Some(group) = segments.next()
        && segments.next().is_some()
    {
        flat.insert("resourceGroup".to_owned(), json!(group));
    }
    Value::Object(flat)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_flattened_as_az_does() {
        let resource = json!({"id": "/subscriptions/s/resourcegroups/rg/providers/x/y", "name": "y", "properties": {"count": 1}});
        let flat = flatten(&resource);
        assert_eq!(flat["count"], 1);
        assert_eq!(flat["resourceGroup"], "rg");
        assert!(flat.get("properties").is_none());
    }

    #[test]
    fn names_are_encoded() {
        assert_eq!(encode("a b/é"), "a%20b%2F%C3%A9");
    }
}
