//! disruption-controller: the status of PodDisruptionBudgets, from which the eviction API and preemption read how many
//! pods may go.

use std::{collections::BTreeMap, sync::Arc};

use fluyt_client::{
    Action, EventType, Informer, ObjectKey, Recorder, WorkQueue, controller,
    helpers::{labels, pods},
    is_not_found,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, StatefulSet},
        core::v1::{Pod, ReplicationController},
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, OwnerReference, Time},
        util::intstr::IntOrString,
    },
};
use kube::{Api, Client, Resource, api::PostParams};

use crate::{
    Context,
    common::{controller_of, enqueue, enqueue_mapped, name, namespace, now, scaled_value, to_wait},
};

const COMPONENT: &str = "controllermanager";
/// An eviction that was allowed has to show effect within this time; then it is taken back.
const EVICTION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);

struct Controller {
    client: Client,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    replication_controllers: Informer<ReplicationController>,
    recorder: Recorder,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client.clone(),
        budgets: context.informers.get(),
        pods: context.informers.get(),
        deployments: context.informers.get(),
        replica_sets: context.informers.get(),
        stateful_sets: context.informers.get(),
        replication_controllers: context.informers.get(),
        recorder: context.recorder(COMPONENT),
    };
    controller.budgets.synced().await;
    controller.pods.synced().await;
    controller.deployments.synced().await;
    controller.replica_sets.synced().await;
    controller.stateful_sets.synced().await;
    controller.replication_controllers.synced().await;
    let queue = WorkQueue::new();
    enqueue(&controller.budgets, &queue);
    let budgets = controller.budgets.clone();
    enqueue_mapped(&controller.pods, &queue, move |pod| {
        let in_namespace = budgets.list_namespace(namespace(&pod.metadata));
        let covering = in_namespace.iter().filter(|budget| covers(budget, pod));
        covering.map(|budget| ObjectKey::of(&**budget)).collect()
    });
    controller.watch_scales(&queue);
    let reconcile = |key| controller.reconcile(key);
    controller::run(
        "disruption-controller",
        queue,
        1,
        reconcile,
        context.shutdown.clone(),
    )
    .await;
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| labels::matches(selector, labels::labels_of(&pod.metadata)))
}

/// What the spec demands of a number of pods.
#[derive(Debug, PartialEq, Eq)]
struct Demand {
    expected: i32,
    healthy: i32,
}

/// `expected` is the number of pods that the controllers want, `present` the number there is.
fn demand(
    budget: &PodDisruptionBudget,
    present: i32,
    expected: impl FnOnce() -> Result<i32, String>,
) -> Result<Demand, String> {
    let spec = budget.spec.clone().unwrap_or_default();
    if let Some(max_unavailable) = spec.max_unavailable {
        let expected = expected()?;
        let unavailable = scaled_value(&max_unavailable, expected, true);
        return Ok(Demand {
            expected,
            healthy: (expected - unavailable).max(0),
        });
    }
    match spec.min_available {
        // Of a plain number it does not matter how many there should be.
        Some(IntOrString::Int(minimum)) => Ok(Demand {
            expected: present,
            healthy: minimum,
        }),
        Some(percent) => {
            let expected = expected()?;
            Ok(Demand {
                expected,
                healthy: scaled_value(&percent, expected, true),
            })
        }
        None => Ok(Demand {
            expected: present,
            healthy: 1,
        }),
    }
}

