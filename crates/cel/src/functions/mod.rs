//! What functions do, and what they cost when they run.

mod collections;
mod conversions;
mod libraries;
mod operators;
mod strings;
mod time;

use crate::eval::EvalError;
use crate::value::Value;

type Outcome = Option<Result<Value, EvalError>>;

/// Calls a function; the target of a member call is the first argument.
pub fn call(name: &str, member: bool, args: &[Value]) -> Result<Value, EvalError> {
    let groups = [
        operators::call,
        conversions::call,
        strings::call,
        collections::call,
        time::call,
        libraries::call,
    ];
    groups
        .iter()
        .find_map(|group| group(name, member, args))
        .unwrap_or(Err(EvalError::NoSuchOverload))
}

fn int(n: usize) -> Value {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

fn tenth(size: u64) -> u64 {
    size.div_ceil(10)
}

fn quarter(size: u64) -> u64 {
    size.div_ceil(4)
}

/// The cost of a call that was made.
pub fn cost(name: &str, args: &[Value], result: Option<&Value>) -> u64 {
    let size = |i: usize| args.get(i).map_or(1, Value::size);
    match name {
        "check" => 350_000,
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => traversal(args.first()),
        "url"
        | "isURL"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "isIP"
        | "isCIDR"
        | "cidr"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver"
        | "startsWith"
        | "endsWith" => tenth(size(0)),
        "ip" if matches!(args.first(), Some(Value::String(_))) => tenth(size(0)),
        "bytes" | "string" if matches!(args.first(), Some(Value::String(_) | Value::Bytes(_))) => {
            tenth(size(0))
        }
        "format" => tenth(size(0)),
        "ip.isCanonical" | "replace" | "split" => tenth(size(0) * 2),
        "join" => tenth(result.map_or(1, Value::size) * 2),
        "find" | "findAll" | "matches" => tenth(size(0) + 1) * quarter(size(1)),
        "validate" => match args.first() {
            Some(Value::Format(format)) => tenth(size(1) + 1) * quarter(format.regex_size),
            _ => 1,
        },
        "containsIP" | "containsCIDR" => {
            let text = matches!(args.get(1), Some(Value::String(_)));
            let masked = if name == "containsCIDR" {
                tenth(size(0)) + 1
            } else {
                0
            };
            tenth(size(0) * 2) + masked + if text { tenth(size(1)) } else { 0 }
        }
        "@in" if matches!(args.get(1), Some(Value::List(_))) => size(1),
        "_==_" | "_!=_" => match args.first() {
            Some(
                Value::Quantity(_)
                | Value::Ip(_)
                | Value::Cidr(_)
                | Value::Format(_)
                | Value::Url(_)
                | Value::Semver(_)
                | Value::Authz(_),
            ) => 1,
            _ => tenth(size(0).min(size(1))),
        },
        "_<_" | "_<=_" | "_>_" | "_>=_" if is_text(args) => tenth(size(0).min(size(1))),
        "_+_" if is_text(args) => tenth(size(0) + size(1)),
        "contains" => tenth(size(0)) * tenth(size(1)),
        "sets.contains" | "sets.intersects" | "sets.equivalent" => {
            size(0) * size(1) * if name == "sets.equivalent" { 2 } else { 1 }
        }
        "reverse" | "flatten" | "distinct" | "sort" | "slice" | "lists.range" | "strings.quote" => {
            result.map_or(1, Value::size)
        }
        _ => 1,
    }
}

fn is_text(args: &[Value]) -> bool {
    matches!(args.first(), Some(Value::String(_) | Value::Bytes(_)))
}

/// Strings cost a tenth of their length, lists the sum of their items'.
fn traversal(value: Option<&Value>) -> u64 {
    match value {
        Some(Value::String(_) | Value::Bytes(_)) => tenth(value.map_or(1, Value::size)),
        Some(Value::List(items)) => {
            let inner = items.iter().map(|i| match i {
                Value::String(_) | Value::Bytes(_) => tenth(i.size()),
                _ => 1,
            });
            inner.sum::<u64>()
        }
        _ => 1,
    }
}
