//! The versions of built-in and custom resources.

use std::borrow::Cow;

use serde_json::Value;

use super::Versions;
use crate::convert;
use crate::resources::{self, Resource, Snapshot};
use crate::schema::{Schema, TypeId};

/// The versions in which a resource is served.
pub struct Served<'a> {
    pub snapshot: &'a Snapshot,
    /// The resource in its stored version.
    pub stored: &'a Resource,
}

impl Served<'_> {
    fn find(&self, api_version: &str) -> Option<&Resource> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let plural = self.stored.plural;
        if self.stored.definition.is_none() {
            return resources::find(group, version, plural);
        }
        self.snapshot
            .custom()
            .iter()
            .map(|r| &**r)
            .find(|r| r.plural == plural && r.group == group && r.version == version)
    }
}

impl Versions for Served<'_> {
    fn schema(&self, api_version: &str) -> Option<(&Schema, Option<TypeId>)> {
        let resource = self.find(api_version)?;
        Some((resource.schema(), resource.ty))
    }

    fn convert<'v>(&self, object: &'v Value, from: &str, to: &str) -> Option<Cow<'v, Value>> {
        if from == to || object.is_null() {
            return Some(Cow::Borrowed(object));
        }
        let (from, to) = (self.find(from)?, self.find(to)?);
        let stored = convert::to_storage(from, self.stored, object.clone());
        Some(Cow::Owned(convert::from_storage(to, stored)))
    }
}

/// An object that is seen in one version only: a subresource's.
pub struct Alone(pub Option<TypeId>);

impl Versions for Alone {
    fn schema(&self, _: &str) -> Option<(&Schema, Option<TypeId>)> {
        Some((Schema::builtin(), self.0))
    }

    fn convert<'v>(&self, object: &'v Value, _: &str, _: &str) -> Option<Cow<'v, Value>> {
        Some(Cow::Borrowed(object))
    }
}
