//! Who makes a request.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// An authenticated user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const MASTERS: &str = "system:masters";
/// Those who look after the cluster's health.
pub const MONITORING: &str = "system:monitoring";
pub const NODES: &str = "system:nodes";
pub const ANONYMOUS: &str = "system:anonymous";
/// The extra attribute that names the credential itself.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
const NODE_PREFIX: &str = "system:node:";

impl User {
    #[must_use]
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        let groups = groups
            .iter()
            .map(|g| (*g).to_owned())
            .chain([AUTHENTICATED.to_owned()])
            .collect();
        Self {
            name: name.into(),
            groups,
            ..Self::default()
        }
    }

    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.into(),
            groups: vec![UNAUTHENTICATED.into()],
            ..Self::default()
        }
    }

    #[must_use]
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let groups = [
            "system:serviceaccounts",
            &format!("system:serviceaccounts:{namespace}"),
        ];
        Self {
            uid: uid.into(),
            ..Self::new(format!("system:serviceaccount:{namespace}:{name}"), &groups)
        }
    }

    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node's name, if the user is a node.
    #[must_use]
    pub fn node_name(&self) -> Option<&str> {
        self.name
            .strip_prefix(NODE_PREFIX)
            .filter(|_| self.is_in(NODES))
    }
}

/// `authentication.k8s.io/v1` `UserInfo`.
#[must_use]
pub fn user_info(user: &User) -> Value {
    let mut info = json!({});
    if !user.name.is_empty() {
        info["username"] = user.name.clone().into();
    }
    if !user.uid.is_empty() {
        info["uid"] = user.uid.clone().into();
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}
