//! How server-side apply sees a value: as a whole, as an object whose fields are owned one by one, or as a list whose items
//! are. Everything else in this module works on this view of the schema.

use std::borrow::Cow;
use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::set::{PathElement, field_key};
use crate::schema::{Field, Kind, ListType, Schema, Type, TypeId};

/// The schema of one value.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'s> {
    schema: &'s Schema,
    form: Form<'s>,
}

#[derive(Clone, Copy, Debug)]
enum Form<'s> {
    /// Owned as a whole.
    Leaf,
    Object(&'s Type),
    Map(&'s Kind),
    List(&'s Kind, &'s ListType),
    /// No schema: objects are merged field by field, lists are owned as a whole. At the root, `metadata` is still known.
    Deduced {
        root: bool,
    },
}

/// Kinds of values that are merged instead of replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    None,
    Map,
    List,
}

/// What is known of an item's identity in a list.
pub type ItemError = String;

impl<'s> Shape<'s> {
    /// Of an object of a type, or of one that has no schema.
    #[must_use]
    pub fn root(schema: &'s Schema, ty: Option<TypeId>) -> Self {
        let form = match ty {
            Some(ty) => Form::Object(schema.get(ty)),
            None => Form::Deduced { root: true },
        };
        Self { schema, form }
    }

    /// Of a list whose items have identities.
    #[must_use]
    pub fn list(schema: &'s Schema, item: &'s Kind, list: &'s ListType) -> Self {
        Self {
            schema,
            form: Form::List(item, list),
        }
    }

    fn of_field(schema: &'s Schema, field: &'s Field) -> Self {
        let form = match &field.kind {
            Kind::Object(ty) => {
                let ty = schema.get(*ty);
                if (ty.atomic || field.atomic) && !field.granular {
                    Form::Leaf
                } else {
                    Form::Object(ty)
                }
            }
            Kind::Map(_) if field.atomic => Form::Leaf,
            Kind::Map(item) => Form::Map(item),
            Kind::List(_) if field.list == ListType::Atomic => Form::Leaf,
            Kind::List(item) => Form::List(item, &field.list),
            Kind::Json if schema.deduces() => Form::Deduced { root: false },
            _ => Form::Leaf,
        };
        Self { schema, form }
    }

    fn of_kind(schema: &'s Schema, kind: &'s Kind) -> Self {
        let form = match kind {
            Kind::Object(ty) if !schema.get(*ty).atomic => Form::Object(schema.get(*ty)),
            Kind::Map(item) => Form::Map(item),
            Kind::Json if schema.deduces() => Form::Deduced { root: false },
            _ => Form::Leaf,
        };
        Self { schema, form }
    }

    /// What a value of this shape is made of; a value of another type than the schema's counts as a leaf.
    #[must_use]
    pub fn parts(&self, value: &Value) -> Parts {
        match (&self.form, value) {
            (Form::Object(_) | Form::Map(_), Value::Object(_) | Value::Null)
            | (Form::Deduced { .. }, Value::Object(_)) => Parts::Map,
            (Form::List(..), Value::Array(_) | Value::Null) => Parts::List,
            _ => Parts::None,
        }
    }

    /// Whether this is owned as a whole whatever the value.
    #[must_use]
    pub fn is_leaf(&self) -> bool {
        matches!(self.form, Form::Leaf)
    }

