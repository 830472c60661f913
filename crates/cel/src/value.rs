//! Values, and how JSON becomes them.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use fluyt_api::quantity::Quantity;
use serde_json::Value as Json;

use crate::authz::Authz;
use crate::library::{Cidr, Format, Semver, Url};
use crate::types::Type;

/// The value of an expression.
#[derive(Clone, Debug)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Arc<Vec<Value>>),
    /// A map, or an object by its escaped field names.
    Map(Arc<BTreeMap<Key, Value>>),
    Duration(jiff::SignedDuration),
    Timestamp(jiff::Timestamp),
    Optional(Option<Box<Value>>),
    Type(Arc<str>),
    Quantity(Arc<Quantity>),
    Ip(std::net::IpAddr),
    Cidr(Cidr),
    Url(Arc<Url>),
    Format(&'static Format),
    Semver(Arc<Semver>),
    Authz(Arc<Authz>),
}

/// A key of a map. Numbers are one kind of key, whatever their type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    Number(i128),
    String(Arc<str>),
}

impl Key {
    /// `None` for values that are no keys.
    #[must_use]
    pub fn of(value: &Value) -> Option<Self> {
        Some(match value {
            Value::Bool(b) => Self::Bool(*b),
            Value::Int(n) => Self::Number(i128::from(*n)),
            Value::Uint(n) => Self::Number(i128::from(*n)),
            #[allow(clippy::cast_possible_truncation)]
            Value::Double(d) if d.fract() == 0.0 && d.abs() < 1e18 => Self::Number(*d as i128),
            Value::String(s) => Self::String(s.clone()),
            _ => return None,
        })
    }

    #[must_use]
    pub fn value(&self) -> Value {
        match self {
            Self::Bool(b) => Value::Bool(*b),
            Self::Number(n) => i64::try_from(*n).map_or_else(
                |_| Value::Uint(u64::try_from(*n).unwrap_or(u64::MAX)),
                Value::Int,
            ),
            Self::String(s) => Value::String(s.clone()),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl Value {
    /// The `authorizer` variable.
    #[must_use]
    pub fn authorizer(authorizer: crate::Authorizer) -> Self {
        Self::Authz(Arc::new(Authz::Authorizer(authorizer, None)))
    }

    /// The `authorizer.requestResource` variable: what a request itself asks for.
    #[must_use]
    pub fn resource_check(authorizer: crate::Authorizer, query: crate::Query) -> Self {
        Self::Authz(Arc::new(Authz::Resource(authorizer, None, query)))
    }

    /// An object by the names of its fields.
    #[must_use]
    pub fn object(fields: &BTreeMap<String, Self>) -> Self {
        let entries = fields
            .iter()
            .map(|(name, value)| (Key::String(name.as_str().into()), value.clone()));
        Self::Map(Arc::new(entries.collect()))
    }

    #[must_use]
    pub fn list(items: Vec<Self>) -> Self {
        Self::List(Arc::new(items))
    }

    /// JSON without a schema.
    #[must_use]
    pub fn from_json(json: &Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => n
                .as_i64()
                .map_or_else(|| Self::Double(n.as_f64().unwrap_or_default()), Self::Int),
            Json::String(s) => Self::String(s.as_str().into()),
            Json::Array(items) => Self::list(items.iter().map(Self::from_json).collect()),
            Json::Object(map) => Self::Map(Arc::new(
                map.iter()
                    .map(|(k, v)| (Key::String(k.as_str().into()), Self::from_json(v)))
                    .collect(),
            )),
        }
    }

    /// JSON as a value of a type; what does not fit the type stays as it is.
    #[must_use]
    pub fn typed(json: &Json, ty: &Type) -> Self {
        use base64::Engine as _;
        match (json, ty) {
            (Json::Number(n), Type::Double) => Self::Double(n.as_f64().unwrap_or_default()),
            #[allow(clippy::cast_possible_truncation)]
            (Json::Number(n), Type::Int) if n.is_f64() => {
                Self::Int(n.as_f64().unwrap_or_default() as i64)
            }
            (Json::String(s), Type::Timestamp) => {
                let dated = s
                    .parse::<jiff::Timestamp>()
                    .or_else(|_| format!("{s}T00:00:00Z").parse());
                dated.map_or_else(|_| Self::from_json(json), Self::Timestamp)
            }
            (Json::String(s), Type::Duration) => crate::library::parse_duration(s)
                .map_or_else(|| Self::from_json(json), Self::Duration),
            (Json::String(s), Type::Bytes) => base64::engine::general_purpose::STANDARD
                .decode(s)
                .map_or_else(|_| Self::from_json(json), |bytes| Self::Bytes(bytes.into())),
            (Json::Array(items), Type::List(item)) => {
                Self::list(items.iter().map(|i| Self::typed(i, item)).collect())
            }
            (Json::Object(map), Type::Map(_, value)) => Self::Map(Arc::new(
                map.iter()
                    .map(|(k, v)| (Key::String(k.as_str().into()), Self::typed(v, value)))
                    .collect(),
            )),
            (Json::Object(map), Type::Object(object)) => Self::Map(Arc::new(
                object
                    .fields
                    .iter()
                    .filter_map(|(name, field)| {
                        let value = map.get(&field.name)?;
                        // A null that no schema allows counts as absent.
                        (!value.is_null() || matches!(field.ty, Type::Dyn | Type::Null)).then(
                            || {
                                (
                                    Key::String(name.as_str().into()),
                                    Self::typed(value, &field.ty),
                                )
                            },
                        )
                    })
                    .collect(),
            )),
            _ => Self::from_json(json),
        }
    }

    /// Back to JSON, for what an expression constructs. `None` for what JSON has no form for.
    #[must_use]
    pub fn to_json(&self) -> Option<Json> {
        use base64::Engine as _;
        Some(match self {
            Self::Null => Json::Null,
            Self::Bool(b) => (*b).into(),
            Self::Int(n) => (*n).into(),
            Self::Uint(n) => (*n).into(),
            Self::Double(d) => (*d).into(),
            Self::String(s) => (&**s).into(),
            Self::Bytes(b) => base64::engine::general_purpose::STANDARD.encode(b).into(),
            Self::List(items) => items
                .iter()
                .map(Self::to_json)
                .collect::<Option<Vec<_>>>()?
                .into(),
            Self::Map(map) => {
                let mut object = serde_json::Map::new();
                for (key, value) in &**map {
                    let name = match key {
                        Key::String(s) => s.to_string(),
                        Key::Number(n) => n.to_string(),
                        Key::Bool(b) => b.to_string(),
                    };
                    object.insert(name, value.to_json()?);
                }
                object.into()
            }
            Self::Duration(d) => crate::library::show_duration(*d).into(),
            Self::Timestamp(t) => t.to_string().into(),
            Self::Optional(Some(inner)) => inner.to_json()?,
            Self::Quantity(q) => q.to_string().into(),
            _ => return None,
        })
    }

    /// The name of its type.
    #[must_use]
    pub fn type_name(&self) -> &str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Url(_) => "kubernetes.URL",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Authz(authz) => authz.type_name(),
        }
    }

