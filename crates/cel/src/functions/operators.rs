//! Arithmetic, comparison, indexing.

use std::cmp::Ordering;
use std::sync::Arc;

use super::Outcome;
use crate::eval::EvalError;
use crate::value::{Key, Value};

pub(super) fn call(name: &str, _: bool, args: &[Value]) -> Outcome {
    Some(match (name, args) {
        ("!_", [Value::Bool(b)]) => Ok(Value::Bool(!b)),
        ("_==_", [a, b]) => Ok(Value::Bool(a.equals(b))),
        ("_!=_", [a, b]) => Ok(Value::Bool(!a.equals(b))),
        ("_<_", [a, b]) => compare(a, b, |o| o == Ordering::Less),
        ("_<=_", [a, b]) => compare(a, b, |o| o != Ordering::Greater),
        ("_>_", [a, b]) => compare(a, b, |o| o == Ordering::Greater),
        ("_>=_", [a, b]) => compare(a, b, |o| o != Ordering::Less),
        ("-_", [Value::Int(n)]) => checked(n.checked_neg().map(Value::Int)),
        ("-_", [Value::Double(d)]) => Ok(Value::Double(-d)),
        ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", [a, b]) => return arithmetic(name, a, b),
        ("_[_]", [container, index]) => index_of(container, index),
        ("_[?_]", [container, index]) => optional_index(container, index),
        ("@in", [item, Value::List(items)]) => {
            Ok(Value::Bool(items.iter().any(|i| i.equals(item))))
        }
        ("@in", [key, Value::Map(map)]) => Ok(Value::Bool(
            Key::of(key).is_some_and(|k| map.contains_key(&k)),
        )),
        _ => return None,
    })
}

fn compare(a: &Value, b: &Value, holds: fn(Ordering) -> bool) -> Result<Value, EvalError> {
    match a.compare(b) {
        Some(ordering) => Ok(Value::Bool(holds(ordering))),
        None if matches!((a, b), (Value::Double(_), _) | (_, Value::Double(_)))
            && a.compare(&Value::Double(0.0)).is_some() =>
        {
            Ok(Value::Bool(false))
        }
        None => Err(EvalError::NoSuchOverload),
    }
}

fn checked(value: Option<Value>) -> Result<Value, EvalError> {
    value.ok_or_else(|| EvalError::other("integer overflow"))
}

fn arithmetic(name: &str, a: &Value, b: &Value) -> Outcome {
    Some(match (a, b) {
        (Value::Int(a), Value::Int(b)) => {
            if *b == 0 && matches!(name, "_/_" | "_%_") {
                return Some(Err(EvalError::other(if name == "_/_" {
                    "division by zero"
                } else {
                    "modulus by zero"
                })));
            }
            let result = match name {
                "_+_" => a.checked_add(*b),
                "_-_" => a.checked_sub(*b),
                "_*_" => a.checked_mul(*b),
                "_/_" => a.checked_div(*b),
                _ => a.checked_rem(*b),
            };
            checked(result.map(Value::Int))
        }
        (Value::Uint(a), Value::Uint(b)) => {
            if *b == 0 && matches!(name, "_/_" | "_%_") {
                return Some(Err(EvalError::other(if name == "_/_" {
                    "division by zero"
                } else {
                    "modulus by zero"
                })));
            }
            let result = match name {
                "_+_" => a.checked_add(*b),
                "_-_" => a.checked_sub(*b),
                "_*_" => a.checked_mul(*b),
                "_/_" => a.checked_div(*b),
                _ => a.checked_rem(*b),
            };
            result
                .map(Value::Uint)
                .ok_or_else(|| EvalError::other("unsigned integer overflow"))
        }
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(match name {
            "_+_" => a + b,
            "_-_" => a - b,
            "_*_" => a * b,
            "_/_" => a / b,
            _ => return None,
        })),
        (Value::String(a), Value::String(b)) if name == "_+_" => {
            Ok(Value::from(format!("{a}{b}").as_str()))
        }
        (Value::Bytes(a), Value::Bytes(b)) if name == "_+_" => {
            Ok(Value::Bytes([&**a, &**b].concat().into()))
        }
        (Value::List(a), Value::List(b)) if name == "_+_" => {
            let mut joined = a.clone();
            Arc::make_mut(&mut joined).extend(b.iter().cloned());
            Ok(Value::List(joined))
        }
        _ => return super::time::arithmetic(name, a, b),
    })
}

fn index_of(container: &Value, index: &Value) -> Result<Value, EvalError> {
    match (container, index) {
        (Value::List(items), Value::Int(_) | Value::Uint(_) | Value::Double(_)) => {
            let Some(Key::Number(n)) = Key::of(index) else {
                return Err(EvalError::other("unsupported index value"));
            };
            usize::try_from(n)
                .ok()
                .and_then(|i| items.get(i).cloned())
                .ok_or_else(|| EvalError::other(format!("index out of bounds: {n}")))
        }
        (Value::Map(map), key) => Key::of(key)
            .and_then(|k| map.get(&k).cloned())
            .ok_or_else(|| EvalError::other(format!("no such key: {}", show(key)))),
        (Value::Optional(_), _) => optional_index(container, index),
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn show(key: &Value) -> String {
    match key {
        Value::String(s) => s.to_string(),
        other => other.to_json().map_or_else(String::new, |j| j.to_string()),
    }
}

fn optional_index(container: &Value, index: &Value) -> Result<Value, EvalError> {
    let inner = match container {
        Value::Optional(None) => return Ok(Value::Optional(None)),
        Value::Optional(Some(inner)) => inner,
        other => other,
    };
    match index_of(inner, index) {
        Ok(value) => Ok(Value::Optional(Some(Box::new(value)))),
        Err(EvalError::Other(_)) => Ok(Value::Optional(None)),
        Err(error) => Err(error),
    }
}
