//! The scheduling queue: pods that are to be tried (active), to be tried soon (backoff), and to be tried when
//! something changes that could make them schedulable (unschedulable).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use crate::framework::Event;

const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Unschedulable pods are tried again after this time even if nothing seems to have changed.
pub const MAX_IN_UNSCHEDULABLE: Duration = Duration::from_secs(300);
/// Events remembered for pods that are being tried; beyond, all of them count as one of unknown kind.
const MAX_EVENTS: usize = 10_000;

/// A pod on its way through the queue.
#[derive(Debug, Clone)]
pub struct Queued {
    pub pod: Arc<Pod>,
    pub attempts: u32,
    /// When it first came, for the latency metric.
    pub since: Instant,
    /// Which plugins rejected it the last time.
    pub rejected_by: BTreeSet<&'static str>,
    /// When it came into the queue it is in.
    queued_at: Instant,
}

/// PrioritySort: by priority, then first come, first served.
type ActiveKey = (std::cmp::Reverse<i32>, Instant, String);

#[derive(Default)]
pub struct SchedulingQueue {
    active: BTreeMap<ActiveKey, Queued>,
    /// By the end of the backoff.
    backoff: BTreeMap<(Instant, String), Queued>,
    /// Like `backoff`, but never tried early: not the cluster was at fault, the API was.
    error_backoff: BTreeMap<(Instant, String), Queued>,
    unschedulable: HashMap<String, Queued>,
    /// Pods whose preEnqueue plugins hold them back.
    gated: HashMap<String, Queued>,
    /// What happened while pods were tried, and when the oldest of these tries began.
    events: Vec<Event>,
    events_lost: bool,
    /// Pods being tried: number of events when their try began.
    in_flight: HashMap<String, usize>,
}

/// Whether an event concerns a pod that these plugins rejected.
pub type Hint<'a> = &'a dyn Fn(&Event, &Queued) -> bool;

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

fn priority(pod: &Pod) -> i32 {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.priority)
        .unwrap_or(0)
}

impl Queued {
    fn new(pod: Arc<Pod>) -> Self {
        let now = Instant::now();
        Self {
            pod,
            attempts: 0,
            since: now,
            rejected_by: BTreeSet::new(),
            queued_at: now,
        }
    }

    fn active_key(&self) -> ActiveKey {
        (
            std::cmp::Reverse(priority(&self.pod)),
            self.queued_at,
            uid(&self.pod),
        )
    }

    /// 1 s after the first attempt, doubling, at most 10 s.
    fn backoff_end(&self) -> Instant {
        let doublings = self.attempts.saturating_sub(1).min(10);
        self.queued_at + (INITIAL_BACKOFF * 2u32.pow(doublings)).min(MAX_BACKOFF)
    }
}

impl SchedulingQueue {
    /// A new pod, or one whose update may have made it schedulable.
    pub fn add(&mut self, pod: Arc<Pod>, gated: bool) {
        let mut queued = self
            .take(&uid(&pod))
            .unwrap_or_else(|| Queued::new(Arc::clone(&pod)));
        queued.pod = pod;
        if gated {
            self.gated.insert(uid(&queued.pod), queued);
        } else if queued.attempts > 0 {
            self.move_up(queued);
        } else {
            queued.queued_at = Instant::now();
            self.active.insert(queued.active_key(), queued);
        }
    }

    /// Replace the pod where it is: nothing changed that matters for scheduling.
    pub fn refresh(&mut self, pod: Arc<Pod>) {
        let id = uid(&pod);
        let all = self.active.values_mut().chain(self.backoff.values_mut());
        let all = all
            .chain(self.error_backoff.values_mut())
            .chain(self.unschedulable.values_mut());
        for queued in all.chain(self.gated.values_mut()) {
            if uid(&queued.pod) == id {
                queued.pod = Arc::clone(&pod);
            }
        }
    }

    pub fn contains(&self, id: &str) -> bool {
        self.unschedulable.contains_key(id)
            || self.gated.contains_key(id)
            || self.in_flight.contains_key(id)
            || self.active.values().any(|queued| uid(&queued.pod) == id)
            || self
                .backoff
                .keys()
                .chain(self.error_backoff.keys())
                .any(|(_, known)| known == id)
    }

