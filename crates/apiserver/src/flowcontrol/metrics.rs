//! What is counted of each flow schema at its level, with upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::queueset::Refusal;

const SECONDS: [f64; 13] = [
    0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0,
];
const LENGTHS: [f64; 8] = [0.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0];
const SEATS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0];

/// Counters of one flow schema at one level.
#[derive(Default)]
pub struct Flow {
    pub schema: String,
    pub level: String,
    dispatched: AtomicU64,
    rejected: [AtomicU64; 3],
    waiting: AtomicI64,
    seats_waiting: AtomicI64,
    executing: AtomicI64,
    seats_executing: AtomicI64,
    no_accommodation: AtomicU64,
    waited: [Histogram; 2],
    executed: Histogram,
    lengths: Histogram,
    widths: Histogram,
}

#[derive(Default)]
struct Histogram {
    buckets: [AtomicU64; SECONDS.len()],
    count: AtomicU64,
    /// In millionths.
    sum: AtomicU64,
}

const REFUSALS: [Refusal; 3] = [
    Refusal::ConcurrencyLimit,
    Refusal::QueueFull,
    Refusal::TimeOut,
];

impl Histogram {
    fn observe(&self, bounds: &[f64], value: f64) {
        let at = bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get(at).filter(|_| at < bounds.len()) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        self.sum.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    fn render(&self, out: &mut String, name: &str, labels: &str, bounds: &[f64]) {
        let count = self.count.load(Ordering::Relaxed);
        if count == 0 {
            return;
        }
        let mut below = 0;
        for (bound, bucket) in bounds.iter().zip(&self.buckets) {
            below += bucket.load(Ordering::Relaxed);
            line(
                out,
                format_args!("{name}_bucket{{{labels},le=\"{bound}\"}} {below}"),
            );
        }
        line(
            out,
            format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {count}"),
        );
        #[allow(clippy::cast_precision_loss)]
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e6;
        line(out, format_args!("{name}_sum{{{labels}}} {sum}"));
        line(out, format_args!("{name}_count{{{labels}}} {count}"));
    }
}

const PREFIX: &str = "apiserver_flowcontrol_";

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    line(out, format_args!("# HELP {PREFIX}{name} {help}"));
    line(out, format_args!("# TYPE {PREFIX}{name} {kind}"));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{text}");
}

fn signed(seats: u64) -> i64 {
    i64::try_from(seats).unwrap_or(i64::MAX)
}

