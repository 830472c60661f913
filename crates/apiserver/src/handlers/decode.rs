//! Request bodies into objects of a kind, with upstream's field validation.

use bytes::Bytes;
use fluyt_api::custom::Definition;
use fluyt_api::decode::{Problem, conform, in_order, kind_of, parse_json};
use fluyt_api::resources::{self, Resource, api_version, type_of};
use fluyt_api::schema::{Schema, TypeId};
use fluyt_api::validation::Errors;
use fluyt_api::{Error, Reason, meta, protobuf};
use http::request::Parts;
use serde_json::{Value, json};

use super::write::{from_storage, to_storage};
use crate::audit::Record;
use crate::cache::working_resource;
use crate::features::{Feature, Features};
use crate::http::{Offer, content_type};
use crate::registry::apply_defaults;
use crate::request::Query;
use crate::yaml;

/// A decoded object and the warnings that its sender should get.
#[derive(Debug)]
pub struct Decoded {
    pub object: Value,
    pub warnings: Vec<String>,
}

/// What to do about fields that nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// The kind that a body must be of.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    group: &'a str,
    version: &'a str,
    kind: &'a str,
    schema: &'a Schema,
    ty: Option<TypeId>,
    definition: Option<&'a Definition>,
    /// The resource that it is an object of.
    resource: Option<&'a Resource>,
}

impl Expected<'_> {
    /// An object as a record shows it: with what it leaves open filled in.
    fn recorded(&self, object: &Value) -> Value {
        let Some(resource) = self.resource else {
            return object.clone();
        };
        let mut object = to_storage(resource, object.clone());
        let stored = working_resource(resource);
        apply_defaults(stored, stored.strategy(), &mut object);
        from_storage(resource, object)
    }

    /// Whether the kind has a protobuf form.
    fn protobuf(&self) -> bool {
        std::ptr::eq(self.schema, Schema::builtin())
    }
}

impl<'a> From<(&'a str, &'a str, &'a str)> for Expected<'a> {
    /// A built-in kind.
    fn from((group, version, kind): (&'a str, &'a str, &'a str)) -> Self {
        Self {
            group,
            version,
            kind,
            schema: Schema::builtin(),
            ty: type_of(group, version, kind),
            definition: None,
            resource: None,
        }
    }
}

impl<'a> From<&'a Resource> for Expected<'a> {
    fn from(resource: &'a Resource) -> Self {
        Self {
            group: resource.group,
            version: resource.version,
            kind: resource.kind,
            schema: resource.schema(),
            ty: resource.ty,
            definition: resource.definition.as_deref(),
            resource: Some(resource),
        }
    }
}

/// Parses a body as JSON, YAML or protobuf; a protobuf message needs to know its kind.
///
/// # Errors
/// 415 for another content type, 400 for malformed text.
pub fn parse<'a>(
    parts: &Parts,
    body: &Bytes,
    kind: impl Into<Expected<'a>>,
) -> Result<(Value, Vec<String>), Error> {
    let kind = kind.into();
    let features: Features = parts.extensions.get().copied().unwrap_or_default();
    match content_type(&parts.headers) {
        "" | "application/json" => parse_json(body).map_err(|e| {
            Error::bad_request(format!("couldn't get version/kind; json parse error: {e}"))
        }),
        "application/yaml" => yaml::parse(body)
            .map_err(|e| Error::bad_request(format!("error converting YAML to JSON: {e}"))),
        "application/vnd.kubernetes.protobuf" if kind.protobuf() => {
            Ok((from_protobuf(body, kind)?, Vec::new()))
        }
        "application/cbor" if features.has(Feature::Cbor) => match fluyt_api::cbor::decode(body) {
            Ok(value) => Ok((value, Vec::new())),
            Err(why) => Err(Error::bad_request(why)),
        },
        _ => Err(Error::new(
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                Offer {
                    features,
                    protobuf: kind.protobuf(),
                    ..Offer::default()
                }
                .media_types()
            ),
        )),
    }
}

