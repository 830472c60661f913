//! Types of expressions.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The type of an expression.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    Dyn,
    /// The element of an empty literal: whatever it meets first.
    Unbound,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Box<Type>),
    Map(Box<Type>, Box<Type>),
    Object(Arc<ObjectType>),
    /// An object of a named type of which nothing else is known.
    Dynamic(Arc<str>),
    Optional(Box<Type>),
    /// `type(type)`.
    Type,
    /// A type of a library: `kubernetes.Quantity`.
    Opaque(&'static str),
    /// A parameter of a function's signature.
    Param(char),
}

/// An object with known fields, and how large its parts can get.
#[derive(Clone, Debug)]
pub struct ObjectType {
    pub name: String,
    /// By their names in CEL, which are escaped.
    pub fields: BTreeMap<String, Field>,
}

/// A field, or any part of a value, with what a schema says about its size.
#[derive(Clone, Debug)]
pub struct Field {
    pub ty: Type,
    /// The name in JSON.
    pub name: String,
    /// Items, entries or bytes there can be; `u64::MAX` when nothing limits them but the size of a request.
    pub max_elements: u64,
    /// Of an element of a list or a value of a map.
    pub element: Option<Arc<Field>>,
    /// Of a key of a map.
    pub key: Option<Arc<Field>>,
    /// The fewest bytes a value takes in JSON.
    pub min_size: u64,
}

impl Field {
    /// A field of which nothing but its type is known.
    #[must_use]
    pub fn unlimited(name: &str, ty: Type) -> Self {
        Self {
            ty,
            name: name.to_owned(),
            max_elements: u64::MAX,
            element: None,
            key: None,
            min_size: 2,
        }
    }
}

impl PartialEq for ObjectType {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Type {
    #[must_use]
    pub fn list(item: Self) -> Self {
        Self::List(Box::new(item))
    }

    #[must_use]
    pub fn map(key: Self, value: Self) -> Self {
        Self::Map(Box::new(key), Box::new(value))
    }

    #[must_use]
    pub fn optional(inner: Self) -> Self {
        Self::Optional(Box::new(inner))
    }

    /// An object of nothing but typed fields.
    #[must_use]
    pub fn object(name: &str, fields: &BTreeMap<String, Self>) -> Self {
        let fields = fields.iter();
        let fields = fields.map(|(name, ty)| (name.clone(), Field::unlimited(name, ty.clone())));
        Self::Object(Arc::new(ObjectType {
            name: name.to_owned(),
            fields: fields.collect(),
        }))
    }

    /// What the type is called where values are, which is not how messages about literals call it.
    #[must_use]
    pub fn runtime_name(&self) -> String {
        match self {
            Self::Null => "null_type".to_owned(),
            other => other.to_string(),
        }
    }

    /// Whether nothing is known about it.
    #[must_use]
    pub fn is_dyn(&self) -> bool {
        matches!(self, Self::Dyn | Self::Unbound)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn | Self::Unbound => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Duration => f.write_str("google.protobuf.Duration"),
            Self::Timestamp => f.write_str("google.protobuf.Timestamp"),
            Self::List(item) => write!(f, "list({item})"),
            Self::Map(key, value) => write!(f, "map({key}, {value})"),
            Self::Object(object) => f.write_str(&object.name),
            Self::Dynamic(name) => f.write_str(name),
            Self::Optional(inner) => write!(f, "optional_type({inner})"),
            Self::Type => f.write_str("type"),
            Self::Opaque(name) => f.write_str(name),
            Self::Param(name) => write!(f, "{name}"),
        }
    }
}
