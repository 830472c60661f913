//! RBAC over an index of all roles and bindings, rebuilt when one of them has changed.

use std::collections::HashMap;
use std::sync::Arc;

use fluyt_api::resources;
use parking_lot::RwLock;
use serde_json::Value;

use super::{Decision, Question, Verdict, aggregate};
use crate::cache::Caches;
use crate::user::User;

const GROUP: &str = "rbac.authorization.k8s.io";
const RESOURCES: [&str; 4] = [
    "clusterroles",
    "clusterrolebindings",
    "roles",
    "rolebindings",
];

/// A `PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    pub names: Vec<String>,
    pub urls: Vec<String>,
}

pub(super) struct Rbac {
    caches: Arc<Caches>,
    index: RwLock<Arc<Index>>,
}

#[derive(Default)]
struct Index {
    /// Revisions of the four resources that it was built from.
    built_from: [i64; 4],
    /// By `ClusterRole//name` or `Role/namespace/name`.
    roles: HashMap<String, Arc<[Arc<Rule>]>>,
    /// Bindings by subject; namespace is empty for cluster-wide ones.
    by_subject: HashMap<String, Vec<Binding>>,
}

#[derive(Clone)]
struct Binding {
    namespace: String,
    name: String,
    role: String,
    role_kind: String,
    role_name: String,
    /// As reasons name it: `Group "g"`.
    subject: String,
}

impl Rule {
    #[must_use]
    pub fn from_json(rule: &Value) -> Self {
        let list = |field: &str| {
            rule[field]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect()
        };
        Self {
            verbs: list("verbs"),
            groups: list("apiGroups"),
            resources: list("resources"),
            names: list("resourceNames"),
            urls: list("nonResourceURLs"),
        }
    }

    #[must_use]
    pub fn everything() -> Vec<Arc<Self>> {
        let all = || vec!["*".to_owned()];
        vec![
            Arc::new(Self {
                verbs: all(),
                groups: all(),
                resources: all(),
                ..Self::default()
            }),
            Arc::new(Self {
                verbs: all(),
                urls: all(),
                ..Self::default()
            }),
        ]
    }

    pub(super) fn allows(&self, question: &Question) -> bool {
        if !any(&self.verbs, &question.verb) {
            return false;
        }
        if question.resource.is_empty() {
            return self.urls.iter().any(|u| url_matches(u, &question.path));
        }
        any(&self.groups, &question.group)
            && (self.names.is_empty() || self.names.contains(&question.name))
            && self.resources.iter().any(|r| resource_matches(r, question))
    }
}

