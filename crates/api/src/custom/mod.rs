//! Custom resources: what a CustomResourceDefinition adds to the table of resources, as data that the same generic
//! handlers use as for built-in kinds.

pub mod columns;
pub mod defaulting;
pub mod formats;
pub mod jsonpath;
pub mod prune;
pub mod structural;
pub mod typing;
pub mod v1beta1;
pub mod validate;

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;

use crate::resources::{Life, Resource, Subresource, intern};
use crate::schema::{Kind, Schema, TypeId};
use crate::strategy::Strategy;
use crate::validation::Errors;
use crate::{decode, meta};

pub use columns::PrinterColumn;
pub use jsonpath::JsonPath;
pub use structural::Structural;

/// One version of a custom resource.
#[derive(Debug)]
pub struct Definition {
    pub structural: Structural,
    /// The schema as it was written.
    pub openapi: Arc<Value>,
    /// The same as types, for apply and patches.
    pub schema: Schema,
    pub has_status: bool,
    pub scale: Option<Scale>,
    pub columns: Vec<PrinterColumn>,
    /// `spec.color` and where it is.
    selectable: Vec<(&'static str, JsonPath)>,
    selectable_names: Vec<&'static str>,
    /// What requests for this version are warned of, when it is deprecated.
    pub deprecation: Option<Box<str>>,
    /// The stored version; `None` when this one is it.
    pub stored: Option<Arc<Resource>>,
    pub conversion: Conversion,
    rules: Option<Arc<dyn Rules>>,
}

/// Where the scale subresource finds its numbers.
#[derive(Clone, Debug)]
pub struct Scale {
    pub spec_replicas: Box<str>,
    pub status_replicas: Box<str>,
    pub label_selector: Option<Box<str>>,
}

/// How an object of one version becomes one of another.
#[derive(Clone, Debug)]
pub enum Conversion {
    /// Only `apiVersion` changes.
    None,
    /// Somebody else converts: `spec.conversion.webhook`.
    Webhook(Arc<Value>),
}

/// In the order in which upstream lists them.
const VERBS: [&str; 8] = [
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "create",
    "update",
    "watch",
];

/// The CEL rules of a schema, compiled by whoever can.
pub trait Rules: std::fmt::Debug + Send + Sync {
    /// Evaluates every rule that applies to `object` or a part of it. `part` limits them to one property of the root.
    fn validate(
        &self,
        part: Option<&str>,
        object: &Value,
        old: Option<&Value>,
        errors: &mut Errors,
    );
}

/// Compiles the rules of a schema (parsed, and as it was written); `None` when there are none.
pub type CompileRules = fn(&Structural, &Value) -> Option<Arc<dyn Rules>>;

/// What upstream says instead of evaluating rules over a malformed object.
const RULES_SKIPPED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";

impl Definition {
    /// Makes an object that was sent or patched one of this version: unknown fields go, metadata has the right types.
    /// Returns the paths of the fields that went.
    ///
    /// # Errors
    /// Metadata of the wrong type, in the words of upstream's decoder.
    pub fn conform(&self, ty: Option<TypeId>, object: &mut Value) -> Result<Vec<String>, String> {
        let mut unknown = self.conform_metadata(ty, object)?;
        unknown.extend(prune::prune(&self.structural, object));
        Ok(unknown)
    }

    fn conform_metadata(
        &self,
        ty: Option<TypeId>,
        object: &mut Value,
    ) -> Result<Vec<String>, String> {
        let field = ty.and_then(|ty| self.schema.get(ty).field("metadata"));
        let (Some(field), Some(metadata)) = (field, object.get_mut("metadata")) else {
            return Ok(Vec::new());
        };
        let Kind::Object(ty) = field.kind else {
            return Ok(Vec::new());
        };
        let found = decode::conform(&self.schema, ty, metadata)?;
        Ok(found
            .unknown
            .into_iter()
            .map(|path| format!("metadata.{path}"))
            .collect())
    }

    /// An object as it was stored, under an older schema perhaps, as this version shows it.
    pub fn refresh(&self, object: &mut Value) {
        prune::prune(&self.structural, object);
        defaulting::apply(&self.structural, object);
    }

