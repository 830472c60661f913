use fluyt_client::fake::FakeApi;
use k8s_openapi::api::{
    batch::v1::{JobSpec, JobStatus, SuccessPolicy, SuccessPolicyRule},
    core::v1::{Container, PodSpec, PodStatus, PodTemplateSpec},
};

use super::*;
use crate::common::controller_of;
use crate::common::test_support::{context, labelled, named};

fn job(completions: Option<i32>, parallelism: i32) -> Job {
    Job {
        metadata: named("ns", "work"),
        spec: Some(JobSpec {
            completions,
            parallelism: Some(parallelism),
            backoff_limit: Some(3),
            selector: Some(LabelSelector {
                match_labels: Some([("job".to_owned(), "work".to_owned())].into()),
                match_expressions: None,
            }),
            template: PodTemplateSpec {
                metadata: Some(labelled("", "", "job=work")),
                spec: Some(PodSpec {
                    containers: vec![Container::default()],
                    ..PodSpec::default()
                }),
            },
            ..JobSpec::default()
        }),
        status: None,
    }
}

fn indexed(completions: i32, parallelism: i32) -> Job {
    let mut job = job(Some(completions), parallelism);
    job.spec.as_mut().unwrap().completion_mode = Some("Indexed".to_owned());
    job
}

fn status(fake: &FakeApi) -> JobStatus {
    fake.get::<Job>("ns", "work")
        .and_then(|job| job.status)
        .unwrap_or_default()
}

fn ended(fake: &FakeApi, type_: &str, reason: &str) -> bool {
    let job = fake.get::<Job>("ns", "work").unwrap();
    finished(&job).is_some_and(|condition| {
        condition.type_ == type_ && condition.reason.as_deref() == Some(reason)
    })
}

fn active(fake: &FakeApi) -> Vec<Pod> {
    fake.list::<Pod>()
        .into_iter()
        .filter(pod_state::is_active)
        .collect()
}

fn end_pod(fake: &FakeApi, pod: &Pod, phase: &str) {
    let mut pod = pod.clone();
    pod.status = Some(PodStatus {
        phase: Some(phase.to_owned()),
        ..PodStatus::default()
    });
    fake.update(&pod);
}

#[tokio::test]
async fn runs_to_completion_and_counts_every_pod_once() {
    let (fake, context) = context();
    fake.insert(job(Some(5), 2));
    tokio::spawn(run(context));
    for done in 0..5 {
        fake.until("a pod runs", |fake| {
            let wanted = 2.min(5 - done);
            active(fake).len() == wanted && status(fake).active == i32::try_from(wanted).ok()
        })
        .await;
        let pod = active(&fake).remove(0);
        assert!(is_tracked(&pod));
        end_pod(&fake, &pod, "Succeeded");
    }
    fake.until("complete", |fake| {
        ended(fake, "Complete", "CompletionsReached")
    })
    .await;
    let status = status(&fake);
    assert_eq!(
        (status.succeeded, status.failed, status.active),
        (Some(5), None, None)
    );
    assert!(status.completion_time.is_some() && status.start_time.is_some());
    assert_eq!(
        fake.list::<Pod>().len(),
        5,
        "ended pods are kept for their logs"
    );
    assert!(fake.list::<Pod>().iter().all(|pod| !is_tracked(pod)));
}

#[tokio::test]
async fn gives_up_after_too_many_failures_and_stops_the_rest() {
    let (fake, context) = context();
    let mut limited = job(Some(3), 2);
    limited.spec.as_mut().unwrap().backoff_limit = Some(0);
    fake.insert(limited);
    tokio::spawn(run(context));
    fake.until("two run", |fake| active(fake).len() == 2).await;
    end_pod(&fake, &active(&fake)[0], "Failed");
    fake.until("the other one is told to go", |fake| {
        active(fake).is_empty()
    })
    .await;
    fake.until("failed", |fake| {
        ended(fake, "Failed", "BackoffLimitExceeded")
    })
    .await;
    assert!(status(&fake).failed >= Some(1));
}

