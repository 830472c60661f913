//! Which flow a request belongs to: the first flow schema, by precedence, whose rules match it.

use std::sync::Arc;

use fluyt_api::meta;
use serde_json::Value;

use super::levels::Level;
use super::metrics::Flow;
use crate::authz::Question;
use crate::user::User;

/// A flow schema at work.
pub struct Schema {
    pub name: String,
    pub uid: String,
    pub precedence: i64,
    pub level: Arc<Level>,
    pub flow: Arc<Flow>,
    distinguisher: Distinguisher,
    rules: Vec<Rule>,
}

/// What tells the flows of one schema apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distinguisher {
    None,
    ByUser,
    ByNamespace,
}

struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

struct ResourceRule {
    verbs: Words,
    groups: Words,
    resources: Words,
    namespaces: Words,
    cluster: bool,
}

struct PathRule {
    verbs: Words,
    urls: Vec<String>,
}

/// Words, or all there are.
enum Words {
    Any,
    These(Vec<String>),
}

impl Words {
    fn of(value: &Value) -> Self {
        let words = strings(value);
        match words.as_slice() {
            [one] if one == "*" => Self::Any,
            _ => Self::These(words),
        }
    }

    fn has(&self, word: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(words) => words.iter().any(|w| w == word),
        }
    }

    /// `resource` or `resource/subresource`, without putting them together.
    fn has_resource(&self, resource: &str, subresource: &str) -> bool {
        let Self::These(words) = self else {
            return true;
        };
        words.iter().any(|word| {
            if subresource.is_empty() {
                return word == resource;
            }
            word.strip_prefix(resource)
                .and_then(|rest| rest.strip_prefix('/'))
                .is_some_and(|rest| rest == subresource)
        })
    }
}

fn strings(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

impl Schema {
    /// From an object, for a level that exists.
    #[must_use]
    pub fn new(object: &Value, level: Arc<Level>, flow: Arc<Flow>) -> Self {
        let spec = &object["spec"];
        Self {
            name: meta::name(object).to_owned(),
            uid: meta::uid(object).to_owned(),
            precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1000),
            distinguisher: match spec["distinguisherMethod"]["type"].as_str() {
                Some("ByUser") => Distinguisher::ByUser,
                Some("ByNamespace") => Distinguisher::ByNamespace,
                _ => Distinguisher::None,
            },
            rules: items(&spec["rules"]).map(Rule::new).collect(),
            level,
            flow,
        }
    }

    #[must_use]
    pub fn matches(&self, user: &User, question: &Question) -> bool {
        self.rules.iter().any(|rule| rule.matches(user, question))
    }

    /// What tells this request's flow from others of the schema.
    #[must_use]
    pub fn distinguisher<'a>(&self, user: &'a User, question: &'a Question) -> &'a str {
        match self.distinguisher {
            Distinguisher::None => "",
            Distinguisher::ByUser => &user.name,
            Distinguisher::ByNamespace => &question.namespace,
        }
    }
}

impl Rule {
    fn new(rule: &Value) -> Self {
        Self {
            subjects: items(&rule["subjects"]).filter_map(Subject::new).collect(),
            resources: items(&rule["resourceRules"])
                .map(|rule| ResourceRule {
                    verbs: Words::of(&rule["verbs"]),
                    groups: Words::of(&rule["apiGroups"]),
                    resources: Words::of(&rule["resources"]),
                    namespaces: Words::of(&rule["namespaces"]),
                    cluster: rule["clusterScope"] == true,
                })
                .collect(),
            paths: items(&rule["nonResourceRules"])
                .map(|rule| PathRule {
                    verbs: Words::of(&rule["verbs"]),
                    urls: strings(&rule["nonResourceURLs"]),
                })
                .collect(),
        }
    }

    fn matches(&self, user: &User, question: &Question) -> bool {
        if !self.subjects.iter().any(|subject| subject.is(user)) {
            return false;
        }
        if question.resource.is_empty() {
            return self.paths.iter().any(|rule| rule.matches(question));
        }
        self.resources.iter().any(|rule| rule.matches(question))
    }
}