    pub fn default(&self, object: &mut Value) {
        defaulting::apply(&self.structural, object);
    }

    fn check(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let before = errors.0.len();
        validate::validate(&self.structural, "", object, old, errors);
        if let Some(scale) = &self.scale {
            scale.validate(object, true, errors);
        }
        validate::embedded(&self.structural, "", object, errors);
        let unique_before = old.is_none_or(|old| {
            let mut found = Errors::default();
            validate::unique_lists(&self.structural, "", old, &mut found);
            found.is_empty()
        });
        if unique_before {
            validate::unique_lists(&self.structural, "", object, errors);
        }
        self.check_rules(None, object, old, errors, before);
    }

    fn check_rules(
        &self,
        part: Option<&str>,
        object: &Value,
        old: Option<&Value>,
        errors: &mut Errors,
        before: usize,
    ) {
        let Some(rules) = &self.rules else { return };
        let blocking = errors.0[before..].iter().any(|cause| {
            [
                "FieldValueRequired",
                "FieldValueTooLong",
                "FieldValueTooMany",
                "FieldValueTypeInvalid",
            ]
            .contains(&cause.reason)
        });
        if blocking {
            errors.invalid("<nil>", &Value::Null, RULES_SKIPPED);
        } else {
            rules.validate(part, object, old, errors);
        }
    }
}

impl Scale {
    fn parse(scale: &Value) -> Option<Self> {
        let path = |name: &str| scale[name].as_str().map(Box::from);
        Some(Self {
            spec_replicas: path("specReplicasPath")?,
            status_replicas: path("statusReplicasPath")?,
            label_selector: scale["labelSelectorPath"]
                .as_str()
                .filter(|p| !p.is_empty())
                .map(Into::into),
        })
    }

