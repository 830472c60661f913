//! JSON patches as Kubernetes' servers have always applied them, which is not RFC 6902 to the letter: a null and nothing
//! are the same in an object, so that `test` of nothing against null holds and `replace` sets what was not there; indices
//! of lists may count from the end.

use serde_json::Value;

use crate::decode::{json_error, kind_of as kind};

/// Operations of one patch; more could keep a server busy for long.
const MAX_OPERATIONS: usize = 10_000;

/// Bytes that all `copy` operations of a patch may add: each could double what the one before it has made.
const MAX_COPIED: usize = 3 << 20;

/// A patch that has been read.
#[derive(Debug)]
pub struct Patch(Vec<Operation>);

/// Why a patch is refused before it is applied.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is no patch.
    Malformed(String),
    /// It has too many operations.
    TooLarge(String),
}

impl Refused {
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Self::Malformed(why) | Self::TooLarge(why) => why,
        }
    }
}

/// Why an operation could not be applied.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The document is not what a `test` wants it to be.
    Test(String),
    Other(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Test(why) | Self::Other(why) => f.write_str(why),
        }
    }
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}

#[derive(Debug)]
struct Operation {
    op: String,
    path: Option<String>,
    from: Option<String>,
    /// Null, as no value is.
    value: Value,
}

impl Patch {
    /// Reads a patch.
    ///
    /// # Errors
    /// When it is no list of operations, or too long a one.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refused> {
        let malformed = |why: String| Refused::Malformed(format!("error decoding patch: {why}"));
        let operations = match serde_json::from_slice(bytes) {
            Ok(Value::Array(operations)) => operations,
            Ok(Value::Null) => Vec::new(),
            Ok(other) => {
                let kind = kind(&other);
                return Err(malformed(format!(
                    "json: cannot unmarshal {kind} into Go value of type []handlers.jsonPatchOp"
                )));
            }
            Err(error) => return Err(malformed(json_error(&error))),
        };
        if operations.len() > MAX_OPERATIONS {
            return Err(Refused::TooLarge(format!(
                "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                operations.len()
            )));
        }
        let operations = operations.into_iter().map(Operation::of);
        let operations = operations.collect::<Result<_, _>>().map_err(malformed)?;
        Ok(Self(operations))
    }

    /// Applies it. After an error the document is half changed.
    ///
    /// # Errors
    /// Which operation could not be applied, and why.
    pub fn apply(&self, document: &mut Value) -> Result<(), Failure> {
        let mut copied = 0;
        for operation in &self.0 {
            operation.apply(document, &mut copied)?;
        }
        Ok(())
    }
}