    /// The shape of a field of an object, or of a map's value.
    #[must_use]
    pub fn field(&self, name: &str) -> Shape<'s> {
        match self.form {
            Form::Object(ty) => match (ty.field(name), &ty.rest) {
                (Some(field), _) => Self::of_field(self.schema, field),
                (None, Some(rest)) => Self::of_kind(self.schema, rest),
                (None, None) => self.leaf(),
            },
            Form::Map(item) => Self::of_kind(self.schema, item),
            Form::Deduced { root: true } if name == "metadata" => {
                let builtin = Schema::builtin();
                Self::root(builtin, builtin.find(OBJECT_META))
            }
            Form::Deduced { .. } => Self {
                schema: self.schema,
                form: Form::Deduced { root: false },
            },
            _ => self.leaf(),
        }
    }

    /// Whether the schema names this field: a struct's field, not a map's key.
    #[must_use]
    pub fn names(&self, field: &str) -> bool {
        matches!(self.form, Form::Object(ty) if ty.field(field).is_some())
    }

    /// What upstream sees of an absent field that it always writes: objects that it holds by value are there but empty,
    /// lists and maps are null, scalars are zero.
    #[must_use]
    pub fn implied(&self, field: &str) -> Option<&'static Value> {
        match self.form {
            Form::Object(ty) => ty.field(field).and_then(implied),
            _ => None,
        }
    }

    /// The fields that upstream sees even when they are absent.
    pub fn always(&self) -> impl Iterator<Item = &'s str> + use<'s> {
        let fields = match self.form {
            Form::Object(ty) => ty.fields.as_slice(),
            _ => &[],
        };
        let always = |f: &&Field| implied(f).is_some();
        fields.iter().filter(always).map(|f| &*f.name)
    }

    /// The shape of a list's items.
    #[must_use]
    pub fn item(&self) -> Shape<'s> {
        match self.form {
            Form::List(item, _) => Self::of_kind(self.schema, item),
            _ => self.leaf(),
        }
    }

    /// The shape below a key of a set of paths, for sets that outlive their schema.
    #[must_use]
    pub fn below(&self, key: &str) -> Shape<'s> {
        match key.strip_prefix("f:") {
            Some(name) => self.field(name),
            None => self.item(),
        }
    }

    fn leaf(&self) -> Self {
        Self {
            schema: self.schema,
            form: Form::Leaf,
        }
    }

    /// What identifies an item of this list.
    ///
    /// # Errors
    /// In upstream's words when it has no identity.
    pub fn identity(&self, item: &Value) -> Result<PathElement, ItemError> {
        let Form::List(kind, list) = self.form else {
            return Err("invalid indexing of non-associative list".into());
        };
        let keys = match list {
            ListType::Map(keys) => keys,
            ListType::Set => {
                return match item {
                    Value::Object(_) => {
                        Err("associative list without keys has an element that's a map type".into())
                    }
                    Value::Array(_) => {
                        Err("not supported: associative list with lists as elements".into())
                    }
                    Value::Null => Err(
                        "associative list without keys has an element that's an explicit null"
                            .into(),
                    ),
                    value => Ok(PathElement::Value(value.clone())),
                };
            }
            ListType::Atomic => return Err("invalid indexing of non-associative list".into()),
        };
        let map = match item {
            Value::Object(map) => map,
            Value::Null => {
                return Err("associative list with keys may not have a null element".into());
            }
            _ => return Err("associative list with keys may not have non-map elements".into()),
        };
        let mut fields = Vec::with_capacity(keys.len());
        for key in keys {
            // A key that upstream always writes counts as its zero when it is absent.
            let default = || {
                let Kind::Object(ty) = kind else { return None };
                let field = self.schema.get(*ty).field(key)?;
                let zero = match field.kind {
                    Kind::String => Value::from(""),
                    Kind::Int32 | Kind::Int64 => Value::from(0),
                    _ => Value::Null,
                };
                let zero = field.required.then_some(zero).filter(|z| !z.is_null());
                field.default.clone().or(zero)
            };
            if let Some(value) = map.get(&**key).cloned().or_else(default) {
                fields.push((key.to_string(), value));
            }
        }
        if fields.is_empty() {
            let names: Vec<String> = keys.iter().map(|k| format!("{k:?}")).collect();
            return Err(format!(
                "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                names.join(" ")
            ));
        }
        fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(PathElement::Key(fields))
    }

    /// The items of a list with the keys that identify them; items without identity are left out.
    #[must_use]
    pub fn items<'v>(&self, list: Option<&'v Value>) -> Vec<(String, &'v Value)> {
        let items = list
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        items
            .iter()
            .filter_map(|item| Some((self.identity(item).ok()?.to_key(), item)))
            .collect()
    }
}

fn implied(field: &Field) -> Option<&'static Value> {
    static VALUES: OnceLock<[Value; 4]> = OnceLock::new();
    let make = || [Value::Object(Map::new()), 0.into(), false.into(), "".into()];
    let [object, number, boolean, text] = VALUES.get_or_init(make);
    match &field.kind {
        Kind::Object(_) if field.by_value => Some(object),
        _ if field.default == Some(Value::Null) => Some(&Value::Null),
        Kind::String if field.default.as_ref() == Some(text) => Some(text),
        _ if !field.required || field.default.is_some() => None,
        Kind::List(_) | Kind::Map(_) => Some(&Value::Null),
        Kind::Int32 | Kind::Int64 => Some(number),
        Kind::Bool => Some(boolean),
        Kind::String => Some(text),
        _ => None,
    }
}

/// The type of every object's metadata.
pub const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Where a walk is. The keys of `fieldsV1` are only put together when something is found there.
#[derive(Debug, Default)]
pub struct Path<'a>(Vec<Step<'a>>);

#[derive(Debug)]
enum Step<'a> {
    Field(&'a str),
    Item(String),
}

impl<'a> Path<'a> {
    pub fn field(&mut self, name: &'a str) {
        self.0.push(Step::Field(name));
    }

    pub fn item(&mut self, key: String) {
        self.0.push(Step::Item(key));
    }

    pub fn pop(&mut self) {
        self.0.pop();
    }

    /// `metadata.managedFields` owns nothing and nobody owns it.
    #[must_use]
    pub fn is_managed_fields(&self) -> bool {
        matches!(
            self.0.as_slice(),
            [Step::Field("metadata"), Step::Field("managedFields")]
        )
    }

    pub fn keys(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.0.iter().map(|step| match step {
            Step::Field(name) => Cow::Owned(field_key(name)),
            Step::Item(key) => Cow::Borrowed(key.as_str()),
        })
    }
}
