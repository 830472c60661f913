//! Versioned configuration files: which kinds they may be of, and what their fields are, decoded as upstream decodes them.

use fluyt_api::decode::{kind_of, parse_json};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::handlers::not_an_object;
use crate::yaml;

/// The kinds that a file may be of. They all have the same content.
pub struct Scheme {
    /// As upstream's errors name it.
    pub name: &'static str,
    /// `apiVersion` and `kind`.
    pub kinds: &'static [(&'static str, &'static str)],
    pub content: Struct,
    /// Whether fields that are unknown or there twice are refused, or else ignored.
    pub strict: bool,
}

/// An object of a file.
pub struct Struct {
    /// As Go names it, with its package.
    pub name: &'static str,
    pub fields: &'static [(&'static str, Of)],
}

/// What a field holds.
#[derive(Clone, Copy)]
pub enum Of {
    Text,
    Int32,
    Int64,
    Texts,
    Anything,
    Object(&'static Struct),
    Objects(&'static Struct),
}

/// What every file has.
const HEAD: [&str; 2] = ["apiVersion", "kind"];

/// `Toleration` of the API.
pub const TOLERATION: Struct = Struct {
    name: "v1.Toleration",
    fields: &[
        ("key", Of::Text),
        ("operator", Of::Text),
        ("value", Of::Text),
        ("effect", Of::Text),
        ("tolerationSeconds", Of::Int64),
    ],
};

/// Why a text is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It does not say what it is, or says that it is something else.
    #[error("{0}")]
    Unrecognized(String),
    #[error("{0}")]
    Malformed(String),
}

// === impl Scheme ===

impl Scheme {
    /// Decodes JSON or YAML.
    ///
    /// # Errors
    /// When it is malformed, of another kind, or, if the scheme is strict, has fields that it should not have.
    pub fn decode<T: DeserializeOwned>(&self, text: &str) -> Result<T, DecodeError> {
        let (mut document, mut problems) = parse(text)?;
        self.recognize(&document, text)?;
        let mut unknown = Vec::new();
        let root = Place::default();
        self.content
            .conform(&root, &mut document, &mut unknown)
            .map_err(DecodeError::Malformed)?;
        problems.extend(unknown.iter().map(|path| unknown_field(path)));
        if self.strict {
            refuse(&problems)?;
        }
        serde_json::from_value(document).map_err(|e| DecodeError::Malformed(e.to_string()))
    }

    /// Whether the document is of one of the kinds.
    fn recognize(&self, document: &Value, text: &str) -> Result<(), DecodeError> {
        let word = |field: &str| document[field].as_str().unwrap_or_default();
        let (version, kind) = (word("apiVersion"), word("kind"));
        let why = if kind.is_empty() {
            format!("Object 'Kind' is missing in '{text}'")
        } else if version.is_empty() {
            format!("Object 'apiVersion' is missing in '{text}'")
        } else if self.kinds.contains(&(version, kind)) {
            return Ok(());
        } else {
            let scheme = self.name;
            format!("no kind {kind:?} is registered for version {version:?} in scheme {scheme:?}")
        };
        Err(DecodeError::Unrecognized(why))
    }
}

/// Refuses a document whose keys are unknown, or there more than once.
///
/// # Errors
/// When there is something wrong with them.
pub fn strict(mut problems: Vec<String>, unknown: &[String]) -> Result<(), DecodeError> {
    problems.extend(unknown.iter().map(|path| unknown_field(path)));
    refuse(&problems)
}

fn unknown_field(path: &str) -> String {
    format!("unknown field \"{path}\"")
}

fn refuse(problems: &[String]) -> Result<(), DecodeError> {
    if problems.is_empty() {
        return Ok(());
    }
    let all = problems.join(", ");
    Err(DecodeError::Malformed(format!(
        "strict decoding error: {all}"
    )))
}

/// The document, and what is wrong with its keys. Nothing at all is an empty one.
///
/// # Errors
/// When it is malformed.
pub fn parse(text: &str) -> Result<(Value, Vec<String>), DecodeError> {
    let (document, problems) = if text.trim_start().starts_with('{') {
        let (document, duplicates) = parse_json(text.as_bytes()).map_err(|why| {
            DecodeError::Malformed(format!(
                "couldn't get version/kind; json parse error: {why}"
            ))
        })?;
        let twice = duplicates
            .iter()
            .map(|path| format!("duplicate field \"{path}\""));
        (document, twice.collect())
    } else {
        let (document, duplicates) = yaml::parse(text.as_bytes())
            .map_err(|why| DecodeError::Malformed(format!("yaml: {why}")))?;
        let lines = yaml::lines_of(text, &duplicates);
        let twice = (!lines.is_empty()).then(|| yaml::repeated(&lines));
        (document, twice.into_iter().collect())
    };
    match document {
        Value::Object(_) => Ok((document, problems)),
        Value::Null => Ok((Value::Object(serde_json::Map::new()), problems)),
        other => Err(DecodeError::Malformed(not_an_object(&other))),
    }
}

/// Where in a file a value is: with the indexes of lists, and as Go's decoder says it, without.
#[derive(Default)]
struct Place {
    path: String,
    go: String,
    /// The object that it is in.
    owner: &'static str,
}

impl Place {
    fn field(&self, owner: &'static str, name: &str) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        Self {
            path: format!("{}{dot}{name}", self.path),
            go: format!("{}{dot}{name}", self.go),
            owner,
        }
    }

