//! Admission plugins that are off by default, and those that are configured by a file, through the server.

mod flags;
mod images;
mod manifests;
mod namespaces;
mod nodes;
mod owners;
mod quota;
mod refusals;
mod security;
mod webhooks;
mod workloads;

use std::path::Path;
use std::sync::Arc;

use crate::common::Api;
use fluyt_apiserver::Config;
use fluyt_apiserver::admission::AdmissionConfiguration;
use fluyt_apiserver::audit::{
    self, Batching, Delivery, Format, LogSettings, Mode, Policy as AuditPolicy,
};
use fluyt_etcd::DynStore;
use fluyt_etcd::embedded::Embedded;
use http::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;

const PODS: &str = "/api/v1/namespaces/n/pods";

/// A server with more plugins than the default ones, and a file with what `plugins` are configured with. Events about pods
/// are logged beside it.
struct Plugged {
    api: Api,
    directory: TempDir,
}

impl Plugged {
    async fn start(enabled: &[&str], plugins: Value) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), enabled, plugins).await
    }

    /// The same with a directory that has the files that `plugins` name.
    async fn start_in(directory: TempDir, enabled: &[&str], plugins: Value) -> Self {
        let store = Embedded::open(&directory.path().join("store")).unwrap();
        Self::start_on(Arc::new(store), directory, enabled, plugins).await
    }

    async fn start_on(
        store: DynStore,
        directory: TempDir,
        enabled: &[&str],
        plugins: Value,
    ) -> Self {
        let file = configuration(directory.path(), &plugins);
        let log = directory.path().join("audit.log");
        let api = Api::configured_on(store, |config, _| {
            config.admission.enabled = enabled.iter().map(|p| (*p).to_owned()).collect();
            config.admission.configuration = AdmissionConfiguration::load(&file).unwrap();
            audited(config, &log);
        })
        .await;
        Self { api, directory }
    }

    /// With the namespace `n`.
    async fn with_namespace(self) -> Self {
        self.api.namespace().await;
        self
    }

    /// Annotates the namespace `n`.
    async fn annotate(&self, annotations: Value) {
        let change = json!({"metadata": {"annotations": annotations}});
        let patched = self
            .api
            .patch("/api/v1/namespaces/n", "merge-patch", change);
        assert_eq!(patched.await.0, StatusCode::OK);
    }

    /// The annotations of the last event in the audit log.
    fn annotations(&self) -> Value {
        let text = std::fs::read_to_string(self.directory.path().join("audit.log")).unwrap();
        let event: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        event["annotations"].clone()
    }
}

/// A file with an `AdmissionConfiguration`.
fn configuration(directory: &Path, plugins: &Value) -> std::path::PathBuf {
    let path = directory.join("admission.yaml");
    let configuration = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration", "plugins": plugins,
    });
    std::fs::write(&path, configuration.to_string()).unwrap();
    path
}

/// Logs what is written to pods in blocking mode, so that a request's event is there when its answer is.
fn audited(config: &mut Config, log: &Path) {
    let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- {level: Metadata, resources: [{group: '', resources: [pods]}]}\n- {level: None}\n";
    let log = LogSettings {
        path: log.to_owned(),
        format: Format::Json,
        max_age: 0,
        max_backups: 0,
        max_size: 0,
        compress: false,
    };
    let delivery = Delivery {
        mode: Mode::Blocking,
        batching: Batching {
            buffer: 1,
            max_size: 1,
            max_wait: std::time::Duration::from_millis(1),
            throttle: None,
            concurrent: true,
        },
        truncation: None,
    };
    config.audit = audit::Settings {
        policy: Some(AuditPolicy::parse(policy).unwrap()),
        log: Some((log, delivery)),
        webhook: None,
    };
}

/// A pod with a spec of its own.
fn pod_with(name: &str, spec: Value) -> Value {
    let mut pod = crate::common::pod(name);
    for (field, value) in spec.as_object().unwrap() {
        pod["spec"][field] = value.clone();
    }
    pod
}

/// That a request was refused with a status and a message.
#[track_caller]
fn assert_refused((status, answer): (StatusCode, Value), code: u16, message: &str) {
    assert_eq!(
        (status.as_u16(), answer["message"].as_str()),
        (code, Some(message)),
        "{answer}"
    );
}

/// That a request was fulfilled; what it made.
#[track_caller]
fn made((status, answer): (StatusCode, Value)) -> Value {
    assert!(status.is_success(), "{status} {answer}");
    answer
}
