//! Managed fields on the write path: who writes, and what they come to own.

use fluyt_api::managedfields::{
    Alone, FieldManager, Served, equal_but_for_times, from_scale, reset_fields, to_scale,
};
use fluyt_api::meta;
use fluyt_api::resources::{Resource, type_of};
use serde_json::{Value, json};

use super::{Location, Registry, WriteContext};
use crate::cache::working_resource;

/// In whose name, and in which version of the object, a request writes.
#[derive(Clone, Debug)]
pub struct Writer {
    pub manager: String,
    /// The `apiVersion` of the request's endpoint.
    pub api_version: String,
    /// The object comes from server-side apply, which has kept the managed fields already.
    pub applied: bool,
}

impl Registry {
    /// Lends the field manager of an endpoint.
    pub fn with_field_manager<T>(
        &self,
        at: Location<'_>,
        requested: &str,
        use_it: impl FnOnce(&FieldManager<'_>) -> T,
    ) -> T {
        let snapshot = self.caches.served();
        let stored = working_resource(at.resource);
        let now = meta::now();
        let versions = Served {
            snapshot: &snapshot,
            stored,
        };
        use_it(&FieldManager {
            versions: &versions,
            stored: &stored.api_version(),
            requested,
            subresource: at.subresource,
            reset: reset_fields(stored, at.subresource),
            now: &now,
        })
    }

    /// Records what `new` changes of `old` (null: nothing yet), both in the stored version.
    pub(super) fn track(&self, cx: &WriteContext, at: Location<'_>, old: &Value, new: &mut Value) {
        match &cx.writer {
            Some(writer) if writer.applied => {}
            Some(writer) if at.subresource == "scale" => scaled(at, old, new, &writer.manager),
            Some(writer) => self.with_field_manager(at, &writer.api_version, |fields| {
                fields.update(old, new, &writer.manager);
            }),
            // The server's own writes leave ownership alone.
            None => {
                let kept = old["metadata"]["managedFields"].clone();
                meta::set(new, "managedFields", kept);
            }
        }
    }
}

/// Where objects have the number of replicas that their scale shows.
pub(crate) fn replicas_path(resource: &Resource) -> Vec<&str> {
    let definition = resource.definition.as_ref();
    let path = definition.and_then(|d| Some(&*d.scale.as_ref()?.spec_replicas));
    let path = path.unwrap_or(".spec.replicas");
    path.trim_start_matches('.').split('.').collect()
}

/// Of a scale only the number of replicas is seen, and its owners when there are any: who changes what nobody owns through
/// `scale` does not come to own it.
fn scaled(at: Location<'_>, old: &Value, new: &mut Value, manager: &str) {
    const VERSION: &str = "autoscaling/v1";
    let path = replicas_path(at.resource);
    let replicas = |object: &Value| {
        let found = path.iter().try_fold(object, |at, name| at.get(*name));
        found.cloned().unwrap_or_default()
    };
    let (before, now) = (replicas(old), replicas(new));
    let parent = &old["metadata"]["managedFields"];
    let seen = to_scale(parent, &path);
    let mut managed = parent.clone();
    if !seen.is_null() && before != now {
        let view = |replicas: Value| {
            json!({"apiVersion": VERSION, "kind": "Scale", "metadata": {"uid": meta::uid(old), "managedFields": seen},
                "spec": {"replicas": replicas}})
        };
        let (before, mut after) = (view(before), view(now));
        let fields = FieldManager {
            versions: &Alone(type_of("autoscaling", "v1", "Scale")),
            stored: VERSION,
            requested: VERSION,
            subresource: at.subresource,
            reset: &[],
            now: &meta::now(),
        };
        fields.update(&before, &mut after, manager);
        let after = &after["metadata"]["managedFields"];
        let version = working_resource(at.resource).api_version();
        managed = from_scale(parent, after, &version, &path);
    }
    meta::set(new, "managedFields", managed);
}

/// A change of nothing but the times of managed fields is no change.
pub(super) fn forget_mere_times(new: &mut Value, old: &Value) {
    let (was, is) = (
        &old["metadata"]["managedFields"],
        &new["metadata"]["managedFields"],
    );
    if was == is || !equal_but_for_times(was, is) {
        return;
    }
    let times = new["metadata"]["managedFields"].take();
    meta::set(new, "managedFields", was.clone());
    if new != old {
        meta::set(new, "managedFields", times);
    }
}