impl Controller {
    /// A resized controller changes what percentages amount to.
    fn watch_scales(&self, queue: &WorkQueue<ObjectKey>) {
        fn feed<K>(
            informer: &Informer<K>,
            budgets: &Informer<PodDisruptionBudget>,
            queue: &WorkQueue<ObjectKey>,
        ) where
            K: Resource
                + Clone
                + std::fmt::Debug
                + serde::de::DeserializeOwned
                + Send
                + Sync
                + 'static,
        {
            let (budgets, queue) = (budgets.clone(), queue.clone());
            informer.on_change(move |change| {
                let fluyt_client::Change::Updated { old, new } = change else {
                    return;
                };
                if old.meta().generation != new.meta().generation {
                    let in_namespace = budgets.list_namespace(namespace(new.meta()));
                    in_namespace
                        .iter()
                        .for_each(|budget| queue.add(ObjectKey::of(&**budget)));
                }
            });
        }
        feed(&self.deployments, &self.budgets, queue);
        feed(&self.stateful_sets, &self.budgets, queue);
    }

    async fn reconcile(&self, key: ObjectKey) -> anyhow::Result<Action> {
        let Some(budget) = self.budgets.get_key(&key) else {
            return Ok(Action::Await);
        };
        let at = Timestamp::now();
        let mut covered = self.pods.list_namespace(&key.namespace);
        covered.retain(|pod| covers(&budget, pod));
        let present = i32::try_from(covered.len()).unwrap_or(i32::MAX);
        let demand = demand(&budget, present, || self.expected(&key.namespace, &covered));
        let status = match demand {
            Ok(demand) => status(&budget, &covered, &demand, at),
            Err(message) => {
                self.recorder.event(
                    &budget.object_ref(&()),
                    EventType::Warning,
                    "CalculateExpectedPodCountFailed",
                    format!("Failed to calculate the number of expected pods: {message}"),
                );
                failed_status(&budget, &message)
            }
        };
        let wake = status
            .disrupted_pods
            .iter()
            .flat_map(BTreeMap::values)
            .map(|time| time.0)
            .min();
        if budget.status.as_ref() != Some(&status) {
            let mut updated = (*budget).clone();
            updated.status = Some(status);
            let api = Api::<PodDisruptionBudget>::namespaced(self.client.clone(), &key.namespace);
            match api
                .replace_status(&key.name, &PostParams::default(), &updated)
                .await
            {
                Err(error) if is_not_found(&error) => return Ok(Action::Await),
                result => drop(result?),
            }
        }
        let wake = wake.and_then(|since| since.checked_add(EVICTION_TIMEOUT).ok());
        Ok(wake.map_or(Action::Await, |wake| {
            Action::Requeue(to_wait(wake.duration_since(at)))
        }))
    }

    /// The sum of the sizes of the pods' controllers.
    fn expected(&self, namespace: &str, covered: &[Arc<Pod>]) -> Result<i32, String> {
        let mut sizes: BTreeMap<String, i32> = BTreeMap::new();
        for pod in covered {
            let Some(owner) = controller_of(&pod.metadata) else {
                continue;
            };
            let (uid, size) = self.scale(namespace, owner).ok_or_else(|| {
                format!(
                    "found no scale of {} {} of pod {}",
                    owner.kind,
                    owner.name,
                    name(&pod.metadata)
                )
            })?;
            sizes.insert(uid, size);
        }
        Ok(sizes.values().sum())
    }

    /// The uid and size of the topmost controller that we know how to read.
    fn scale(&self, namespace: &str, owner: &OwnerReference) -> Option<(String, i32)> {
        let uid = owner.uid.clone();
        match owner.kind.as_str() {
            "ReplicaSet" => {
                let set = self.replica_sets.get(Some(namespace), &owner.name)?;
                let parent =
                    controller_of(&set.metadata).filter(|parent| parent.kind == "Deployment");
                let deployment =
                    parent.and_then(|parent| self.deployments.get(Some(namespace), &parent.name));
                match deployment {
                    Some(deployment) => {
                        let size = deployment.spec.as_ref()?.replicas.unwrap_or(1);
                        Some((deployment.metadata.uid.clone().unwrap_or_default(), size))
                    }
                    None => Some((uid, set.spec.as_ref()?.replicas.unwrap_or(1))),
                }
            }
            "StatefulSet" => {
                let set = self.stateful_sets.get(Some(namespace), &owner.name)?;
                Some((uid, set.spec.as_ref()?.replicas.unwrap_or(1)))
            }
            "ReplicationController" => {
                let controller = self
                    .replication_controllers
                    .get(Some(namespace), &owner.name)?;
                Some((uid, controller.spec.as_ref()?.replicas.unwrap_or(1)))
            }
            _ => None,
        }
    }
}

