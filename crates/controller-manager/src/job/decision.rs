//! What to do for a Job: pure, from the Job, its pods and the tally of the ended ones.

use std::{collections::BTreeSet, sync::Arc};

use fluyt_client::{EventType, helpers::pods as pod_state};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    batch::v1::{Job, JobCondition, JobSpec, JobStatus},
    core::v1::Pod,
};

use super::{
    JobEvent, backoff, condition, indexes,
    tally::{Tally, is_indexed},
};
use crate::common::now;

/// The next writes.
#[derive(Debug, Default)]
pub struct Decision {
    pub status: JobStatus,
    /// Pods to create, each with its index if the job is indexed.
    pub create: Vec<Option<i32>>,
    pub delete: Vec<Arc<Pod>>,
    pub events: Vec<JobEvent>,
    pub look_again: Option<SignedDuration>,
}

/// How a job ends.
struct End {
    /// `SuccessCriteriaMet` or `FailureTarget` until the last pod is gone, then `Complete` or `Failed`.
    success: bool,
    reason: String,
    message: String,
}

fn has(status: &JobStatus, type_: &str) -> bool {
    get(status, type_).is_some_and(|condition| condition.status == "True")
}

fn get<'a>(status: &'a JobStatus, type_: &str) -> Option<&'a JobCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == type_)
}

fn set(status: &mut JobStatus, new: JobCondition) {
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != new.type_);
    conditions.push(new);
}

/// Decide about the job at a moment.
pub fn decide(job: &Job, pods: &[Arc<Pod>], tally: &Tally, at: Timestamp) -> Decision {
    let spec = job.spec.clone().unwrap_or_default();
    let active: Vec<&Arc<Pod>> = pods
        .iter()
        .filter(|pod| pod_state::is_active(pod))
        .collect();
    let terminating = pods
        .iter()
        .filter(|pod| pod_state::is_terminating(pod) && !pod_state::is_terminated(pod))
        .count();
    let mut decision = Decision {
        status: base_status(job, tally, &active, terminating),
        ..Decision::default()
    };
    if suspended(&spec) {
        suspend(&mut decision, &active, &spec);
        return decision;
    }
    resume(&mut decision);
    let decided = ending(&decision.status);
    let end = decided.or_else(|| judge(&spec, pods, tally, &decision.status, active.len(), at));
    if let Some(end) = end {
        finish(&mut decision, end, tally, &active, terminating);
        return decision;
    }
    let replaced_late = spec.pod_replacement_policy.as_deref() == Some("Failed");
    let occupied = active.len() + if replaced_late { terminating } else { 0 };
    adjust(
        &mut decision,
        job,
        &spec,
        pods,
        tally,
        &active,
        occupied,
        at,
    );
    let deadline = deadline_left(&spec, &decision.status, at);
    decision.look_again = decision.look_again.into_iter().chain(deadline).min();
    decision
}

fn base_status(job: &Job, tally: &Tally, active: &[&Arc<Pod>], terminating: usize) -> JobStatus {
    // Absent rather than 0, as the API server's encoding omits zeros.
    let non_zero = |count: i32| (count != 0).then_some(count);
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let indexed = is_indexed(job);
    let per_index = job
        .spec
        .as_ref()
        .is_some_and(|spec| spec.backoff_limit_per_index.is_some());
    let text = |set: &BTreeSet<i32>| Some(indexes::format(set)).filter(|text| !text.is_empty());
    let ready = active.iter().filter(|pod| pod_state::is_ready(pod)).count();
    JobStatus {
        active: non_zero(number(active.len())),
        ready: Some(number(ready)),
        terminating: Some(number(terminating)),
        succeeded: non_zero(tally.succeeded),
        failed: non_zero(tally.failed),
        uncounted_terminated_pods: Some(tally.uncounted.clone()),
        completed_indexes: if indexed {
            text(&tally.completed_indexes)
        } else {
            None
        },
        failed_indexes: if indexed && per_index {
            Some(indexes::format(&tally.failed_indexes))
        } else {
            None
        },
        ..job.status.clone().unwrap_or_default()
    }
}