/// Parses a body that must be an object of the given kind.
///
/// # Errors
/// 400 when it is malformed, of another kind, or has unknown fields under strict validation.
pub fn object<'a>(
    parts: &Parts,
    body: &Bytes,
    query: &Query,
    kind: impl Into<Expected<'a>>,
) -> Result<Decoded, Error> {
    let kind = kind.into();
    let (object, duplicates) = match parse(parts, body, kind) {
        // Nothing was sent of what may be left out.
        Ok((Value::Null, duplicates)) => (json!({}), duplicates),
        Ok((object, duplicates)) => {
            if !object.is_object() {
                let why = not_an_object(&object);
                return Err(unrecognized(kind.kind, &why, body));
            }
            (object, duplicates)
        }
        Err(error) if error.reason == Reason::BadRequest => {
            return Err(unrecognized(kind.kind, &error.message, body));
        }
        Err(error) => return Err(error),
    };
    let document = match content_type(&parts.headers) {
        "" | "application/json" => body,
        _ => &Bytes::new(),
    };
    let sent = Sent {
        duplicates,
        document,
    };
    let decoded = typed(object, sent, query, kind)?;
    if let Some(record) = parts.extensions.get::<Record>() {
        record.request_object(&decoded.object, || kind.recorded(&decoded.object));
    }
    Ok(decoded)
}

/// What upstream reads first of an object, as Go shows its type.
const HEAD: &str = r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;

/// What is said of a document that is no object.
pub fn not_an_object(value: &Value) -> String {
    format!(
        "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go value of type {HEAD}",
        kind_of(value)
    )
}

/// A body that tells no kind.
fn unrecognized(kind: &str, why: &str, body: &[u8]) -> Error {
    const SHOWN: usize = 30;
    let shown = &body[..body.len().min(SHOWN)];
    let mut summary = match shown {
        [] => "<empty>".into(),
        [b'{', ..] => String::from_utf8_lossy(shown).into_owned(),
        bytes => bytes.iter().map(|b| format!("{b:02x}")).collect(),
    };
    if body.len() > SHOWN {
        summary.push_str(" ...");
    }
    Error::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {why} ({summary})"
    ))
}

/// Decodes the protobuf form of an object of a kind.
fn from_protobuf(body: &[u8], expected: Expected<'_>) -> Result<Value, Error> {
    let (version, kind) = (expected.version, expected.kind);
    let envelope = protobuf::open(body).map_err(Error::bad_request)?;
    let kind_sent = if envelope.kind.is_empty() {
        kind
    } else {
        envelope.kind
    };
    // What is sent may be of another kind than the path's; that is told by its name, not by garbled fields.
    let ty = expected.ty.filter(|_| kind_sent == kind);
    let mut object = match ty {
        Some(ty) => protobuf::decode(ty, envelope.raw).map_err(|why| {
            Error::bad_request(format!(
                "{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"
            ))
        })?,
        None => serde_json::json!({}),
    };
    object["kind"] = kind_sent.into();
    object["apiVersion"] = envelope.api_version.into();
    Ok(object)
}

/// What else there is to know of an object that was sent.
#[derive(Debug, Default)]
pub struct Sent<'a> {
    /// Paths of fields that it had twice.
    pub duplicates: Vec<String>,
    /// The JSON that it was; empty when it was none.
    pub document: &'a [u8],
}

