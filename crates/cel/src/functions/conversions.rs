//! Between types.

use super::Outcome;
use crate::eval::EvalError;
use crate::library;
use crate::value::Value;

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]
pub(super) fn call(name: &str, member: bool, args: &[Value]) -> Outcome {
    if member {
        return None;
    }
    let range = || EvalError::other("integer overflow");
    let [value] = args else { return None };
    Some(match (name, value) {
        ("dyn", value) => Ok(value.clone()),
        ("type", value) => Ok(Value::Type(value.type_name().into())),
        ("bool", Value::Bool(_))
        | ("int", Value::Int(_))
        | ("uint", Value::Uint(_))
        | ("double", Value::Double(_))
        | ("string", Value::String(_))
        | ("bytes", Value::Bytes(_))
        | ("duration", Value::Duration(_))
        | ("timestamp", Value::Timestamp(_)) => Ok(value.clone()),
        ("bool", Value::String(s)) => match &**s {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            other => Err(EvalError::other(format!("strconv.ParseBool: parsing {other:?}: invalid syntax"))),
        },
        ("int", Value::Uint(n)) => i64::try_from(*n).map(Value::Int).map_err(|_| range()),
        ("int", Value::Double(d)) if d.abs() < 9.2e18 => Ok(Value::Int(*d as i64)),
        ("int", Value::Double(_)) => Err(range()),
        ("int", Value::String(s)) => s.parse().map(Value::Int).map_err(|_| {
            EvalError::other(format!("strconv.ParseInt: parsing {s:?}: invalid syntax"))
        }),
        ("int", Value::Timestamp(t)) => Ok(Value::Int(t.as_second())),
        ("uint", Value::Int(n)) => u64::try_from(*n).map(Value::Uint).map_err(|_| EvalError::other("unsigned integer overflow")),
        ("uint", Value::Double(d)) if (0.0..1.8e19).contains(d) => Ok(Value::Uint(*d as u64)),
        ("uint", Value::String(s)) => s.parse().map(Value::Uint).map_err(|_| {
            EvalError::other(format!("strconv.ParseUint: parsing {s:?}: invalid syntax"))
        }),
        ("double", Value::Int(n)) => Ok(Value::Double(*n as f64)),
        ("double", Value::Uint(n)) => Ok(Value::Double(*n as f64)),
        ("double", Value::String(s)) => s.parse().map(Value::Double).map_err(|_| {
            EvalError::other(format!("strconv.ParseFloat: parsing {s:?}: invalid syntax"))
        }),
        ("string", value) => text(value).map(|t| Value::from(t.as_str())),
        ("bytes", Value::String(s)) => Ok(Value::Bytes(s.as_bytes().into())),
        ("duration", Value::String(s)) => library::parse_duration(s)
            .map(Value::Duration)
            .ok_or_else(|| EvalError::other(format!("time: invalid duration {s:?}"))),
        ("timestamp", Value::String(s)) => s.parse().map(Value::Timestamp).map_err(|_| {
            EvalError::other(format!("parsing time {s:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {s:?} as \"2006\""))
        }),
        ("timestamp", Value::Int(n)) => jiff::Timestamp::from_second(*n)
            .map(Value::Timestamp)
            .map_err(|_| EvalError::other("timestamp overflow")),
        _ => return None,
    })
}

/// A value as `string()` shows it.
pub(super) fn text(value: &Value) -> Result<String, EvalError> {
    Ok(match value {
        Value::String(s) => s.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Uint(n) => n.to_string(),
        Value::Double(d) => d.to_string(),
        Value::Bytes(b) => String::from_utf8(b.to_vec())
            .map_err(|_| EvalError::other("invalid UTF-8 in bytes, cannot convert to string"))?,
        Value::Timestamp(t) => t.to_string(),
        Value::Duration(d) => library::show_duration(*d),
        Value::Ip(a) => a.to_string(),
        Value::Cidr(c) => c.to_string(),
        _ => return Err(EvalError::NoSuchOverload),
    })
}
