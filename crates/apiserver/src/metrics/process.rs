//! What the process uses, as every Prometheus client tells it.

use super::text::Text;

/// Of `/proc/self/stat`: clock ticks per second, the same on every Linux.
const TICKS: f64 = 100.0;
const PAGE: u64 = 4096;

/// Adds `process_…`; what cannot be read is left out.
pub fn render(text: &mut Text) {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else {
        return;
    };
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .collect();
    let number = |place: usize| fields.get(place).and_then(|f| f.parse::<u64>().ok());
    let mut gauge = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            text.metric(name, kind, help);
            text.value(name, &[], value);
        }
    };
    #[allow(clippy::cast_precision_loss)]
    let float = |n: u64| n as f64;
    gauge(
        "process_cpu_seconds_total",
        "counter",
        "Total user and system CPU time spent in seconds.",
        number(11)
            .zip(number(12))
            .map(|(user, system)| float(user + system) / TICKS),
    );
    gauge(
        "process_virtual_memory_bytes",
        "gauge",
        "Virtual memory size in bytes.",
        number(20).map(float),
    );
    gauge(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory size in bytes.",
        number(21).map(|pages| float(pages * PAGE)),
    );
    gauge(
        "process_start_time_seconds",
        "gauge",
        "Start time of the process since unix epoch in seconds.",
        number(19)
            .zip(booted())
            .map(|(ticks, booted)| booted + float(ticks) / TICKS),
    );
    gauge(
        "process_open_fds",
        "gauge",
        "Number of open file descriptors.",
        std::fs::read_dir("/proc/self/fd")
            .ok()
            .map(|fds| float(fds.count() as u64)),
    );
}

/// When the machine was started.
fn booted() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|l| l.strip_prefix("btime "))?;
    line.trim().parse().ok()
}
