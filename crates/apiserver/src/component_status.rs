//! How the components of the control plane are: what `componentstatuses` says of them. Nothing of it is stored; who asks makes
//! the server ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fluyt_etcd::{Keys, Range};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::Server;
use crate::cache::REGISTRY;
use crate::remote::{Credentials, Remote, Trust};

/// How long a component may take to answer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What is shown of an answer at most, in bytes.
const MAX_MESSAGE: usize = 10 * 1024;

/// The store's name.
const ETCD: &str = "etcd-0";

/// A component beside the API server.
#[derive(Clone, Debug)]
pub struct Component {
    pub name: String,
    pub whereabouts: Whereabouts,
}

/// Where a component is, and how it is told whether it is well.
#[derive(Clone, Debug)]
pub enum Whereabouts {
    /// It is asked at a URL. Whoever answers there is believed to be it.
    Url(String),
    /// It is a task of this process, which runs while this is set.
    Here(Arc<AtomicBool>),
}

/// What is known of a component.
struct Health {
    status: &'static str,
    message: String,
    error: String,
}

impl Component {
    /// Where components of the same host listen unless they are told otherwise.
    #[must_use]
    pub fn usual() -> Vec<Self> {
        let local = |name: &str, port: u16| Self {
            name: name.to_owned(),
            whereabouts: Whereabouts::Url(format!("https://127.0.0.1:{port}/healthz")),
        };
        vec![
            local("controller-manager", 10257),
            local("scheduler", 10259),
        ]
    }

    async fn health(&self) -> Health {
        let url = match &self.whereabouts {
            Whereabouts::Url(url) => url,
            Whereabouts::Here(runs) if runs.load(Ordering::Relaxed) => {
                return Health::new("True", "ok".into(), String::new());
            }
            Whereabouts::Here(_) => {
                return Health::new("False", "it is being started again".into(), String::new());
            }
        };
        let remote = Remote::new(url, &Trust::Anything, None, None, Credentials::None);
        let remote = match remote {
            Ok(remote) => remote,
            Err(error) => {
                let error = format!("failed to construct probe request: {error:#}");
                return Health::new("Unknown", String::new(), error);
            }
        };
        let reply = match remote.get(TIMEOUT).await {
            Ok(reply) => reply,
            Err(error) if error.timed_out => {
                let message = format!("{error} (Client.Timeout exceeded while awaiting headers)");
                return Health::new("False", message, String::new());
            }
            Err(error) => return Health::new("False", error.to_string(), String::new()),
        };
        let body = text(&reply.body);
        let (status, message) = match reply.status.as_u16() {
            200..300 => ("True", body),
            300..400 => (
                "Unknown",
                format!("Probe terminated redirects, Response body: {body}"),
            ),
            code => (
                "False",
                format!("HTTP probe failed with statuscode: {code}"),
            ),
        };
        Health::new(status, message, String::new())
    }
}

impl Health {
    fn new(status: &'static str, message: String, error: String) -> Self {
        Self {
            status,
            message,
            error,
        }
    }

    fn into_object(self, name: &str) -> Value {
        let mut condition = json!({"type": "Healthy", "status": self.status});
        for (field, text) in [("message", self.message), ("error", self.error)] {
            if !text.is_empty() {
                condition[field] = text.into();
            }
        }
        json!({
            "kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name}, "conditions": [condition],
        })
    }
}

fn text(body: &Bytes) -> String {
    let shown = body.get(..MAX_MESSAGE).unwrap_or(body);
    String::from_utf8_lossy(shown).into_owned()
}

/// Asks the store for a key, whether or not it is there.
async fn store_health(server: &Server) -> Health {
    let key = Keys::One(format!("{REGISTRY}health").into());
    let store = server.caches.main().store();
    match tokio::time::timeout(TIMEOUT, store.range(Range::new(key))).await {
        Ok(Ok(_)) => Health::new("True", "ok".into(), String::new()),
        Ok(Err(error)) => Health::new("False", String::new(), error.to_string()),
        Err(_) => Health::new("False", String::new(), "context deadline exceeded".into()),
    }
}

/// All components, asked at the same time.
pub async fn all(server: &Server) -> Vec<Value> {
    let components = server.config.components.iter();
    let asked = components.map(|c| async { c.health().await.into_object(&c.name) });
    let (mut all, store) = tokio::join!(join_all(asked), store_health(server));
    all.push(store.into_object(ETCD));
    all
}

/// One component; `None` when there is none of this name.
pub async fn one(server: &Server, name: &str) -> Option<Value> {
    if name == ETCD {
        return Some(store_health(server).await.into_object(name));
    }
    let mut components = server.config.components.iter();
    let component = components.find(|c| c.name == name)?;
    Some(component.health().await.into_object(name))
}
