//! When files took effect, with upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::metrics::Text;

/// Counters of the reloads of each plugin.
pub struct Metrics {
    /// Who this server is.
    id_hash: String,
    reloads: Mutex<BTreeMap<(&'static str, &'static str), Reloads>>,
    /// Digests of what is at work.
    applied: Mutex<BTreeMap<&'static str, String>>,
}

#[derive(Clone, Copy, Default)]
struct Reloads {
    count: u64,
    last: f64,
}

/// The digest of bytes, as labels and hashes of files show it.
pub fn digest(bytes: &[u8]) -> String {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

impl Metrics {
    /// Of the server of this name.
    #[must_use]
    pub fn new(server: &str) -> Self {
        Self {
            id_hash: digest(server.as_bytes()),
            reloads: Mutex::default(),
            applied: Mutex::default(),
        }
    }

    pub(super) fn succeeded(&self, plugin: &'static str, hash: &str) {
        self.count("success", plugin);
        self.applied.lock().insert(plugin, hash.to_owned());
    }

    pub(super) fn failed(&self, plugin: &'static str) {
        self.count("failure", plugin);
    }

    fn count(&self, status: &'static str, plugin: &'static str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut all = self.reloads.lock();
        let reloads = all.entry((status, plugin)).or_default();
        reloads.count += 1;
        reloads.last = now.unwrap_or_default().as_secs_f64();
    }

    /// Adds the Prometheus text format.
    pub fn render(&self, out: &mut String) {
        if self.reloads.lock().is_empty() {
            return;
        }
        let mut text = Text::default();
        let name = "apiserver_manifest_admission_config_controller_automatic_reloads_total";
        text.metric(
            name,
            "counter",
            "Total number of automatic reloads of admission manifest configuration split by status, plugin, and apiserver identity.",
        );
        let labels = |plugin: &'static str, status: &'static str| {
            [
                ("apiserver_id_hash", self.id_hash.as_str()),
                ("plugin", plugin),
                ("status", status),
            ]
        };
        let reloads = self.reloads.lock();
        for ((status, plugin), reloads) in &*reloads {
            text.value(name, &labels(plugin, status), reloads.count);
        }
        let name = "apiserver_manifest_admission_config_controller_automatic_reload_last_timestamp_seconds";
        text.metric(
            name,
            "gauge",
            "Timestamp of the last automatic reload of admission manifest configuration split by status, plugin, and apiserver identity.",
        );
        for ((status, plugin), reloads) in &*reloads {
            text.value(name, &labels(plugin, status), reloads.last);
        }
        let name = "apiserver_manifest_admission_config_controller_last_config_info";
        text.metric(
            name,
            "gauge",
            "Information about the last applied admission manifest configuration with hash as label, split by plugin and apiserver identity.",
        );
        for (plugin, hash) in self.applied.lock().iter() {
            let labels = [
                ("apiserver_id_hash", self.id_hash.as_str()),
                ("hash", hash),
                ("plugin", plugin),
            ];
            text.value(name, &labels, 1);
        }
        out.push_str(&text.finish());
    }
}
