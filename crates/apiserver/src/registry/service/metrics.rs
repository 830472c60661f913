//! What the allocators have given out and what they could not give, by upstream's names.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use fluyt_api::Error;
use ipnet::IpNet;
use parking_lot::Mutex;

use super::cluster_ips::{ALLOCATOR, MANAGED_BY, addresses};
use crate::cache::Caches;
use crate::metrics::{Histogram, Text};
use crate::registry::Registry;

/// Upper bounds of how long it takes to give out an address, in seconds.
const DURATIONS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Whether something is chosen by its allocator or by whoever wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    Dynamic,
    Static,
}

/// Of addresses their range, and how they are chosen.
type Kind = (Option<IpNet>, Scope);

/// How often something was given out, and how often it could not be.
#[derive(Clone, Copy, Default)]
struct Count {
    given: u64,
    refused: u64,
}

/// What an allocator has done.
#[derive(Default)]
pub(super) struct Tally(Mutex<BTreeMap<Kind, Count>>);

/// What both allocators have done.
#[derive(Default)]
pub(super) struct Tallies {
    pub(super) addresses: Tally,
    pub(super) ports: Tally,
    durations: Mutex<BTreeMap<IpNet, Histogram>>,
}

/// How much there is of something, and how it is called.
struct Shown<'a> {
    allocator: &'a str,
    unit: &'a str,
    /// In words: as a gauge, among allocations, and among errors.
    words: [&'a str; 3],
    /// How many are in use and how many are free; of addresses by their range.
    stock: &'a [(Option<IpNet>, u128, u128)],
}

impl Scope {
    fn word(self) -> &'static str {
        match self {
            Self::Dynamic => "dynamic",
            Self::Static => "static",
        }
    }
}

// === impl Tally ===

impl Tally {
    pub(super) fn count(&self, range: Option<IpNet>, scope: Scope, succeeded: bool) {
        let mut counts = self.0.lock();
        let count = counts.entry((range, scope)).or_default();
        if succeeded {
            count.given += 1;
        } else {
            count.refused += 1;
        }
    }

    fn render(&self, shown: &Shown<'_>, text: &mut Text) {
        let Shown {
            allocator, unit, ..
        } = shown;
        let [gauge, allocations, errors] = shown.words;
        let name = |what: &str| format!("kube_apiserver_{allocator}_allocator_{what}");
        type Gauge = fn(u128, u128) -> u128;
        let gauges: [(&str, Gauge); 2] =
            [("allocated", |used, _| used), ("available", |_, free| free)];
        for (word, of) in gauges {
            let name = name(&format!("{word}_{unit}"));
            let help = format!("Gauge measuring the number of {word} {gauge} for Services");
            text.metric(&name, "gauge", &help);
            for (range, used, free) in shown.stock {
                with_labels(*range, None, |labels| {
                    text.value(&name, labels, of(*used, *free));
                });
            }
        }
        type Counter = fn(Count) -> u64;
        let counters: [(&str, &str, Counter); 2] = [
            ("allocation_total", allocations, |count| count.given),
            ("allocation_errors_total", errors, |count| count.refused),
        ];
        let counts = self.0.lock();
        for (what, help, of) in counters {
            let name = name(what);
            text.metric(&name, "counter", help);
            for ((range, scope), count) in counts.iter().filter(|(_, count)| of(**count) > 0) {
                with_labels(*range, Some(*scope), |labels| {
                    text.value(&name, labels, of(*count));
                });
            }
        }
    }
}

fn with_labels(range: Option<IpNet>, scope: Option<Scope>, write: impl FnOnce(&[(&str, &str)])) {
    let range = range.map(|range| range.to_string());
    let mut labels = Vec::new();
    labels.extend(range.as_deref().map(|range| ("cidr", range)));
    labels.extend(scope.map(|scope| ("scope", scope.word())));
    write(&labels);
}

// === impl Tallies ===

impl Tallies {
    /// An address has been given out and is stored.
    pub(super) fn took(&self, range: IpNet, time: Duration) {
        let mut durations = self.durations.lock();
        let histogram = durations
            .entry(range)
            .or_insert_with(|| Histogram::new(DURATIONS));
        histogram.observe_time(time);
    }

    fn render_durations(&self, text: &mut Text) {
        let name = "kube_apiserver_clusterip_allocator_allocation_duration_seconds";
        let help = "Duration in seconds to allocate a Cluster IP by ServiceCIDR";
        text.metric(name, "histogram", help);
        for (range, histogram) in self.durations.lock().iter() {
            with_labels(Some(*range), None, |labels| {
                text.histogram(name, labels, histogram);
            });
        }
    }
}

/// The addresses that allocators have given out.
fn allocated(caches: &Caches) -> Result<Vec<IpAddr>, Error> {
    let entries = caches.of(addresses()?).snapshot().objects.entries;
    let ours = entries
        .values()
        .filter(|entry| entry.labels.get(MANAGED_BY) == Some(ALLOCATOR));
    Ok(ours.filter_map(|entry| entry.name().parse().ok()).collect())
}

impl Registry {
    /// Writes the metrics of allocators and of admission behind others.
    pub(crate) fn render_metrics(&self, out: &mut String) {
        self.admission.render_metrics(out);
        let mut text = Text::default();
        let services = &self.services;
        let tallies = &services.tallies;
        let allocated = allocated(&self.caches).unwrap_or_default();
        let mut ranges = services
            .ranges
            .ready(&self.caches)
            .map_or_else(|_| Vec::new(), |ranges| ranges.to_vec());
        ranges.sort_unstable_by_key(|range| range.net());
        ranges.dedup();
        // Upstream counts what is free with a signed number.
        let most = u128::from(i64::MAX.unsigned_abs());
        let of_range = |range: &super::network::AddressRange| {
            let net = range.net();
            let used = allocated.iter().filter(|a| net.contains(*a)).count() as u128;
            (Some(net), used, range.size().min(most).saturating_sub(used))
        };
        let addresses = Shown {
            allocator: "clusterip",
            unit: "ips",
            words: [
                "IPs",
                "Number of Cluster IPs allocations",
                "Number of errors trying to allocate Cluster IPs",
            ],
            stock: &ranges.iter().map(of_range).collect::<Vec<_>>(),
        };
        tallies.addresses.render(&addresses, &mut text);
        tallies.render_durations(&mut text);
        let (used, free) = services.ports.stock();
        let ports = Shown {
            allocator: "nodeport",
            unit: "ports",
            words: [
                "NodePorts",
                "Number of NodePort allocations",
                "Number of errors trying to allocate NodePort",
            ],
            stock: &[(None, used as u128, free as u128)],
        };
        tallies.ports.render(&ports, &mut text);
        out.push_str(&text.finish());
    }
}