impl Operation {
    fn of(operation: Value) -> Result<Self, String> {
        let Value::Object(mut fields) = operation else {
            let kind = kind(&operation);
            return Err(format!(
                "json: cannot unmarshal {kind} into Go value of type handlers.jsonPatchOp"
            ));
        };
        let mut text = |name: &str| match fields.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!(
                "json: cannot unmarshal {} into Go struct field jsonPatchOp.{name} of type string",
                kind(&other)
            )),
        };
        let (op, path, from) = (text("op")?, text("path")?, text("from")?);
        Ok(Self {
            op: op.unwrap_or_else(|| "unknown".into()),
            path,
            from,
            value: fields.remove("value").unwrap_or_default(),
        })
    }

    fn path(&self) -> Result<&str, String> {
        let failed = || {
            let op = &self.op;
            format!("{op} operation failed to decode path: missing value")
        };
        self.path.as_deref().ok_or_else(failed)
    }

    fn from(&self) -> Result<&str, String> {
        let failed = || {
            let op = &self.op;
            format!(
                "{op} operation failed to decode from: operation, missing from field: missing value"
            )
        };
        self.from.as_deref().ok_or_else(failed)
    }

    fn apply(&self, document: &mut Value, copied: &mut usize) -> Result<(), Failure> {
        match self.op.as_str() {
            "add" => self.add(document)?,
            "remove" => self.remove(document)?,
            "replace" => self.replace(document)?,
            "test" => self.test(document)?,
            "move" => self.relocate(document)?,
            "copy" => self.copy(document, copied)?,
            other => return Err(format!("Unexpected kind: {other}").into()),
        }
        Ok(())
    }

    fn add(&self, document: &mut Value) -> Result<(), String> {
        let path = self.path()?;
        let missing = || does_not_apply("add", &format!("doc is missing path: {path:?}"));
        let mut place = Place::find(document, path).ok_or_else(missing)?;
        let added = place.add(self.value.clone());
        added.map_err(|e| format!("error in add for path: '{path}': {e}"))
    }

    fn remove(&self, document: &mut Value) -> Result<(), String> {
        let path = self.path()?;
        let missing = || does_not_apply("remove", &format!("doc is missing path: {path:?}"));
        let mut place = Place::find(document, path).ok_or_else(missing)?;
        match place.remove() {
            Ok(_) => Ok(()),
            Err(e) => Err(format!("error in remove for path: '{path}': {e}")),
        }
    }

    fn replace(&self, document: &mut Value) -> Result<(), String> {
        let path = self.path()?;
        if path.is_empty() {
            if !self.value.is_object() && !self.value.is_array() {
                return Err("replace operation value must be object or array".into());
            }
            *document = self.value.clone();
            return Ok(());
        }
        let missing =
            |what: &str| does_not_apply("replace", &format!("doc is missing {what}: {path}"));
        let mut place = Place::find(document, path).ok_or_else(|| missing("path"))?;
        place.get().map_err(|_| missing("key"))?;
        place
            .set(self.value.clone())
            .map_err(|e| format!("error in remove for path: '{path}': {e}"))
    }

    fn test(&self, document: &mut Value) -> Result<(), Failure> {
        let path = self.path()?;
        let holds = if path.is_empty() {
            *document == self.value
        } else {
            let missing = || does_not_apply("test", &format!("is missing path: {path}"));
            let mut place = Place::find(document, path).ok_or_else(missing)?;
            let present = place.get();
            let present = present.map_err(|e| format!("error in test for path: '{path}': {e}"))?;
            present.map_or(self.value.is_null(), |present| *present == self.value)
        };
        if holds {
            Ok(())
        } else {
            let why = format!("testing value {path} failed: test failed");
            Err(Failure::Test(why))
        }
    }

    /// `move`
    fn relocate(&self, document: &mut Value) -> Result<(), String> {
        let from = self.from()?;
        let missing = |what: &str| does_not_apply("move", &format!("doc is missing {what}"));
        let mut place =
            Place::find(document, from).ok_or_else(|| missing(&format!("from path: {from}")))?;
        let failed = |key: &str, e| format!("error in move for path: '{key}': {e}");
        let key = place.key.clone();
        place.get().map_err(|e| failed(&key, e))?;
        let value = place.remove().map_err(|e| failed(&key, e))?;
        let path = self.path()?;
        let mut place = Place::find(document, path)
            .ok_or_else(|| missing(&format!("destination path: {path}")))?;
        place.add(value).map_err(|e| failed(path, e))
    }

    fn copy(&self, document: &mut Value, copied: &mut usize) -> Result<(), String> {
        let from = self.from()?;
        let missing = |what: &str| does_not_apply("copy", &format!("doc is missing {what}"));
        let mut place =
            Place::find(document, from).ok_or_else(|| missing(&format!("from path: {from}")))?;
        let value = place.get();
        let value = value.map_err(|e| format!("error in copy for from: '{from}': {e}"))?;
        let value = value.cloned().unwrap_or_default();
        let path = self.path()?;
        let mut place = Place::find(document, path)
            .ok_or_else(|| missing(&format!("destination path: {path}")))?;
        *copied += value.to_string().len();
        if *copied > MAX_COPIED {
            return Err(format!(
                "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED}"
            ));
        }
        place
            .add(value)
            .map_err(|e| format!("error while adding value during copy: {e}"))
    }
}

fn does_not_apply(op: &str, why: &str) -> String {
    format!("{op} operation does not apply: {why}: missing value")
}

