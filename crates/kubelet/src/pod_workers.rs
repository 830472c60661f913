//! One task per pod: brings it up and keeps it so, ends it when it is to end, cleans up after it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fluyt_client::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::allocation::{self, InProgress};
use crate::kubelet::Kubelet;
use crate::kuberuntime::actions;
use crate::kuberuntime::container::StartError;
use crate::kuberuntime::runtime_pod::RuntimePod;
use crate::kuberuntime::{self, kill, resize, restart_all};
use crate::object_cache::RETRY;
use crate::pod::PodExt;
use crate::status::Stage;

/// How long until a resize that failed is tried again.
const RESIZE_RETRY: Duration = Duration::from_secs(5);

/// Why a pod is to end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Termination {
    /// Instead of the pod's own grace period.
    pub grace: Option<i64>,
    /// Reason and message of its status, when it ends by a decision of the kubelet's.
    pub verdict: Option<(String, String)>,
}

/// What a pod's task works on.
struct Mailbox {
    wanted: Mutex<Wanted>,
    notify: Notify,
    /// Cancelled once the pod is to end; apart from `notify`, so that waiting for the one takes nothing from the other.
    ending: CancellationToken,
}

struct Wanted {
    pod: Arc<Pod>,
    termination: Option<Termination>,
    /// The API object (or the static manifest) is gone.
    removed: bool,
}

/// The tasks of all pods here, by uid.
#[derive(Default)]
pub struct PodWorkers {
    workers: Mutex<HashMap<String, Arc<Mailbox>>>,
}

impl PodWorkers {
    /// A pod is here, or has changed.
    pub fn update(&self, kubelet: &Arc<Kubelet>, pod: Arc<Pod>) {
        let ending = pod.is_being_deleted();
        let mut workers = self.workers.lock();
        if let Some(mailbox) = workers.get(pod.uid()) {
            let mut wanted = mailbox.wanted.lock();
            if ending {
                wanted.termination.get_or_insert_default();
                mailbox.ending.cancel();
            }
            wanted.pod = pod;
            mailbox.notify.notify_one();
            return;
        }
        let uid = pod.uid().to_string();
        let mailbox = Arc::new(Mailbox {
            wanted: Mutex::new(Wanted {
                termination: ending.then(Termination::default),
                removed: false,
                pod,
            }),
            notify: Notify::new(),
            ending: CancellationToken::new(),
        });
        workers.insert(uid, mailbox.clone());
        let work = run(kubelet.clone(), mailbox);
        // Containers don't end with the kubelet; the next one goes on from what it finds.
        let shutdown = kubelet.shutdown.clone();
        tokio::spawn(Box::pin(
            async move { shutdown.run_until_cancelled(work).await },
        ));
    }

    /// The pod is to end although nobody deletes it.
    pub fn terminate(&self, uid: &str, termination: Termination) {
        if let Some(mailbox) = self.workers.lock().get(uid) {
            mailbox.wanted.lock().termination = Some(termination);
            mailbox.ending.cancel();
            mailbox.notify.notify_one();
        }
    }

    /// The pod's API object or manifest is gone; it ends, if it hasn't.
    pub fn remove(&self, uid: &str) {
        if let Some(mailbox) = self.workers.lock().get(uid) {
            let mut wanted = mailbox.wanted.lock();
            wanted.removed = true;
            wanted.termination.get_or_insert_default();
            mailbox.ending.cancel();
            mailbox.notify.notify_one();
        }
    }

    /// Something has happened to the pod: look at it.
    pub fn poke(&self, uid: &str) {
        if let Some(mailbox) = self.workers.lock().get(uid) {
            mailbox.notify.notify_one();
        }
    }

    pub fn contains(&self, uid: &str) -> bool {
        self.workers.lock().contains_key(uid)
    }

    /// Pods that are here and have not ended.
    pub fn active(&self) -> Vec<Arc<Pod>> {
        let workers = self.workers.lock();
        let pods = workers
            .values()
            .map(|mailbox| mailbox.wanted.lock().pod.clone());
        pods.filter(|pod| !pod.is_terminal()).collect()
    }
}

impl Mailbox {
    fn pod(&self) -> Arc<Pod> {
        self.wanted.lock().pod.clone()
    }

    fn termination(&self) -> Option<Termination> {
        self.wanted.lock().termination.clone()
    }
}

/// What to do after one look at a pod.
enum Next {
    Wait(Option<Duration>),
    /// It has ended by itself, or has to.
    Ended(Termination),
}

