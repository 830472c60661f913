//! `/metrics`, with etcd's names.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, Ordering};

use super::{CLUSTER_VERSION, ETCD_VERSION, Member};

/// What a member counts.
#[derive(Default)]
pub struct Metrics {
    pub(super) range: Number,
    pub(super) put: Number,
    pub(super) delete: Number,
    pub(super) txn: Number,
    pub(super) lease_granted: Number,
    pub(super) lease_revoked: Number,
    pub(super) watchers: Number,
    pub(super) watch_streams: Number,
}

#[derive(Default)]
pub(super) struct Number(AtomicI64);

impl Number {
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts one up for as long as the guard lives.
    pub fn hold<'a>(member: &'a Member, of: fn(&Metrics) -> &Number) -> Held<'a> {
        of(&member.0.metrics).add();
        Held { member, of }
    }
}

pub(super) struct Held<'a> {
    member: &'a Member,
    of: fn(&Metrics) -> &Number,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        (self.of)(&self.member.0.metrics)
            .0
            .fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    pub(super) fn page(&self, member: &Member) -> String {
        let store = member.store();
        let identity = &member.0.identity;
        let mut page = String::new();
        let mut family = |name: &str, kind: &str, labels: &str, value: i128| {
            // Writing to a string cannot fail.
            let _ = writeln!(page, "# TYPE {name} {kind}\n{name}{labels} {value}");
        };
        let server_id = format!("{{server_id=\"{:x}\"}}", identity.member_id);
        let version = format!("{{server_version=\"{ETCD_VERSION}\"}}");
        let cluster = format!("{{cluster_version=\"{CLUSTER_VERSION}\"}}");
        let size = i128::from(store.size());
        family("etcd_server_has_leader", "gauge", "", 1);
        family("etcd_server_is_leader", "gauge", "", 1);
        family("etcd_server_id", "gauge", &server_id, 1);
        family("etcd_server_version", "gauge", &version, 1);
        family("etcd_cluster_version", "gauge", &cluster, 1);
        family("etcd_mvcc_db_total_size_in_bytes", "gauge", "", size);
        for (name, kind, number) in [
            ("etcd_mvcc_range_total", "counter", &self.range),
            ("etcd_mvcc_put_total", "counter", &self.put),
            ("etcd_mvcc_delete_total", "counter", &self.delete),
            ("etcd_mvcc_txn_total", "counter", &self.txn),
            (
                "etcd_debugging_lease_granted_total",
                "counter",
                &self.lease_granted,
            ),
            (
                "etcd_debugging_lease_revoked_total",
                "counter",
                &self.lease_revoked,
            ),
            ("etcd_debugging_mvcc_watcher_total", "gauge", &self.watchers),
            (
                "etcd_debugging_mvcc_watch_stream_total",
                "gauge",
                &self.watch_streams,
            ),
        ] {
            family(name, kind, "", number.get().into());
        }
        family(
            "etcd_debugging_mvcc_current_revision",
            "gauge",
            "",
            store.current_revision().into(),
        );
        family(
            "etcd_debugging_mvcc_compact_revision",
            "gauge",
            "",
            store.compacted_revision().into(),
        );
        page
    }
}