    /// How large it is, as upstream's cost model sees it.
    #[must_use]
    pub fn size(&self) -> u64 {
        let size = match self {
            Self::String(s) => s.chars().count(),
            Self::Bytes(b) => b.len(),
            Self::List(items) => items.len(),
            Self::Map(map) => map.len(),
            Self::Ip(std::net::IpAddr::V4(_)) => 4,
            Self::Ip(std::net::IpAddr::V6(_)) => 16,
            Self::Cidr(cidr) => cidr.size(),
            _ => 1,
        };
        size as u64
    }

    /// Equality across numeric types; values of different kinds are unequal.
    #[must_use]
    pub fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::String(a), Self::String(b)) => a == b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::List(a), Self::List(b)) => {
                a.len() == b.len() && a.iter().zip(&**b).all(|(a, b)| a.equals(b))
            }
            (Self::Map(a), Self::Map(b)) => {
                a.len() == b.len()
                    && a.iter()
                        .all(|(k, v)| b.get(k).is_some_and(|other| v.equals(other)))
            }
            (Self::Duration(a), Self::Duration(b)) => a == b,
            (Self::Timestamp(a), Self::Timestamp(b)) => a == b,
            (Self::Optional(a), Self::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (None, None) => true,
                _ => false,
            },
            (Self::Type(a), Self::Type(b)) => a == b,
            (Self::Quantity(a), Self::Quantity(b)) => a.cmp(b) == Ordering::Equal,
            (Self::Ip(a), Self::Ip(b)) => a == b,
            (Self::Cidr(a), Self::Cidr(b)) => a == b,
            (Self::Url(a), Self::Url(b)) => a == b,
            (Self::Format(a), Self::Format(b)) => a.name == b.name,
            (Self::Semver(a), Self::Semver(b)) => a.compare(b) == Ordering::Equal,
            _ => self.compare(other) == Some(Ordering::Equal),
        }
    }

    /// Order of values of comparable types.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::String(a), Self::String(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Self::Timestamp(b)) => Some(a.cmp(b)),
            (Self::Double(a), Self::Double(b)) => a.partial_cmp(b),
            (a, b) => match (a.integer(), b.integer()) {
                (Some(a), Some(b)) => Some(a.cmp(&b)),
                _ => a.number()?.partial_cmp(&b.number()?),
            },
        }
    }

    fn integer(&self) -> Option<i128> {
        match self {
            Self::Int(n) => Some(i128::from(*n)),
            Self::Uint(n) => Some(i128::from(*n)),
            _ => None,
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn number(&self) -> Option<f64> {
        match self {
            Self::Double(d) => Some(*d),
            other => other.integer().map(|n| n as f64),
        }
    }
}
