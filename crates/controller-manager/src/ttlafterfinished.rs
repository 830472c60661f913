//! ttl-after-finished-controller: deletes ended Jobs `ttlSecondsAfterFinished` after their end.

use fluyt_client::{Action, Informer, ObjectKey, WorkQueue, controller, is_conflict, is_not_found};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, Client,
    api::{DeleteParams, Preconditions},
};

use crate::{
    Context,
    common::{enqueue, to_wait},
    job::finished,
};

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let jobs = context.informers.get::<Job>();
    jobs.synced().await;
    let queue = WorkQueue::new();
    enqueue(&jobs, &queue);
    let workers = context.config.concurrent_ttl_after_finished_syncs;
    let reconcile = |key| reconcile(key, &jobs, &context.client);
    let shutdown = context.shutdown.clone();
    controller::run(
        "ttl-after-finished-controller",
        queue,
        workers,
        reconcile,
        shutdown,
    )
    .await;
}

fn expires(job: &Job) -> Option<Timestamp> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let end = finished(job)?.last_transition_time.as_ref()?.0;
    end.checked_add(SignedDuration::from_secs(i64::from(seconds)))
        .ok()
}

async fn reconcile(
    key: ObjectKey,
    jobs: &Informer<Job>,
    client: &Client,
) -> anyhow::Result<Action> {
    let Some(job) = jobs
        .get_key(&key)
        .filter(|job| job.metadata.deletion_timestamp.is_none())
    else {
        return Ok(Action::Await);
    };
    let Some(expires) = expires(&job) else {
        return Ok(Action::Await);
    };
    let left = expires.duration_since(Timestamp::now());
    if left.is_positive() {
        return Ok(Action::Requeue(to_wait(left)));
    }
    let api = Api::<Job>::namespaced(client.clone(), &key.namespace);
    // The time to live may just have been raised.
    let current = Preconditions {
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
    };
    match api
        .delete(
            &key.name,
            &DeleteParams::foreground().preconditions(current),
        )
        .await
    {
        Err(error) if is_not_found(&error) || is_conflict(&error) => {}
        result => drop(result?),
    }
    Ok(Action::Await)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::{JobCondition, JobSpec, JobStatus};

    use super::*;
    use crate::common::test_support::{context, named};

    fn job(name: &str, ttl: Option<i32>, ended_ago: Option<i64>) -> Job {
        let condition = ended_ago.map(|seconds| JobCondition {
            type_: "Complete".to_owned(),
            status: "True".to_owned(),
            last_transition_time: Timestamp::now()
                .checked_sub(SignedDuration::from_secs(seconds))
                .ok()
                .map(Into::into),
            ..JobCondition::default()
        });
        Job {
            metadata: named("ns", name),
            spec: Some(JobSpec {
                ttl_seconds_after_finished: ttl,
                ..JobSpec::default()
            }),
            status: Some(JobStatus {
                conditions: condition.map(|condition| vec![condition]),
                ..JobStatus::default()
            }),
        }
    }

    #[tokio::test]
    async fn ended_jobs_go_when_their_time_is_over() {
        let (fake, context) = context();
        fake.insert(job("over", Some(10), Some(20)));
        fake.insert(job("not-yet", Some(100), Some(20)));
        fake.insert(job("for-ever", None, Some(20)));
        fake.insert(job("running", Some(0), None));
        tokio::spawn(run(context));
        fake.until("over is told to go", |fake| {
            fake.get::<Job>("ns", "over")
                .is_some_and(|job| job.metadata.deletion_timestamp.is_some())
        })
        .await;
        for kept in ["not-yet", "for-ever", "running"] {
            assert!(
                fake.get::<Job>("ns", kept)
                    .unwrap()
                    .metadata
                    .deletion_timestamp
                    .is_none(),
                "{kept}"
            );
        }
    }
}