    #[cfg(test)]
    fn is_gated(&self, id: &str) -> bool {
        self.gated.contains_key(id)
    }

    /// The pod is gone or bound.
    pub fn remove(&mut self, id: &str) {
        self.take(id);
    }

    fn take(&mut self, id: &str) -> Option<Queued> {
        let found = self
            .unschedulable
            .remove(id)
            .or_else(|| self.gated.remove(id));
        if found.is_some() {
            return found;
        }
        for queue in [&mut self.backoff, &mut self.error_backoff] {
            let key = queue.keys().find(|(_, known)| known == id).cloned();
            if let Some(key) = key {
                return queue.remove(&key);
            }
        }
        let key = self
            .active
            .iter()
            .find(|(_, queued)| uid(&queued.pod) == id)
            .map(|(key, _)| key.clone());
        key.and_then(|key| self.active.remove(&key))
    }

    /// The next pod to try. If none is active, one in backoff is tried early: there is nothing better to do.
    pub fn pop(&mut self) -> Option<Queued> {
        self.flush(Instant::now());
        let mut queued = match self.active.pop_first() {
            Some((_, queued)) => queued,
            None => self.backoff.pop_first()?.1,
        };
        queued.attempts += 1;
        self.in_flight.insert(uid(&queued.pod), self.events.len());
        Some(queued)
    }

    /// When [`pop`](Self::pop) may have something again without any event.
    pub fn next_timer(&self) -> Option<Instant> {
        let backoff = self.error_backoff.keys().next().map(|(end, _)| *end);
        let leftover = self
            .unschedulable
            .values()
            .map(|queued| queued.queued_at + MAX_IN_UNSCHEDULABLE)
            .min();
        backoff.into_iter().chain(leftover).min()
    }

    fn flush(&mut self, now: Instant) {
        for queue in [&mut self.backoff, &mut self.error_backoff] {
            while let Some(entry) = queue.first_entry().filter(|entry| entry.key().0 <= now) {
                let mut queued = entry.remove();
                queued.queued_at = now;
                self.active.insert(queued.active_key(), queued);
            }
        }
        let stale: Vec<String> = self
            .unschedulable
            .iter()
            .filter(|(_, queued)| now.duration_since(queued.queued_at) >= MAX_IN_UNSCHEDULABLE)
            .map(|(id, _)| id.clone())
            .collect();
        for id in stale {
            if let Some(queued) = self.unschedulable.remove(&id) {
                self.move_up(queued);
            }
        }
    }

    /// The try is over and the pod is assumed or gone.
    pub fn done(&mut self, id: &str) {
        self.in_flight.remove(id);
        self.trim_events();
    }

    /// No node was found. If something happened meanwhile that may help, the pod is tried again.
    pub fn add_unschedulable(&mut self, mut queued: Queued, hint: Hint<'_>) {
        let id = uid(&queued.pod);
        let seen = self.in_flight.remove(&id).unwrap_or(0);
        queued.queued_at = Instant::now();
        let news = self.events.get(seen..).unwrap_or_default();
        let helped = self.events_lost || news.iter().any(|event| hint(event, &queued));
        self.trim_events();
        if helped {
            self.move_up(queued);
        } else {
            self.unschedulable.insert(id, queued);
        }
    }

    /// The API failed us: try again after a real backoff.
    pub fn add_failed(&mut self, mut queued: Queued) {
        let id = uid(&queued.pod);
        self.in_flight.remove(&id);
        self.trim_events();
        queued.queued_at = Instant::now();
        self.error_backoff
            .insert((queued.backoff_end(), id), queued);
    }

    /// Something happened: move the pods up that it may help.
    pub fn on_event(&mut self, event: &Event, hint: Hint<'_>) {
        if !self.in_flight.is_empty() {
            if self.events.len() >= MAX_EVENTS {
                self.events_lost = true;
            } else {
                self.events.push(event.clone());
            }
        }
        let helped: Vec<String> = self
            .unschedulable
            .iter()
            .filter(|(_, queued)| hint(event, queued))
            .map(|(id, _)| id.clone())
            .collect();
        for id in helped {
            if let Some(queued) = self.unschedulable.remove(&id) {
                self.move_up(queued);
            }
        }
    }