/// What a pointer leads to: an object or a list, and a name or an index in it, which may not be there.
struct Place<'a> {
    container: &'a mut Value,
    key: String,
}

impl<'a> Place<'a> {
    /// `None` when there is no container.
    fn find(document: &'a mut Value, pointer: &str) -> Option<Self> {
        // What is before the first slash does not matter.
        let mut names = pointer.split('/').skip(1).map(unescape).peekable();
        let mut container = document;
        loop {
            let key = names.next()?;
            if names.peek().is_none() {
                return Some(Self { container, key });
            }
            container = member(container, &key).ok()??;
            if !container.is_object() && !container.is_array() {
                return None;
            }
        }
    }

    /// What is there; an index must exist.
    fn get(&mut self) -> Result<Option<&mut Value>, String> {
        member(self.container, &self.key)
    }

    /// An index must exist; a name need not.
    fn set(&mut self, value: Value) -> Result<(), String> {
        match &mut *self.container {
            Value::Object(fields) => {
                fields.insert(self.key.clone(), value);
            }
            Value::Array(items) => {
                let index = index(&self.key, items.len())?;
                items[index] = value;
            }
            _ => return Err(no_container()),
        }
        Ok(())
    }

    fn add(&mut self, value: Value) -> Result<(), String> {
        match &mut *self.container {
            Value::Array(items) if self.key == "-" => items.push(value),
            Value::Array(items) => {
                let number = atoi(&self.key).map_err(|e| {
                    format!("value was not a proper array index: '{}': {e}", self.key)
                })?;
                items.insert(within(number, items.len() + 1)?, value);
            }
            _ => return self.set(value),
        }
        Ok(())
    }

    fn remove(&mut self) -> Result<Value, String> {
        match &mut *self.container {
            Value::Object(fields) => fields.remove(&self.key).ok_or_else(|| {
                format!(
                    "Unable to remove nonexistent key: {}: missing value",
                    self.key
                )
            }),
            Value::Array(items) => {
                let index = index(&self.key, items.len())?;
                Ok(items.remove(index))
            }
            _ => Err(no_container()),
        }
    }
}

/// A member of an object or a list; null is none.
fn member<'a>(container: &'a mut Value, key: &str) -> Result<Option<&'a mut Value>, String> {
    let member = match container {
        Value::Object(fields) => fields.get_mut(key),
        Value::Array(items) => {
            let index = index(key, items.len())?;
            items.get_mut(index)
        }
        _ => return Err(no_container()),
    };
    Ok(member.filter(|m| !m.is_null()))
}

fn no_container() -> String {
    "invalid state detected".into()
}

fn unescape(name: &str) -> String {
    name.replace("~1", "/").replace("~0", "~")
}

fn atoi(text: &str) -> Result<i64, String> {
    text.parse()
        .map_err(|_| format!("strconv.Atoi: parsing {text:?}: invalid syntax"))
}

/// The index of an item.
fn index(key: &str, length: usize) -> Result<usize, String> {
    within(atoi(key)?, length)
}

