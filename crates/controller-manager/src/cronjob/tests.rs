use fluyt_client::fake::FakeApi;
use k8s_openapi::api::batch::v1::{CronJobSpec, JobCondition, JobSpec, JobStatus, JobTemplateSpec};

use super::*;
use crate::common::test_support::{context, named};

/// Created (or last run) some minutes ago, and due every minute.
fn cron_job(policy: &str, minutes_ago: i64) -> CronJob {
    let mut metadata = named("ns", "tick");
    let since = Timestamp::now()
        .checked_sub(SignedDuration::from_mins(minutes_ago))
        .unwrap();
    metadata.creation_timestamp = Some(Time(since));
    CronJob {
        metadata,
        spec: CronJobSpec {
            schedule: "* * * * *".to_owned(),
            concurrency_policy: Some(policy.to_owned()),
            successful_jobs_history_limit: Some(1),
            job_template: JobTemplateSpec {
                metadata: None,
                spec: Some(JobSpec::default()),
            },
            ..CronJobSpec::default()
        },
        status: None,
    }
}

fn jobs(fake: &FakeApi) -> Vec<Job> {
    fake.list::<Job>()
}

fn child(cron_job: &CronJob, child_name: &str, end: Option<&str>, started: i64) -> Job {
    let mut metadata = named("ns", child_name);
    metadata.owner_references = Some(vec![controller_ref(cron_job)]);
    let condition = end.map(|end| JobCondition {
        type_: end.to_owned(),
        status: "True".to_owned(),
        ..JobCondition::default()
    });
    Job {
        metadata,
        spec: Some(JobSpec::default()),
        status: Some(JobStatus {
            conditions: condition.map(|condition| vec![condition]),
            start_time: Timestamp::from_second(started).ok().map(Time),
            ..JobStatus::default()
        }),
    }
}

#[tokio::test]
async fn the_last_missed_time_is_made_up_for_once() {
    let (fake, context) = context();
    fake.insert(cron_job("Allow", 10));
    tokio::spawn(run(context));
    fake.until("one job", |fake| jobs(fake).len() == 1).await;
    let status = |fake: &FakeApi| {
        fake.get::<CronJob>("ns", "tick")
            .and_then(|cron_job| cron_job.status)
    };
    fake.until("noted", |fake| {
        status(fake).is_some_and(|status| {
            status.last_schedule_time.is_some()
                && status.active.is_some_and(|active| active.len() == 1)
        })
    })
    .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let job = jobs(&fake).remove(0);
    let at = status(&fake).unwrap().last_schedule_time.unwrap().0;
    assert_eq!(name(&job.metadata), format!("tick-{}", at.as_second() / 60));
    assert!(job.metadata.annotations.unwrap().contains_key(SCHEDULED_AT));

    let mut done = fake
        .get::<Job>("ns", &format!("tick-{}", at.as_second() / 60))
        .unwrap();
    done.status = child(&cron_job("Allow", 0), "x", Some("Complete"), 0).status;
    fake.update(&done);
    fake.until("no longer active", |fake| {
        status(fake).is_some_and(|status| status.active.is_none())
    })
    .await;
}

#[tokio::test]
async fn concurrency_policies() {
    for (policy, expected) in [("Allow", 2), ("Forbid", 1), ("Replace", 1)] {
        let (fake, context) = context();
        let owner = fake.insert(cron_job(policy, 2));
        fake.insert(child(&owner, "running", None, 1));
        tokio::spawn(run(context));
        let handled = |fake: &FakeApi| match policy {
            "Forbid" => fake
                .requests()
                .iter()
                .any(|request| request.contains("/events")),
            _ => jobs(fake)
                .iter()
                .any(|job| name(&job.metadata) != "running"),
        };
        fake.until(policy, handled).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(jobs(&fake).len(), expected, "{policy}");
        let still_runs = fake.get::<Job>("ns", "running").is_some();
        assert_eq!(still_runs, policy != "Replace", "{policy}");
    }
}

#[tokio::test]
async fn history_is_limited() {
    let (fake, context) = context();
    let mut idle = cron_job("Allow", 0);
    idle.spec.suspend = Some(true);
    let owner = fake.insert(idle);
    for (name, end, started) in [
        ("s1", "Complete", 1),
        ("s2", "Complete", 2),
        ("f1", "Failed", 1),
        ("f2", "Failed", 2),
    ] {
        fake.insert(child(&owner, name, Some(end), started));
    }
    tokio::spawn(run(context));
    let names = |fake: &FakeApi| {
        jobs(fake)
            .iter()
            .map(|job| name(&job.metadata).to_owned())
            .collect::<Vec<_>>()
    };
    fake.until("the newest are kept", |fake| names(fake) == ["f2", "s2"])
        .await;
}

#[test]
fn what_is_due() {
    let schedule = Schedule::parse("0 * * * *").unwrap();
    let time = |text: &str| text.parse::<Timestamp>().unwrap();
    let due = |since: &str, at: &str| due(&schedule, &TimeZone::UTC, time(since), time(at));
    let none = due("2026-11-22T10:10:00Z", "2026-11-22T10:20:00Z");
    assert_eq!(
        (none.now, none.next),
        (None, Some(time("2026-11-22T11:00:00Z")))
    );
    let missed = due("2026-11-22T10:10:00Z", "2026-11-22T13:20:00Z");
    assert_eq!(
        (missed.now, missed.next),
        (
            Some(time("2026-11-22T13:00:00Z")),
            Some(time("2026-11-22T14:00:00Z"))
        )
    );
    assert!(!missed.many_missed);
    let long_ago = due("2025-11-22T10:10:00Z", "2026-11-22T13:20:00Z");
    assert_eq!(
        (long_ago.now, long_ago.many_missed),
        (Some(time("2026-11-22T13:00:00Z")), true)
    );
}
