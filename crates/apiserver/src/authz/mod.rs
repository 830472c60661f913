//! Authorization: `system:masters`, nodes, then RBAC; whoever none of them knows is refused.

mod node;
mod rbac;

use std::sync::Arc;

use crate::cache::Caches;
use crate::user::{MASTERS, User};

pub use rbac::{Rule, rules_cover};

/// One question to the authorizers.
#[derive(Clone, Debug, Default)]
pub struct Question {
    pub verb: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// For requests that are not about a resource; then the others are empty.
    pub path: String,
}

impl Question {
    /// `pods` or `pods/log`.
    fn resource_path(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// What upstream says to whom it refuses.
    #[must_use]
    pub fn refusal(&self, user: &User) -> String {
        if self.resource.is_empty() {
            return format!(
                "User \"{}\" cannot {} path \"{}\"",
                user.name, self.verb, self.path
            );
        }
        let scope = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{}\"", self.namespace)
        };
        format!(
            "User \"{}\" cannot {} resource \"{}\" in API group \"{}\" {scope}",
            user.name,
            self.verb,
            self.resource_path(),
            self.group
        )
    }
}

/// The authorizers in order.
pub struct Authorizer {
    node: node::NodeAuthorizer,
    rbac: rbac::Rbac,
}

impl Authorizer {
    #[must_use]
    pub fn new(caches: Arc<Caches>) -> Self {
        Self {
            node: node::NodeAuthorizer::new(caches.clone()),
            rbac: rbac::Rbac::new(caches),
        }
    }

    /// Whether the user may do it, and why.
    #[must_use]
    pub fn allows(&self, user: &User, question: &Question) -> Option<String> {
        if user.is_in(MASTERS) {
            return Some(String::new());
        }
        if let Some(node) = user.node_name()
            && self.node.allows(node, question)
        {
            return Some(String::new());
        }
        self.rbac.allows(user, question)
    }

    /// All rules that apply to a user in a namespace.
    #[must_use]
    pub fn rules(&self, user: &User, namespace: &str) -> Vec<Arc<Rule>> {
        if user.is_in(MASTERS) {
            return Rule::everything();
        }
        self.rbac.rules(user, namespace)
    }

    /// The rules of a role that a binding refers to.
    #[must_use]
    pub fn rules_of(&self, kind: &str, namespace: &str, name: &str) -> Option<Vec<Arc<Rule>>> {
        self.rbac.rules_of(kind, namespace, name)
    }
}