/// Evictions that the API server has allowed and that are not seen yet.
fn disrupted(
    budget: &PodDisruptionBudget,
    covered: &[Arc<Pod>],
    at: Timestamp,
) -> BTreeMap<String, Time> {
    let mut disrupted = budget
        .status
        .as_ref()
        .and_then(|status| status.disrupted_pods.clone())
        .unwrap_or_default();
    disrupted.retain(|pod_name, since| {
        let pod = covered.iter().find(|pod| name(&pod.metadata) == pod_name);
        pod.is_some_and(|pod| !pods::is_terminating(pod))
            && at.duration_since(since.0) < EVICTION_TIMEOUT
    });
    disrupted
}

fn status(
    budget: &PodDisruptionBudget,
    covered: &[Arc<Pod>],
    demand: &Demand,
    at: Timestamp,
) -> PodDisruptionBudgetStatus {
    let disrupted = disrupted(budget, covered, at);
    let healthy = covered.iter().filter(|pod| {
        pods::is_ready(pod)
            && !pods::is_terminating(pod)
            && !disrupted.contains_key(name(&pod.metadata))
    });
    let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    let allowed = if demand.expected <= 0 {
        0
    } else {
        (healthy - demand.healthy).max(0)
    };
    let (condition_status, reason) = if allowed > 0 {
        ("True", "SufficientPods")
    } else {
        ("False", "InsufficientPods")
    };
    PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(demand.healthy),
        expected_pods: Some(demand.expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        observed_generation: budget.metadata.generation,
        conditions: conditions(budget, condition_status, reason, ""),
    }
}

/// When the numbers are not known, nothing may go.
fn failed_status(budget: &PodDisruptionBudget, message: &str) -> PodDisruptionBudgetStatus {
    PodDisruptionBudgetStatus {
        disruptions_allowed: Some(0),
        observed_generation: budget.metadata.generation,
        conditions: conditions(budget, "False", "SyncFailed", message),
        ..budget.status.clone().unwrap_or_default()
    }
}

