//! cronjob-controller: creates Jobs at the times of a cron schedule.

mod schedule;

use std::{sync::Arc, time::Duration};

use fluyt_client::{
    Action, EventType, Informer, ObjectKey, Recorder, WorkQueue, controller, is_already_exists,
    is_namespace_terminating, is_not_found,
};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Resource,
    api::{DeleteParams, PostParams},
};

use self::schedule::Schedule;
use crate::{
    Context,
    common::{
        controller_key, controller_ref, enqueue, enqueue_mapped, freshness::Freshness,
        is_controlled_by, name, pod_control::message_of, to_wait, uid,
    },
    job::finished,
};

const COMPONENT: &str = "cronjob-controller";
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Waking a little late is better than a little early.
const SLACK: Duration = Duration::from_millis(100);

struct Controller {
    context: Context,
    cron_jobs: Informer<CronJob>,
    jobs: Informer<Job>,
    recorder: Recorder,
    job_freshness: Freshness,
    freshness: Freshness,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Controller {
        cron_jobs: context.informers.get(),
        jobs: context.informers.get(),
        recorder: context.recorder(COMPONENT),
        job_freshness: Freshness::default(),
        freshness: Freshness::default(),
        context,
    };
    controller.cron_jobs.synced().await;
    controller.jobs.synced().await;
    let queue = WorkQueue::new();
    enqueue(&controller.cron_jobs, &queue);
    enqueue_mapped(&controller.jobs, &queue, |job| {
        controller_key(&job.metadata, "batch", "CronJob")
            .into_iter()
            .collect()
    });
    let workers = controller.context.config.concurrent_cron_job_syncs;
    let shutdown = controller.context.shutdown.clone();
    controller::run(
        COMPONENT,
        queue,
        workers,
        |key| controller.reconcile(key),
        shutdown,
    )
    .await;
}

/// When a CronJob is due.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    /// The last time that has come and was not served.
    now: Option<Timestamp>,
    next: Option<Timestamp>,
    /// Many times were missed, because we were not running.
    many_missed: bool,
}

