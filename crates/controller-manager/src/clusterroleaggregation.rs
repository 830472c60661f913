//! clusterrole-aggregation-controller: ClusterRoles with an aggregation rule have the rules of all that it selects.

use fluyt_client::{
    Action, Informer, ObjectKey, WorkQueue, controller, helpers::labels, is_not_found,
};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::{Api, Client, api::PostParams};

use crate::{
    Context,
    common::{enqueue_mapped, name},
};

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let roles = context.informers.get::<ClusterRole>();
    roles.synced().await;
    let queue = WorkQueue::new();
    let known = roles.clone();
    // Any role may be part of any aggregate.
    enqueue_mapped(&roles, &queue, move |_| {
        let aggregates = known
            .list()
            .into_iter()
            .filter(|role| role.aggregation_rule.is_some());
        aggregates.map(|role| ObjectKey::of(&*role)).collect()
    });
    let reconcile = |key| reconcile(key, &roles, &context.client);
    let shutdown = context.shutdown.clone();
    controller::run(
        "clusterrole-aggregation-controller",
        queue,
        1,
        reconcile,
        shutdown,
    )
    .await;
}

/// The rules of all other roles that one of the aggregate's selectors matches.
fn aggregate(role: &ClusterRole, all: &[std::sync::Arc<ClusterRole>]) -> Vec<PolicyRule> {
    let selectors = role
        .aggregation_rule
        .iter()
        .flat_map(|rule| rule.cluster_role_selectors.iter().flatten());
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors {
        let mut selected: Vec<_> = all
            .iter()
            .filter(|other| {
                other.metadata.name != role.metadata.name
                    && labels::matches(selector, labels::labels_of(&other.metadata))
            })
            .collect();
        selected.sort_by_key(|other| name(&other.metadata));
        for rule in selected
            .into_iter()
            .flat_map(|other| other.rules.iter().flatten())
        {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    rules
}

async fn reconcile(
    key: ObjectKey,
    roles: &Informer<ClusterRole>,
    client: &Client,
) -> anyhow::Result<Action> {
    let Some(role) = roles
        .get_key(&key)
        .filter(|role| role.aggregation_rule.is_some())
    else {
        return Ok(Action::Await);
    };
    let rules = aggregate(&role, &roles.list());
    if role.rules.as_deref().unwrap_or_default() == rules {
        return Ok(Action::Await);
    }
    let mut updated = (*role).clone();
    updated.rules = Some(rules);
    let api = Api::<ClusterRole>::all(client.clone());
    match api
        .replace(&key.name, &PostParams::default(), &updated)
        .await
    {
        Err(error) if is_not_found(&error) => {}
        result => drop(result?),
    }
    Ok(Action::Await)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::rbac::v1::AggregationRule, apimachinery::pkg::apis::meta::v1::LabelSelector,
    };

    use super::*;
    use crate::common::test_support::{context, labelled};

    fn role(name: &str, resource: &str) -> ClusterRole {
        ClusterRole {
            metadata: labelled("", name, "to-view=true"),
            rules: Some(vec![PolicyRule {
                resources: Some(vec![resource.to_owned()]),
                verbs: vec!["get".to_owned()],
                ..PolicyRule::default()
            }]),
            aggregation_rule: None,
        }
    }

    #[tokio::test]
    async fn aggregates_follow_their_parts() {
        let (fake, context) = context();
        let selector = LabelSelector {
            match_labels: Some([("to-view".to_owned(), "true".to_owned())].into()),
            match_expressions: None,
        };
        fake.insert(ClusterRole {
            aggregation_rule: Some(AggregationRule {
                cluster_role_selectors: Some(vec![selector]),
            }),
            ..role("view", "nothing")
        });
        fake.insert(role("b", "pods"));
        fake.insert(role("a", "secrets"));
        fake.insert(role("c", "pods"));
        tokio::spawn(run(context));
        let resources = |fake: &fluyt_client::fake::FakeApi| -> Vec<String> {
            let rules = fake
                .get::<ClusterRole>("", "view")
                .and_then(|role| role.rules)
                .unwrap_or_default();
            rules
                .into_iter()
                .flat_map(|rule| rule.resources.unwrap_or_default())
                .collect()
        };
        fake.until("both", |fake| resources(fake) == ["secrets", "pods"])
            .await;
        fake.remove(&role("a", "secrets"));
        fake.until("one", |fake| resources(fake) == ["pods"]).await;
    }
}
