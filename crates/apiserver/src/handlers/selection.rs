//! Which objects of a collection a request is about.

use std::sync::Arc;

use fluyt_api::Error;
use fluyt_api::custom::Conversion;
use fluyt_api::resources::{Handle, Resource};
use fluyt_api::selector::{FieldSelector, FieldTerm, LabelSelector};

use super::Call;
use crate::cache::{Change, Entry, Filter, Objects, WatchEvent, storage_resource};
use crate::custom::Converter;

/// The selectors of a list, watch or deletecollection.
pub(super) struct Selection {
    /// What the cache can judge.
    pub filter: Filter,
    /// Fields that objects have only in the version of the request.
    converted: FieldSelector,
}

const OF_ALL: [&str; 2] = ["metadata.name", "metadata.namespace"];

impl Selection {
    /// What a request says.
    ///
    /// # Errors
    /// 400 for a malformed selector or a field that cannot select.
    pub fn of(call: &Call) -> Result<Self, Error> {
        let query = &call.info.query;
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default())
            .map_err(Error::bad_request)?;
        let mut fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default())
            .map_err(Error::bad_request)?;
        let resource = match &call.resource.definition {
            Some(_) => &*call.resource,
            // Versions of built-in resources share their strategy.
            None => storage_resource(&call.resource),
        };
        let selectable = resource.strategy().selectable_fields();
        for term in &fields.terms {
            let field = term.field.as_str();
            if !OF_ALL.contains(&field) && !selectable.contains(&field) {
                let why = if selectable.is_empty() && resource.definition.is_none() {
                    format!(
                        "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                    )
                } else {
                    format!("field label not supported: {field}")
                };
                return Err(Error::bad_request(why));
            }
        }
        let cached = |term: &FieldTerm| is_cached(&call.resource, &term.field);
        let (terms, converted) = fields.terms.into_iter().partition(cached);
        fields.terms = terms;
        if !call.target.name.is_empty() {
            // A watch of one object.
            fields.terms.push(FieldTerm {
                field: "metadata.name".into(),
                equal: true,
                value: call.target.name.clone(),
            });
        }
        let namespace = if call.resource.namespaced {
            call.target.namespace.clone()
        } else {
            String::new()
        };
        Ok(Self {
            filter: Filter {
                namespace,
                labels,
                fields,
            },
            converted: FieldSelector { terms: converted },
        })
    }

    /// Whether only an object in the request's version can be judged.
    pub fn needs_conversion(&self) -> bool {
        !self.converted.is_everything()
    }

    /// Judges what only conversion shows, of an entry that is in the request's version.
    pub fn selects(&self, resource: &Resource, entry: &Entry) -> bool {
        if !self.needs_conversion() {
            return true;
        }
        let (object, strategy) = (entry.object(), resource.strategy());
        self.converted
            .matches(|field| strategy.field(&object, field).unwrap_or_default())
    }

    /// Whether it is about everything in its namespace, if it has one.
    pub fn selects_all(&self) -> bool {
        self.filter.selects_all() && !self.needs_conversion()
    }

    /// Objects without what conversion shows not to be selected. They are as they were if that need not be asked.
    pub async fn judge(&self, call: &Call, objects: Objects) -> Result<Objects, Error> {
        if !self.needs_conversion() {
            return Ok(objects);
        }
        let entries = objects.select(&self.filter, "").cloned().collect();
        let converter = &call.server.registry.converter;
        let entries = converter.entries(entries, &call.resource).await?;
        let selected = entries
            .into_iter()
            .filter(|entry| self.selects(&call.resource, entry));
        Ok(Objects::of(&call.resource, selected))
    }

    /// How a watcher sees a change that the cache has let through, and what of it.
    pub async fn sees(
        &self,
        converter: &Converter,
        resource: &Handle,
        change: Change,
        event: &WatchEvent,
    ) -> Result<Option<(Change, Arc<Entry>)>, Error> {
        let before = (change != Change::Added).then(|| event.last());
        let now = (change != Change::Deleted).then(|| event.entry.clone());
        let mut selected = [None, None];
        for (entry, selected) in [before, now].into_iter().zip(&mut selected) {
            let entries = entry.into_iter().collect();
            let converted = converter.entries(entries, resource).await?.pop();
            *selected = converted.filter(|entry| self.selects(resource, entry));
        }
        Ok(match selected {
            [None, None] => None,
            [None, Some(now)] => Some((Change::Added, now)),
            [Some(_), Some(now)] => Some((Change::Modified, now)),
            [Some(last), None] => Some((Change::Deleted, last)),
        })
    }
}

/// Whether the cache's entries, which are in the stored version, have a field as the request's version has it.
fn is_cached(resource: &Resource, field: &str) -> bool {
    let Some(definition) = &resource.definition else {
        return true;
    };
    let stored = storage_resource(resource);
    OF_ALL.contains(&field)
        || stored.version == resource.version
        || (matches!(definition.conversion, Conversion::None)
            && stored.strategy().selectable_fields().contains(&field))
}
