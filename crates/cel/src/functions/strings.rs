//! Strings: the language's own functions, and the extended ones that Kubernetes turns on.

use std::sync::LazyLock;

use regex::Regex;

use super::{Outcome, conversions, int};
use crate::eval::EvalError;
use crate::value::Value;

pub(super) fn call(name: &str, member: bool, args: &[Value]) -> Outcome {
    let texts = |i: usize| match args.get(i) {
        Some(Value::String(s)) => Some(&**s),
        _ => None,
    };
    let text = |s: String| Ok(Value::from(s.as_str()));
    Some(match (name, args) {
        ("size", [Value::String(s)]) => Ok(int(s.chars().count())),
        ("contains", [Value::String(a), Value::String(b)]) => Ok(Value::Bool(a.contains(&**b))),
        ("startsWith", [Value::String(a), Value::String(b)]) => {
            Ok(Value::Bool(a.starts_with(&**b)))
        }
        ("endsWith", [Value::String(a), Value::String(b)]) => Ok(Value::Bool(a.ends_with(&**b))),
        ("matches", [Value::String(a), Value::String(pattern)]) => {
            regex(pattern).map(|r| Value::Bool(r.is_match(a)))
        }
        ("find", [Value::String(a), Value::String(pattern)]) => {
            regex(pattern).map(|r| Value::from(r.find(a).map_or("", |m| m.as_str())))
        }
        ("findAll", [Value::String(a), Value::String(pattern), rest @ ..]) => {
            let limit = match rest.first() {
                Some(Value::Int(n)) => usize::try_from(*n).unwrap_or(usize::MAX),
                _ => usize::MAX,
            };
            regex(pattern).map(|r| {
                Value::list(
                    r.find_iter(a)
                        .take(limit)
                        .map(|m| Value::from(m.as_str()))
                        .collect(),
                )
            })
        }
        ("lowerAscii", [Value::String(s)]) => text(s.to_ascii_lowercase()),
        ("upperAscii", [Value::String(s)]) => text(s.to_ascii_uppercase()),
        ("trim", [Value::String(s)]) => text(s.trim().to_owned()),
        ("reverse", [Value::String(s)]) => text(s.chars().rev().collect()),
        ("strings.quote", [Value::String(s)]) => text(format!("{s:?}")),
        ("charAt", [Value::String(s), Value::Int(at)]) => {
            let chars: Vec<char> = s.chars().collect();
            match usize::try_from(*at) {
                Ok(i) if i < chars.len() => text(chars[i].to_string()),
                Ok(i) if i == chars.len() => text(String::new()),
                _ => Err(EvalError::other(format!("index out of range: {at}"))),
            }
        }
        ("indexOf" | "lastIndexOf", [Value::String(s), Value::String(sub), rest @ ..]) => {
            let from = match rest.first() {
                Some(Value::Int(n)) => Some(*n),
                _ => None,
            };
            search(s, sub, from, name == "lastIndexOf")
        }
        (
            "replace",
            [
                Value::String(s),
                Value::String(from),
                Value::String(to),
                rest @ ..,
            ],
        ) => {
            let limit = match rest.first() {
                Some(Value::Int(n)) => usize::try_from(*n).unwrap_or(usize::MAX),
                _ => usize::MAX,
            };
            text(s.replacen(&**from, to, limit))
        }
        ("split", [Value::String(s), Value::String(separator), rest @ ..]) => {
            let limit = match rest.first() {
                Some(Value::Int(n)) => *n,
                _ => -1,
            };
            Ok(Value::list(
                split(s, separator, limit)
                    .into_iter()
                    .map(Value::from)
                    .collect(),
            ))
        }
        ("substring", [Value::String(s), Value::Int(start), rest @ ..]) => {
            let chars: Vec<char> = s.chars().collect();
            let end = match rest.first() {
                Some(Value::Int(end)) => *end,
                _ => i64::try_from(chars.len()).unwrap_or(i64::MAX),
            };
            match (usize::try_from(*start), usize::try_from(end)) {
                (Ok(a), Ok(b)) if a <= b && b <= chars.len() => text(chars[a..b].iter().collect()),
                (Ok(a), Ok(b)) if a > b => Err(EvalError::other(format!(
                    "invalid substring range. start: {a}, end: {b}"
                ))),
                _ => Err(EvalError::other(format!(
                    "index out of range: {}",
                    if *start < 0 { *start } else { end }
                ))),
            }
        }
        ("join", [Value::List(items), ..]) => {
            let parts: Option<Vec<&str>> = items
                .iter()
                .map(|i| match i {
                    Value::String(s) => Some(&**s),
                    _ => None,
                })
                .collect();
            match parts {
                Some(parts) => text(parts.join(texts(1).unwrap_or_default())),
                None => Err(EvalError::NoSuchOverload),
            }
        }
        ("format", [Value::String(s), Value::List(values)]) if member => {
            format(s, values).map(|t| Value::from(t.as_str()))
        }
        _ => return None,
    })
}

