//! Counters with upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::policy::Level;

#[derive(Default)]
pub(super) struct Metrics {
    events: AtomicU64,
    levels: [AtomicU64; 4],
    errors: Mutex<BTreeMap<&'static str, u64>>,
}

impl Metrics {
    pub(super) fn event(&self) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn level(&self, level: Level) {
        self.levels[level as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn error(&self, plugin: &'static str) {
        *self.errors.lock().entry(plugin).or_default() += 1;
    }

    pub(super) fn render(&self, out: &mut String) {
        let mut line = |text: std::fmt::Arguments<'_>| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{text}");
        };
        line(format_args!(
            "# HELP apiserver_audit_event_total Counter of audit events generated and sent to the audit backend."
        ));
        line(format_args!("# TYPE apiserver_audit_event_total counter"));
        let events = self.events.load(Ordering::Relaxed);
        line(format_args!("apiserver_audit_event_total {events}"));
        line(format_args!(
            "# HELP apiserver_audit_level_total Counter of policy levels for audit events (1 per request)."
        ));
        line(format_args!("# TYPE apiserver_audit_level_total counter"));
        for (level, count) in [
            Level::None,
            Level::Metadata,
            Level::Request,
            Level::RequestResponse,
        ]
        .iter()
        .zip(&self.levels)
        {
            let count = count.load(Ordering::Relaxed);
            line(format_args!(
                "apiserver_audit_level_total{{level=\"{level:?}\"}} {count}"
            ));
        }
        line(format_args!(
            "# HELP apiserver_audit_error_total Counter of audit events that failed to be audited properly. Plugin identifies the plugin affected by the error."
        ));
        line(format_args!("# TYPE apiserver_audit_error_total counter"));
        for (plugin, count) in self.errors.lock().iter() {
            line(format_args!(
                "apiserver_audit_error_total{{plugin=\"{plugin}\"}} {count}"
            ));
        }
    }
}
