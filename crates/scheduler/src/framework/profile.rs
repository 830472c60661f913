//! A profile: the plugins that pods of one `schedulerName` go through.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Pod;

use super::{CycleState, NodeInfo, Plugin, PodInfo, PreFilter, Rejection, Snapshot, Verdict};

/// A plugin with its weight in the sum of scores.
#[derive(Clone)]
pub struct WeightedPlugin {
    pub plugin: Arc<dyn Plugin>,
    pub weight: i64,
}

/// The plugins of one scheduler name, in the order in which they run.
#[derive(Clone)]
pub struct Profile {
    pub scheduler_name: String,
    pub plugins: Vec<WeightedPlugin>,
}

/// Why no node would do.
#[derive(Debug, Default)]
pub struct Diagnosis {
    pub nodes: usize,
    /// A preFilter's verdict about the whole cluster.
    pub rejection: Option<Rejection>,
    pub by_node: BTreeMap<String, Rejection>,
    /// What postFilter says.
    pub post_filter: String,
}

impl Diagnosis {
    /// The plugins whose verdicts events may change.
    pub fn plugins(&self) -> BTreeSet<&'static str> {
        self.rejection
            .iter()
            .chain(self.by_node.values())
            .map(|rejection| rejection.plugin)
            .collect()
    }

    /// Upstream's sentence for the pod's condition and event.
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut message = format!("0/{} nodes are available", self.nodes);
        match &self.rejection {
            Some(rejection) => {
                message.push_str(": ");
                message.push_str(&rejection.reasons.join(", "));
            }
            None => {
                let reasons = self
                    .by_node
                    .values()
                    .flat_map(|rejection| &rejection.reasons);
                let histogram = histogram(reasons.map(String::as_str));
                if !histogram.is_empty() {
                    message.push_str(": ");
                    message.push_str(&histogram);
                }
            }
        }
        message.push('.');
        if !self.post_filter.is_empty() {
            message.push(' ');
            message.push_str(&self.post_filter);
        }
        message
    }
}

/// `<count> <reason>`, sorted and joined.
pub fn histogram<'a>(reasons: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut lines: Vec<String> = counts
        .into_iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    lines.sort();
    lines.join(", ")
}

impl Profile {
    fn all(&self) -> impl Iterator<Item = &dyn Plugin> {
        self.plugins.iter().map(|weighted| &*weighted.plugin)
    }

    pub fn get(&self, name: &str) -> Option<&dyn Plugin> {
        self.all().find(|plugin| plugin.name() == name)
    }

    pub fn pre_enqueue(&self, pod: &Pod) -> Verdict {
        self.all().try_for_each(|plugin| plugin.pre_enqueue(pod))
    }

    /// Run the preFilters; gives the nodes that are worth looking at, `None` for all.
    pub fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
    ) -> Result<Option<BTreeSet<String>>, Rejection> {
        let mut only: Option<BTreeSet<String>> = None;
        for plugin in self.all() {
            match plugin.pre_filter(state, pod, snapshot) {
                PreFilter::Skip => {
                    state.skip_filter.insert(plugin.name());
                }
                PreFilter::Continue => {}
                PreFilter::Only(nodes) => {
                    only = Some(match only {
                        None => nodes,
                        Some(known) => known.intersection(&nodes).cloned().collect(),
                    });
                }
                PreFilter::Reject(rejection) => return Err(rejection),
            }
        }
        Ok(only)
    }

    /// Whether the pod passes all filters on the node.
    pub fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Verdict {
        let active = self
            .all()
            .filter(|plugin| !state.skip_filter.contains(plugin.name()));
        active
            .into_iter()
            .try_for_each(|plugin| plugin.filter(state, pod, node))
    }

    /// The weighted sums of scores of `nodes`.
    pub fn score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        nodes: &[Arc<NodeInfo>],
    ) -> Vec<i64> {
        let mut totals = vec![0; nodes.len()];
        for weighted in self.plugins.iter().filter(|weighted| weighted.weight > 0) {
            let plugin = &weighted.plugin;
            if !plugin.pre_score(state, pod, snapshot, nodes) {
                state.skip_score.insert(plugin.name());
                continue;
            }
            let mut scores: Vec<i64> = nodes
                .iter()
                .map(|node| plugin.score(state, pod, node))
                .collect();
            plugin.normalize(state, nodes, &mut scores);
            for (total, score) in totals.iter_mut().zip(scores) {
                *total += score * weighted.weight;
            }
        }
        totals
    }

    pub fn reserve(&self, state: &CycleState, pod: &PodInfo, node: &str) -> Verdict {
        let verdict = self
            .all()
            .try_for_each(|plugin| plugin.reserve(state, pod, node));
        let verdict = verdict.and_then(|()| {
            self.all()
                .try_for_each(|plugin| plugin.permit(state, pod, node))
        });
        if verdict.is_err() {
            self.unreserve(state, pod, node);
        }
        verdict
    }

    pub fn unreserve(&self, state: &CycleState, pod: &PodInfo, node: &str) {
        for weighted in self.plugins.iter().rev() {
            weighted.plugin.unreserve(state, pod, node);
        }
    }

    /// preBind and bind.
    pub async fn bind(&self, state: &CycleState, pod: &PodInfo, node: &str) -> anyhow::Result<()> {
        for plugin in self.all() {
            plugin.pre_bind(state, pod, node).await?;
        }
        match self.all().find_map(|plugin| plugin.bind(pod, node)) {
            Some(binding) => binding.await,
            None => anyhow::bail!("no bind plugin in profile {}", self.scheduler_name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_counts_reasons() {
        let mut diagnosis = Diagnosis {
            nodes: 3,
            ..Diagnosis::default()
        };
        let taint = Rejection::unresolvable("TaintToleration", "node(s) had untolerated taint(s)");
        diagnosis.by_node.insert("a".to_owned(), taint.clone());
        diagnosis.by_node.insert("b".to_owned(), taint);
        let fit = Rejection::unschedulable("NodeResourcesFit", "Insufficient cpu");
        diagnosis.by_node.insert("c".to_owned(), fit);
        diagnosis.post_filter = "preemption: 0/3 nodes are available: 3 x.".to_owned();
        assert_eq!(
            diagnosis.message(),
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s). \
             preemption: 0/3 nodes are available: 3 x."
        );
        assert_eq!(
            Diagnosis::default().message(),
            "no nodes available to schedule pods"
        );
        let claim =
            Rejection::unresolvable("VolumeBinding", "persistentvolumeclaim \"x\" not found");
        let rejected = Diagnosis {
            nodes: 2,
            rejection: Some(claim),
            ..Diagnosis::default()
        };
        assert_eq!(
            rejected.message(),
            "0/2 nodes are available: persistentvolumeclaim \"x\" not found."
        );
    }
}