fn conditions(
    budget: &PodDisruptionBudget,
    condition_status: &str,
    reason: &str,
    message: &str,
) -> Option<Vec<Condition>> {
    let mut conditions = budget
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let known = conditions
        .iter()
        .find(|condition| condition.type_ == "DisruptionAllowed");
    let since = known.filter(|known| known.status == condition_status);
    let since = since.map_or_else(now, |known| known.last_transition_time.clone());
    conditions.retain(|condition| condition.type_ != "DisruptionAllowed");
    conditions.push(Condition {
        type_: "DisruptionAllowed".to_owned(),
        status: condition_status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: budget.metadata.generation,
        last_transition_time: since,
    });
    Some(conditions)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::{
            apps::v1::{DeploymentSpec, ReplicaSetSpec},
            core::v1::{PodCondition, PodStatus},
            policy::v1::PodDisruptionBudgetSpec,
        },
        apimachinery::pkg::apis::meta::v1::LabelSelector,
    };

    use super::*;
    use crate::common::test_support::{context, labelled, named, owned_by};

    fn budget(min_available: Option<&str>, max_unavailable: Option<&str>) -> PodDisruptionBudget {
        let value = |text: &str| match text.parse() {
            Ok(number) => IntOrString::Int(number),
            Err(_) => IntOrString::String(text.to_owned()),
        };
        PodDisruptionBudget {
            metadata: named("ns", "budget"),
            spec: Some(PodDisruptionBudgetSpec {
                min_available: min_available.map(value),
                max_unavailable: max_unavailable.map(value),
                selector: Some(LabelSelector {
                    match_labels: Some([("app".to_owned(), "web".to_owned())].into()),
                    match_expressions: None,
                }),
                ..PodDisruptionBudgetSpec::default()
            }),
            status: None,
        }
    }

    #[test]
    fn demands() {
        let demand = |budget: &PodDisruptionBudget, present, expected: i32| {
            let demand = demand(budget, present, || Ok(expected)).unwrap();
            (demand.expected, demand.healthy)
        };
        assert_eq!(demand(&budget(Some("2"), None), 5, 9), (5, 2));
        assert_eq!(demand(&budget(Some("50%"), None), 5, 9), (9, 5));
        assert_eq!(demand(&budget(None, Some("1")), 5, 9), (9, 8));
        assert_eq!(demand(&budget(None, Some("30%")), 5, 10), (10, 7));
        assert_eq!(demand(&budget(None, Some("100%")), 5, 10), (10, 0));
        assert_eq!(demand(&budget(None, None), 5, 9), (5, 1));
    }

    fn pod(pod_name: &str, ready: bool) -> Pod {
        let mut metadata = labelled("ns", pod_name, "app=web");
        metadata.owner_references = owned_by("apps/v1", "ReplicaSet", "web-1", "set");
        Pod {
            metadata,
            spec: None,
            status: Some(PodStatus {
                conditions: Some(vec![PodCondition {
                    type_: "Ready".to_owned(),
                    status: if ready { "True" } else { "False" }.to_owned(),
                    ..PodCondition::default()
                }]),
                ..PodStatus::default()
            }),
        }
    }

    #[tokio::test]
    async fn the_status_follows_pods_and_sizes() {
        let (fake, context) = context();
        let deployment = fake.insert(Deployment {
            metadata: named("ns", "web"),
            spec: Some(DeploymentSpec {
                replicas: Some(4),
                ..DeploymentSpec::default()
            }),
            status: None,
        });
        let mut set = ReplicaSet {
            metadata: named("ns", "web-1"),
            spec: Some(ReplicaSetSpec {
                replicas: Some(4),
                ..ReplicaSetSpec::default()
            }),
            status: None,
        };
        let uid = deployment.metadata.uid.clone().unwrap();
        set.metadata.owner_references = owned_by("apps/v1", "Deployment", "web", &uid);
        fake.insert(set);
        for i in 0..4 {
            fake.insert(pod(&format!("p{i}"), i != 3));
        }
        fake.insert(budget(Some("50%"), None));
        tokio::spawn(run(context));
        let numbers = |fake: &fluyt_client::fake::FakeApi| {
            let status = fake.get::<PodDisruptionBudget>("ns", "budget")?.status?;
            Some((
                status.expected_pods?,
                status.desired_healthy?,
                status.current_healthy?,
                status.disruptions_allowed?,
            ))
        };
        fake.until("one may go", |fake| numbers(fake) == Some((4, 2, 3, 1)))
            .await;
        fake.update(&pod("p3", true));
        fake.until("two may go", |fake| numbers(fake) == Some((4, 2, 4, 2)))
            .await;

        // An eviction that was allowed counts at once, although the pod still looks healthy.
        let mut noted = fake.get::<PodDisruptionBudget>("ns", "budget").unwrap();
        noted.status.as_mut().unwrap().disrupted_pods = Some([("p0".to_owned(), now())].into());
        fake.update(&noted);
        fake.until("one less", |fake| numbers(fake) == Some((4, 2, 3, 1)))
            .await;
        fake.remove(&pod("p0", true));
        fake.until("it is gone", |fake| {
            let status = fake
                .get::<PodDisruptionBudget>("ns", "budget")
                .and_then(|budget| budget.status);
            status.is_some_and(|status| {
                status.disrupted_pods.is_none() && status.current_healthy == Some(3)
            })
        })
        .await;
    }
}