    fn item(&self, index: usize) -> Self {
        Self {
            path: format!("{}[{index}]", self.path),
            go: self.go.clone(),
            owner: self.owner,
        }
    }

    /// A value is not what it should be.
    fn mismatch(&self, value: &Value, wanted: &str) -> String {
        let found = match value {
            Value::Number(number) if wanted.starts_with("int") => format!("number {number}"),
            other => kind_of(other).to_owned(),
        };
        let owner = self.owner.rsplit('.').next().unwrap_or_default();
        let go = &self.go;
        format!("json: cannot unmarshal {found} into Go struct field {owner}.{go} of type {wanted}")
    }
}

// === impl Struct ===

impl Struct {
    /// Removes unknown fields and nulls, and checks types.
    ///
    /// # Errors
    /// The first value of a wrong type.
    pub fn check(&self, value: &mut Value) -> Result<(), String> {
        self.conform(&Place::default(), value, &mut Vec::new())
    }

    fn conform(
        &self,
        at: &Place,
        value: &mut Value,
        unknown: &mut Vec<String>,
    ) -> Result<(), String> {
        let Value::Object(map) = value else {
            return Err(at.mismatch(value, self.name));
        };
        let mut strange = Vec::new();
        for (name, value) in map.iter_mut() {
            let place = at.field(self.name, name);
            match self.fields.iter().find(|(field, _)| field == name) {
                Some((_, of)) if !value.is_null() => of.conform(&place, value, unknown)?,
                Some(_) => {}
                // What the file is has been looked at.
                None if at.path.is_empty() && HEAD.contains(&name.as_str()) => {}
                None => {
                    strange.push(name.clone());
                    unknown.push(place.path);
                }
            }
        }
        map.retain(|name, value| !value.is_null() && !strange.contains(name));
        Ok(())
    }
}

// === impl Of ===