/// A compiled pattern; bounded, as it comes from whoever writes expressions.
fn regex(pattern: &str) -> Result<Regex, EvalError> {
    type Cache = std::sync::Mutex<std::collections::HashMap<String, Regex>>;
    static CACHE: LazyLock<Cache> = LazyLock::new(Cache::default);
    const KEPT: usize = 512;
    let mut cache = CACHE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(known) = cache.get(pattern) {
        return Ok(known.clone());
    }
    let compiled = regex::RegexBuilder::new(pattern)
        .size_limit(1 << 20)
        .build()
        .map_err(|e| EvalError::other(fluyt_api::validation::regex_error(pattern, &e)))?;
    if cache.len() >= KEPT {
        cache.clear();
    }
    cache.insert(pattern.to_owned(), compiled.clone());
    Ok(compiled)
}

fn search(text: &str, sub: &str, from: Option<i64>, last: bool) -> Result<Value, EvalError> {
    let (chars, sub): (Vec<char>, Vec<char>) = (text.chars().collect(), sub.chars().collect());
    let default = if last {
        i64::try_from(chars.len()).unwrap_or(i64::MAX)
    } else {
        0
    };
    let from = from.unwrap_or(default);
    let Some(start) = usize::try_from(from).ok().filter(|s| *s <= chars.len()) else {
        return Err(EvalError::other(format!("index out of range: {from}")));
    };
    let fits = |i: &usize| chars[*i..].starts_with(&sub);
    let found = if last {
        (0..=start.min(chars.len())).rev().find(fits)
    } else {
        (start..=chars.len()).find(fits)
    };
    Ok(found.map_or(Value::Int(-1), int))
}

fn split<'a>(text: &'a str, separator: &str, limit: i64) -> Vec<&'a str> {
    if limit == 0 {
        return Vec::new();
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if separator.is_empty() {
        let bounds: Vec<usize> = text
            .char_indices()
            .map(|(i, _)| i)
            .chain([text.len()])
            .collect();
        let mut parts: Vec<&str> = bounds.windows(2).map(|w| &text[w[0]..w[1]]).collect();
        if parts.len() > limit {
            let at = bounds[limit - 1];
            parts.truncate(limit - 1);
            parts.push(&text[at..]);
        }
        return parts;
    }
    text.splitn(limit, separator).collect()
}

/// `"%s is %d".format([…])`
fn format(pattern: &str, values: &[Value]) -> Result<String, EvalError> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(d) = chars.next_if(char::is_ascii_digit) {
                digits.push(d);
            }
            precision = digits.parse::<usize>().ok();
        }
        let verb = chars.next().ok_or_else(|| {
            EvalError::other("could not parse formatting clause: unexpected end of format string")
        })?;
        if verb == '%' {
            out.push('%');
            continue;
        }
        let index = values.len();
        let value = values
            .next()
            .ok_or_else(|| EvalError::other(format!("index {index} out of range")))?;
        out.push_str(&clause(verb, precision.map(|p| p.min(100)), value)?);
    }
    Ok(out)
}

#[allow(clippy::cast_precision_loss)]
fn clause(verb: char, precision: Option<usize>, value: &Value) -> Result<String, EvalError> {
    let number = |value: &Value| match value {
        Value::Int(n) => Some(*n as f64),
        Value::Uint(n) => Some(*n as f64),
        Value::Double(d) => Some(*d),
        _ => None,
    };
    let wrong = || {
        EvalError::other(format!(
            "error during formatting: clause %{verb} does not take {}",
            value.type_name()
        ))
    };
    Ok(match (verb, value) {
        ('s', value) => shown(value),
        ('d', Value::Int(n)) => n.to_string(),
        ('d', Value::Uint(n)) => n.to_string(),
        ('d', Value::Double(d)) if d.fract() == 0.0 => d.to_string(),
        ('f', value) => format!(
            "{:.*}",
            precision.unwrap_or(6),
            number(value).ok_or_else(wrong)?
        ),
        ('e', value) => {
            let text = format!(
                "{:.*e}",
                precision.unwrap_or(6),
                number(value).ok_or_else(wrong)?
            );
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let exponent: i32 = exponent.parse().unwrap_or(0);
            format!(
                "{mantissa}e{}{:02}",
                if exponent < 0 { '-' } else { '+' },
                exponent.abs()
            )
        }
        ('b', Value::Int(n)) => format!("{n:b}"),
        ('b', Value::Uint(n)) => format!("{n:b}"),
        ('b', Value::Bool(b)) => u8::from(*b).to_string(),
        ('o', Value::Int(n)) => format!("{n:o}"),
        ('o', Value::Uint(n)) => format!("{n:o}"),
        ('x', Value::Int(n)) => format!("{n:x}"),
        ('X', Value::Int(n)) => format!("{n:X}"),
        ('x', Value::Uint(n)) => format!("{n:x}"),
        ('X', Value::Uint(n)) => format!("{n:X}"),
        ('x', Value::String(s)) => s.bytes().map(|b| format!("{b:02x}")).collect(),
        ('X', Value::String(s)) => s.bytes().map(|b| format!("{b:02X}")).collect(),
        _ => return Err(wrong()),
    })
}

fn shown(value: &Value) -> String {
    match value {
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(shown).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Map(map) => {
            let entries: Vec<String> = map
                .iter()
                .map(|(k, v)| format!("{}: {}", shown(&k.value()), shown(v)))
                .collect();
            format!("{{{}}}", entries.join(", "))
        }
        Value::Null => "null".into(),
        Value::Type(name) => name.to_string(),
        other => conversions::text(other).unwrap_or_else(|_| other.type_name().to_owned()),
    }
}
