//! What the kubelets said, twice: a rate needs two samples. A kubelet may repeat itself when it is asked more often than it
//! looks, so that two samples are two only if they say that they were taken at different times.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::RwLock;

/// Namespace and name of a pod.
type PodName = (String, String);

/// The last two samples of every node, and of what runs there.
#[derive(Default)]
pub struct Store {
    nodes: RwLock<HashMap<String, Node>>,
}

#[derive(Default)]
struct Node {
    own: Option<Track>,
    /// By container.
    pods: BTreeMap<PodName, BTreeMap<String, Track>>,
}

/// The last sample of one thing, and the one before.
#[derive(Clone, Copy)]
struct Track {
    last: Counters,
    before: Option<Counters>,
}

/// One scrape of one kubelet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    pub node: Option<Counters>,
    /// By container.
    pub pods: BTreeMap<PodName, BTreeMap<String, Counters>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counters {
    /// When the kubelet looked.
    pub at: Timestamp,
    /// Total since the start.
    pub cpu_seconds: f64,
    pub memory_bytes: f64,
}

/// Use over the time between two samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    pub cpu_nanocores: u64,
    pub memory_bytes: u64,
}

/// Use with the time it was measured at and over.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured<T> {
    pub at: Timestamp,
    pub window: Duration,
    pub usage: T,
}

impl Store {
    /// Takes in what a node says; what it does not name any more is gone.
    pub fn push(&self, name: &str, sample: Sample) {
        let mut nodes = self.nodes.write();
        let node = nodes.entry(name.to_owned()).or_default();
        if let Some(own) = sample.node {
            node.own = Some(Track::next(node.own, own));
        }
        let mut known = std::mem::take(&mut node.pods);
        for (pod, containers) in sample.pods {
            let earlier = known.remove(&pod).unwrap_or_default();
            let next = |(container, counters): (String, Counters)| {
                let track = Track::next(earlier.get(&container).copied(), counters);
                (container, track)
            };
            let tracks = containers.into_iter().map(next).collect();
            node.pods.insert(pod, tracks);
        }
    }

    /// Forgets nodes that are not in `names`.
    pub fn retain(&self, names: &[String]) {
        self.nodes.write().retain(|name, _| names.contains(name));
    }

    pub fn has_any(&self) -> bool {
        let nodes = self.nodes.read();
        nodes
            .values()
            .any(|node| node.own.is_some_and(|own| own.before.is_some()))
    }

    pub fn node(&self, name: &str) -> Option<Measured<Usage>> {
        self.nodes.read().get(name)?.own?.usage()
    }

    /// Use of every container of a pod; nothing until it is known of all of them.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Measured<BTreeMap<String, Usage>>> {
        let key = (namespace.to_owned(), name.to_owned());
        let nodes = self.nodes.read();
        let containers = nodes.values().find_map(|node| node.pods.get(&key))?;
        let mut usages = BTreeMap::new();
        let mut earliest: Option<(Timestamp, Duration)> = None;
        for (container, track) in containers {
            let measured = track.usage()?;
            if earliest.is_none_or(|(at, _)| measured.at < at) {
                earliest = Some((measured.at, measured.window));
            }
            usages.insert(container.clone(), measured.usage);
        }
        let (at, window) = earliest?;
        Some(Measured {
            at,
            window,
            usage: usages,
        })
    }
}

impl Track {
    /// What is known after one more sample, which may be the last one again.
    fn next(known: Option<Self>, last: Counters) -> Self {
        match known {
            Some(known) if last.at <= known.last.at => known,
            // Counters start again with their container.
            Some(known) if last.cpu_seconds < known.last.cpu_seconds => Self { last, before: None },
            known => Self {
                last,
                before: known.map(|known| known.last),
            },
        }
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn usage(&self) -> Option<Measured<Usage>> {
        let (before, last) = (self.before?, self.last);
        let window = last.at.duration_since(before.at).unsigned_abs();
        let used = last.cpu_seconds - before.cpu_seconds;
        Some(Measured {
            at: last.at,
            window,
            usage: Usage {
                cpu_nanocores: (used / window.as_secs_f64() * 1e9) as u64,
                memory_bytes: last.memory_bytes.max(0.0) as u64,
            },
        })
    }
}

impl Sample {
    /// From the Prometheus text of a kubelet's `/metrics/resource`, which was read at a time.
    pub fn parse(read: Timestamp, text: &str) -> Self {
        let mut sample = Self::default();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let Some(line) = Line::parse(line) else {
                continue;
            };
            let Some((of, what)) = line.name.split_once('_') else {
                continue;
            };
            let none = Counters {
                at: read,
                cpu_seconds: 0.0,
                memory_bytes: 0.0,
            };
            let counters = match of {
                "node" if matches!(what, CPU | MEMORY) => sample.node.get_or_insert(none),
                "container" if matches!(what, CPU | MEMORY) => {
                    let pod = (line.label("namespace"), line.label("pod"));
                    let containers = sample.pods.entry(pod).or_default();
                    containers.entry(line.label("container")).or_insert(none)
                }
                _ => continue,
            };
            if what == MEMORY {
                counters.memory_bytes = line.value;
                continue;
            }
            counters.cpu_seconds = line.value;
            // What a rate is of says when it was so.
            counters.at = line.at.unwrap_or(read);
        }
        sample
    }
}