async fn run(kubelet: Arc<Kubelet>, mailbox: Arc<Mailbox>) {
    let mut state = State::default();
    let mut termination = None;
    while termination.is_none() {
        if let Some(wanted) = mailbox.termination() {
            termination = Some(wanted);
            break;
        }
        let pod = mailbox.pod();
        if pod.is_terminal() && !pod.is_static() {
            termination = Some(Termination::default());
            break;
        }
        // A pod that is to end doesn't wait for its images or volumes.
        let next = tokio::select! {
            next = Box::pin(sync(&kubelet, &pod, &mut state)) => next,
            () = mailbox.ending.cancelled() => continue,
        };
        let delay = match next {
            Next::Ended(how) => {
                termination = Some(how);
                break;
            }
            Next::Wait(delay) => delay,
        };
        let timer = async {
            match delay {
                Some(delay) => tokio::time::sleep(delay).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = mailbox.notify.notified() => {}
            () = timer => {}
        }
    }
    end(
        &kubelet,
        &mailbox,
        termination.unwrap_or_default(),
        &mut state,
    )
    .await;
}

/// What a pod's task remembers from one look to the next.
#[derive(Default)]
struct State {
    waiting: HashMap<String, StartError>,
    mount_failures: u32,
    admitted: bool,
}

/// Looks at the pod once: tells its status, does what there is to do, tells its status again.
async fn sync(kubelet: &Arc<Kubelet>, pod: &Arc<Pod>, state: &mut State) -> Next {
    let runtime = match kubelet.inspect(pod.uid()).await {
        Ok(runtime) => runtime,
        Err(error) => {
            debug!(
                pod = pod.name(),
                error = error.message(),
                "the runtime doesn't answer"
            );
            return Next::Wait(Some(RETRY));
        }
    };
    if !state.admitted {
        // One that already runs was admitted by the kubelet before this one.
        if runtime.containers.is_empty()
            && let Err(verdict) = kubelet.admit(pod)
        {
            info!(pod = pod.name(), reason = verdict.0, "pod rejected");
            let reference = pod.object_reference();
            kubelet.recorder.event(
                &reference,
                EventType::Warning,
                &verdict.0,
                verdict.1.clone(),
            );
            return Next::Ended(Termination {
                grace: Some(0),
                verdict: Some(verdict),
            });
        }
        kubelet.allocations.admit(pod);
        state.admitted = true;
    }
    let pod = &kubelet.allocate(pod);
    state.waiting.retain(|name, _| {
        let running = runtime
            .latest(name)
            .is_some_and(|c| c.state == kuberuntime::runtime_pod::State::Running);
        !running
    });
    kubelet.probes.sync(
        pod,
        &runtime,
        runtime
            .ready_sandbox()
            .and_then(|s| s.ips.first())
            .or(kubelet.host_ip(pod).as_ref()),
    );
    let status = kubelet.update_status(pod, &runtime, &state.waiting, Stage::Active, None);
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Next::Ended(Termination::default());
    }
    let started = status.start_time.as_ref().map(|time| time.0);
    let deadline = match deadline(pod, started) {
        Some(left) if left.is_zero() => {
            let message =
                "Pod was active on the node longer than the specified deadline".to_string();
            let reference = pod.object_reference();
            kubelet.recorder.event(
                &reference,
                EventType::Normal,
                "DeadlineExceeded",
                message.clone(),
            );
            return Next::Ended(Termination {
                grace: None,
                verdict: Some(("DeadlineExceeded".into(), message)),
            });
        }
        other => other,
    };
    let sooner = |a: Option<Duration>, b: Option<Duration>| match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    };
    if restart_all::is_under_way(&status) {
        state.waiting.clear();
        // They start in the next turn, which tells first that they are gone.
        return match Box::pin(restart_all::remove_all(kubelet, pod, &runtime)).await {
            Ok(()) => Next::Wait(Some(Duration::ZERO)),
            Err(error) => {
                kuberuntime::failed_kill(kubelet, pod, &error);
                Next::Wait(sooner(Some(RETRY), deadline))
            }
        };
    }
    if let Some(problem) = network_not_ready(kubelet, pod) {
        let reference = pod.object_reference();
        kubelet
            .recorder
            .event(&reference, EventType::Warning, "NetworkNotReady", problem);
        kubelet.wait_for_runtime().await;
        return Next::Wait(Some(Duration::ZERO));
    }
    let differing = resize::differing(kubelet, pod, &runtime);
    let lowered = resize::lowered(kubelet, pod, &runtime);
    if let Some(cgroups) = &kubelet.cgroups
        && let Err(error) = match (&differing[..], &lowered) {
            ([], None) => cgroups.ensure_pod(pod),
            // Not before it is known that the pod can do with less.
            ([], Some(_)) => Ok(()),
            _ => cgroups.lift_limits(pod),
        }
    {
        let message = format!("error ensuring pod container exists: {error:#}");
        let reference = pod.object_reference();
        kubelet.recorder.event(
            &reference,
            EventType::Warning,
            "FailedToCreatePodContainer",
            message,
        );
        return Next::Wait(sooner(Some(RETRY), deadline));
    }
    kubelet.objects.register(pod);
    // Downward API volumes show addresses as well.
    let mut seen = Pod::clone(pod);
    seen.status = Some(kubelet.status.current(pod));
    let volumes = match kubelet.volumes.ensure(&seen).await {
        Ok(ready) => {
            state.mount_failures = 0;
            ready
        }
        Err(failed) => {
            let message = format!(
                "MountVolume.SetUp failed for volume {:?} : {}",
                failed.volume, failed.error
            );
            let reference = pod.object_reference();
            kubelet
                .recorder
                .event(&reference, EventType::Warning, "FailedMount", message);
            let delay = Duration::from_millis(500) * 2u32.pow(state.mount_failures.min(8));
            state.mount_failures += 1;
            return Next::Wait(sooner(Some(delay), deadline));
        }
    };
    let refresh = volumes
        .refresh_at
        .map(|at| until(at).max(Duration::from_secs(1)));
    let resized = resize::restarts(&differing);
    let lowered = lowered.as_ref();
    let retry = Box::pin(resize_pod(kubelet, pod, &differing, lowered, state)).await;
    let deadline = sooner(deadline, retry);
    let todo = actions::compute(pod, &runtime, &*kubelet.probes, &resized);
    if todo == actions::Actions::default() {
        return Next::Wait(sooner(refresh, deadline));
    }
    let result = Box::pin(kuberuntime::sync(
        kubelet,
        pod,
        &runtime,
        &todo,
        &volumes.mounted,
    ))
    .await;
    for start in &todo.start {
        if let Some(name) = kuberuntime::name_of(pod, *start) {
            state.waiting.remove(&name);
        }
    }
    state.waiting.extend(result.waiting);
    if let Some(why) = result.sandbox_error {
        debug!(pod = pod.name(), why, "no sandbox");
    }
    match kubelet.inspect(pod.uid()).await {
        Ok(runtime) => {
            let ip = runtime.ready_sandbox().and_then(|s| s.ips.first().cloned());
            kubelet
                .probes
                .sync(pod, &runtime, ip.or(kubelet.host_ip(pod)).as_ref());
            let status = kubelet.update_status(pod, &runtime, &state.waiting, Stage::Active, None);
            if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
                return Next::Ended(Termination::default());
            }
            // A container may have ended already, or the next init container's turn have come: the runtime's events
            // tell that. A start that failed is tried again by time.
            kubelet.collect_dead_containers(pod, &runtime).await;
        }
        Err(_) => return Next::Wait(Some(RETRY)),
    }
    Next::Wait(sooner(sooner(result.retry, refresh), deadline))
}