impl Of {
    fn conform(
        self,
        at: &Place,
        value: &mut Value,
        unknown: &mut Vec<String>,
    ) -> Result<(), String> {
        let is_int32 = |value: &Value| value.as_i64().is_some_and(|n| i32::try_from(n).is_ok());
        match self {
            Self::Anything => Ok(()),
            Self::Text if value.is_string() => Ok(()),
            Self::Text => Err(at.mismatch(value, "string")),
            Self::Int32 if is_int32(value) => Ok(()),
            Self::Int32 => Err(at.mismatch(value, "int32")),
            Self::Int64 if value.is_i64() => Ok(()),
            Self::Int64 => Err(at.mismatch(value, "int64")),
            Self::Object(of) => of.conform(at, value, unknown),
            Self::Texts => match value {
                Value::Array(list) => match list.iter().find(|item| !item.is_string()) {
                    None => Ok(()),
                    Some(other) => Err(at.mismatch(other, "string")),
                },
                other => Err(at.mismatch(other, "[]string")),
            },
            Self::Objects(of) => match value {
                Value::Array(list) => {
                    for (i, item) in list.iter_mut().enumerate() {
                        of.conform(&at.item(i), item, unknown)?;
                    }
                    Ok(())
                }
                other => Err(at.mismatch(other, &format!("[]{}", of.name))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SHIP: Struct = Struct {
        name: "v2.Ship",
        fields: &[("masts", Of::Int32), ("crew", Of::Texts)],
    };

    const SCHEME: Scheme = Scheme {
        name: "k8s.io/test.go:1",
        kinds: &[("example.com/v1", "Fleet"), ("example.com/v2", "Fleet")],
        content: Struct {
            name: "v2.Fleet",
            fields: &[
                ("name", Of::Text),
                ("flagship", Of::Object(&SHIP)),
                ("ships", Of::Objects(&SHIP)),
                ("tolerations", Of::Objects(&TOLERATION)),
            ],
        },
        strict: true,
    };

    fn decode(scheme: &Scheme, fields: &str) -> Result<Value, String> {
        let text = format!("apiVersion: example.com/v2\nkind: Fleet\n{fields}");
        scheme.decode(&text).map_err(|e| e.to_string())
    }

    #[test]
    fn fields_are_those_of_the_kind() {
        let fleet = "ships: [{masts: 3, crew: [a]}]\ntolerations: [{key: k, operator: Exists}]";
        let decoded = decode(&SCHEME, fleet).unwrap();
        assert_eq!(decoded["ships"], json!([{"masts": 3, "crew": ["a"]}]));
        assert_eq!(decoded["tolerations"][0]["operator"], "Exists");
        assert_eq!(
            decode(&SCHEME, "ships: [{mast: 1}]\ncolour: red\ntolerations: [{kei: k}]"),
            Err(r#"strict decoding error: unknown field "colour", unknown field "ships[0].mast", unknown field "tolerations[0].kei""#.into())
        );
        assert_eq!(
            decode(&SCHEME, "name: a\nname: b"),
            Err("strict decoding error: yaml: unmarshal errors:\n  line 4: key \"name\" already set in map".into())
        );
        let json = r#"{"apiVersion": "example.com/v1", "kind": "Fleet", "name": "a", "name": "b"}"#;
        assert_eq!(
            SCHEME.decode::<Value>(json).unwrap_err().to_string(),
            r#"strict decoding error: duplicate field "name""#
        );
        let tolerant = Scheme {
            strict: false,
            ..SCHEME
        };
        let decoded = decode(&tolerant, "colour: red\nname: a\nname: b").unwrap();
        assert_eq!(
            (&decoded["name"], &decoded["colour"]),
            (&json!("b"), &Value::Null)
        );
        for (fields, why) in [
            (
                "ships: [{masts: many}]",
                "string into Go struct field Ship.ships.masts of type int32",
            ),
            (
                "ships: [{masts: 3000000000}]",
                "number 3000000000 into Go struct field Ship.ships.masts of type int32",
            ),
            (
                "ships: [{crew: [1]}]",
                "number into Go struct field Ship.ships.crew of type string",
            ),
            (
                "ships: [{crew: a}]",
                "string into Go struct field Ship.ships.crew of type []string",
            ),
            (
                "flagship: []",
                "array into Go struct field Fleet.flagship of type v2.Ship",
            ),
            (
                "ships: {}",
                "object into Go struct field Fleet.ships of type []v2.Ship",
            ),
        ] {
            let wrong = decode(&tolerant, fields).unwrap_err();
            assert_eq!(wrong, format!("json: cannot unmarshal {why}"));
        }
    }

    #[test]
    fn a_file_says_what_it_is() {
        let refused = |text: &str| match SCHEME.decode::<Value>(text) {
            Err(DecodeError::Unrecognized(why)) => why,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(refused(""), "Object 'Kind' is missing in ''");
        let fleet = "kind: Fleet";
        assert_eq!(
            refused(fleet),
            "Object 'apiVersion' is missing in 'kind: Fleet'"
        );
        assert_eq!(
            refused("kind: Fleet\napiVersion: example.com/v3"),
            r#"no kind "Fleet" is registered for version "example.com/v3" in scheme "k8s.io/test.go:1""#
        );
        let list = SCHEME.decode::<Value>("[]").unwrap_err();
        let expected = "couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct {";
        assert!(list.to_string().starts_with(expected), "{list}");
    }
}