    /// Into the active queue, or the backoff queue if its backoff is not over.
    fn move_up(&mut self, mut queued: Queued) {
        let now = Instant::now();
        let end = queued.backoff_end();
        if end > now {
            self.backoff.insert((end, uid(&queued.pod)), queued);
        } else {
            queued.queued_at = now;
            self.active.insert(queued.active_key(), queued);
        }
    }

    fn trim_events(&mut self) {
        if self.in_flight.is_empty() {
            self.events.clear();
            self.events_lost = false;
        }
    }

    /// Number of pods: active, backoff, unschedulable, gated.
    pub fn sizes(&self) -> [(&'static str, usize); 4] {
        [
            ("active", self.active.len()),
            ("backoff", self.backoff.len() + self.error_backoff.len()),
            ("unschedulable", self.unschedulable.len()),
            ("gated", self.gated.len()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod};

    fn arc(pod: crate::testing::PodBuilder) -> Arc<Pod> {
        Arc::new(pod.build())
    }

    fn name(queued: &Queued) -> &str {
        queued.pod.metadata.name.as_deref().unwrap()
    }

    fn event() -> Event {
        Event::NodeAdded(Arc::new(node("n").build()))
    }

    const NEVER: Hint<'_> = &|_, _| false;
    const ALWAYS: Hint<'_> = &|_, _| true;

    #[tokio::test(start_paused = true)]
    async fn by_priority_then_by_age() {
        let mut queue = SchedulingQueue::default();
        for (name, priority) in [("first", 0), ("second", 0), ("important", 10)] {
            queue.add(arc(pod(name).priority(priority)), false);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        let order: Vec<String> = std::iter::from_fn(|| queue.pop())
            .map(|queued| name(&queued).to_owned())
            .collect();
        assert_eq!(order, ["important", "first", "second"]);
    }

    #[tokio::test(start_paused = true)]
    async fn unschedulable_pods_wait_for_an_event_that_helps() {
        let mut queue = SchedulingQueue::default();
        queue.add(arc(pod("p")), false);
        let queued = queue.pop().unwrap();
        queue.add_unschedulable(queued, NEVER);
        queue.on_event(&event(), NEVER);
        assert!(queue.pop().is_none());
        queue.on_event(&event(), ALWAYS);
        assert_eq!(
            name(&queue.pop().unwrap()),
            "p",
            "tried at once although its backoff is not over"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn events_during_the_try_are_not_missed() {
        let mut queue = SchedulingQueue::default();
        queue.add(arc(pod("p")), false);
        let queued = queue.pop().unwrap();
        queue.on_event(&event(), ALWAYS);
        queue.add_unschedulable(queued, ALWAYS);
        let queued = queue.pop().expect("the event came during the try");
        queue.add_unschedulable(queued, ALWAYS);
        assert!(queue.pop().is_none(), "an earlier event does not count");
    }

    #[tokio::test(start_paused = true)]
    async fn after_api_errors_the_backoff_is_real() {
        let mut queue = SchedulingQueue::default();
        queue.add(arc(pod("p")), false);
        for seconds in [1, 2, 4, 8, 10, 10] {
            let queued = queue.pop().unwrap();
            queue.add_failed(queued);
            assert_eq!(
                queue.next_timer(),
                Some(Instant::now() + Duration::from_secs(seconds))
            );
            assert!(queue.pop().is_none());
            tokio::time::advance(Duration::from_secs(seconds)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn leftovers_are_tried_after_five_minutes() {
        let mut queue = SchedulingQueue::default();
        queue.add(arc(pod("p")), false);
        let queued = queue.pop().unwrap();
        queue.add_unschedulable(queued, NEVER);
        tokio::time::advance(MAX_IN_UNSCHEDULABLE).await;
        assert!(queue.pop().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn gated_pods_stay_until_they_are_added_again() {
        let mut queue = SchedulingQueue::default();
        queue.add(arc(pod("p")), true);
        queue.on_event(&event(), ALWAYS);
        assert!(queue.pop().is_none() && queue.is_gated("uid-p"));
        queue.add(arc(pod("p")), false);
        assert!(queue.pop().is_some());
        queue.done("uid-p");
        queue.add(arc(pod("q")), false);
        queue.remove("uid-q");
        assert!(queue.pop().is_none() && !queue.contains("uid-q"));
    }
}