#[tokio::test]
async fn indexed_jobs_run_every_index_once() {
    let (fake, context) = context();
    fake.insert(indexed(3, 2));
    tokio::spawn(run(context));
    let index = |pod: &Pod| indexes::of_pod(pod).unwrap();
    fake.until("0 and 1", |fake| {
        active(fake).iter().map(index).collect::<HashSet<_>>() == [0, 1].into()
    })
    .await;
    let first = active(&fake)
        .into_iter()
        .find(|pod| index(pod) == 0)
        .unwrap();
    let spec = first.spec.clone().unwrap();
    assert_eq!(spec.hostname.as_deref(), Some("work-0"));
    assert_eq!(
        spec.containers[0].env.as_ref().unwrap()[0].name,
        "JOB_COMPLETION_INDEX"
    );
    end_pod(&fake, &first, "Succeeded");
    fake.until("2", |fake| {
        active(fake).iter().map(index).collect::<HashSet<_>>() == [1, 2].into()
    })
    .await;
    for pod in active(&fake) {
        end_pod(&fake, &pod, "Succeeded");
    }
    fake.until("complete", |fake| {
        ended(fake, "Complete", "CompletionsReached")
    })
    .await;
    assert_eq!(status(&fake).completed_indexes.as_deref(), Some("0-2"));
}

#[tokio::test]
async fn suspending_stops_the_pods_and_resuming_starts_them() {
    let (fake, context) = context();
    fake.insert(job(Some(2), 2));
    tokio::spawn(run(context));
    fake.until("running", |fake| {
        active(fake).len() == 2 && status(fake).start_time.is_some()
    })
    .await;
    let suspend = |fake: &FakeApi, value: bool| {
        let mut job = fake.get::<Job>("ns", "work").unwrap();
        job.spec.as_mut().unwrap().suspend = Some(value);
        fake.update(&job);
    };
    let suspended = |fake: &FakeApi, value: &str| {
        let status = status(fake);
        let conditions = status.conditions.unwrap_or_default();
        conditions
            .iter()
            .any(|condition| condition.type_ == "Suspended" && condition.status == value)
    };
    suspend(&fake, true);
    fake.until("stopped", |fake| {
        active(fake).is_empty() && suspended(fake, "True")
    })
    .await;
    assert!(status(&fake).start_time.is_none());
    suspend(&fake, false);
    fake.until("running again", |fake| {
        active(fake).len() == 2 && suspended(fake, "False")
    })
    .await;
}

fn pod(index: usize, phase: &str) -> Arc<Pod> {
    let mut metadata = named("ns", &format!("p{index}"));
    metadata.uid = Some(format!("uid-{index}"));
    metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    metadata.annotations = Some([(INDEX.to_owned(), index.to_string())].into());
    Arc::new(Pod {
        metadata,
        spec: None,
        status: Some(PodStatus {
            phase: Some(phase.to_owned()),
            ..PodStatus::default()
        }),
    })
}

fn decide(job: &Job, pods: &[Arc<Pod>], at: Timestamp) -> Decision {
    decision::decide(job, pods, &tally::count(job, pods), at)
}

fn reason(decision: &Decision) -> Option<&str> {
    let conditions = decision.status.conditions.as_ref()?;
    let end = conditions
        .iter()
        .find(|c| c.type_ == "FailureTarget" || c.type_ == "SuccessCriteriaMet");
    end?.reason.as_deref()
}

#[test]
fn a_note_becomes_a_count_only_when_the_finalizer_is_gone() {
    let mut job = job(Some(2), 1);
    let ended = pod(0, "Succeeded");
    let first = tally::count(&job, std::slice::from_ref(&ended));
    assert_eq!(
        (
            first.succeeded,
            first.total_succeeded(),
            first.to_release.len()
        ),
        (0, 1, 1)
    );
    job.status = Some(decide(&job, std::slice::from_ref(&ended), Timestamp::now()).status);
    // Once more with the same pods, as after a crash: still one.
    let again = tally::count(&job, std::slice::from_ref(&ended));
    assert_eq!((again.succeeded, again.total_succeeded()), (0, 1));
    let mut released = (*ended).clone();
    released.metadata.finalizers = None;
    let settled = tally::count(&job, &[Arc::new(released)]);
    assert_eq!((settled.succeeded, settled.total_succeeded()), (1, 1));
    assert!(settled.uncounted.succeeded.is_none());
}

