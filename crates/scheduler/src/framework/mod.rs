//! The scheduling framework: what plugins are and how a profile runs them.
//!
//! A scheduling cycle runs the extension points preFilter, filter, (postFilter,) preScore, score, reserve and permit
//! over an immutable [`Snapshot`]; the binding cycle runs preBind and bind in a task of its own.

pub mod profile;
pub mod types;

use std::{
    any::Any,
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};

pub use self::{
    profile::{Diagnosis, Profile, WeightedPlugin},
    types::{NodeInfo, PodInfo, Resource, Snapshot, declared_features},
};

/// Scores are from 0 to this.
pub const MAX_SCORE: i64 = 100;

/// Why a pod can't go somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub plugin: &'static str,
    /// For people; counted per node in the pod's condition.
    pub reasons: Vec<String>,
    /// Whether removing other pods from the node could help.
    pub resolvable: bool,
}

/// Outcome of a check.
pub type Verdict = Result<(), Rejection>;

impl Rejection {
    /// Removing pods could help.
    pub fn unschedulable(plugin: &'static str, reason: impl Into<String>) -> Self {
        Self {
            plugin,
            reasons: vec![reason.into()],
            resolvable: true,
        }
    }

    /// Removing pods can't help.
    pub fn unresolvable(plugin: &'static str, reason: impl Into<String>) -> Self {
        Self {
            plugin,
            reasons: vec![reason.into()],
            resolvable: false,
        }
    }
}

/// What a preFilter says about the whole cluster.
pub enum PreFilter {
    /// The plugin's filter has nothing to check for this pod.
    Skip,
    Continue,
    /// Only these nodes can pass the filters.
    Only(BTreeSet<String>),
    Reject(Rejection),
}

/// What plugins remember from one extension point to the next of the same cycle.
#[derive(Default)]
pub struct CycleState {
    data: HashMap<&'static str, Arc<dyn Any + Send + Sync>>,
    pub(crate) skip_filter: BTreeSet<&'static str>,
    pub(crate) skip_score: BTreeSet<&'static str>,
}

impl CycleState {
    pub fn put<T: Send + Sync + 'static>(&mut self, key: &'static str, value: T) {
        self.data.insert(key, Arc::new(value));
    }

    pub fn get<T: Send + Sync + 'static>(&self, key: &'static str) -> Option<&T> {
        self.data.get(key)?.downcast_ref()
    }
}

/// Something happened in the cluster that may make a pod schedulable.
#[derive(Clone)]
pub enum Event {
    /// An assigned pod appeared or changed.
    PodAssigned {
        old: Option<Arc<Pod>>,
        new: Arc<Pod>,
    },
    /// An assigned pod went away, or released what it had assumed.
    PodRemoved(Arc<Pod>),
    NodeAdded(Arc<Node>),
    NodeUpdated {
        old: Arc<Node>,
        new: Arc<Node>,
    },
    NodeRemoved(Arc<Node>),
    ClaimChanged(Arc<PersistentVolumeClaim>),
    VolumeChanged(Arc<PersistentVolume>),
    StorageClassChanged,
    /// Too much happened to say what.
    Unknown,
}

/// Error of the binding cycle: the pod goes back to the queue.
pub type BindResult<'a> = BoxFuture<'a, anyhow::Result<()>>;

/// A scheduling plugin. All extension points have neutral defaults.
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;

    /// Whether the pod may enter the queue at all.
    fn pre_enqueue(&self, _pod: &Pod) -> Verdict {
        Ok(())
    }

    /// Look at the pod and the cluster once, before the nodes.
    fn pre_filter(
        &self,
        _state: &mut CycleState,
        _pod: &PodInfo,
        _snapshot: &Snapshot,
    ) -> PreFilter {
        PreFilter::Continue
    }

    /// Whether the pod can run on the node.
    fn filter(&self, _state: &CycleState, _pod: &PodInfo, _node: &NodeInfo) -> Verdict {
        Ok(())
    }

    /// Prepare scoring the nodes that passed; false if all would score the same.
    fn pre_score(
        &self,
        _state: &mut CycleState,
        _pod: &PodInfo,
        _snapshot: &Snapshot,
        _feasible: &[Arc<NodeInfo>],
    ) -> bool {
        false
    }

    /// How good the node is. Raw values; [`normalize`](Self::normalize) brings them to 0..=100.
    fn score(&self, _state: &CycleState, _pod: &PodInfo, _node: &NodeInfo) -> i64 {
        0
    }

    fn normalize(&self, _state: &CycleState, _nodes: &[Arc<NodeInfo>], _scores: &mut [i64]) {}

    /// The pod goes to the node: note what it takes there.
    fn reserve(&self, _state: &CycleState, _pod: &PodInfo, _node: &str) -> Verdict {
        Ok(())
    }

    /// The pod does not go there after all. Also called when nothing was reserved.
    fn unreserve(&self, _state: &CycleState, _pod: &PodInfo, _node: &str) {}

    /// A last veto before binding.
    fn permit(&self, _state: &CycleState, _pod: &PodInfo, _node: &str) -> Verdict {
        Ok(())
    }

    /// Prepare the cluster for the pod, such as bind its volumes.
    fn pre_bind<'a>(
        &'a self,
        _state: &'a CycleState,
        _pod: &'a PodInfo,
        _node: &'a str,
    ) -> BindResult<'a> {
        Box::pin(async { Ok(()) })
    }

    /// Bind the pod; `None` leaves it to the next plugin.
    fn bind<'a>(&'a self, _pod: &'a PodInfo, _node: &'a str) -> Option<BindResult<'a>> {
        None
    }

    /// Whether `event` may have removed this plugin's reason to reject `pod`.
    fn may_help(&self, _event: &Event, _pod: &Pod) -> bool {
        true
    }
}

/// Scale scores so that the largest becomes 100 (or, `reverse`d, 0).
pub fn normalize_to_max(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        if max != 0 {
            *score = *score * MAX_SCORE / max;
        }
        if reverse {
            *score = MAX_SCORE - *score;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalizing() {
        let mut scores = [0, 5, 10];
        normalize_to_max(&mut scores, false);
        assert_eq!(scores, [0, 50, 100]);
        normalize_to_max(&mut scores, true);
        assert_eq!(scores, [100, 50, 0]);
        let mut zeros = [0, 0];
        normalize_to_max(&mut zeros, true);
        assert_eq!(zeros, [100, 100]);
    }
}
