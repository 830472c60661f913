//! Managed fields on the write path: who writes, and what they come to own.

use fluyt_api::managedfields::{FieldManager, Served, equal_but_for_times, reset_fields};
use fluyt_api::meta;
use serde_json::Value;

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
