//! What the kubelets said, twice: a rate needs two samples.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::RwLock;

/// The last two samples of every node.
#[derive(Default)]
pub struct Store {
    nodes: RwLock<HashMap<String, Pair>>,
}

#[derive(Clone, Debug, Default)]
struct Pair {
    last: Option<Sample>,
    before: Option<Sample>,
}

/// One scrape of one kubelet.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub at: Timestamp,
    pub node: Counters,
    /// By namespace and pod, then container.
    pub pods: BTreeMap<(String, String), BTreeMap<String, Counters>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
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
    pub fn push(&self, node: &str, sample: Sample) {
        let mut nodes = self.nodes.write();
        let pair = nodes.entry(node.to_owned()).or_default();
        pair.before = pair.last.replace(sample);
    }

    /// Forgets nodes that are not in `names`.
    pub fn retain(&self, names: &[String]) {
        self.nodes.write().retain(|name, _| names.contains(name));
    }

    pub fn has_any(&self) -> bool {
        self.nodes.read().values().any(|pair| pair.before.is_some())
    }

    pub fn node(&self, name: &str) -> Option<Measured<Usage>> {
        let nodes = self.nodes.read();
        let (before, last) = nodes.get(name)?.both()?;
        Some(measured(
            before,
            last,
            usage(&before.node, &last.node, before, last)?,
        ))
    }

    /// Use of every container of a pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Measured<BTreeMap<String, Usage>>> {
        let key = (namespace.to_owned(), name.to_owned());
        let nodes = self.nodes.read();
        let (before, last) = nodes
            .values()
            .filter_map(Pair::both)
            .find(|(_, last)| last.pods.contains_key(&key))?;
        let earlier = before.pods.get(&key)?;
        let usages: BTreeMap<String, Usage> = last
            .pods
            .get(&key)?
            .iter()
            .filter_map(|(container, now)| {
                Some((
                    container.clone(),
                    usage(earlier.get(container)?, now, before, last)?,
                ))
            })
            .collect();
        (!usages.is_empty()).then(|| measured(before, last, usages))
    }
}

impl Pair {
    fn both(&self) -> Option<(&Sample, &Sample)> {
        Some((self.before.as_ref()?, self.last.as_ref()?))
    }
}

fn measured<T>(before: &Sample, last: &Sample, usage: T) -> Measured<T> {
    Measured {
        at: last.at,
        window: last.at.duration_since(before.at).unsigned_abs(),
        usage,
    }
}

/// None when a counter went back: the container has been restarted in between.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn usage(before: &Counters, now: &Counters, earlier: &Sample, later: &Sample) -> Option<Usage> {
    let seconds = later.at.duration_since(earlier.at).as_secs_f64();
    let used = now.cpu_seconds - before.cpu_seconds;
    (seconds > 0.0 && used >= 0.0).then(|| Usage {
        cpu_nanocores: (used / seconds * 1e9) as u64,
        memory_bytes: now.memory_bytes.max(0.0) as u64,
    })
}

impl Sample {
    /// From the Prometheus text of a kubelet's `/metrics/resource`.
    pub fn parse(at: Timestamp, text: &str) -> Self {
        let mut sample = Self {
            at,
            node: Counters::default(),
            pods: BTreeMap::new(),
        };
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let Some((name, labels, value)) = split(line) else {
                continue;
            };
            let label = |wanted: &str| {
                labels
                    .iter()
                    .find(|(k, _)| *k == wanted)
                    .map(|(_, v)| v.clone())
                    .unwrap_or_default()
            };
            let key = (label("namespace"), label("pod"));
            match name {
                "node_cpu_usage_seconds_total" => sample.node.cpu_seconds = value,
                "node_memory_working_set_bytes" => sample.node.memory_bytes = value,
                "container_cpu_usage_seconds_total" => {
                    sample.container(key, label("container")).cpu_seconds = value
                }
                "container_memory_working_set_bytes" => {
                    sample.container(key, label("container")).memory_bytes = value
                }
                _ => {}
            }
        }
        sample
    }
}

impl Sample {
    fn container(&mut self, pod: (String, String), container: String) -> &mut Counters {
        self.pods
            .entry(pod)
            .or_default()
            .entry(container)
            .or_default()
    }
}

/// Name, labels and value of a metric.
type Line<'a> = (&'a str, Vec<(&'a str, String)>, f64);

/// `name{a="b",…} value [timestamp]`
fn split(line: &str) -> Option<Line<'_>> {
    let (head, rest) = match line.find('{') {
        Some(open) => {
            let close = line.rfind('}')?;
            (&line[..open], (&line[open + 1..close], &line[close + 1..]))
        }
        None => {
            let space = line.find(' ')?;
            (&line[..space], ("", &line[space..]))
        }
    };
    let value = rest.1.split_whitespace().next()?.parse().ok()?;
    let labels = rest
        .0
        .split("\",")
        .filter_map(|pair| pair.trim().split_once('='))
        .map(|(key, value)| (key.trim(), value.trim_matches('"').to_owned()))
        .collect();
    Some((head, labels, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: i64, node: f64, container: f64) -> Sample {
        let text = format!(
            "# HELP x\nnode_cpu_usage_seconds_total {node} 1700\nnode_memory_working_set_bytes 1.5e+08\n\
             container_cpu_usage_seconds_total{{container=\"c\",namespace=\"n\",pod=\"p\"}} {container}\n\
             container_memory_working_set_bytes{{container=\"c\",namespace=\"n\",pod=\"p\"}} 1024\n"
        );
        Sample::parse(Timestamp::from_second(second).unwrap(), &text)
    }

    #[test]
    fn rates_need_two_samples() {
        let store = Store::default();
        store.push("a", sample(0, 10.0, 1.0));
        assert!(store.node("a").is_none() && !store.has_any());
        store.push("a", sample(10, 15.0, 2.0));
        let node = store.node("a").unwrap();
        assert_eq!(
            node.usage,
            Usage {
                cpu_nanocores: 500_000_000,
                memory_bytes: 150_000_000
            }
        );
        assert_eq!(node.window, Duration::from_secs(10));
        let pod = store.pod("n", "p").unwrap();
        assert_eq!(
            pod.usage["c"],
            Usage {
                cpu_nanocores: 100_000_000,
                memory_bytes: 1024
            }
        );
        // Restarted: no rate until the next sample.
        store.push("a", sample(20, 20.0, 0.5));
        assert!(store.pod("n", "p").is_none());
        store.retain(&[]);
        assert!(store.node("a").is_none());
    }
}