fn suspended(spec: &JobSpec) -> bool {
    spec.suspend.unwrap_or(false)
}

fn suspend(decision: &mut Decision, active: &[&Arc<Pod>], _spec: &JobSpec) {
    decision.delete = active.iter().map(|pod| Arc::clone(pod)).collect();
    if !has(&decision.status, "Suspended") {
        set(
            &mut decision.status,
            condition("Suspended", "True", "JobSuspended", "Job suspended"),
        );
        decision
            .events
            .push((EventType::Normal, "Suspended", "Job suspended".to_owned()));
    }
    // The deadline's clock starts anew when it is resumed.
    decision.status.start_time = None;
    decision.status.active = None;
}

fn resume(decision: &mut Decision) {
    let status = &mut decision.status;
    if has(status, "Suspended") {
        set(
            status,
            condition("Suspended", "False", "JobResumed", "Job resumed"),
        );
        decision
            .events
            .push((EventType::Normal, "Resumed", "Job resumed".to_owned()));
    }
    status.start_time.get_or_insert_with(now);
}

/// The end that was decided in an earlier round.
fn ending(status: &JobStatus) -> Option<End> {
    let (type_, success) = if has(status, "FailureTarget") {
        ("FailureTarget", false)
    } else if has(status, "SuccessCriteriaMet") {
        ("SuccessCriteriaMet", true)
    } else {
        return None;
    };
    let decided = get(status, type_)?;
    Some(End {
        success,
        reason: decided.reason.clone().unwrap_or_default(),
        message: decided.message.clone().unwrap_or_default(),
    })
}

fn failure(reason: &str, message: impl Into<String>) -> Option<End> {
    Some(End {
        success: false,
        reason: reason.to_owned(),
        message: message.into(),
    })
}

fn success(reason: &str, message: &str) -> Option<End> {
    Some(End {
        success: true,
        reason: reason.to_owned(),
        message: message.to_owned(),
    })
}

fn judge(
    spec: &JobSpec,
    pods: &[Arc<Pod>],
    tally: &Tally,
    status: &JobStatus,
    active: usize,
    at: Timestamp,
) -> Option<End> {
    if let Some(message) = &tally.fail_job {
        return failure("PodFailurePolicy", message.clone());
    }
    let limit = spec.backoff_limit.unwrap_or(6);
    if tally.total_failed() > limit || restarts_exceed(spec, pods, limit) {
        return failure(
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit",
        );
    }
    if deadline_left(spec, status, at).is_some_and(|left| !left.is_positive()) {
        return failure(
            "DeadlineExceeded",
            "Job was active longer than specified deadline",
        );
    }
    let failed_indexes = i32::try_from(tally.failed_indexes.len()).unwrap_or(i32::MAX);
    if spec
        .max_failed_indexes
        .is_some_and(|max| failed_indexes > max)
    {
        return failure(
            "MaxFailedIndexesExceeded",
            "Job has exceeded the specified maximal number of failed indexes",
        );
    }
    if succeeds_by_policy(spec, tally) {
        return success("SuccessPolicy", "Matched rules at success policy");
    }
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let completions = spec.completions;
    if indexed
        && completions.is_some_and(|all| tally.succeeded + failed_indexes >= all)
        && active == 0
    {
        if failed_indexes > 0 {
            return failure("FailedIndexes", "Job has failed indexes");
        }
        return success(
            "CompletionsReached",
            "Reached expected number of succeeded pods",
        );
    }
    let reached = match completions {
        // A work queue: when one pod has succeeded the others finish what they have begun.
        None => tally.total_succeeded() > 0 && active == 0,
        Some(all) => !indexed && tally.total_succeeded() >= all,
    };
    if reached {
        success(
            "CompletionsReached",
            "Reached expected number of succeeded pods",
        )
    } else {
        None
    }
}