impl Flow {
    pub(super) fn queued(&self, seats: u64, length: usize) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.seats_waiting
            .fetch_add(signed(seats), Ordering::Relaxed);
        #[allow(clippy::cast_precision_loss)]
        self.lengths.observe(&LENGTHS, length as f64);
    }

    pub(super) fn unqueued(&self, seats: u64) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.seats_waiting
            .fetch_sub(signed(seats), Ordering::Relaxed);
    }

    pub(super) fn started(&self, seats: u64, waited: Duration) {
        self.dispatched.fetch_add(1, Ordering::Relaxed);
        self.executing.fetch_add(1, Ordering::Relaxed);
        self.seats_executing
            .fetch_add(signed(seats), Ordering::Relaxed);
        self.waited[1].observe(&SECONDS, waited.as_secs_f64());
        #[allow(clippy::cast_precision_loss)]
        self.widths.observe(&SEATS, seats as f64);
    }

    pub(super) fn executed(&self, took: Duration, seats: u64) {
        self.executing.fetch_sub(1, Ordering::Relaxed);
        self.seats_executing
            .fetch_sub(signed(seats), Ordering::Relaxed);
        self.executed.observe(&SECONDS, took.as_secs_f64());
    }

    pub(super) fn gave_up(&self, waited: Duration) {
        self.waited[0].observe(&SECONDS, waited.as_secs_f64());
    }

    pub(super) fn not_accommodated(&self) {
        self.no_accommodation.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        self.rejected[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn labels(&self) -> String {
        format!(
            "flow_schema=\"{}\",priority_level=\"{}\"",
            self.schema, self.level
        )
    }
}

/// Seats of a level, for its gauges.
#[derive(Clone, Debug, Default)]
pub struct LevelGauges {
    pub name: String,
    pub nominal: u64,
    pub lower: u64,
    pub upper: u64,
    pub current: u64,
    pub high_watermark: f64,
    pub average: f64,
    pub deviation: f64,
    pub smoothed: f64,
    pub target: f64,
}

/// The counters of all flows, which outlive changes of the configuration.
#[derive(Default)]
pub struct Flows(Mutex<BTreeMap<(String, String), Arc<Flow>>>);

impl Flows {
    pub(super) fn of(&self, schema: &str, level: &str) -> Arc<Flow> {
        let mut flows = self.0.lock();
        let make = || {
            Arc::new(Flow {
                schema: schema.to_owned(),
                level: level.to_owned(),
                ..Flow::default()
            })
        };
        let key = (level.to_owned(), schema.to_owned());
        flows.entry(key).or_insert_with(make).clone()
    }

    /// Forgets flows that nobody refers to any more, so that names that come and go do not add up.
    pub(super) fn clear(&self) {
        self.0.lock().retain(|_, flow| Arc::strong_count(flow) > 1);
    }

    /// The Prometheus text format.
    pub(super) fn render(&self, out: &mut String, levels: &[LevelGauges], fair_fraction: f64) {
        let flows: Vec<Arc<Flow>> = self.0.lock().values().cloned().collect();
        head(
            out,
            "rejected_requests_total",
            "counter",
            "Number of requests rejected by API Priority and Fairness subsystem",
        );
        for flow in &flows {
            for refusal in REFUSALS {
                let count = flow.rejected[refusal as usize].load(Ordering::Relaxed);
                if count > 0 {
                    let (labels, reason) = (flow.labels(), refusal.reason());
                    line(
                        out,
                        format_args!(
                            "{PREFIX}rejected_requests_total{{{labels},reason=\"{reason}\"}} {count}"
                        ),
                    );
                }
            }
        }
        type Counter = fn(&Flow) -> i64;
        let counters: [(&str, &str, &str, Counter); 6] = [
            (
                "dispatched_requests_total",
                "counter",
                "Number of requests executed by API Priority and Fairness subsystem",
                |f| signed(f.dispatched.load(Ordering::Relaxed)),
            ),
            (
                "current_inqueue_requests",
                "gauge",
                "Number of requests currently pending in queues of the API Priority and Fairness subsystem",
                |f| f.waiting.load(Ordering::Relaxed),
            ),
            (
                "current_inqueue_seats",
                "gauge",
                "Number of seats currently pending in queues of the API Priority and Fairness subsystem",
                |f| f.seats_waiting.load(Ordering::Relaxed),
            ),
            (
                "current_executing_requests",
                "gauge",
                "Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem",
                |f| f.executing.load(Ordering::Relaxed),
            ),
            (
                "current_executing_seats",
                "gauge",
                "Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem",
                |f| f.seats_executing.load(Ordering::Relaxed),
            ),
            (
                "request_dispatch_no_accommodation_total",
                "counter",
                "Number of times a dispatch attempt resulted in a non accommodation due to lack of available seats",
                |f| signed(f.no_accommodation.load(Ordering::Relaxed)),
            ),
        ];
        for (name, kind, help, value) in counters {
            head(out, name, kind, help);
            for flow in &flows {
                line(
                    out,
                    format_args!("{PREFIX}{name}{{{}}} {}", flow.labels(), value(flow)),
                );
            }
        }
        head(
            out,
            "request_queue_length_after_enqueue",
            "histogram",
            "Length of queue in the API Priority and Fairness subsystem, as seen by each request after it is enqueued",
        );
        head(
            out,
            "request_wait_duration_seconds",
            "histogram",
            "Length of time a request spent waiting in its queue",
        );
        head(
            out,
            "request_execution_seconds",
            "histogram",
            "Duration of initial stage (for a WATCH) or any (for a non-WATCH) stage of request execution in the API Priority and Fairness subsystem",
        );
        head(
            out,
            "work_estimated_seats",
            "histogram",
            "Number of estimated seats (maximum of initial and final seats) associated with requests in API Priority and Fairness",
        );
        for flow in &flows {
            let labels = flow.labels();
            let name = |name: &str| format!("{PREFIX}{name}");
            flow.lengths.render(
                out,
                &name("request_queue_length_after_enqueue"),
                &labels,
                &LENGTHS,
            );
            for (execute, histogram) in ["false", "true"].iter().zip(&flow.waited) {
                let labels = format!("execute=\"{execute}\",{labels}");
                histogram.render(
                    out,
                    &name("request_wait_duration_seconds"),
                    &labels,
                    &SECONDS,
                );
            }
            flow.executed
                .render(out, &name("request_execution_seconds"), &labels, &SECONDS);
            flow.widths
                .render(out, &name("work_estimated_seats"), &labels, &SEATS);
        }
        type Gauge = fn(&LevelGauges) -> f64;
        #[allow(clippy::cast_precision_loss)]
        let gauges: [(&str, &str, Gauge); 9] = [
            (
                "nominal_limit_seats",
                "Nominal number of execution seats configured for each priority level",
                |l| l.nominal as f64,
            ),
            (
                "lower_limit_seats",
                "Configured lower bound on number of execution seats available to each priority level",
                |l| l.lower as f64,
            ),
            (
                "upper_limit_seats",
                "Configured upper bound on number of execution seats available to each priority level",
                |l| l.upper as f64,
            ),
            (
                "current_limit_seats",
                "current derived number of execution seats available to each priority level",
                |l| l.current as f64,
            ),
            (
                "demand_seats_high_watermark",
                "High watermark, over last adjustment period, of demand_seats",
                |l| l.high_watermark,
            ),
            (
                "demand_seats_average",
                "Time-weighted average, over last adjustment period, of demand_seats",
                |l| l.average,
            ),
            (
                "demand_seats_stdev",
                "Time-weighted standard deviation, over last adjustment period, of demand_seats",
                |l| l.deviation,
            ),
            ("demand_seats_smoothed", "Smoothed seat demands", |l| {
                l.smoothed
            }),
            ("target_seats", "Seat allocation targets", |l| l.target),
        ];
        for (name, help, value) in gauges {
            head(out, name, "gauge", help);
            for level in levels {
                line(
                    out,
                    format_args!(
                        "{PREFIX}{name}{{priority_level=\"{}\"}} {}",
                        level.name,
                        value(level)
                    ),
                );
            }
        }
        head(
            out,
            "seat_fair_frac",
            "gauge",
            "Fair fraction of server's concurrency to allocate to each priority level that can use it",
        );
        line(out, format_args!("{PREFIX}seat_fair_frac {fair_fraction}"));
    }

    /// What upstream does not show any more unless it is asked to.
    pub fn render_hidden(&self, out: &mut String, levels: &[LevelGauges]) {
        head(
            out,
            "request_concurrency_limit",
            "gauge",
            "(Deprecated since 1.30.0) Nominal number of execution seats configured for each priority level",
        );
        for level in levels {
            line(
                out,
                format_args!(
                    "{PREFIX}request_concurrency_limit{{priority_level=\"{}\"}} {}",
                    level.name, level.nominal
                ),
            );
        }
        head(
            out,
            "request_concurrency_in_use",
            "gauge",
            "(Deprecated since 1.31.0) Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem",
        );
        for flow in self.0.lock().values() {
            line(
                out,
                format_args!(
                    "{PREFIX}request_concurrency_in_use{{{}}} {}",
                    flow.labels(),
                    flow.seats_executing.load(Ordering::Relaxed)
                ),
            );
        }
    }
}