/// A place below `length`; negative ones count from there.
fn within(number: i64, length: usize) -> Result<usize, String> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let place = if number < 0 { number + length } else { number };
    usize::try_from(place)
        .ok()
        .filter(|_| place < length)
        .ok_or_else(|| {
            format!("Unable to access invalid index: {number}: invalid index referenced")
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patched(mut document: Value, patch: &Value) -> Result<Value, String> {
        let patch = Patch::decode(patch.to_string().as_bytes()).unwrap();
        match patch.apply(&mut document) {
            Ok(()) => Ok(document),
            Err(failure) => Err(failure.to_string()),
        }
    }

    #[test]
    fn operations_apply() {
        let document = || json!({"a": {"b": [1, 2, 3]}, "n": null, "x/y~": 1});
        for (patch, expected) in [
            (
                json!([{"op": "add", "path": "/a/b/1", "value": 9}, {"op": "add", "path": "/a/b/-", "value": 4}]),
                json!({"a": {"b": [1, 9, 2, 3, 4]}, "n": null, "x/y~": 1}),
            ),
            (
                json!([{"op": "remove", "path": "/a/b/-1"}, {"op": "replace", "path": "/a/b/0", "value": null}]),
                json!({"a": {"b": [null, 2]}, "n": null, "x/y~": 1}),
            ),
            (
                json!([{"op": "move", "from": "/a/b", "path": "/c"}, {"op": "copy", "from": "/c/2", "path": "/a/d"}]),
                json!({"a": {"d": 3}, "c": [1, 2, 3], "n": null, "x/y~": 1}),
            ),
            // What is not there is null, and is replaced.
            (
                json!([
                    {"op": "test", "path": "/z", "value": null}, {"op": "test", "path": "/n"},
                    {"op": "replace", "path": "/z", "value": 1}, {"op": "test", "path": "/x~1y~0", "value": 1},
                ]),
                json!({"a": {"b": [1, 2, 3]}, "n": null, "x/y~": 1, "z": 1}),
            ),
            (
                json!([{"op": "replace", "path": "", "value": {}}, {"op": "test", "path": "", "value": {}}]),
                json!({}),
            ),
        ] {
            assert_eq!(patched(document(), &patch), Ok(expected), "{patch}");
        }
    }

    #[test]
    fn failures_say_what_and_where() {
        let document = || json!({"a": {"b": [1]}, "s": "text"});
        for (op, why) in [
            (
                json!({"op": "test", "path": "/a", "value": 1}),
                "testing value /a failed: test failed",
            ),
            (
                json!({"op": "test", "path": "/q/r", "value": 1}),
                "test operation does not apply: is missing path: /q/r: missing value",
            ),
            (
                json!({"op": "add", "path": "/s/x", "value": 1}),
                r#"add operation does not apply: doc is missing path: "/s/x": missing value"#,
            ),
            (
                json!({"op": "add", "path": "/a/b/3", "value": 1}),
                "error in add for path: '/a/b/3': Unable to access invalid index: 3: invalid index referenced",
            ),
            (
                json!({"op": "remove", "path": "/q"}),
                "error in remove for path: '/q': Unable to remove nonexistent key: q: missing value",
            ),
            (
                json!({"op": "replace", "path": "/a/b/x", "value": 1}),
                "replace operation does not apply: doc is missing key: /a/b/x: missing value",
            ),
            (
                json!({"op": "move", "from": "/q", "path": "/r"}),
                "error in move for path: 'q': Unable to remove nonexistent key: q: missing value",
            ),
            (
                json!({"op": "add"}),
                "add operation failed to decode path: missing value",
            ),
            (json!({"path": "/a"}), "Unexpected kind: unknown"),
        ] {
            assert_eq!(patched(document(), &json!([op])), Err(why.into()), "{op}");
        }
    }

    #[test]
    fn copies_do_not_grow_without_bound() {
        let doubling = json!({"op": "copy", "from": "/a", "path": "/a/-"});
        let document = json!({"a": ["0123456789"]});
        let error = patched(document, &json!(vec![doubling; 40])).unwrap_err();
        assert!(error.starts_with("Unable to complete the copy"), "{error}");
    }

    #[test]
    fn what_is_no_patch_is_refused() {
        for (patch, why) in [
            (
                "{}",
                "json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
            ),
            (
                "[1]",
                "json: cannot unmarshal number into Go value of type handlers.jsonPatchOp",
            ),
            (
                r#"[{"op": "add", "path": 1}]"#,
                "json: cannot unmarshal number into Go struct field jsonPatchOp.path of type string",
            ),
        ] {
            let refused = Patch::decode(patch.as_bytes()).unwrap_err();
            assert_eq!(
                refused,
                Refused::Malformed(format!("error decoding patch: {why}"))
            );
        }
        let long = serde_json::to_vec(&vec![json!({}); MAX_OPERATIONS + 1]).unwrap();
        assert!(matches!(Patch::decode(&long), Err(Refused::TooLarge(_))));
    }
}