/// Has the pod and its running containers get what it was newly allocated, and the pod's conditions tell of it. How long
/// until what failed is tried again.
async fn resize_pod(
    kubelet: &Arc<Kubelet>,
    pod: &Arc<Pod>,
    differing: &[resize::Differing<'_>],
    lowered: Option<&resize::Lowered>,
    state: &State,
) -> Option<Duration> {
    let under_way = kubelet.allocations.resize(pod.uid()).in_progress.is_some();
    if differing.is_empty() && lowered.is_none() && !under_way {
        return None;
    }
    let outcome = resize::actuate(kubelet, pod, differing, lowered).await;
    let error = outcome.err();
    let now = match kubelet.inspect(pod.uid()).await {
        Ok(now) => now,
        Err(_) => return Some(RETRY),
    };
    let mut as_it_is = resize::as_it_is(pod, &now);
    if let Some(lowered) = lowered.filter(|_| error.is_some()) {
        lowered.undo(&mut as_it_is);
    }
    if let Some(cgroups) = &kubelet.cgroups
        && let Err(error) = cgroups.ensure_pod(&as_it_is)
    {
        warn!(pod = pod.name(), error = %format!("{error:#}"), "the pod's limits stay lifted");
    }
    let left = !resize::differing(kubelet, pod, &now).is_empty();
    let progress = (left || error.is_some()).then(|| InProgress {
        error: error.clone(),
    });
    let done = progress.is_none();
    if kubelet.allocations.progress(pod.uid(), progress) {
        let (kind, reason, prefix) = match &error {
            Some(_) => (EventType::Warning, "ResizeError", "Pod resize error"),
            None if done => (EventType::Normal, "ResizeCompleted", "Pod resize completed"),
            None => (EventType::Normal, "ResizeStarted", "Pod resize started"),
        };
        let message = allocation::summary(prefix, pod, error.as_deref());
        let reference = pod.object_reference();
        kubelet.recorder.event(&reference, kind, reason, message);
    }
    kubelet.update_status(pod, &now, &state.waiting, Stage::Active, None);
    error.is_some().then_some(RESIZE_RETRY)
}

fn network_not_ready(kubelet: &Kubelet, pod: &Pod) -> Option<String> {
    let problem = kubelet.network_problem()?;
    (!pod.host_network()).then(|| format!("network is not ready: {problem}"))
}

fn until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
}