fn due(schedule: &Schedule, zone: &TimeZone, since: Timestamp, at: Timestamp) -> Due {
    let mut due = Due {
        now: None,
        next: schedule.next(since, zone),
        many_missed: false,
    };
    let mut count = 0;
    while let Some(time) = due.next.filter(|time| *time <= at) {
        due.now = Some(time);
        due.next = schedule.next(time, zone);
        count += 1;
        if count > 100 {
            // Jump ahead: only the last one matters, and it is within the last year.
            due.many_missed = true;
            let recent = at
                .checked_sub(SignedDuration::from_hours(1))
                .unwrap_or(time);
            if time < recent && schedule.next(recent, zone).is_some_and(|next| next <= at) {
                due.next = schedule.next(recent, zone);
            }
        }
    }
    due
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> anyhow::Result<Action> {
        let fresh = self.freshness.is_current(&key, &self.cron_jobs)
            && self.job_freshness.is_current(&key, &self.jobs);
        let Some(cron_job) = self.cron_jobs.get_key(&key).filter(|_| fresh) else {
            return Ok(Action::Await);
        };
        let mut status = cron_job.status.clone().unwrap_or_default();
        let children: Vec<Arc<Job>> = self
            .jobs
            .list_namespace(&key.namespace)
            .into_iter()
            .filter(|job| is_controlled_by(&job.metadata, uid(&cron_job.metadata)))
            .collect();
        self.update_active(&cron_job, &children, &mut status);
        self.clean_up(&cron_job, &children).await?;
        let action = self.schedule(&key, &cron_job, &children, &mut status).await;
        self.write_status(&key, &cron_job, status).await?;
        action
    }

    /// Move ended jobs out of the list of active ones.
    fn update_active(&self, cron_job: &CronJob, children: &[Arc<Job>], status: &mut CronJobStatus) {
        let mut active = status.active.take().unwrap_or_default();
        active.retain(|reference| {
            let job = children
                .iter()
                .find(|job| job.metadata.uid == reference.uid);
            let Some(job) = job else {
                let message = format!(
                    "Active job went missing: {}",
                    reference.name.as_deref().unwrap_or_default()
                );
                self.tell(cron_job, EventType::Normal, "MissingJob", message);
                return false;
            };
            let Some(end) = finished(job) else {
                return true;
            };
            let message = format!(
                "Saw completed job: {}, condition: {}",
                name(&job.metadata),
                end.type_
            );
            self.tell(cron_job, EventType::Normal, "SawCompletedJob", message);
            false
        });
        for job in children {
            let listed = active
                .iter()
                .any(|reference| reference.uid == job.metadata.uid);
            if finished(job).is_none() && !listed && job.metadata.deletion_timestamp.is_none() {
                active.push(reference(job));
            }
            let completed = job
                .status
                .as_ref()
                .and_then(|status| status.completion_time.clone());
            if completed > status.last_successful_time {
                status.last_successful_time = completed;
            }
        }
        active.sort_by(|a, b| a.name.cmp(&b.name));
        status.active = (!active.is_empty()).then_some(active);
    }

    /// Delete ended jobs beyond the history limits, the oldest first.
    async fn clean_up(&self, cron_job: &CronJob, children: &[Arc<Job>]) -> anyhow::Result<()> {
        let spec = &cron_job.spec;
        let limits = [
            ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
            ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
        ];
        for (end, limit) in limits {
            let mut ended: Vec<&Arc<Job>> = children
                .iter()
                .filter(|job| finished(job).is_some_and(|condition| condition.type_ == end))
                .collect();
            ended.sort_by_key(|job| {
                job.status
                    .as_ref()
                    .and_then(|status| status.start_time.clone())
            });
            let excess = ended
                .len()
                .saturating_sub(usize::try_from(limit).unwrap_or(0));
            for job in ended.into_iter().take(excess) {
                self.delete_job(cron_job, job).await?;
            }
        }
        Ok(())
    }

    async fn delete_job(&self, cron_job: &CronJob, job: &Job) -> anyhow::Result<()> {
        let api = self.job_api(job);
        match api
            .delete(name(&job.metadata), &DeleteParams::background())
            .await
        {
            Err(error) if is_not_found(&error) => {}
            result => {
                result?;
                let message = format!("Deleted job {}", name(&job.metadata));
                self.tell(cron_job, EventType::Normal, "SuccessfulDelete", message);
            }
        }
        Ok(())
    }

    async fn schedule(
        &self,
        key: &ObjectKey,
        cron_job: &CronJob,
        children: &[Arc<Job>],
        status: &mut CronJobStatus,
    ) -> anyhow::Result<Action> {
        let spec = &cron_job.spec;
        if cron_job.metadata.deletion_timestamp.is_some() || spec.suspend == Some(true) {
            return Ok(Action::Await);
        }
        let zone = match spec.time_zone.as_deref() {
            None => TimeZone::UTC,
            Some(zone_name) => match TimeZone::get(zone_name) {
                Ok(zone) => zone,
                Err(error) => {
                    let message = format!("invalid timeZone: {zone_name:?}: {error}");
                    self.tell(cron_job, EventType::Warning, "UnknownTimeZone", message);
                    return Ok(Action::Await);
                }
            },
        };
        let schedule = match Schedule::parse(&spec.schedule) {
            Ok(schedule) => schedule,
            Err(error) => {
                let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
                self.tell(cron_job, EventType::Warning, "UnparseableSchedule", message);
                return Ok(Action::Await);
            }
        };
        let at = Timestamp::now();
        let since = status
            .last_schedule_time
            .as_ref()
            .or(cron_job.metadata.creation_timestamp.as_ref());
        let mut since = since.map_or(at, |time| time.0);
        let deadline = spec
            .starting_deadline_seconds
            .map(SignedDuration::from_secs);
        if let Some(earliest) = deadline.and_then(|deadline| at.checked_sub(deadline).ok()) {
            since = since.max(earliest);
        }
        let due = due(&schedule, &zone, since, at);
        if due.many_missed {
            let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.tell(
                cron_job,
                EventType::Warning,
                "TooManyMissedTimes",
                message.to_owned(),
            );
        }
        let sleep = match due.next {
            Some(next) => Action::Requeue(to_wait(next.duration_since(at)) + SLACK),
            None => Action::Await,
        };
        let Some(time) = due.now else {
            return Ok(sleep);
        };
        if deadline.is_some_and(|deadline| at.duration_since(time) > deadline) {
            let message = format!("Missed scheduled time to start a job: {time}");
            self.tell(cron_job, EventType::Warning, "MissSchedule", message);
            return Ok(sleep);
        }
        let active: Vec<&Arc<Job>> = children
            .iter()
            .filter(|job| finished(job).is_none())
            .collect();
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.tell(
                    cron_job,
                    EventType::Normal,
                    "JobAlreadyActive",
                    message.to_owned(),
                );
                return Ok(sleep);
            }
            Some("Replace") => {
                for job in active {
                    self.delete_job(cron_job, job).await?;
                }
                status.active = None;
            }
            _ => {}
        }
        self.create_job(key, cron_job, time, status).await?;
        Ok(sleep)
    }

    async fn create_job(
        &self,
        key: &ObjectKey,
        cron_job: &CronJob,
        time: Timestamp,
        status: &mut CronJobStatus,
    ) -> anyhow::Result<()> {
        let job = new_job(cron_job, time);
        let api = Api::<Job>::namespaced(self.context.client.clone(), &key.namespace);
        match api.create(&PostParams::default(), &job).await {
            Ok(created) => {
                self.job_freshness.wrote(key, &created);
                let message = format!("Created job {}", name(&created.metadata));
                self.tell(cron_job, EventType::Normal, "SuccessfulCreate", message);
                let active = status.active.get_or_insert_default();
                active.push(reference(&created));
            }
            // Made before a crash, and its time was not noted.
            Err(error) if is_already_exists(&error) => {}
            Err(error) if is_namespace_terminating(&error) => return Ok(()),
            Err(error) => {
                let message = format!("Error creating job: {}", message_of(&error));
                self.tell(cron_job, EventType::Warning, "FailedCreate", message);
                return Err(error.into());
            }
        }
        status.last_schedule_time = Some(Time(time));
        Ok(())
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        cron_job: &CronJob,
        status: CronJobStatus,
    ) -> anyhow::Result<()> {
        if cron_job.status.clone().unwrap_or_default() == status {
            return Ok(());
        }
        let mut updated = cron_job.clone();
        updated.status = Some(status);
        let api = Api::<CronJob>::namespaced(self.context.client.clone(), &key.namespace);
        match api
            .replace_status(&key.name, &PostParams::default(), &updated)
            .await
        {
            Err(error) if is_not_found(&error) => {}
            result => self.freshness.wrote(key, &result?),
        }
        Ok(())
    }

    fn tell(&self, cron_job: &CronJob, event_type: EventType, reason: &str, message: String) {
        self.recorder
            .event(&cron_job.object_ref(&()), event_type, reason, message);
    }

    fn job_api(&self, job: &Job) -> Api<Job> {
        Api::namespaced(
            self.context.client.clone(),
            crate::common::namespace(&job.metadata),
        )
    }
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        resource_version: job.metadata.resource_version.clone(),
        ..job.object_ref(&())
    }
}

/// The job of one scheduled time. Its name is made of that time, so it can't be created twice.
fn new_job(cron_job: &CronJob, time: Timestamp) -> Job {
    let template = cron_job.spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(
        SCHEDULED_AT.to_owned(),
        time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    );
    Job {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}-{}",
                name(&cron_job.metadata),
                time.as_second() / 60
            )),
            namespace: cron_job.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_ref(cron_job)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

#[cfg(test)]
mod tests;