const CPU: &str = "cpu_usage_seconds_total";
const MEMORY: &str = "memory_working_set_bytes";

/// `name{a="b",…} value [milliseconds]`
struct Line<'a> {
    name: &'a str,
    labels: Vec<(&'a str, &'a str)>,
    value: f64,
    at: Option<Timestamp>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (name, labels, rest) = match line.find('{') {
            Some(open) => {
                let close = line.rfind('}')?;
                (&line[..open], &line[open + 1..close], &line[close + 1..])
            }
            None => {
                let (name, rest) = line.split_once(' ')?;
                (name, "", rest)
            }
        };
        let mut rest = rest.split_whitespace();
        let value = rest.next()?.parse().ok()?;
        let milliseconds = rest.next().and_then(|at| at.parse().ok());
        let labels = labels
            .split("\",")
            .filter_map(|pair| pair.trim().split_once('='))
            .map(|(key, value)| (key.trim(), value.trim_matches('"')));
        Some(Self {
            name,
            labels: labels.collect(),
            value,
            at: milliseconds.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
        })
    }

    fn label(&self, wanted: &str) -> String {
        let found = self.labels.iter().find(|(key, _)| *key == wanted);
        found.map_or_else(String::new, |(_, value)| (*value).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The node looks at itself when it is asked, at the container at `second` of its own.
    fn sample(now: i64, second: i64, node: f64, containers: &[(&str, f64)]) -> Sample {
        let mut text = format!(
            "# HELP x\nnode_cpu_usage_seconds_total {node}\nnode_memory_working_set_bytes 1.5e+08\n"
        );
        for (name, used) in containers {
            let labels = format!("{{container=\"{name}\",namespace=\"n\",pod=\"p\"}}");
            text += &format!(
                "container_cpu_usage_seconds_total{labels} {used} {at}\ncontainer_memory_working_set_bytes{labels} 1024 {at}\n",
                at = second * 1000
            );
        }
        Sample::parse(Timestamp::from_second(now).unwrap(), &text)
    }

    const BYTES: u64 = 1024;

    fn nanocores(store: &Store, container: &str) -> Option<u64> {
        let pod = store.pod("n", "p")?;
        assert_eq!(pod.usage[container].memory_bytes, BYTES);
        Some(pod.usage[container].cpu_nanocores)
    }

    #[test]
    fn rates_need_two_samples() {
        let store = Store::default();
        store.push("a", sample(0, 0, 10.0, &[("c", 1.0)]));
        assert!(store.node("a").is_none() && !store.has_any());
        store.push("a", sample(10, 10, 15.0, &[("c", 2.0)]));
        let node = store.node("a").unwrap();
        assert_eq!(node.usage.cpu_nanocores, 500_000_000);
        assert_eq!(node.usage.memory_bytes, 150_000_000);
        assert_eq!(node.window, Duration::from_secs(10));
        assert_eq!(nanocores(&store, "c"), Some(100_000_000));
        // Restarted: no rate until the next sample.
        store.push("a", sample(20, 20, 20.0, &[("c", 0.5)]));
        assert_eq!(nanocores(&store, "c"), None);
        store.push("a", sample(30, 30, 20.0, &[("c", 2.5)]));
        assert_eq!(nanocores(&store, "c"), Some(200_000_000));
        store.push("a", sample(40, 40, 20.0, &[]));
        assert!(store.pod("n", "p").is_none());
        store.retain(&[]);
        assert!(store.node("a").is_none());
    }

    #[test]
    fn a_rate_is_over_the_time_between_looks_not_between_questions() {
        let store = Store::default();
        store.push("a", sample(100, 90, 10.0, &[("c", 1.0)]));
        store.push("a", sample(115, 90, 10.0, &[("c", 1.0)]));
        assert_eq!(nanocores(&store, "c"), None, "it has not looked again");
        store.push("a", sample(130, 110, 10.0, &[("c", 5.0)]));
        assert_eq!(nanocores(&store, "c"), Some(200_000_000));
        store.push("a", sample(145, 110, 10.0, &[("c", 5.0)]));
        assert_eq!(nanocores(&store, "c"), Some(200_000_000));
        let pod = store.pod("n", "p").unwrap();
        assert_eq!(pod.at, Timestamp::from_second(110).unwrap());
        assert_eq!(pod.window, Duration::from_secs(20));
    }

    #[test]
    fn a_pod_is_measured_when_all_of_it_is() {
        let store = Store::default();
        store.push("a", sample(0, 0, 0.0, &[("c", 1.0)]));
        store.push("a", sample(10, 10, 0.0, &[("c", 2.0), ("d", 1.0)]));
        assert!(store.pod("n", "p").is_none());
        store.push("a", sample(20, 20, 0.0, &[("c", 3.0), ("d", 4.0)]));
        assert_eq!(nanocores(&store, "d"), Some(300_000_000));
    }
}