impl Subject {
    fn new(subject: &Value) -> Option<Self> {
        let text = |at: &Value, field: &str| at[field].as_str().unwrap_or_default().to_owned();
        Some(match subject["kind"].as_str()? {
            "User" => Self::User(text(&subject["user"], "name")),
            "Group" => Self::Group(text(&subject["group"], "name")),
            "ServiceAccount" => {
                let account = &subject["serviceAccount"];
                Self::ServiceAccount {
                    namespace: text(account, "namespace"),
                    name: text(account, "name"),
                }
            }
            _ => return None,
        })
    }

    fn is(&self, user: &User) -> bool {
        match self {
            Self::User(name) => name == "*" || *name == user.name,
            Self::Group(name) => name == "*" || user.is_in(name),
            Self::ServiceAccount { namespace, name } => user
                .name
                .strip_prefix("system:serviceaccount:")
                .and_then(|rest| rest.strip_prefix(namespace.as_str()))
                .and_then(|rest| rest.strip_prefix(':'))
                .is_some_and(|account| name == "*" || name == account),
        }
    }
}

impl ResourceRule {
    fn matches(&self, question: &Question) -> bool {
        self.verbs.has(&question.verb)
            && self
                .resources
                .has_resource(&question.resource, &question.subresource)
            && self.groups.has(&question.group)
            && if question.namespace.is_empty() {
                self.cluster
            } else {
                self.namespaces.has(&question.namespace)
            }
    }
}

impl PathRule {
    fn matches(&self, question: &Question) -> bool {
        let path = question.path.as_str();
        self.verbs.has(&question.verb)
            && self.urls.iter().any(|url| {
                if url == "*" || url == path {
                    return true;
                }
                // `/a` and `/a/*` are about everything below `/a`.
                let prefix = url.strip_suffix('*').unwrap_or(url);
                match path.strip_prefix(prefix.trim_end_matches('/')) {
                    Some(rest) => rest.starts_with('/'),
                    None => false,
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluyt_api::flowcontrol::FLOW_SCHEMAS;
    use serde_json::json;

    /// The first of the schemas that a cluster begins with.
    fn classify(user: &User, question: &Question) -> String {
        let mut schemas: Vec<Schema> = FLOW_SCHEMAS
            .mandatory
            .iter()
            .chain(&FLOW_SCHEMAS.suggested)
            .map(|object| Schema::new(object, Level::for_tests("l"), Arc::default()))
            .collect();
        schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        let found = schemas.into_iter().find(|s| s.matches(user, question));
        found.unwrap().name
    }

    fn question(verb: &str, group: &str, resource: &str, namespace: &str) -> Question {
        Question {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            ..Question::default()
        }
    }

    #[test]
    fn requests_find_their_schema() {
        let pods = question("list", "", "pods", "n");
        let lease = question("update", "coordination.k8s.io", "leases", "kube-system");
        let node = User::new("system:node:a", &["system:nodes"]);
        for (user, question, name) in [
            (User::new("x", &["system:masters"]), &pods, "exempt"),
            (node.clone(), &pods, "system-nodes"),
            (
                node.clone(),
                &question("get", "", "nodes", ""),
                "system-node-high",
            ),
            (node, &lease, "system-node-high"),
            (
                User::service_account("kube-system", "c", ""),
                &lease,
                "system-leader-election",
            ),
            (
                User::service_account("kube-system", "c", ""),
                &pods,
                "kube-system-service-accounts",
            ),
            (
                User::service_account("kube-systemx", "c", ""),
                &pods,
                "service-accounts",
            ),
            (
                User::new("system:kube-scheduler", &[]),
                &pods,
                "kube-scheduler",
            ),
            (User::new("alice", &[]), &pods, "global-default"),
            (User::anonymous(), &pods, "global-default"),
        ] {
            assert_eq!(classify(&user, question), name, "{}", user.name);
        }
        let probe = Question {
            verb: "get".into(),
            path: "/livez/ping".into(),
            ..Question::default()
        };
        assert_eq!(classify(&User::anonymous(), &probe), "probes");
    }

    #[test]
    fn subresources_are_named_with_their_resource() {
        let words = Words::of(&json!(["nodes/status"]));
        assert!(words.has_resource("nodes", "status"));
        assert!(!words.has_resource("nodes", "") && !words.has_resource("node", "s/status"));
    }
}