/// Containers that are restarted in place fail without their pod failing.
fn restarts_exceed(spec: &JobSpec, pods: &[Arc<Pod>], limit: i32) -> bool {
    let policy = spec
        .template
        .spec
        .as_ref()
        .and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let restarts = |pod: &Arc<Pod>| -> i32 {
        let status = pod.status.clone().unwrap_or_default();
        let containers = status
            .init_container_statuses
            .into_iter()
            .chain(status.container_statuses)
            .flatten();
        containers.map(|container| container.restart_count).sum()
    };
    let running = pods
        .iter()
        .filter(|pod| matches!(pod_state::phase(pod), "Running" | "Pending"));
    let total: i32 = running.map(restarts).sum();
    if limit == 0 {
        total > 0
    } else {
        total >= limit
    }
}

fn deadline_left(spec: &JobSpec, status: &JobStatus, at: Timestamp) -> Option<SignedDuration> {
    let seconds = spec.active_deadline_seconds?;
    let start = status.start_time.as_ref()?.0;
    Some(SignedDuration::from_secs(seconds) - at.duration_since(start))
}

fn succeeds_by_policy(spec: &JobSpec, tally: &Tally) -> bool {
    let completions = spec.completions.unwrap_or(0);
    spec.success_policy
        .iter()
        .flat_map(|policy| &policy.rules)
        .any(|rule| {
            let wanted = rule
                .succeeded_indexes
                .as_deref()
                .map(|text| indexes::parse(text, completions));
            let matching = match &wanted {
                Some(wanted) => tally.completed_indexes.intersection(wanted).count(),
                None => tally.completed_indexes.len(),
            };
            match (rule.succeeded_count, &wanted) {
                (Some(count), _) => usize::try_from(count).is_ok_and(|count| matching >= count),
                (None, Some(wanted)) => !wanted.is_empty() && matching == wanted.len(),
                (None, None) => false,
            }
        })
}

/// Stop what still runs; when nothing does and everything is counted, say that the job has ended.
fn finish(
    decision: &mut Decision,
    end: End,
    tally: &Tally,
    active: &[&Arc<Pod>],
    terminating: usize,
) {
    decision.delete = active.iter().map(|pod| Arc::clone(pod)).collect();
    let status = &mut decision.status;
    let (interim, last) = if end.success {
        ("SuccessCriteriaMet", "Complete")
    } else {
        ("FailureTarget", "Failed")
    };
    if !has(status, interim) {
        set(
            status,
            condition(interim, "True", &end.reason, end.message.clone()),
        );
    }
    let uncounted = &tally.uncounted;
    let counted =
        uncounted.succeeded.is_none() && uncounted.failed.is_none() && tally.to_release.is_empty();
    status.active = None;
    if !active.is_empty() || terminating > 0 || !counted {
        return;
    }
    status.ready = Some(0);
    set(
        status,
        condition(last, "True", &end.reason, end.message.clone()),
    );
    if end.success {
        status.completion_time = Some(now());
        decision
            .events
            .push((EventType::Normal, "Completed", "Job completed".to_owned()));
    } else {
        let reason = match end.reason.as_str() {
            "BackoffLimitExceeded" => "BackoffLimitExceeded",
            "DeadlineExceeded" => "DeadlineExceeded",
            "PodFailurePolicy" => "PodFailurePolicy",
            "MaxFailedIndexesExceeded" => "MaxFailedIndexesExceeded",
            _ => "FailedIndexes",
        };
        decision
            .events
            .push((EventType::Warning, reason, end.message));
    }
}

