//! Who owns whom.

use std::collections::{HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::core::ApiResource;

use super::{FOREGROUND, ORPHAN};
use crate::common::{name, uid};

/// How to find an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub api_version: String,
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
    pub uid: String,
}

impl Identity {
    pub fn new(api: &ApiResource, meta: &ObjectMeta) -> Self {
        Self {
            api_version: api.api_version.clone(),
            kind: api.kind.clone(),
            namespace: meta.namespace.clone(),
            name: name(meta).to_owned(),
            uid: uid(meta).to_owned(),
        }
    }
}

/// What is known of an object.
#[derive(Debug, Clone)]
struct Node {
    identity: Identity,
    owners: Vec<OwnerReference>,
    dependents: HashSet<String>,
    /// Named as an owner, but not seen itself.
    is_virtual: bool,
    is_leaving: bool,
    deletes_dependents: bool,
    orphans_dependents: bool,
}

/// What the graph tells about one object.
#[derive(Debug, Clone)]
pub struct View {
    pub identity: Identity,
    pub is_virtual: bool,
    pub is_leaving: bool,
    /// Foreground deletion has begun.
    pub deletes_dependents: bool,
    pub has_dependents: bool,
}

/// Uids of objects to look at.
#[derive(Debug, PartialEq, Eq)]
pub enum Followup {
    Delete(String),
    Orphan(String),
}

#[derive(Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
}

impl Graph {
    /// An object appeared or changed.
    pub fn observe(&mut self, identity: &Identity, meta: &ObjectMeta) -> Vec<Followup> {
        let mut followups = Vec::new();
        let owners = meta.owner_references.clone().unwrap_or_default();
        let finalizers = meta.finalizers.as_deref().unwrap_or_default();
        let is_leaving = meta.deletion_timestamp.is_some();
        let leaving_with =
            |finalizer: &str| is_leaving && finalizers.iter().any(|known| known == finalizer);
        let (foreground, orphan) = (leaving_with(FOREGROUND), leaving_with(ORPHAN));
        let before = self
            .nodes
            .get(&identity.uid)
            .filter(|node| !node.is_virtual);
        let old_owners = before.map(|node| node.owners.clone()).unwrap_or_default();
        let was = before.map_or((false, false), |node| {
            (node.deletes_dependents, node.orphans_dependents)
        });
        let dependents = self
            .nodes
            .remove(&identity.uid)
            .map(|node| node.dependents)
            .unwrap_or_default();

        if foreground && !was.0 {
            followups.extend(dependents.iter().cloned().map(Followup::Delete));
            followups.push(Followup::Delete(identity.uid.clone()));
        }
        if orphan && !was.1 {
            followups.push(Followup::Orphan(identity.uid.clone()));
        }
        let node = Node {
            identity: identity.clone(),
            owners: owners.clone(),
            dependents,
            is_virtual: false,
            is_leaving,
            deletes_dependents: foreground,
            orphans_dependents: orphan,
        };
        self.nodes.insert(identity.uid.clone(), node);

        for gone in old_owners
            .iter()
            .filter(|old| !owners.iter().any(|owner| owner.uid == old.uid))
        {
            if let Some(owner) = self.nodes.get_mut(&gone.uid) {
                owner.dependents.remove(&identity.uid);
            }
            followups.extend(self.waiting(&gone.uid));
        }
        // It may no longer block its owners, or lost the last one that held it.
        if owners != old_owners && !old_owners.is_empty() {
            followups.extend(owners.iter().flat_map(|owner| self.waiting(&owner.uid)));
            followups.push(Followup::Delete(identity.uid.clone()));
        }
        for owner in &owners {
            followups.extend(self.add_dependent(owner, identity));
        }
        followups
    }

    fn add_dependent(&mut self, owner: &OwnerReference, dependent: &Identity) -> Option<Followup> {
        if let Some(node) = self.nodes.get_mut(&owner.uid) {
            let is_new = node.dependents.insert(dependent.uid.clone());
            // A dependent of an object that is on its way out goes as well.
            return (is_new && node.deletes_dependents)
                .then(|| Followup::Delete(dependent.uid.clone()));
        }
        let node = Node {
            identity: Identity {
                api_version: owner.api_version.clone(),
                kind: owner.kind.clone(),
                // Owners are in the namespace of their dependents, or cluster-scoped.
                namespace: dependent.namespace.clone(),
                name: owner.name.clone(),
                uid: owner.uid.clone(),
            },
            owners: Vec::new(),
            dependents: [dependent.uid.clone()].into(),
            is_virtual: true,
            is_leaving: false,
            deletes_dependents: false,
            orphans_dependents: false,
        };
        self.nodes.insert(owner.uid.clone(), node);
        // Does it exist at all?
        Some(Followup::Delete(owner.uid.clone()))
    }

    fn waiting(&self, uid: &str) -> Option<Followup> {
        let waits = self
            .nodes
            .get(uid)
            .is_some_and(|node| node.deletes_dependents);
        waits.then(|| Followup::Delete(uid.to_owned()))
    }

    /// The object is gone: its dependents may have to go, and an owner may have waited for it.
    pub fn forget(&mut self, uid: &str) -> Vec<Followup> {
        let Some(node) = self.nodes.remove(uid) else {
            return Vec::new();
        };
        let mut followups: Vec<Followup> =
            node.dependents.into_iter().map(Followup::Delete).collect();
        for owner in &node.owners {
            let Some(of_owner) = self.nodes.get_mut(&owner.uid) else {
                continue;
            };
            of_owner.dependents.remove(uid);
            if of_owner.is_virtual && of_owner.dependents.is_empty() {
                self.nodes.remove(&owner.uid);
            } else {
                followups.extend(self.waiting(&owner.uid));
            }
        }
        followups
    }

    pub fn get(&self, uid: &str) -> Option<View> {
        self.nodes.get(uid).map(|node| View {
            identity: node.identity.clone(),
            is_virtual: node.is_virtual,
            is_leaving: node.is_leaving,
            deletes_dependents: node.deletes_dependents,
            has_dependents: !node.dependents.is_empty(),
        })
    }

    /// The dependents of the object of this uid.
    pub fn dependents(&self, uid: &str) -> Vec<Identity> {
        let Some(node) = self.nodes.get(uid) else {
            return Vec::new();
        };
        let dependents = node
            .dependents
            .iter()
            .filter_map(|dependent| self.nodes.get(dependent));
        dependents
            .map(|dependent| dependent.identity.clone())
            .collect()
    }

    /// Whether a dependent of the object is itself waiting for its dependents to be deleted.
    pub fn is_in_circle(&self, uid: &str) -> bool {
        let Some(node) = self.nodes.get(uid) else {
            return false;
        };
        let mut dependents = node.dependents.iter().filter_map(|d| self.nodes.get(d));
        dependents.any(|dependent| dependent.deletes_dependents)
    }

    /// Uids of the dependents without whose deletion the object may not go.
    pub fn blocking_dependents(&self, uid: &str) -> Vec<String> {
        let blocks = |dependent: &&Node| {
            dependent
                .owners
                .iter()
                .any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
        };
        let Some(node) = self.nodes.get(uid) else {
            return Vec::new();
        };
        let dependents = node
            .dependents
            .iter()
            .filter_map(|dependent| self.nodes.get(dependent));
        dependents
            .filter(blocks)
            .map(|dependent| dependent.identity.uid.clone())
            .collect()
    }
}
