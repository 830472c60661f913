//! `/metrics`, with upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use ::http::StatusCode;
use parking_lot::Mutex;

use crate::request::RequestInfo;

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 12] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 5.0, 30.0,
];

/// Counters of requests.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<Labels, Series>>,
}

/// What a request is counted under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
}

#[derive(Default)]
struct Series {
    by_code: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    sum: f64,
    count: u64,
}

impl Metrics {
    pub(crate) fn labels(info: &RequestInfo) -> Option<Labels> {
        let target = info.target.as_ref()?;
        // Unknown names from the outside must not grow the table.
        let resource = target.resource.as_ref()?;
        let subresource = resource
            .subresource(&target.subresource)
            .map_or("", |s| s.name);
        Some(Labels {
            verb: info.verb,
            group: resource.group.into(),
            version: resource.version.into(),
            resource: resource.plural.into(),
            subresource: subresource.into(),
        })
    }

    pub(crate) fn observe(&self, labels: Option<Labels>, status: StatusCode, took: Duration) {
        let Some(labels) = labels else { return };
        let mut requests = self.requests.lock();
        let series = requests.entry(labels).or_default();
        *series.by_code.entry(status.as_u16()).or_default() += 1;
        let seconds = took.as_secs_f64();
        for (bound, count) in BUCKETS.iter().zip(&mut series.buckets) {
            *count += u64::from(seconds <= *bound);
        }
        series.sum += seconds;
        series.count += 1;
    }

    /// The Prometheus text format.
    pub(crate) fn render(&self) -> String {
        let mut out = String::new();
        let requests = self.requests.lock();
        let mut line = |text: std::fmt::Arguments<'_>| {
            // Writing to a string cannot fail.
            let _ = out.write_fmt(text);
            out.push('\n');
        };
        line(format_args!(
            "# HELP apiserver_request_total Counter of apiserver requests broken out for each verb, group, version, resource and HTTP response code."
        ));
        line(format_args!("# TYPE apiserver_request_total counter"));
        for (l, series) in requests.iter() {
            for (code, count) in &series.by_code {
                line(format_args!(
                    "apiserver_request_total{{code=\"{code}\",{}}} {count}",
                    l.render()
                ));
            }
        }
        line(format_args!(
            "# HELP apiserver_request_duration_seconds Response latency distribution in seconds."
        ));
        line(format_args!(
            "# TYPE apiserver_request_duration_seconds histogram"
        ));
        for (l, series) in requests.iter() {
            let labels = l.render();
            for (bound, count) in BUCKETS.iter().zip(series.buckets) {
                line(format_args!(
                    "apiserver_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {count}"
                ));
            }
            line(format_args!(
                "apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {}",
                series.count
            ));
            line(format_args!(
                "apiserver_request_duration_seconds_sum{{{labels}}} {}",
                series.sum
            ));
            line(format_args!(
                "apiserver_request_duration_seconds_count{{{labels}}} {}",
                series.count
            ));
        }
        out
    }
}

impl Labels {
    fn render(&self) -> String {
        format!(
            "group=\"{}\",resource=\"{}\",subresource=\"{}\",verb=\"{}\",version=\"{}\"",
            self.group,
            self.resource,
            self.subresource,
            self.verb.to_uppercase(),
            self.version
        )
    }
}