/// Bring the number of running pods to what it should be.
#[allow(clippy::too_many_arguments)]
fn adjust(
    decision: &mut Decision,
    job: &Job,
    spec: &JobSpec,
    pods: &[Arc<Pod>],
    tally: &Tally,
    active: &[&Arc<Pod>],
    occupied: usize,
    at: Timestamp,
) {
    let number = |count: i32| usize::try_from(count).unwrap_or(0);
    let parallelism = number(spec.parallelism.unwrap_or(1));
    let wanted = match spec.completions {
        None if tally.total_succeeded() > 0 => active.len().min(parallelism),
        None => parallelism,
        Some(all) => {
            let given_up = i32::try_from(tally.failed_indexes.len()).unwrap_or(i32::MAX);
            number(all - tally.total_succeeded() - given_up).min(parallelism)
        }
    };
    let mut delete: Vec<Arc<Pod>> = Vec::new();
    if is_indexed(job) {
        delete.extend(superfluous(spec, tally, active));
    }
    let left = active.len() - delete.len();
    if left > wanted {
        let mut candidates: Vec<&&Arc<Pod>> = active
            .iter()
            .filter(|pod| !delete.iter().any(|gone| Arc::ptr_eq(gone, pod)))
            .collect();
        // What has got least far goes first.
        candidates.sort_by_key(|pod| {
            (
                pod_state::node_name(pod).is_some(),
                pod_state::is_ready(pod),
                std::cmp::Reverse(pod.metadata.creation_timestamp.clone()),
            )
        });
        let excess: Vec<Arc<Pod>> = candidates
            .into_iter()
            .take(left - wanted)
            .map(|pod| Arc::clone(pod))
            .collect();
        delete.extend(excess);
    }
    decision.status.active = i32::try_from(active.len() - delete.len())
        .ok()
        .filter(|count| *count > 0);
    let room = wanted.saturating_sub(occupied - delete.len().min(occupied));
    if delete.is_empty() && room > 0 {
        let wait = backoff::remaining(pods, at);
        if wait.is_positive() {
            decision.look_again = Some(wait);
        } else if is_indexed(job) {
            let indexes = free_indexes(spec, tally, pods).into_iter().take(room);
            decision.create = indexes.map(Some).collect();
        } else {
            decision.create = vec![None; room];
        }
    }
    decision.delete = delete;
}

/// Pods of indexes that are done, out of range, or have another pod already.
fn superfluous(spec: &JobSpec, tally: &Tally, active: &[&Arc<Pod>]) -> Vec<Arc<Pod>> {
    let completions = spec.completions.unwrap_or(0);
    let mut seen = BTreeSet::new();
    let is_needed = |pod: &&&Arc<Pod>| {
        indexes::of_pod(pod).is_some_and(|index| {
            index < completions
                && !tally.completed_indexes.contains(&index)
                && !tally.failed_indexes.contains(&index)
                && seen.insert(index)
        })
    };
    let needed: Vec<&&Arc<Pod>> = active.iter().filter(is_needed).collect();
    active
        .iter()
        .filter(|pod| !needed.iter().any(|needed| Arc::ptr_eq(needed, pod)))
        .map(|pod| Arc::clone(pod))
        .collect()
}

/// The lowest indexes that are neither done nor running.
fn free_indexes(spec: &JobSpec, tally: &Tally, pods: &[Arc<Pod>]) -> Vec<i32> {
    let replaced_late = spec.pod_replacement_policy.as_deref() == Some("Failed");
    let occupies = |pod: &&Arc<Pod>| {
        pod_state::is_active(pod)
            || (replaced_late && pod_state::is_terminating(pod) && !pod_state::is_terminated(pod))
    };
    let running: BTreeSet<i32> = pods
        .iter()
        .filter(occupies)
        .filter_map(|pod| indexes::of_pod(pod))
        .collect();
    (0..spec.completions.unwrap_or(0))
        .filter(|index| {
            !running.contains(index)
                && !tally.completed_indexes.contains(index)
                && !tally.failed_indexes.contains(index)
        })
        .collect()
}
