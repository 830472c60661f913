//! `metadata.managedFields`: who owns what, decoded, changed and encoded.

use serde_json::{Map, Value, json};

use super::set::Set;

/// Entries of updates beyond this many are merged into [`ANCIENT`], the oldest first.
const MAX_UPDATE_MANAGERS: usize = 10;

/// The manager that takes over the fields of updates too old to be told apart.
const ANCIENT: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

/// What distinguishes one owner from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    pub name: String,
    pub operation: Operation,
    /// The version whose fields it owns. An applier remains the same when it moves to another version.
    pub api_version: String,
    pub subresource: String,
}

/// One owner and its fields.
#[derive(Clone, Debug)]
pub struct Entry {
    pub manager: Manager,
    pub time: Option<String>,
    pub set: Set,
}

/// All owners of an object.
#[derive(Clone, Debug, Default)]
pub struct Managed(pub Vec<Entry>);

impl Manager {
    /// Whether both write in the same name.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.name == other.name
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// As messages name it.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

impl Entry {
    fn decode(index: usize, entry: &Value, trusted: bool) -> Result<Self, String> {
        let text = |field: &str| entry[field].as_str().unwrap_or_default();
        let operation = match text("operation") {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err("operation must be `Apply` or `Update`".into()),
        };
        if text("apiVersion").is_empty() {
            return Err("apiVersion must not be empty".into());
        }
        match text("fieldsType") {
            "FieldsV1" => {}
            "" => {
                return Err(format!(
                    "missing fieldsType in managed fields entry {index}"
                ));
            }
            other => {
                return Err(format!(
                    "invalid fieldsType {other:?} in managed fields entry {index}"
                ));
            }
        }
        let set = if trusted {
            Set::trusted(entry["fieldsV1"].clone())
        } else {
            Set::parse(&entry["fieldsV1"])?
        };
        Ok(Self {
            manager: Manager {
                name: text("manager").to_owned(),
                operation,
                api_version: text("apiVersion").to_owned(),
                subresource: text("subresource").to_owned(),
            },
            time: entry["time"].as_str().map(Into::into),
            set,
        })
    }

    fn encode(self) -> Value {
        let manager = self.manager;
        let mut entry = Map::new();
        let mut put = |field: &str, value: String| {
            if !value.is_empty() {
                entry.insert(field.to_owned(), value.into());
            }
        };
        put("manager", manager.name);
        put("apiVersion", manager.api_version);
        put("subresource", manager.subresource);
        put("time", self.time.unwrap_or_default());
        let operation = match manager.operation {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        };
        put("operation", operation.into());
        put("fieldsType", "FieldsV1".into());
        entry.insert("fieldsV1".into(), self.set.into_json());
        Value::Object(entry)
    }
}

impl Managed {
    /// Decodes `managedFields`; `trusted` when this server wrote it.
    ///
    /// # Errors
    /// What is wrong with the first bad entry.
    pub fn decode(list: &Value, trusted: bool) -> Result<Self, String> {
        let entries = list.as_array().map_or(&[][..], Vec::as_slice);
        let mut managed = Self::default();
        for (index, entry) in entries.iter().enumerate() {
            let entry = Entry::decode(index, entry, trusted)?;
            match managed.find_mut(&entry.manager) {
                Some(present) => *present = entry,
                None => managed.0.push(entry),
            }
        }
        Ok(managed)
    }

