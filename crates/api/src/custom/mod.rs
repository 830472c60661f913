//! Custom resources: what a CustomResourceDefinition adds to the table of resources, as data that the same generic
//! handlers use as for built-in kinds.

pub mod structural;
pub mod typing;

use std::sync::Arc;

use serde_json::Value;

use crate::resources::{ALL_VERBS, Resource, Subresource, intern};
use crate::schema::Schema;
use crate::strategy::Strategy;

pub use structural::Structural;

/// One version of a custom resource.
#[derive(Debug)]
pub struct Definition {
    pub structural: Structural,
    /// The same as types, for apply and patches.
    pub schema: Schema,
    pub has_status: bool,
    /// The stored version; `None` when this one is it.
    pub stored: Option<Arc<Resource>>,
}

impl Strategy for Definition {
    fn prepare_create(&self, object: &mut Value) {
        if self.has_status
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        if self.has_status {
            crate::strategy::copy_field(object, old, "status");
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn changes_generation(&self, object: &Value, old: &Value) -> bool {
        let counts = |name: &str| name != "metadata" && !(self.has_status && name == "status");
        let parts = |o: &Value| -> usize {
            o.as_object()
                .map_or(0, |m| m.keys().filter(|k| counts(k)).count())
        };
        parts(object) != parts(old)
            || object
                .as_object()
                .into_iter()
                .flatten()
                .any(|(name, value)| counts(name) && old.get(name) != Some(value))
    }
}

/// The served resources of an established definition, one per version. The definition has been validated.
#[must_use]
pub fn resources_of(crd: &Value) -> Vec<Arc<Resource>> {
    let versions = crd["spec"]["versions"].as_array();
    let versions: Vec<&Value> = versions.into_iter().flatten().collect();
    let Some(storage) = versions.iter().find(|v| v["storage"] == true) else {
        return Vec::new();
    };
    let stored = Arc::new(resource(crd, storage, None));
    versions
        .iter()
        .filter(|v| v["served"] == true)
        .map(|version| {
            if version["storage"] == true {
                stored.clone()
            } else {
                Arc::new(resource(crd, version, Some(stored.clone())))
            }
        })
        .collect()
}

fn resource(crd: &Value, version: &Value, stored: Option<Arc<Resource>>) -> Resource {
    let names = &crd["status"]["acceptedNames"];
    let text = |value: &Value| intern(value.as_str().unwrap_or_default());
    let list = |value: &Value| value.as_array().into_iter().flatten().map(text).collect();
    let (group, kind) = (text(&crd["spec"]["group"]), text(&names["kind"]));
    let (plural, name) = (text(&names["plural"]), text(&version["name"]));
    let structural = Structural::parse(&version["schema"]["openAPIV3Schema"]);
    let reversed: Vec<&str> = group.rsplit('.').collect();
    let (schema, ty) = typing::schema_of(
        &format!("{}.{name}.{kind}", reversed.join(".")),
        &structural,
    );
    let has_status = version["subresources"]["status"].is_object();
    let mut subresources = Vec::new();
    if has_status {
        subresources.push(Subresource {
            name: "status",
            group_version: None,
            kind,
            verbs: vec!["get", "patch", "update"],
        });
    }
    if version["subresources"]["scale"].is_object() {
        subresources.push(Subresource {
            name: "scale",
            group_version: Some(("autoscaling", "v1")),
            kind: "Scale",
            verbs: vec!["get", "patch", "update"],
        });
    }
    Resource {
        group,
        version: name,
        plural,
        kind,
        namespaced: crd["spec"]["scope"] == "Namespaced",
        singular: text(&names["singular"]),
        short_names: list(&names["shortNames"]),
        categories: list(&names["categories"]),
        verbs: ALL_VERBS.to_vec(),
        subresources,
        ty: Some(ty),
        storage: intern(&format!("{group}/{plural}")),
        definition: Some(Arc::new(Definition {
            structural,
            schema,
            has_status,
            stored,
        })),
    }
}