fn any(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

fn url_matches(pattern: &str, path: &str) -> bool {
    pattern == "*"
        || pattern == path
        || pattern
            .strip_suffix('*')
            .is_some_and(|prefix| path.starts_with(prefix))
}

/// `*`, `pods`, `pods/log`, or `*/scale`.
fn resource_matches(pattern: &str, question: &Question) -> bool {
    match pattern.split_once('/') {
        None if pattern == "*" => true,
        None => question.subresource.is_empty() && pattern == question.resource,
        Some(("*", sub)) => sub == question.subresource,
        Some((resource, sub)) => resource == question.resource && sub == question.subresource,
    }
}

/// Whether `owned` rules allow everything that `wanted` rules do; the wanted ones that they do not.
#[must_use]
pub fn rules_cover(owned: &[Arc<Rule>], wanted: &[Rule]) -> Vec<Rule> {
    wanted
        .iter()
        .flat_map(single_rules)
        .filter(|one| !owned.iter().any(|rule| covers(rule, one)))
        .collect()
}

/// A rule as rules with one verb, group, resource, name or URL each.
fn single_rules(rule: &Rule) -> Vec<Rule> {
    let mut singles = Vec::new();
    for verb in &rule.verbs {
        let verbs = vec![verb.clone()];
        for url in &rule.urls {
            singles.push(Rule {
                verbs: verbs.clone(),
                urls: vec![url.clone()],
                ..Rule::default()
            });
        }
        for group in &rule.groups {
            for resource in &rule.resources {
                let base = Rule {
                    verbs: verbs.clone(),
                    groups: vec![group.clone()],
                    resources: vec![resource.clone()],
                    ..Rule::default()
                };
                if rule.names.is_empty() {
                    singles.push(base.clone());
                }
                singles.extend(rule.names.iter().map(|n| Rule {
                    names: vec![n.clone()],
                    ..base.clone()
                }));
            }
        }
    }
    singles
}

fn covers(rule: &Rule, one: &Rule) -> bool {
    let has = |list: &[String], wanted: &[String]| wanted.iter().all(|w| any(list, w));
    if !one.urls.is_empty() {
        return has(&rule.verbs, &one.verbs)
            && one
                .urls
                .iter()
                .all(|w| rule.urls.iter().any(|u| url_matches(u, w)));
    }
    let resources = one.resources.iter().all(|w| {
        let (resource, sub) = w.split_once('/').unwrap_or((w, ""));
        let question = Question {
            resource: resource.to_owned(),
            subresource: sub.to_owned(),
            ..Question::default()
        };
        rule.resources
            .iter()
            .any(|r| r == w || resource_matches(r, &question))
    });
    let names = rule.names.is_empty()
        || (!one.names.is_empty() && one.names.iter().all(|n| rule.names.contains(n)));
    has(&rule.verbs, &one.verbs) && has(&rule.groups, &one.groups) && resources && names
}

impl Rbac {
    pub(super) fn new(caches: Arc<Caches>) -> Self {
        Self {
            caches,
            index: RwLock::default(),
        }
    }

    pub(super) fn decide(&self, user: &User, question: &Question) -> Decision {
        let index = self.index();
        let mut missing = Vec::new();
        for binding in index.bindings(user, &question.namespace) {
            let Some(rules) = index.roles.get(&binding.role) else {
                missing.push(binding.missing());
                continue;
            };
            if rules.iter().any(|r| r.allows(question)) {
                return Decision::of(Verdict::Allow, binding.reason());
            }
        }
        let reason = aggregate(missing).map(|errors| format!("RBAC: {errors}"));
        Decision::of(Verdict::NoOpinion, reason.unwrap_or_default())
    }

    /// The rules of a user in a namespace, and what is wrong with their bindings.
    pub(super) fn rules(&self, user: &User, namespace: &str) -> (Vec<Arc<Rule>>, Vec<String>) {
        let index = self.index();
        let (mut rules, mut missing) = (Vec::new(), Vec::new());
        for binding in index.bindings(user, namespace) {
            match index.roles.get(&binding.role) {
                Some(role) => rules.extend(role.iter().cloned()),
                None => missing.push(binding.missing()),
            }
        }
        (rules, missing)
    }

    pub(super) fn rules_of(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Option<Vec<Arc<Rule>>> {
        self.index()
            .roles
            .get(&role_key(kind, namespace, name))
            .map(|rules| rules.to_vec())
    }

    fn index(&self) -> Arc<Index> {
        let tables = RESOURCES.map(|plural| resources::find(GROUP, "v1", plural));
        let revisions = tables.map(|r| r.map_or(0, |r| self.caches.of(r).revision()));
        let present = self.index.read().clone();
        if present.built_from == revisions {
            return present;
        }
        let objects = tables.map(|r| {
            let entries = r
                .map(|r| self.caches.of(r).snapshot().objects.entries)
                .unwrap_or_default();
            entries.values().map(|e| e.object()).collect::<Vec<_>>()
        });
        let fresh = Arc::new(Index::build(revisions, &objects));
        *self.index.write() = fresh.clone();
        fresh
    }
}

fn role_key(kind: &str, namespace: &str, name: &str) -> String {
    let namespace = if kind == "ClusterRole" { "" } else { namespace };
    format!("{kind}/{namespace}/{name}")
}

impl Index {
    fn build(
        built_from: [i64; 4],
        [cluster_roles, cluster_bindings, roles, bindings]: &[Vec<Value>; 4],
    ) -> Self {
        use fluyt_api::meta;
        let mut index = Self {
            built_from,
            ..Self::default()
        };
        for (kind, objects) in [("ClusterRole", cluster_roles), ("Role", roles)] {
            for object in objects {
                let rules = object["rules"].as_array().into_iter().flatten();
                let rules = rules.map(|r| Arc::new(Rule::from_json(r))).collect();
                index.roles.insert(
                    role_key(kind, meta::namespace(object), meta::name(object)),
                    rules,
                );
            }
        }
        for object in cluster_bindings.iter().chain(bindings) {
            let namespace = meta::namespace(object);
            let (kind, role) = (
                object["roleRef"]["kind"].as_str().unwrap_or_default(),
                object["roleRef"]["name"].as_str().unwrap_or_default(),
            );
            for subject in object["subjects"].as_array().into_iter().flatten() {
                let name = subject["name"].as_str().unwrap_or_default();
                let subject_kind = subject["kind"].as_str().unwrap_or_default();
                let (key, described) = match subject_kind {
                    "User" => (format!("u:{name}"), name.to_owned()),
                    "Group" => (format!("g:{name}"), name.to_owned()),
                    "ServiceAccount" => {
                        let ns = subject["namespace"].as_str().unwrap_or(namespace);
                        let user = format!("u:system:serviceaccount:{ns}:{name}");
                        (user, format!("{name}/{ns}"))
                    }
                    _ => continue,
                };
                let binding = Binding {
                    namespace: namespace.to_owned(),
                    name: meta::name(object).to_owned(),
                    role: role_key(kind, namespace, role),
                    role_kind: kind.to_owned(),
                    role_name: role.to_owned(),
                    subject: format!("{subject_kind} {described:?}"),
                };
                index.by_subject.entry(key).or_default().push(binding);
            }
        }
        index
    }

    /// Bindings that count for a user in a namespace.
    fn bindings<'a>(
        &'a self,
        user: &'a User,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Binding> + 'a {
        let as_user = std::iter::once(format!("u:{}", user.name));
        let as_groups = user.groups.iter().map(|g| format!("g:{g}"));
        as_user
            .chain(as_groups)
            .filter_map(|key| self.by_subject.get(&key))
            .flatten()
            .filter(move |b| b.namespace.is_empty() || b.namespace == namespace)
    }
}

impl Binding {
    /// Why it allows what it allows.
    fn reason(&self) -> String {
        let (kind, name) = if self.namespace.is_empty() {
            ("ClusterRoleBinding", self.name.clone())
        } else {
            ("RoleBinding", format!("{}/{}", self.name, self.namespace))
        };
        format!(
            "RBAC: allowed by {kind} {name:?} of {} {:?} to {}",
            self.role_kind, self.role_name, self.subject
        )
    }

    /// That its role is not there.
    fn missing(&self) -> String {
        format!(
            "{}.rbac.authorization.k8s.io {:?} not found",
            self.role_kind.to_lowercase(),
            self.role_name
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Rule {
        let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
        Rule {
            verbs: own(verbs),
            groups: own(groups),
            resources: own(resources),
            ..Rule::default()
        }
    }

    fn question(verb: &str, resource: &str, sub: &str) -> Question {
        Question {
            verb: verb.into(),
            resource: resource.into(),
            subresource: sub.into(),
            ..Question::default()
        }
    }

    #[test]
    fn rules() {
        assert!(rule(&["get"], &[""], &["pods"]).allows(&question("get", "pods", "")));
        assert!(!rule(&["get"], &[""], &["pods"]).allows(&question("get", "pods", "log")));
        assert!(rule(&["*"], &["*"], &["*/scale"]).allows(&question("update", "x", "scale")));
        assert!(!rule(&["get"], &["apps"], &["*"]).allows(&question("get", "pods", "")));
        let path = Question {
            verb: "get".into(),
            path: "/healthz/x".into(),
            ..Question::default()
        };
        assert!(
            Rule {
                verbs: vec!["get".into()],
                urls: vec!["/healthz/*".into()],
                ..Rule::default()
            }
            .allows(&path)
        );
    }

    #[test]
    fn bindings_are_found_by_user_group_and_service_account() {
        let role = json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]});
        let binding = json!({"metadata": {"name": "b", "namespace": "n"}, "roleRef": {"kind": "ClusterRole", "name": "r"},
            "subjects": [{"kind": "ServiceAccount", "name": "a"}, {"kind": "Group", "name": "g"}]});
        let index = Index::build([0; 4], &[vec![role], vec![], vec![], vec![binding]]);
        let account = User::service_account("n", "a", "");
        assert_eq!(index.bindings(&account, "n").count(), 1);
        assert_eq!(index.bindings(&account, "other").count(), 0);
        assert_eq!(index.bindings(&User::new("x", &["g"]), "n").count(), 1);
        assert_eq!(index.bindings(&User::anonymous(), "n").count(), 0);
    }

    #[test]
    fn escalation_is_noticed() {
        let owned = [Arc::new(rule(
            &["get", "list"],
            &[""],
            &["pods", "pods/log"],
        ))];
        assert!(rules_cover(&owned, &[rule(&["get"], &[""], &["pods"])]).is_empty());
        assert_eq!(
            rules_cover(&owned, &[rule(&["get", "delete"], &[""], &["pods"])]).len(),
            1
        );
    }
}