    /// The list for `managedFields`, in upstream's order; null when nobody owns anything.
    #[must_use]
    pub fn encode(mut self) -> Value {
        if self.0.is_empty() {
            return Value::Null;
        }
        self.0.sort_by(|a, b| {
            let (x, y) = (&a.manager, &b.manager);
            // Times are all written the same way, so that their texts compare as they do.
            x.operation
                .cmp(&y.operation)
                .then_with(|| a.time.cmp(&b.time))
                .then_with(|| x.name.cmp(&y.name))
                .then_with(|| x.api_version.cmp(&y.api_version))
                .then_with(|| x.subresource.cmp(&y.subresource))
        });
        self.0.into_iter().map(Entry::encode).collect()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[must_use]
    pub fn find(&self, manager: &Manager) -> Option<&Entry> {
        self.0.iter().find(|e| e.manager.is(manager))
    }

    pub fn find_mut(&mut self, manager: &Manager) -> Option<&mut Entry> {
        self.0.iter_mut().find(|e| e.manager.is(manager))
    }

    pub fn take(&mut self, manager: &Manager) -> Option<Entry> {
        let at = self.0.iter().position(|e| e.manager.is(manager))?;
        Some(self.0.remove(at))
    }

    /// Merges the oldest entries of updates, per version, until there are not too many.
    pub fn cap_update_managers(&mut self) {
        let mut updaters: Vec<Manager> = {
            let mut entries: Vec<&Entry> = self
                .0
                .iter()
                .filter(|e| e.manager.operation == Operation::Update)
                .collect();
            entries.sort_by(|a, b| {
                let (x, y) = (&a.manager, &b.manager);
                let key =
                    |m: &Manager| (m.name.clone(), m.api_version.clone(), m.subresource.clone());
                a.time.cmp(&b.time).then_with(|| key(x).cmp(&key(y)))
            });
            entries.into_iter().map(|e| e.manager.clone()).collect()
        };
        let mut count = updaters.len();
        let mut first_of_version: Vec<Manager> = Vec::new();
        for manager in updaters.drain(..) {
            if count <= MAX_UPDATE_MANAGERS {
                return;
            }
            let version = &manager.api_version;
            let Some(first) = first_of_version.iter().find(|m| m.api_version == *version) else {
                first_of_version.push(manager);
                continue;
            };
            let bucket = Manager {
                name: ANCIENT.to_owned(),
                operation: Operation::Update,
                api_version: version.clone(),
                subresource: String::new(),
            };
            if manager.is(&bucket) {
                continue;
            }
            if self.find(&bucket).is_none()
                && let Some(entry) = self.find_mut(&first.clone())
            {
                entry.manager = bucket.clone();
            }
            let Some(newer) = self.take(&manager) else {
                continue;
            };
            if let Some(entry) = self.find_mut(&bucket) {
                entry.set = std::mem::take(&mut entry.set).union(newer.set);
                entry.time = newer.time;
            }
            count -= 1;
        }
    }
}

/// Whether a client asks for all ownership to be forgotten: `[]` or `[{}]`.
#[must_use]
pub fn is_reset(list: &Value) -> bool {
    match list.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([one]) => *one == json!({}),
        _ => false,
    }
}

/// The same entries but for their times.
#[must_use]
pub fn equal_but_for_times(a: &Value, b: &Value) -> bool {
    fn entries(list: &Value) -> &[Value] {
        list.as_array().map_or(&[], Vec::as_slice)
    }
    let same = |(a, b): (&Value, &Value)| match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let counts =
                |map: &Map<String, Value>| map.len() - usize::from(map.contains_key("time"));
            counts(a) == counts(b)
                && a.iter()
                    .filter(|(name, _)| *name != "time")
                    .all(|(name, value)| b.get(name) == Some(value))
        }
        _ => a == b,
    };
    let (a, b) = (entries(a), entries(b));
    a.len() == b.len() && a.iter().zip(b).all(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(name: &str, time: &str) -> Value {
        json!({"manager": name, "operation": "Update", "apiVersion": "v1", "time": time, "fieldsType": "FieldsV1",
            "fieldsV1": {format!("f:{name}"): {}}})
    }

    #[test]
    fn the_oldest_updates_are_merged() {
        let list: Vec<Value> = (0..12)
            .map(|i| update(&format!("m{i:02}"), &format!("2026-01-01T00:00:{i:02}Z")))
            .collect();
        let mut managed = Managed::decode(&list.into(), true).unwrap();
        managed.cap_update_managers();
        let encoded = managed.encode();
        let list = encoded.as_array().unwrap();
        assert_eq!(list.len(), 10);
        assert_eq!(list[0]["manager"], "ancient-changes");
        assert_eq!(list[0]["time"], "2026-01-01T00:00:02Z");
        assert_eq!(
            list[0]["fieldsV1"],
            json!({"f:m00": {}, "f:m01": {}, "f:m02": {}})
        );
    }

    #[test]
    fn bad_entries_are_refused() {
        for (field, value) in [
            ("operation", json!("Delete")),
            ("apiVersion", json!("")),
            ("fieldsType", json!("FieldsV2")),
            ("fieldsV1", json!({"bad": {}})),
        ] {
            let mut entry = update("a", "2026-01-01T00:00:00Z");
            entry[field] = value;
            assert!(Managed::decode(&json!([entry]), false).is_err(), "{field}");
        }
        assert!(is_reset(&json!([{}])) && is_reset(&json!([])) && !is_reset(&Value::Null));
    }

    #[test]
    fn an_applier_is_the_same_in_every_version() {
        let manager = |operation, version: &str| Manager {
            name: "a".into(),
            operation,
            api_version: version.into(),
            subresource: String::new(),
        };
        assert!(manager(Operation::Apply, "v1").is(&manager(Operation::Apply, "v2")));
        assert!(!manager(Operation::Update, "v1").is(&manager(Operation::Update, "v2")));
    }
}