#[test]
fn how_jobs_end() {
    let now = Timestamp::now();
    let mut deadline = job(Some(1), 1);
    deadline.spec.as_mut().unwrap().active_deadline_seconds = Some(10);
    let started = now.checked_sub(jiff::SignedDuration::from_secs(4)).unwrap();
    deadline.status = Some(JobStatus {
        start_time: Some(started.into()),
        ..JobStatus::default()
    });
    let running = [pod(0, "Running")];
    let early = decide(&deadline, &running, now);
    assert_eq!(
        (reason(&early), early.look_again.map(|wait| wait.as_secs())),
        (None, Some(6))
    );
    let late = decide(
        &deadline,
        &running,
        now.checked_add(jiff::SignedDuration::from_secs(7)).unwrap(),
    );
    assert_eq!(
        (reason(&late), late.delete.len()),
        (Some("DeadlineExceeded"), 1)
    );

    let queue = job(None, 2);
    let one_done = decide(&queue, &[pod(0, "Succeeded"), pod(1, "Running")], now);
    assert_eq!(
        (
            reason(&one_done),
            one_done.create.len(),
            one_done.delete.len()
        ),
        (None, 0, 0)
    );
    let all_done = decide(&queue, &[pod(0, "Succeeded"), pod(1, "Succeeded")], now);
    assert_eq!(reason(&all_done), Some("CompletionsReached"));

    let mut policy = indexed(5, 5);
    policy.spec.as_mut().unwrap().success_policy = Some(SuccessPolicy {
        rules: vec![SuccessPolicyRule {
            succeeded_count: Some(1),
            succeeded_indexes: Some("1-3".to_owned()),
        }],
    });
    let not_yet = decide(&policy, &[pod(0, "Succeeded"), pod(1, "Running")], now);
    assert_eq!(reason(&not_yet), None);
    let met = decide(&policy, &[pod(1, "Succeeded"), pod(2, "Running")], now);
    assert_eq!((reason(&met), met.delete.len()), (Some("SuccessPolicy"), 1));

    let mut per_index = indexed(2, 2);
    per_index.spec.as_mut().unwrap().backoff_limit = Some(i32::MAX);
    per_index.spec.as_mut().unwrap().backoff_limit_per_index = Some(0);
    let one_failed = decide(&per_index, &[pod(0, "Failed"), pod(1, "Running")], now);
    assert_eq!(
        (
            reason(&one_failed),
            one_failed.status.failed_indexes.as_deref()
        ),
        (None, Some("0"))
    );
    let settled = decide(&per_index, &[pod(0, "Failed"), pod(1, "Succeeded")], now);
    assert_eq!(reason(&settled), Some("FailedIndexes"));
}

#[test]
fn the_number_of_pods_follows_parallelism() {
    let now = Timestamp::now();
    let created = |job: &Job, pods: &[Arc<Pod>]| {
        let decision = decide(job, pods, now);
        (decision.create.len(), decision.delete.len())
    };
    let two = [pod(0, "Running"), pod(1, "Running")];
    assert_eq!(created(&job(Some(5), 3), &two), (1, 0));
    assert_eq!(created(&job(Some(5), 1), &two), (0, 1));
    assert_eq!(created(&job(Some(2), 5), &two), (0, 0));
    assert_eq!(
        created(&job(Some(3), 5), &[pod(0, "Succeeded"), pod(1, "Running")]),
        (1, 0)
    );
    assert_eq!(created(&job(Some(5), 0), &[]), (0, 0));
}

#[tokio::test]
async fn a_pod_carries_the_finalizer_while_it_is_managed() {
    let (fake, context) = context();
    fake.insert(job(Some(1), 1));
    fake.insert(Pod {
        metadata: labelled("ns", "orphan", "job=work"),
        ..Pod::default()
    });
    tokio::spawn(run(context));
    let orphan = |fake: &FakeApi| fake.get::<Pod>("ns", "orphan").unwrap();
    let managed = |fake: &FakeApi| {
        let pod = orphan(fake);
        (controller_of(&pod.metadata).is_some(), is_tracked(&pod))
    };
    fake.until("adopted", |fake| managed(fake) == (true, true))
        .await;
    let mut pod = orphan(&fake);
    pod.metadata.labels = None;
    fake.update(&pod);
    fake.until("released", |fake| managed(fake) == (false, false))
        .await;
}
