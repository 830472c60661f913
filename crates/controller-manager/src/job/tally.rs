//! Counting the pods that have ended.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use fluyt_client::helpers::pods as pod_state;
use k8s_openapi::api::{
    batch::v1::{Job, UncountedTerminatedPods},
    core::v1::Pod,
};

use super::{
    indexes, is_tracked,
    pod_failure_policy::{self, Verdict},
};
use crate::common::uid;

/// What has ended so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// Counted for good, without those in `uncounted`.
    pub succeeded: i32,
    pub failed: i32,
    /// Noted, but their finalizers are not known to be removed yet.
    pub uncounted: UncountedTerminatedPods,
    /// Of indexed jobs.
    pub completed_indexes: BTreeSet<i32>,
    pub failed_indexes: BTreeSet<i32>,
    /// How often each index has failed.
    pub failures_of_index: HashMap<i32, i32>,
    /// A failed pod that the pod failure policy says ends the job: why.
    pub fail_job: Option<String>,
    /// Pods whose finalizers may go once the status is written.
    pub to_release: Vec<Arc<Pod>>,
}

pub fn is_indexed(job: &Job) -> bool {
    job.spec
        .as_ref()
        .and_then(|spec| spec.completion_mode.as_deref())
        == Some("Indexed")
}

fn replaces_only_failed(job: &Job) -> bool {
    job.spec
        .as_ref()
        .and_then(|spec| spec.pod_replacement_policy.as_deref())
        == Some("Failed")
}

/// Whether the pod's end counts as a failure: a pod on its way out does not come back, wherever it gets to.
fn has_failed(job: &Job, pod: &Pod) -> bool {
    match pod_state::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => pod_state::is_terminating(pod) && !replaces_only_failed(job),
    }
}

impl Tally {
    pub fn total_succeeded(&self) -> i32 {
        self.succeeded + len(self.uncounted.succeeded.as_ref())
    }

    pub fn total_failed(&self) -> i32 {
        self.failed + len(self.uncounted.failed.as_ref())
    }
}

fn len(list: Option<&Vec<String>>) -> i32 {
    list.map_or(0, |list| i32::try_from(list.len()).unwrap_or(i32::MAX))
}

/// Bring the job's counts up to date with its pods.
pub fn count(job: &Job, pods: &[Arc<Pod>]) -> Tally {
    let spec = job.spec.clone().unwrap_or_default();
    let status = job.status.clone().unwrap_or_default();
    let indexed = is_indexed(job);
    let completions = spec.completions.unwrap_or(0);
    let parsed =
        |text: &Option<String>| indexes::parse(text.as_deref().unwrap_or_default(), completions);
    let mut tally = Tally {
        succeeded: status.succeeded.unwrap_or(0),
        failed: status.failed.unwrap_or(0),
        completed_indexes: if indexed {
            parsed(&status.completed_indexes)
        } else {
            BTreeSet::new()
        },
        failed_indexes: if indexed {
            parsed(&status.failed_indexes)
        } else {
            BTreeSet::new()
        },
        ..Tally::default()
    };
    let tracked: HashSet<&str> = pods
        .iter()
        .filter(|pod| is_tracked(pod))
        .map(|pod| uid(&pod.metadata))
        .collect();
    settle(
        &mut tally,
        status.uncounted_terminated_pods.unwrap_or_default(),
        &tracked,
    );
    for pod in pods {
        let (succeeded, failed) = (pod_state::phase(pod) == "Succeeded", has_failed(job, pod));
        if failed && let Some(index) = indexes::of_pod(pod) {
            *tally.failures_of_index.entry(index).or_default() += 1;
        }
        if !is_tracked(pod) || !(succeeded || failed) {
            continue;
        }
        if succeeded {
            note_success(&mut tally, pod, indexed, completions);
        } else {
            note_failure(&mut tally, job, pod);
        }
        tally.to_release.push(Arc::clone(pod));
    }
    if indexed {
        tally.succeeded = i32::try_from(tally.completed_indexes.len()).unwrap_or(i32::MAX);
        fail_indexes(&mut tally, spec.backoff_limit_per_index, pods);
    }
    tally
}

/// Notes whose pods have no finalizer any more become counts.
fn settle(tally: &mut Tally, noted: UncountedTerminatedPods, tracked: &HashSet<&str>) {
    let split = |list: Option<Vec<String>>| -> (Vec<String>, i32) {
        let (kept, settled): (Vec<String>, Vec<String>) = list
            .unwrap_or_default()
            .into_iter()
            .partition(|uid| tracked.contains(uid.as_str()));
        (kept, i32::try_from(settled.len()).unwrap_or(i32::MAX))
    };
    let (succeeded, count) = split(noted.succeeded);
    tally.succeeded += count;
    let (failed, count) = split(noted.failed);
    tally.failed += count;
    tally.uncounted.succeeded = (!succeeded.is_empty()).then_some(succeeded);
    tally.uncounted.failed = (!failed.is_empty()).then_some(failed);
}

fn note(list: &mut Option<Vec<String>>, pod: &Pod) {
    let list = list.get_or_insert_default();
    if !list.iter().any(|noted| noted == uid(&pod.metadata)) {
        list.push(uid(&pod.metadata).to_owned());
    }
}

fn note_success(tally: &mut Tally, pod: &Pod, indexed: bool, completions: i32) {
    if !indexed {
        note(&mut tally.uncounted.succeeded, pod);
        return;
    }
    // A set can't count twice, so it needs no note.
    if let Some(index) = indexes::of_pod(pod).filter(|index| *index < completions) {
        tally.completed_indexes.insert(index);
    }
}

fn note_failure(tally: &mut Tally, job: &Job, pod: &Pod) {
    let policy = job
        .spec
        .as_ref()
        .and_then(|spec| spec.pod_failure_policy.as_ref());
    match policy.and_then(|policy| pod_failure_policy::judge(policy, pod)) {
        Some(Verdict::Ignore) => {}
        Some(Verdict::FailJob(message)) => {
            tally.fail_job.get_or_insert(message);
            note(&mut tally.uncounted.failed, pod);
        }
        Some(Verdict::FailIndex) => {
            if let Some(index) = indexes::of_pod(pod) {
                tally.failed_indexes.insert(index);
            }
            note(&mut tally.uncounted.failed, pod);
        }
        Some(Verdict::Count) | None => note(&mut tally.uncounted.failed, pod),
    }
}

/// With a limit per index, an index that failed too often is given up.
fn fail_indexes(tally: &mut Tally, limit: Option<i32>, pods: &[Arc<Pod>]) {
    let Some(limit) = limit else {
        return;
    };
    let completed = tally.completed_indexes.clone();
    let present: HashSet<i32> = pods.iter().filter_map(|pod| indexes::of_pod(pod)).collect();
    for (index, failures) in &tally.failures_of_index {
        if *failures > limit && present.contains(index) && !completed.contains(index) {
            tally.failed_indexes.insert(*index);
        }
    }
}