/// How long the pod may still be active; `None` for ever.
fn deadline(pod: &Pod, started: Option<Timestamp>) -> Option<Duration> {
    let seconds = pod.spec().active_deadline_seconds?;
    Some(until(started? + SignedDuration::from_secs(seconds)))
}

/// Ends the pod: containers, volumes, cgroup, and at last its API object.
async fn end(
    kubelet: &Arc<Kubelet>,
    mailbox: &Arc<Mailbox>,
    mut termination: Termination,
    state: &mut State,
) {
    let pod = mailbox.pod();
    let uid = pod.uid().to_string();
    kubelet.probes.stop_liveness_and_startup(&uid);
    let runtime = loop {
        if let Some(newer) = mailbox.termination() {
            termination.grace = newer.grace.or(termination.grace);
            termination.verdict = termination.verdict.or(newer.verdict);
        }
        let pod = mailbox.pod();
        let grace = termination.grace.unwrap_or_else(|| pod.grace_period());
        let stop = async {
            let runtime = kubelet.inspect(&uid).await?;
            if !pod.is_terminal() {
                kubelet.update_status(&pod, &runtime, &state.waiting, Stage::Active, None);
            }
            kill::pod(kubelet, &pod, &runtime, grace).await?;
            kubelet.inspect(&uid).await
        };
        tokio::select! {
            stopped = Box::pin(stop) => match stopped {
                Ok(runtime) if !runtime.anything_alive() => break runtime,
                Ok(_) => {}
                Err(error) => {
                    warn!(pod = pod.name(), error = error.message(), "ending the pod failed, trying again");
                    tokio::time::sleep(RETRY).await;
                }
            },
            // Someone has less patience now.
            () = shorter_grace(mailbox, grace) => {}
        }
    };
    let pod = mailbox.pod();
    kubelet.probes.remove(&uid);
    let verdict = termination.verdict.as_ref();
    let stage = if verdict.is_some() && !state.admitted {
        Stage::Rejected
    } else {
        Stage::Over
    };
    kubelet.update_status(&pod, &runtime, &state.waiting, stage, verdict);
    clean_up(kubelet, &pod, &runtime, mailbox).await;
}

async fn shorter_grace(mailbox: &Mailbox, grace: i64) {
    loop {
        mailbox.notify.notified().await;
        let wanted = mailbox.wanted.lock();
        let now = wanted
            .termination
            .as_ref()
            .and_then(|termination| termination.grace)
            .unwrap_or_else(|| wanted.pod.grace_period());
        if now < grace {
            return;
        }
    }
}

/// Everything has stopped: give back what the pod held. The containers' records stay, for their logs, until the pod's
/// API object goes.
async fn clean_up(
    kubelet: &Arc<Kubelet>,
    pod: &Arc<Pod>,
    runtime: &RuntimePod,
    mailbox: &Arc<Mailbox>,
) {
    let uid = pod.uid().to_string();
    let mut delay = Duration::from_millis(100);
    while let Err(error) = kubelet.volumes.tear_down(&uid) {
        warn!(pod = pod.name(), %error, "volumes stay, trying again");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(10));
    }
    if let Some(cgroups) = &kubelet.cgroups {
        cgroups.remove_pod(&uid);
    }
    kubelet.objects.unregister(&uid);
    kubelet.images.forget(&uid);
    kubelet.restart_backoff.forget(&format!("{uid}_"));
    loop {
        let (deleted, removed) = {
            let wanted = mailbox.wanted.lock();
            (wanted.pod.is_being_deleted(), wanted.removed)
        };
        if deleted || removed {
            break;
        }
        mailbox.notify.notified().await;
    }
    while let Err(error) = kill::remove(kubelet, runtime).await {
        warn!(
            pod = pod.name(),
            error = error.message(),
            "containers stay, trying again"
        );
        tokio::time::sleep(RETRY).await;
    }
    kubelet.remove_logs(pod);
    let pod = mailbox.pod();
    kubelet.status.update_pod(&pod);
    kubelet.status.finish(&uid);
    loop {
        if mailbox.wanted.lock().removed {
            break;
        }
        mailbox.notify.notified().await;
    }
    kubelet.status.forget(&uid);
    kubelet.workers.workers.lock().remove(&uid);
    kubelet.pod_gone(&pod);
}