    fn validate(&self, object: &Value, spec: bool, errors: &mut Errors) {
        let mut paths = vec![&self.status_replicas];
        if spec {
            paths.insert(0, &self.spec_replicas);
        }
        for path in paths {
            let Some(value) = at_path(object, path) else {
                continue;
            };
            match value.as_i64() {
                None => errors.invalid(
                    path,
                    &0.into(),
                    &format!(
                        "{path} accessor error: {value} is of the type {}, expected int64",
                        go_type(value)
                    ),
                ),
                Some(n) if n < 0 => {
                    errors.invalid(path, value, "should be a non-negative integer");
                }
                Some(n) if n > i64::from(i32::MAX) => errors.invalid(
                    path,
                    value,
                    &format!("should be less than or equal to {}", i32::MAX),
                ),
                Some(_) => {}
            }
        }
        if let Some(path) = &self.label_selector
            && let Some(value) = at_path(object, path)
            && !value.is_string()
        {
            let detail = format!(
                "{path} accessor error: {value} is of the type {}, expected string",
                go_type(value)
            );
            errors.invalid(path, &"".into(), &detail);
        }
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// The value at a path of names, `.spec.replicas`.
#[must_use]
pub fn at_path<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let mut names = path.trim_start_matches('.').split('.');
    names.try_fold(object, |value, name| value.get(name))
}

/// Sets the value at a path of names, making the objects on the way.
pub fn set_path(object: &mut Value, path: &str, value: Value) {
    let names: Vec<&str> = path.trim_start_matches('.').split('.').collect();
    let Some((last, parents)) = names.split_last() else {
        return;
    };
    let mut at = object;
    for parent in parents {
        meta::child(at, parent);
        at = &mut at[*parent];
    }
    if let Value::Object(map) = at {
        map.insert((*last).to_owned(), value);
    }
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

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        let mut kept = old.clone();
        crate::strategy::copy_field(&mut kept, object, "status");
        for field in ["resourceVersion", "managedFields"] {
            meta::set(&mut kept, field, object["metadata"][field].take());
        }
        *object = kept;
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        self.check(object, None, errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        self.check(object, Some(old), errors);
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let before = errors.0.len();
        if let (Some(schema), Some(status)) = (
            self.structural.properties.get("status"),
            object.get("status"),
        ) {
            validate::validate(schema, "status", status, old.get("status"), errors);
            validate::embedded(schema, "status", status, errors);
            validate::unique_lists(schema, "status", status, errors);
        }
        if let Some(scale) = &self.scale {
            scale.validate(object, false, errors);
        }
        self.check_rules(Some("status"), object, Some(old), errors, before);
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

    fn selectable_fields(&self) -> &[&'static str] {
        &self.selectable_names
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        let (_, path) = self.selectable.iter().find(|(name, _)| *name == field)?;
        Some(match path.first(object) {
            Some(Value::String(text)) => Cow::Borrowed(text),
            Some(Value::Null) | None => Cow::Borrowed(""),
            Some(other) => Cow::Owned(other.to_string()),
        })
    }

    fn has_standard_finalizers(&self) -> bool {
        false
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let before = old.map(meta::finalizers).unwrap_or_default();
        let mut added: Vec<&str> = meta::finalizers(object);
        added.retain(|f| !before.contains(f));
        added.sort_unstable();
        let mut warnings = Vec::new();
        for finalizer in added {
            let standard = ["orphan", "foregroundDeletion", "kubernetes"].contains(&finalizer);
            if !finalizer.contains('/') && !standard {
                let path = if finalizer.contains('.') {
                    "including a path (/) "
                } else {
                    ""
                };
                warnings.push(format!("metadata.finalizers: {finalizer:?}: prefer a domain-qualified finalizer name {path}to avoid accidental conflicts with other finalizer writers"));
            }
        }
        warnings
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// The served resources of an established definition, one per version. The definition has been validated.
#[must_use]
pub fn resources_of(crd: &Value, compile: CompileRules) -> Vec<Arc<Resource>> {
    let versions = crd["spec"]["versions"].as_array();
    let versions: Vec<&Value> = versions.into_iter().flatten().collect();
    let Some(storage) = versions.iter().find(|v| v["storage"] == true) else {
        return Vec::new();
    };
    let stored = Arc::new(resource(crd, storage, None, compile));
    versions
        .iter()
        .filter(|v| v["served"] == true)
        .map(|version| {
            if version["storage"] == true {
                stored.clone()
            } else {
                Arc::new(resource(crd, version, Some(stored.clone()), compile))
            }
        })
        .collect()
}

fn resource(
    crd: &Value,
    version: &Value,
    stored: Option<Arc<Resource>>,
    compile: CompileRules,
) -> Resource {
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
    let selectable: Vec<(&'static str, JsonPath)> = version["selectableFields"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|field| {
            let path = field["jsonPath"].as_str()?;
            Some((intern(path.trim_start_matches('.')), JsonPath::parse(path)?))
        })
        .collect();
    let conversion = if crd["spec"]["conversion"]["strategy"] == "Webhook" {
        Conversion::Webhook(Arc::new(crd["spec"]["conversion"]["webhook"].clone()))
    } else {
        Conversion::None
    };
    let deprecation = (version["deprecated"] == true).then(|| {
        version["deprecationWarning"].as_str().map_or_else(
            || format!("{group}/{name} {kind} is deprecated").into(),
            Into::into,
        )
    });
    Resource {
        group,
        version: name,
        plural,
        kind,
        namespaced: crd["spec"]["scope"] == "Namespaced",
        singular: text(&names["singular"]),
        short_names: list(&names["shortNames"]),
        categories: list(&names["categories"]),
        verbs: VERBS.to_vec(),
        subresources,
        ty: Some(ty),
        storage: intern(&format!("{group}/{plural}")),
        life: Life::default(),
        gate: None,
        hub: None,
        definition: Some(Arc::new(Definition {
            openapi: Arc::new(version["schema"]["openAPIV3Schema"].clone()),
            rules: compile(&structural, &version["schema"]["openAPIV3Schema"]),
            structural,
            schema,
            has_status,
            scale: Scale::parse(&version["subresources"]["scale"]),
            columns: PrinterColumn::of_version(version),
            selectable_names: selectable.iter().map(|(name, _)| *name).collect(),
            selectable,
            deprecation,
            stored,
            conversion,
        })),
    }
}
