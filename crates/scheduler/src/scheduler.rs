//! The scheduling loop: take a pod, choose a node, assume it is there, bind it in the background.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use fluyt_client::{EventType, Informer, Recorder, helpers::pods, is_not_found, metrics};
use k8s_openapi::api::{
    core::v1::{Pod, PodCondition},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{sync::Notify, time::Instant};
use tracing::{debug, warn};

use crate::{
    cache::Cache,
    framework::{CycleState, Diagnosis, Event, NodeInfo, PodInfo, Profile, Snapshot},
    plugins::default_preemption::{self, Candidate},
    queue::{Queued, SchedulingQueue},
};

/// Below this number of nodes all are looked at; above, a share that shrinks with the cluster.
const MIN_FEASIBLE: usize = 100;

/// What the loop and the informers' handlers share.
#[derive(Default)]
pub struct State {
    pub cache: Cache,
    pub queue: SchedulingQueue,
    /// Pods that wait for their victims to leave a node, by uid.
    pub nominated: HashMap<String, (String, Arc<PodInfo>)>,
}

pub struct Scheduler {
    pub client: Client,
    pub profiles: HashMap<String, (Profile, Recorder)>,
    pub pods: Informer<Pod>,
    pub budgets: Informer<PodDisruptionBudget>,
    pub state: Mutex<State>,
    /// Something may be in the queue.
    pub wake: Notify,
    /// Where to begin looking at nodes, so that all get their turn when not all are looked at.
    next_start: AtomicUsize,
}

impl Scheduler {
    pub fn new(
        client: Client,
        profiles: Vec<(Profile, Recorder)>,
        pods: Informer<Pod>,
        budgets: Informer<PodDisruptionBudget>,
    ) -> Self {
        let by_name = profiles
            .into_iter()
            .map(|entry| (entry.0.scheduler_name.clone(), entry));
        Self {
            client,
            profiles: by_name.collect(),
            pods,
            budgets,
            state: Mutex::default(),
            wake: Notify::new(),
            next_start: AtomicUsize::new(0),
        }
    }

    /// Whether the pod asks for one of our profiles.
    pub fn is_ours(&self, pod: &Pod) -> bool {
        self.profiles.contains_key(scheduler_name(pod))
    }

    /// Whether preEnqueue plugins hold the pod back.
    pub fn is_gated(&self, pod: &Pod) -> bool {
        let profile = self.profiles.get(scheduler_name(pod));
        profile.is_some_and(|(profile, _)| profile.pre_enqueue(pod).is_err())
    }

    /// Tell the queue about an event and wake the loop.
    pub fn notify(&self, event: &Event) {
        let hint = |event: &Event, queued: &Queued| self.may_help(event, queued);
        self.state.lock().queue.on_event(event, &hint);
        self.wake.notify_one();
    }

    fn may_help(&self, event: &Event, queued: &Queued) -> bool {
        if queued.rejected_by.is_empty() {
            // There was no node at all.
            return matches!(event, Event::NodeAdded(_) | Event::Unknown);
        }
        let Some((profile, _)) = self.profiles.get(scheduler_name(&queued.pod)) else {
            return false;
        };
        queued.rejected_by.iter().any(|name| {
            profile
                .get(name)
                .is_none_or(|plugin| plugin.may_help(event, &queued.pod))
        })
    }

    /// Schedule pods until cancelled.
    pub async fn run(self: Arc<Self>) {
        loop {
            let woken = self.wake.notified();
            let (next, timer) = {
                let mut state = self.state.lock();
                (state.queue.pop(), state.queue.next_timer())
            };
            if let Some(queued) = next {
                self.schedule(queued);
                // Handlers get their turn between two pods.
                tokio::task::yield_now().await;
                continue;
            }
            for (queue, size) in self.state.lock().queue.sizes() {
                // Numbers of pods, far below 2^53.
                #[allow(clippy::cast_precision_loss)]
                metrics::set(
                    "scheduler_pending_pods",
                    "Number of pending pods, by the queue they are in.",
                    &[("queue", queue)],
                    size as f64,
                );
            }
            match timer {
                None => woken.await,
                Some(at) => {
                    tokio::select! {
                        () = woken => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
            }
        }
    }

    fn schedule(self: &Arc<Self>, mut queued: Queued) {
        let started = Instant::now();
        // Since it was queued it may have changed, or be gone.
        let key = fluyt_client::ObjectKey::of(&*queued.pod);
        let current = self.pods.get_key(&key).filter(|current| {
            current.metadata.uid == queued.pod.metadata.uid
                && pods::node_name(current).is_none()
                && !pods::is_terminating(current)
        });
        let uid = queued.pod.metadata.uid.clone().unwrap_or_default();
        let Some(current) = current else {
            self.state.lock().queue.done(&uid);
            return;
        };
        queued.pod = current;
        let Some((profile, _)) = self.profiles.get(scheduler_name(&queued.pod)) else {
            self.state.lock().queue.done(&uid);
            return;
        };
        let info = Arc::new(PodInfo::new(Arc::clone(&queued.pod)));
        let snapshot = self.state.lock().cache.snapshot();
        let mut state = CycleState::default();
        let result = match self.choose(profile, &mut state, &info, &snapshot) {
            Ok(node) => {
                debug!(pod = %info.key(), node = node.name(), elapsed = ?started.elapsed(), "scheduled");
                self.assume_and_bind(queued, info, state, &node);
                "scheduled"
            }
            Err(diagnosis) => {
                self.give_up(queued, info, &snapshot, diagnosis);
                "unschedulable"
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        metrics::increment(
            "scheduler_schedule_attempts_total",
            "Number of attempts to schedule pods, by the result.",
            &[("profile", &profile.scheduler_name), ("result", result)],
        );
        metrics::observe(
            "scheduler_scheduling_algorithm_duration_seconds",
            "Scheduling algorithm latency in seconds.",
            &[],
            seconds,
        );
    }

    /// The best node for the pod.
    fn choose(
        &self,
        profile: &Profile,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
    ) -> Result<Arc<NodeInfo>, Diagnosis> {
        let mut diagnosis = Diagnosis {
            nodes: snapshot.nodes.len(),
            ..Diagnosis::default()
        };
        if snapshot.nodes.is_empty() {
            return Err(diagnosis);
        }
        let only = match profile.pre_filter(state, pod, snapshot) {
            Ok(only) => only,
            Err(rejection) => {
                diagnosis.rejection = Some(rejection);
                return Err(diagnosis);
            }
        };
        let feasible = self.feasible(profile, state, pod, snapshot, only, &mut diagnosis);
        match feasible.as_slice() {
            [] => Err(diagnosis),
            [only] => Ok(Arc::clone(only)),
            several => {
                let scores = profile.score(state, pod, snapshot, several);
                Ok(Arc::clone(&several[highest(&scores)]))
            }
        }
    }

    fn feasible(
        &self,
        profile: &Profile,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        only: Option<BTreeSet<String>>,
        diagnosis: &mut Diagnosis,
    ) -> Vec<Arc<NodeInfo>> {
        let nominated = self.nominated_nodes(pod);
        let count = snapshot.nodes.len();
        let enough = feasible_nodes_to_find(count);
        let start = self.next_start.load(Ordering::Relaxed) % count;
        let mut feasible = Vec::new();
        let mut looked_at = 0;
        for i in 0..count {
            let node = &snapshot.nodes[(start + i) % count];
            looked_at += 1;
            if only
                .as_ref()
                .is_some_and(|only| !only.contains(node.name()))
            {
                let reason = "node(s) didn't satisfy plugin(s) [NodeAffinity]";
                let rejection = crate::framework::Rejection::unresolvable("NodeAffinity", reason);
                diagnosis.by_node.insert(node.name().to_owned(), rejection);
                continue;
            }
            match check(profile, state, pod, node, nominated.get(node.name())) {
                Ok(()) => {
                    feasible.push(Arc::clone(node));
                    if feasible.len() >= enough {
                        break;
                    }
                }
                Err(rejection) => {
                    diagnosis.by_node.insert(node.name().to_owned(), rejection);
                }
            }
        }
        self.next_start.store(start + looked_at, Ordering::Relaxed);
        feasible
    }

    /// Pods of at least the same priority that other pods made room for, by node.
    fn nominated_nodes(&self, pod: &PodInfo) -> BTreeMap<String, Vec<Arc<PodInfo>>> {
        let mut by_node: BTreeMap<String, Vec<Arc<PodInfo>>> = BTreeMap::new();
        for (uid, (node, other)) in &self.state.lock().nominated {
            if uid != pod.uid() && pods::priority(&other.pod) >= pods::priority(&pod.pod) {
                by_node
                    .entry(node.clone())
                    .or_default()
                    .push(Arc::clone(other));
            }
        }
        by_node
    }

    fn assume_and_bind(
        self: &Arc<Self>,
        queued: Queued,
        pod: Arc<PodInfo>,
        mut state: CycleState,
        node: &Arc<NodeInfo>,
    ) {
        use crate::plugins::volume_binding::{CHOSEN_NODE, ChosenNode};
        let Some((profile, _)) = self.profiles.get(scheduler_name(&queued.pod)) else {
            return;
        };
        state.put(CHOSEN_NODE, ChosenNode(Arc::clone(&node.node)));
        self.state.lock().cache.assume(&pod, node.name());
        if let Err(rejection) = profile.reserve(&state, &pod, node.name()) {
            self.state.lock().cache.forget(pod.uid());
            let error = anyhow::anyhow!("{}", rejection.reasons.join(", "));
            self.fail(queued, &pod, &error);
            return;
        }
        {
            let mut shared = self.state.lock();
            shared.nominated.remove(pod.uid());
        }
        let (this, node) = (Arc::clone(self), node.name().to_owned());
        tokio::spawn(async move { this.bind(queued, pod, state, &node).await });
    }

    async fn bind(
        self: Arc<Self>,
        queued: Queued,
        pod: Arc<PodInfo>,
        state: CycleState,
        node: &str,
    ) {
        let Some((profile, recorder)) = self.profiles.get(scheduler_name(&queued.pod)) else {
            return;
        };
        match profile.bind(&state, &pod, node).await {
            Ok(()) => {
                self.state.lock().queue.done(pod.uid());
                let message = format!("Successfully assigned {} to {node}", pod.key());
                recorder.event(
                    &pod.pod.object_ref(&()),
                    EventType::Normal,
                    "Scheduled",
                    message,
                );
                metrics::observe(
                    "scheduler_pod_scheduling_sli_duration_seconds",
                    "E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue.",
                    &[],
                    queued.since.elapsed().as_secs_f64(),
                );
            }
            Err(error) => {
                profile.unreserve(&state, &pod, node);
                self.state.lock().cache.forget(pod.uid());
                self.fail(queued, &pod, &error);
                // What the pod would have taken is free again.
                self.notify(&Event::PodRemoved(Arc::clone(&pod.pod)));
            }
        }
    }

    /// Not the cluster is to blame but an error on the way: try again after a while.
    fn fail(self: &Arc<Self>, queued: Queued, pod: &Arc<PodInfo>, error: &anyhow::Error) {
        let gone =
            matches!(error.downcast_ref::<kube::Error>(), Some(error) if is_not_found(error));
        let exists = self.pods.get_key(&pod.key()).is_some_and(|current| {
            current.metadata.uid == pod.pod.metadata.uid && pods::node_name(&current).is_none()
        });
        if gone || !exists {
            self.state.lock().queue.done(pod.uid());
            return;
        }
        warn!(pod = %pod.key(), %error, "scheduling failed, will retry");
        self.state.lock().queue.add_failed(queued);
        self.wake.notify_one();
        self.report(
            Arc::clone(pod),
            "SchedulerError",
            format!("{error:#}"),
            None,
        );
    }

    /// No node will do: make room if possible, say why, and wait for something to change.
    fn give_up(
        self: &Arc<Self>,
        mut queued: Queued,
        pod: Arc<PodInfo>,
        snapshot: &Snapshot,
        mut diagnosis: Diagnosis,
    ) {
        queued.rejected_by = diagnosis.plugins();
        let candidate = self.preempt(&queued, &pod, snapshot, &mut diagnosis);
        let nominated = candidate.as_ref().map(|candidate| candidate.node.clone());
        {
            let mut state = self.state.lock();
            match &nominated {
                Some(node) => {
                    state
                        .nominated
                        .insert(pod.uid().to_owned(), (node.clone(), Arc::clone(&pod)));
                }
                None if diagnosis
                    .post_filter
                    .starts_with("preemption: not eligible due to a terminating") => {}
                None => {
                    state.nominated.remove(pod.uid());
                }
            }
            let hint = |event: &Event, queued: &Queued| self.may_help(event, queued);
            state.queue.add_unschedulable(queued, &hint);
        }
        self.wake.notify_one();
        self.report(
            Arc::clone(&pod),
            "Unschedulable",
            diagnosis.message(),
            nominated,
        );
        if let Some(candidate) = candidate {
            let this = Arc::clone(self);
            tokio::spawn(async move { this.evict(pod, candidate).await });
        }
    }

    fn preempt(
        &self,
        queued: &Queued,
        pod: &PodInfo,
        snapshot: &Snapshot,
        diagnosis: &mut Diagnosis,
    ) -> Option<Candidate> {
        let (profile, _) = self.profiles.get(scheduler_name(&queued.pod))?;
        if snapshot.nodes.is_empty() {
            return None;
        }
        if let Err(reason) = default_preemption::is_eligible(pod, snapshot) {
            diagnosis.post_filter = format!("preemption: {reason}");
            return None;
        }
        let budgets = self.budgets.list();
        match default_preemption::find(profile, pod, snapshot, diagnosis, &budgets) {
            Ok(candidate) => Some(candidate),
            Err(message) => {
                diagnosis.post_filter = message;
                None
            }
        }
    }

    /// Remove the victims. When they are gone, events bring the pod back.
    async fn evict(self: Arc<Self>, pod: Arc<PodInfo>, candidate: Candidate) {
        let Some((profile, recorder)) = self.profiles.get(scheduler_name(&pod.pod)) else {
            return;
        };
        metrics::increment(
            "scheduler_preemption_attempts_total",
            "Total preemption attempts so far.",
            &[],
        );
        for victim in &candidate.victims {
            if let Err(error) = self.evict_one(&profile.scheduler_name, victim).await {
                warn!(pod = %pod.key(), victim = %victim.key(), %error, "preemption failed");
                self.state.lock().nominated.remove(pod.uid());
                self.notify(&Event::Unknown);
                return;
            }
            let message = format!("Preempted by pod {} on node {}", pod.uid(), candidate.node);
            recorder.event(
                &victim.pod.object_ref(&()),
                EventType::Normal,
                "Preempted",
                message,
            );
        }
    }

    async fn evict_one(&self, scheduler_name: &str, victim: &PodInfo) -> kube::Result<()> {
        if pods::is_terminating(&victim.pod) {
            return Ok(());
        }
        let api = Api::<Pod>::namespaced(self.client.clone(), victim.namespace());
        let name = victim.pod.metadata.name.as_deref().unwrap_or_default();
        let message = format!("{scheduler_name}: preempting to accommodate a higher priority pod");
        let condition = PodCondition {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
            reason: Some("PreemptionByScheduler".to_owned()),
            message: Some(message),
            last_transition_time: Some(now()),
            ..PodCondition::default()
        };
        let patch = json!({"status": {"conditions": [condition]}});
        match api
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
        {
            Err(error) if is_not_found(&error) => return Ok(()),
            result => drop(result?),
        }
        match api.delete(name, &DeleteParams::default()).await {
            Err(error) if is_not_found(&error) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Tell in an event and in the pod's condition why it is not scheduled.
    fn report(
        self: &Arc<Self>,
        pod: Arc<PodInfo>,
        reason: &'static str,
        message: String,
        nominated: Option<String>,
    ) {
        let Some((_, recorder)) = self.profiles.get(scheduler_name(&pod.pod)) else {
            return;
        };
        let object = pod.pod.object_ref(&());
        recorder.event(
            &object,
            EventType::Warning,
            "FailedScheduling",
            message.clone(),
        );
        let status = pod.pod.status.clone().unwrap_or_default();
        let mut conditions = status.conditions.unwrap_or_default();
        let condition = PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "False".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(now()),
            ..PodCondition::default()
        };
        let nomination_changed = nominated.is_some() && nominated != status.nominated_node_name;
        if !pods::set_condition(&mut conditions, condition) && !nomination_changed {
            return;
        }
        let of_ours = conditions
            .into_iter()
            .filter(|condition| condition.type_ == "PodScheduled");
        let mut patch = json!({"status": {"conditions": of_ours.collect::<Vec<_>>()}});
        if let Some(node) = nominated {
            patch["status"]["nominatedNodeName"] = json!(node);
        }
        let api = Api::<Pod>::namespaced(self.client.clone(), pod.namespace());
        tokio::spawn(async move {
            let name = pod.pod.metadata.name.as_deref().unwrap_or_default();
            let written = api
                .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
                .await;
            if let Err(error) = written
                && !is_not_found(&error)
            {
                debug!(pod = %pod.key(), %error, "can't write the PodScheduled condition");
            }
        });
    }
}

/// `spec.schedulerName`.
fn scheduler_name(pod: &Pod) -> &str {
    let name = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.scheduler_name.as_deref());
    name.unwrap_or("default-scheduler")
}

fn now() -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    jiff::Timestamp::now().into()
}

/// Whether the pod fits on the node, also if the pods that are nominated to it come (and also if they don't).
fn check(
    profile: &Profile,
    state: &CycleState,
    pod: &PodInfo,
    node: &NodeInfo,
    nominated: Option<&Vec<Arc<PodInfo>>>,
) -> Result<(), crate::framework::Rejection> {
    if let Some(nominated) = nominated {
        let mut crowded = node.clone();
        for other in nominated
            .iter()
            .filter(|other| !node.pods.iter().any(|pod| pod.uid() == other.uid()))
        {
            crowded.add_pod(Arc::clone(other));
        }
        profile.filter(state, pod, &crowded)?;
    }
    profile.filter(state, pod, node)
}

/// All nodes of a small cluster; of a large one 50 % down to 5 %.
fn feasible_nodes_to_find(nodes: usize) -> usize {
    if nodes < MIN_FEASIBLE {
        return nodes;
    }
    let percentage = 50usize.saturating_sub(nodes / 125).max(5);
    (nodes * percentage / 100).max(MIN_FEASIBLE)
}

/// The index of the highest score; of equals any, so that pods don't all go to the first node.
fn highest(scores: &[i64]) -> usize {
    let max = scores.iter().max();
    let best: Vec<usize> = (0..scores.len())
        .filter(|index| scores.get(*index) == max)
        .collect();
    best[rand::random_range(0..best.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_clusters_are_sampled() {
        let cases = [
            (1, 1),
            (99, 99),
            (150, 100),
            (1000, 420),
            (5000, 500),
            (10000, 500),
        ];
        for (nodes, expected) in cases {
            assert_eq!(feasible_nodes_to_find(nodes), expected, "{nodes}");
        }
    }

    #[test]
    fn the_highest_score_wins() {
        assert_eq!(highest(&[1, 5, 3]), 1);
        let seen: BTreeSet<usize> = (0..200).map(|_| highest(&[7, 1, 7])).collect();
        assert_eq!(seen, [0, 2].into());
    }
}
