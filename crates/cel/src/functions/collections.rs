//! Lists, sets, maps and optional values.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Outcome, int};
use crate::eval::EvalError;
use crate::value::{Key, Value};

/// A longer range is refused; the cost limit would not allow walking it either.
const LONGEST_RANGE: i64 = 1_000_000;

pub(super) fn call(name: &str, member: bool, args: &[Value]) -> Outcome {
    Some(match (name, args) {
        ("size", [Value::List(items)]) => Ok(int(items.len())),
        ("size", [Value::Map(map)]) => Ok(int(map.len())),
        ("size", [Value::Bytes(bytes)]) => Ok(int(bytes.len())),
        ("isSorted", [Value::List(items)]) => {
            let sorted = items.windows(2).try_fold(true, |sorted, pair| {
                Some(sorted && pair[0].compare(&pair[1])? != Ordering::Greater)
            });
            sorted.map(Value::Bool).ok_or(EvalError::NoSuchOverload)
        }
        ("sum", [Value::List(items)]) => sum(items),
        ("min" | "max", [Value::List(items)]) => extreme(items, name),
        ("indexOf", [Value::List(items), item]) => Ok(items
            .iter()
            .position(|i| i.equals(item))
            .map_or(Value::Int(-1), int)),
        ("lastIndexOf", [Value::List(items), item]) => Ok(items
            .iter()
            .rposition(|i| i.equals(item))
            .map_or(Value::Int(-1), int)),
        ("slice", [Value::List(items), Value::Int(from), Value::Int(to)]) => {
            match (usize::try_from(*from), usize::try_from(*to)) {
                (Ok(a), Ok(b)) if a <= b && b <= items.len() => {
                    Ok(Value::list(items[a..b].to_vec()))
                }
                _ => Err(EvalError::other(format!(
                    "cannot slice({from}, {to}), list is length {}",
                    items.len()
                ))),
            }
        }
        ("flatten", [Value::List(items), rest @ ..]) => {
            let depth = match rest.first() {
                Some(Value::Int(depth)) => *depth,
                _ => 1,
            };
            if depth < 0 {
                Err(EvalError::other("level must be non-negative"))
            } else {
                Ok(Value::list(flatten(items, depth)))
            }
        }
        ("distinct", [Value::List(items)]) => {
            let mut kept: Vec<Value> = Vec::new();
            for item in &**items {
                if !kept.iter().any(|k| k.equals(item)) {
                    kept.push(item.clone());
                }
            }
            Ok(Value::list(kept))
        }
        ("reverse", [Value::List(items)]) => Ok(Value::list(items.iter().rev().cloned().collect())),
        ("sort", [Value::List(items)]) => {
            let mut sorted = items.to_vec();
            let mut comparable = true;
            sorted.sort_by(|a, b| {
                a.compare(b).unwrap_or_else(|| {
                    comparable = false;
                    Ordering::Equal
                })
            });
            if comparable {
                Ok(Value::list(sorted))
            } else {
                Err(EvalError::NoSuchOverload)
            }
        }
        ("lists.range", [Value::Int(n)]) => {
            if *n > LONGEST_RANGE {
                Err(EvalError::CostExceeded)
            } else {
                Ok(Value::list((0..*n).map(Value::Int).collect()))
            }
        }
        ("sets.contains", [Value::List(a), Value::List(b)]) => Ok(Value::Bool(contains(a, b))),
        ("sets.equivalent", [Value::List(a), Value::List(b)]) => {
            Ok(Value::Bool(contains(a, b) && contains(b, a)))
        }
        ("sets.intersects", [Value::List(a), Value::List(b)]) => {
            Ok(Value::Bool(a.iter().any(|x| b.iter().any(|y| x.equals(y)))))
        }
        ("cel.@mapInsert", [Value::Map(map), key, value]) => insert(map, key, value),
        ("cel.@mapInsert", [Value::Map(map), Value::Map(entries)]) => {
            let mut result = Ok(Value::Map(map.clone()));
            for (key, value) in &**entries {
                if let Ok(Value::Map(map)) = &result {
                    result = insert(map, &key.value(), value);
                }
            }
            result
        }
        ("optional.of", [value]) => Ok(Value::Optional(Some(Box::new(value.clone())))),
        ("optional.none", []) => Ok(Value::Optional(None)),
        ("optional.ofNonZeroValue", [value]) => Ok(Value::Optional(
            (!is_zero(value)).then(|| Box::new(value.clone())),
        )),
        ("hasValue", [Value::Optional(inner)]) if member => Ok(Value::Bool(inner.is_some())),
        ("value", [Value::Optional(inner)]) if member => match inner {
            Some(value) => Ok((**value).clone()),
            None => Err(EvalError::other("optional.none() dereference")),
        },
        ("or", [Value::Optional(inner), other]) if member => Ok(if inner.is_some() {
            args[0].clone()
        } else {
            other.clone()
        }),
        ("orValue", [Value::Optional(inner), other]) if member => Ok(inner
            .as_ref()
            .map_or_else(|| other.clone(), |v| (**v).clone())),
        _ => return None,
    })
}

fn sum(items: &[Value]) -> Result<Value, EvalError> {
    let mut items = items.iter();
    let Some(first) = items.next() else {
        return Ok(Value::Int(0));
    };
    items.try_fold(first.clone(), |sum, item| {
        super::operators::call("_+_", false, &[sum, item.clone()])
            .unwrap_or(Err(EvalError::NoSuchOverload))
    })
}

fn extreme(items: &[Value], name: &str) -> Result<Value, EvalError> {
    let wanted = if name == "min" {
        Ordering::Less
    } else {
        Ordering::Greater
    };
    let mut items = items.iter();
    let first = items
        .next()
        .ok_or_else(|| EvalError::other(format!("{name} called on empty list")))?;
    let found = items.try_fold(first, |best, item| {
        Some(if item.compare(best)? == wanted {
            item
        } else {
            best
        })
    });
    found.cloned().ok_or(EvalError::NoSuchOverload)
}

fn flatten(items: &[Value], depth: i64) -> Vec<Value> {
    let mut flat = Vec::new();
    for item in items {
        match item {
            Value::List(inner) if depth > 0 => flat.extend(flatten(inner, depth - 1)),
            other => flat.push(other.clone()),
        }
    }
    flat
}

fn contains(all: &[Value], some: &[Value]) -> bool {
    some.iter().all(|x| all.iter().any(|y| x.equals(y)))
}

fn insert(
    map: &Arc<std::collections::BTreeMap<Key, Value>>,
    key: &Value,
    value: &Value,
) -> Result<Value, EvalError> {
    let key = Key::of(key).ok_or(EvalError::NoSuchOverload)?;
    if map.contains_key(&key) {
        return Err(EvalError::other(format!(
            "insert failed: key {:?} already exists",
            key
        )));
    }
    let mut map = map.clone();
    Arc::make_mut(&mut map).insert(key, value.clone());
    Ok(Value::Map(map))
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Int(n) => *n == 0,
        Value::Uint(n) => *n == 0,
        Value::Double(d) => *d == 0.0,
        Value::String(s) => s.is_empty(),
        Value::Bytes(b) => b.is_empty(),
        Value::List(items) => items.is_empty(),
        Value::Map(map) => map.is_empty(),
        Value::Duration(d) => d.is_zero(),
        _ => false,
    }
}