/// Checks an object against the schema of its kind.
///
/// # Errors
/// 400 as for [`object`].
pub fn typed<'a>(
    mut object: Value,
    sent: Sent<'_>,
    query: &Query,
    kind: impl Into<Expected<'a>>,
) -> Result<Decoded, Error> {
    let Expected {
        group,
        version,
        kind,
        schema,
        ty,
        definition,
        ..
    } = kind.into();
    let expected = api_version(group, version);
    if !object.is_object() {
        return Err(Error::bad_request(not_an_object(&object)));
    }
    match (
        object["apiVersion"].as_str().unwrap_or_default(),
        object["kind"].as_str().unwrap_or_default(),
    ) {
        (v, k) if definition.is_some() => custom_kind(&object, (v, k), (group, &expected, kind))?,
        ("", "") => {}
        (v, k) if (v == expected || v.is_empty()) && (k == kind || k.is_empty()) => {}
        (v, k) => {
            let v = if v.is_empty() { &expected } else { v };
            let k = if k.is_empty() { kind } else { k };
            let why = other_kind((group, kind), v, k);
            let version = v.rsplit('/').next().unwrap_or_default();
            return Err(Error::bad_request(format!(
                "{k} in version {version:?} cannot be handled as a {kind}: {why}"
            )));
        }
    }
    let cannot = |why: String| {
        Error::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"
        ))
    };
    let mut unknown = Vec::new();
    if let Some(definition) = definition {
        unknown = definition.conform(ty, &mut object).map_err(cannot)?;
    } else if let Some(ty) = ty {
        unknown = conform(schema, ty, &mut object).map_err(cannot)?.unknown;
    }
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), expected.into());
        map.insert("kind".into(), kind.into());
    }
    let problems: Vec<String> = if unknown.is_empty() && sent.duplicates.is_empty() {
        Vec::new()
    } else {
        let problems = problems(sent, unknown, definition.is_some());
        problems.iter().map(Problem::to_string).collect()
    };
    match field_validation(query) {
        FieldValidation::Strict if !problems.is_empty() => Err(cannot(format!(
            "strict decoding error: {}",
            problems.join(", ")
        ))),
        FieldValidation::Warn => Ok(Decoded {
            object,
            warnings: problems,
        }),
        _ => Ok(Decoded {
            object,
            warnings: Vec::new(),
        }),
    }
}

/// So many problems of a document are told.
const MOST_PROBLEMS: usize = 100;

/// What a strict decoder objects to, in upstream's order: a schema of custom resources is looked at after the document.
fn problems(sent: Sent<'_>, unknown: Vec<String>, is_custom: bool) -> Vec<Problem> {
    let mut duplicates: Vec<Problem> = sent
        .duplicates
        .into_iter()
        .map(Problem::Duplicate)
        .collect();
    let mut unknown: Vec<Problem> = unknown.into_iter().map(Problem::Unknown).collect();
    if is_custom {
        in_order(sent.document, &mut duplicates);
        duplicates.truncate(MOST_PROBLEMS);
        duplicates.append(&mut unknown);
        return duplicates;
    }
    unknown.append(&mut duplicates);
    in_order(sent.document, &mut unknown);
    unknown.truncate(MOST_PROBLEMS);
    unknown
}

/// A custom resource must say what it is.
fn custom_kind(
    object: &Value,
    (version, sent): (&str, &str),
    (group, expected, kind): (&str, &str, &str),
) -> Result<(), Error> {
    if version != expected {
        return Err(Error::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({expected})"
        )));
    }
    if sent == kind {
        return Ok(());
    }
    let mut errors = Errors::default();
    errors.invalid("kind", &sent.into(), &format!("must be {kind}"));
    Err(Error::invalid(group, sent, meta::name(object), errors.0))
}

/// Why an object of a kind cannot be one of another.
fn other_kind((group, kind): (&str, &str), api_version: &str, sent: &str) -> String {
    let (sent_group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if resources::find_kind(sent_group, version, sent).is_none() {
        return format!(
            "no kind {sent:?} is registered for version {api_version:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\""
        );
    }
    let package = match group.split('.').next().unwrap_or_default() {
        "" => "core",
        package => package,
    };
    format!("converting ({version}.{sent}) to ({package}.{kind}): unknown conversion")
}

/// What the request says to do about unknown fields; the options have been validated.
pub(super) fn field_validation(query: &Query) -> FieldValidation {
    match query.get("fieldValidation") {
        Some("Ignore") => FieldValidation::Ignore,
        Some("Strict") => FieldValidation::Strict,
        _ => FieldValidation::Warn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn yaml_keeps_what_is_empty() {
        let request = http::Request::post("/").header("content-type", "application/yaml");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let body = Bytes::from_static(b"{a: {}, b: {c: [], d: 1}}");
        let (value, _) = parse(&parts, &body, ("", "v1", "Pod")).unwrap();
        assert_eq!(value, json!({"a": {}, "b": {"c": [], "d": 1}}));
    }
}
