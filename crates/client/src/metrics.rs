//! Metrics in Prometheus' text format: counters, gauges and histograms of a process, by upstream's names.

use std::{collections::BTreeMap, fmt::Write, sync::LazyLock};

use parking_lot::Mutex;

/// Upper bounds of the buckets of durations, in seconds.
const BUCKETS: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096,
    8.192, 16.384,
];

static REGISTRY: LazyLock<Mutex<BTreeMap<&'static str, Family>>> = LazyLock::new(Mutex::default);

struct Family {
    help: &'static str,
    kind: &'static str,
    /// By rendered labels.
    series: BTreeMap<String, Value>,
}

enum Value {
    Number(f64),
    Histogram(Histogram),
}

#[derive(Default)]
struct Histogram {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

fn labels(pairs: &[(&str, &str)]) -> String {
    let escape = |value: &str| {
        value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n")
    };
    let pairs = pairs
        .iter()
        .map(|(key, value)| format!("{key}=\"{}\"", escape(value)));
    pairs.collect::<Vec<_>>().join(",")
}

fn with_number(
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    pairs: &[(&str, &str)],
    change: impl FnOnce(f64) -> f64,
) {
    let mut registry = REGISTRY.lock();
    let family = registry.entry(name).or_insert_with(|| Family {
        help,
        kind,
        series: BTreeMap::new(),
    });
    let value = family
        .series
        .entry(labels(pairs))
        .or_insert(Value::Number(0.0));
    if let Value::Number(number) = value {
        *number = change(*number);
    }
}

/// Raise a counter by one.
pub fn increment(name: &'static str, help: &'static str, pairs: &[(&str, &str)]) {
    with_number(name, help, "counter", pairs, |number| number + 1.0);
}

/// Set a gauge.
pub fn set(name: &'static str, help: &'static str, pairs: &[(&str, &str)], value: f64) {
    with_number(name, help, "gauge", pairs, |_| value);
}

/// Count a duration in a histogram.
pub fn observe(name: &'static str, help: &'static str, pairs: &[(&str, &str)], seconds: f64) {
    let mut registry = REGISTRY.lock();
    let family = registry.entry(name).or_insert_with(|| Family {
        help,
        kind: "histogram",
        series: BTreeMap::new(),
    });
    let value = family
        .series
        .entry(labels(pairs))
        .or_insert_with(|| Value::Histogram(Histogram::default()));
    if let Value::Histogram(histogram) = value {
        histogram.count += 1;
        histogram.sum += seconds;
        for (bucket, bound) in histogram.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(seconds <= bound);
        }
    }
}

/// Everything in Prometheus' text format, with the process' own CPU time and memory.
pub fn render() -> String {
    let (cpu, resident) = process();
    set(
        "process_resident_memory_bytes",
        "Resident memory size in bytes.",
        &[],
        resident,
    );
    with_number(
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
        "counter",
        &[],
        |_| cpu,
    );
    let registry = REGISTRY.lock();
    let mut text = String::new();
    for (name, family) in registry.iter() {
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "# HELP {name} {}\n# TYPE {name} {}",
            family.help, family.kind
        );
        for (labels, value) in &family.series {
            let braced = if labels.is_empty() {
                String::new()
            } else {
                format!("{{{labels}}}")
            };
            let _ = match value {
                Value::Number(number) => writeln!(text, "{name}{braced} {number}"),
                Value::Histogram(histogram) => {
                    render_histogram(&mut text, name, labels, &braced, histogram)
                }
            };
        }
    }
    text
}

fn render_histogram(
    text: &mut String,
    name: &str,
    labels: &str,
    braced: &str,
    histogram: &Histogram,
) -> std::fmt::Result {
    let comma = if labels.is_empty() { "" } else { "," };
    for (count, bound) in histogram.buckets.iter().zip(BUCKETS) {
        writeln!(
            text,
            "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}"
        )?;
    }
    writeln!(
        text,
        "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {}",
        histogram.count
    )?;
    writeln!(text, "{name}_sum{braced} {}", histogram.sum)?;
    writeln!(text, "{name}_count{braced} {}", histogram.count)
}

/// CPU seconds and resident bytes of this process.
fn process() -> (f64, f64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the program's name in parentheses and may contain anything.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    let field = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    // utime, stime in ticks (100 Hz on Linux), rss in pages of 4 KiB.
    ((field(11) + field(12)) / 100.0, field(21) * 4096.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_format() {
        increment("test_total", "A test.", &[("name", "a\"b")]);
        increment("test_total", "A test.", &[("name", "a\"b")]);
        observe("test_seconds", "A test.", &[], 0.003);
        let text = render();
        assert!(
            text.contains("# TYPE test_total counter\ntest_total{name=\"a\\\"b\"} 2\n"),
            "{text}"
        );
        assert!(
            text.contains("test_seconds_bucket{le=\"0.002\"} 0\n"),
            "{text}"
        );
        assert!(
            text.contains("test_seconds_bucket{le=\"0.004\"} 1\n"),
            "{text}"
        );
        assert!(
            text.contains("test_seconds_bucket{le=\"+Inf\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("process_resident_memory_bytes "), "{text}");
    }
}
