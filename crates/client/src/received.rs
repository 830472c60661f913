//! Reading objects that others wrote. Types say that a field is required; servers accept, and so send, objects without it.
//! One object that cannot be read must not hide all others from a controller.

use kube::core::Status;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// What a time that was never set is written as.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// An object of a list or watch.
#[derive(Clone, Debug)]
pub(crate) enum Received<K> {
    Object(K),
    /// Not one of ours, as far as we can tell; what identifies it, and why.
    Unreadable {
        name: String,
        version: Option<String>,
        why: String,
    },
}

/// An event of a watch.
pub(crate) enum Event<K> {
    /// Added or modified.
    Set(Received<K>),
    Deleted(Received<K>),
    /// Nothing older than this version will come.
    Bookmark(String),
    Failed(Box<Status>),
}

/// Reads a line of a watch, in whatever order its two members are.
pub(crate) fn event<K: DeserializeOwned>(line: &str) -> serde_json::Result<Event<K>> {
    #[derive(Deserialize)]
    struct Line<'a> {
        r#type: &'a str,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    let line: Line<'_> = serde_json::from_str(line)?;
    match line.r#type {
        "ADDED" | "MODIFIED" => Ok(Event::Set(Received::read(line.object.get())?)),
        "DELETED" => Ok(Event::Deleted(Received::read(line.object.get())?)),
        "BOOKMARK" => {
            let object: Value = serde_json::from_str(line.object.get())?;
            let version = object["metadata"]["resourceVersion"].as_str();
            Ok(Event::Bookmark(version.unwrap_or_default().to_owned()))
        }
        "ERROR" => Ok(Event::Failed(serde_json::from_str(line.object.get())?)),
        other => Err(serde_json::Error::custom(format!("unknown event {other}"))),
    }
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Received<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::read(raw.get()).map_err(D::Error::custom)
    }
}

impl<K: DeserializeOwned> Received<K> {
    fn read(json: &str) -> serde_json::Result<Self> {
        let error = match serde_json::from_str(json) {
            Ok(object) => return Ok(Self::Object(object)),
            Err(error) => error,
        };
        let mut value: Value = serde_json::from_str(json)?;
        set_times(&mut value);
        if let Ok(object) = serde_json::from_value(value.clone()) {
            return Ok(Self::Object(object));
        }
        let metadata = &value["metadata"];
        let text = |field: &str| metadata[field].as_str().unwrap_or_default();
        Ok(Self::Unreadable {
            name: format!("{}/{}", text("namespace"), text("name")),
            version: metadata["resourceVersion"].as_str().map(Into::into),
            why: error.to_string(),
        })
    }
}

/// Gives every condition a transition time: null is zero to those who write Go.
fn set_times(value: &mut Value) {
    match value {
        Value::Object(map) => {
            let conditions = map.get_mut("conditions").and_then(Value::as_array_mut);
            for condition in conditions.into_iter().flatten() {
                if condition.is_object() && condition["lastTransitionTime"].is_null() {
                    condition["lastTransitionTime"] = ZERO_TIME.into();
                }
            }
            map.values_mut().for_each(set_times);
        }
        Value::Array(items) => items.iter_mut().for_each(set_times),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;

    fn read(line: &str) -> Event<Service> {
        event(line).unwrap()
    }

    #[test]
    fn times_that_were_never_set_are_zero() {
        let line = r#"{"type": "MODIFIED", "object": {"metadata": {"name": "a"}, "status": {"conditions": [
            {"type": "T", "status": "True", "reason": "R", "message": "", "lastTransitionTime": null},
            {"type": "U", "status": "True", "reason": "R", "message": ""}]}}}"#;
        let Event::Set(Received::Object(service)) = read(line) else {
            panic!("not read");
        };
        assert_eq!(service.status.unwrap().conditions.unwrap().len(), 2);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let line = r#"{"object": {"metadata": {"name": "a", "namespace": "n", "resourceVersion": "7"}, "spec": 3}, "type": "ADDED"}"#;
        let Event::Set(Received::Unreadable { name, version, .. }) = read(line) else {
            panic!("read");
        };
        assert_eq!((name.as_str(), version.as_deref()), ("n/a", Some("7")));
    }
}
