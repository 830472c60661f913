//! Who changes the owners of an object may delete it, and who lets it hold up an owner's deletion may do that to the owner.

use async_trait::async_trait;
use fluyt_api::Error;
use serde_json::Value;

use super::{Attributes, Operation, Plugin, Shared};
use crate::authz::{Decision, Question};
use crate::cache::Caches;

pub(super) struct OwnerReferencesPermissionEnforcement(pub Shared);

fn owners(object: &Value) -> &[Value] {
    object["metadata"]["ownerReferences"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

fn blocks(owner: &&Value) -> bool {
    owner["blockOwnerDeletion"] == true
}

/// The owners that would wait for the object and did not before.
fn newly_blocked<'a>(new: &'a [Value], old: &'a [Value]) -> impl Iterator<Item = &'a Value> {
    let waited = |owner: &Value| old.iter().filter(blocks).any(|o| o["uid"] == owner["uid"]);
    new.iter()
        .filter(blocks)
        .filter(move |owner| !waited(owner))
}

/// Why not, as upstream prints what its authorizers say.
fn refusal(decision: Decision) -> Option<String> {
    if decision.allows() {
        return None;
    }
    let error = decision.error.as_deref().unwrap_or("<nil>");
    Some(format!("{}, {error}", decision.reason))
}

/// Whether the user may let anything wait for anything.
fn everything() -> Question {
    let any = || "*".to_owned();
    Question {
        verb: "update".into(),
        group: any(),
        version: any(),
        resource: any(),
        subresource: "finalizers".into(),
        name: any(),
        ..Question::default()
    }
}

impl OwnerReferencesPermissionEnforcement {
    async fn decide(&self, attributes: &Attributes<'_>, question: &Question) -> Decision {
        let user = &attributes.cx.user;
        self.0.authorizer.decide(user, question).await
    }

    /// Whether the user may let an object wait for this one.
    fn finalizers(&self, attributes: &Attributes<'_>, owner: &Value) -> Result<Question, String> {
        let text = |field: &str| owner[field].as_str().unwrap_or_default();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let (group, version) = match api_version.split('/').collect::<Vec<_>>()[..] {
            [version] => ("", version),
            [group, version] => (group, version),
            _ => return Err(format!("unexpected GroupVersion string: {api_version}")),
        };
        let served = self.0.caches.served();
        let Some(resource) = served.find_kind(group, version, kind) else {
            return Err(format!(
                "no matches for kind {kind:?} in version {api_version:?}"
            ));
        };
        let namespace = match resource.namespaced {
            true => attributes.at.namespace,
            false => "",
        };
        Ok(Question {
            verb: "update".into(),
            group: group.into(),
            version: version.into(),
            resource: resource.plural.into(),
            subresource: "finalizers".into(),
            namespace: namespace.into(),
            name: text("name").into(),
            ..Question::default()
        })
    }
}

#[async_trait]
impl Plugin for OwnerReferencesPermissionEnforcement {
    async fn validate(
        &self,
        _caches: &Caches,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Result<(), Error> {
        let (at, old) = (attributes.at, attributes.old);
        let writes = matches!(attributes.operation, Operation::Create | Operation::Update);
        let new = owners(object);
        let before = old.map_or(&[][..], owners);
        // Kubelets of old spoil the metadata of what they report; it is not written there anyway.
        let reports = at.resource.group.is_empty()
            && (at.resource.plural, at.subresource) == ("pods", "status");
        if !writes || reports || new == before {
            return Ok(());
        }
        if attributes.operation == Operation::Update {
            let requested = attributes.requested();
            let question = Question {
                verb: "delete".into(),
                group: requested.group.into(),
                version: requested.version.into(),
                resource: requested.plural.into(),
                subresource: at.subresource.into(),
                namespace: at.namespace.into(),
                name: at.name.into(),
                ..Question::default()
            };
            if let Some(why) = refusal(self.decide(attributes, &question).await) {
                return Err(attributes.forbidden(format!(
                    "cannot set an ownerRef on a resource you can't delete: {why}"
                )));
            }
        }
        let blocked: Vec<&Value> = newly_blocked(new, before).collect();
        if blocked.is_empty() || self.decide(attributes, &everything()).await.allows() {
            return Ok(());
        }
        for owner in blocked {
            let question = self.finalizers(attributes, owner).map_err(|why| {
                let text = |field: &str| owner[field].as_str().unwrap_or_default();
                attributes.forbidden(format!(
                    "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {} Kind {}: {why}",
                    text("apiVersion"),
                    text("kind")
                ))
            })?;
            if let Some(why) = refusal(self.decide(attributes, &question).await) {
                return Err(attributes.forbidden(format!(
                    "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: {why}"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn owners_that_waited_before_are_not_asked_about() {
        let owner = |uid: &str, blocks: bool| json!({"uid": uid, "blockOwnerDeletion": blocks});
        let old = [owner("a", true), owner("b", false), json!({"uid": "c"})];
        let new = [
            owner("a", true),
            owner("b", true),
            owner("c", true),
            owner("d", false),
            owner("e", true),
        ];
        let blocked: Vec<&Value> = newly_blocked(&new, &old).map(|o| &o["uid"]).collect();
        assert_eq!(blocked, ["b", "c", "e"]);
        assert_eq!(newly_blocked(&new, &[]).count(), 4);
    }
}
