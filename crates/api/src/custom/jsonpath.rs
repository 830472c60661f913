//! The JSONPath of printer columns and the simple paths of the scale subresource and selectable fields.

use serde_json::Value;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(Box<str>),
    Index(i64),
    /// `[*]` or `.*`
    All,
    /// `..name`
    Descend(Box<str>),
    /// `[?(@.path op literal)]`, or `[?(@.path)]` without operator.
    Filter(Vec<Step>, Option<(Comparison, Value)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl JsonPath {
    /// Parses a path such as `.status.conditions[?(@.type=="Ready")].status`; `None` when it is malformed.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text.strip_prefix('$').unwrap_or(text);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let (step, tail) = step(rest)?;
            steps.extend(step);
            rest = tail;
        }
        Some(Self(steps))
    }

    /// The first value that the path leads to.
    #[must_use]
    pub fn first<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        let mut found = vec![value];
        for step in &self.0 {
            found = found
                .into_iter()
                .flat_map(|value| step.select(value))
                .collect();
        }
        found.into_iter().next()
    }

    /// The names of a path of nothing but fields.
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.0
            .iter()
            .map(|step| match step {
                Step::Field(name) => Some(&**name),
                _ => None,
            })
            .collect()
    }
}

/// One step (none for a lone dot) and what follows it.
fn step(text: &str) -> Option<(Option<Step>, &str)> {
    if let Some(rest) = text.strip_prefix("..") {
        let (name, rest) = name(rest);
        return (!name.is_empty()).then_some((Some(Step::Descend(name.into())), rest));
    }
    if let Some(rest) = text.strip_prefix('.') {
        if rest.is_empty() || rest.starts_with('[') {
            return Some((None, rest));
        }
        let (name, rest) = name(rest);
        return match name.as_str() {
            "" => None,
            "*" => Some((Some(Step::All), rest)),
            _ => Some((Some(Step::Field(name.into())), rest)),
        };
    }
    let inner = text.strip_prefix('[')?;
    if let Some(filter) = inner.strip_prefix("?(") {
        let end = filter.find(")]")?;
        let step = filter_step(&filter[..end])?;
        return Some((Some(step), &filter[end + 2..]));
    }
    let end = inner.find(']')?;
    let (word, rest) = (inner[..end].trim(), &inner[end + 1..]);
    let step = match word {
        "*" => Step::All,
        quoted if quoted.starts_with(['\'', '"']) => {
            Step::Field(quoted.trim_matches(['\'', '"']).into())
        }
        number => Step::Index(number.parse().ok()?),
    };
    Some((Some(step), rest))
}

/// A name up to the next separator; a backslash takes the next character as it is.
fn name(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (name, &text[at..]),
            c => name.push(c),
        }
    }
    (name, "")
}

fn filter_step(text: &str) -> Option<Step> {
    const OPERATORS: [(&str, Comparison); 6] = [
        ("==", Comparison::Equal),
        ("!=", Comparison::NotEqual),
        ("<=", Comparison::LessOrEqual),
        (">=", Comparison::GreaterOrEqual),
        ("<", Comparison::Less),
        (">", Comparison::Greater),
    ];
    let path = |text: &str| {
        let path = JsonPath::parse(text.trim().strip_prefix('@')?)?;
        Some(path.0)
    };
    for (sign, comparison) in OPERATORS {
        if let Some((left, right)) = text.split_once(sign) {
            let right = right.trim();
            let literal = match right.strip_prefix('\'').and_then(|r| r.strip_suffix('\'')) {
                Some(quoted) => Value::from(quoted),
                None => serde_json::from_str(right).ok()?,
            };
            return Some(Step::Filter(path(left)?, Some((comparison, literal))));
        }
    }
    Some(Step::Filter(path(text)?, None))
}

impl Step {
    fn select<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match self {
            Self::Field(name) => value.get(&**name).into_iter().collect(),
            Self::Index(index) => {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
                let at = if *index < 0 { length + index } else { *index };
                usize::try_from(at)
                    .ok()
                    .and_then(|at| items.get(at))
                    .into_iter()
                    .collect()
            }
            Self::All => children(value),
            Self::Descend(name) => {
                let mut found = Vec::new();
                descend(value, name, &mut found);
                found
            }
            Self::Filter(path, condition) => children(value)
                .into_iter()
                .filter(|item| {
                    let found = JsonPath(path.clone());
                    match (found.first(item), condition) {
                        (Some(found), Some((comparison, literal))) => {
                            comparison.holds(found, literal)
                        }
                        (found, None) => found.is_some(),
                        (None, Some(_)) => false,
                    }
                })
                .collect(),
        }
    }
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    }
}

fn descend<'a>(value: &'a Value, name: &str, found: &mut Vec<&'a Value>) {
    found.extend(value.get(name));
    for child in children(value) {
        descend(child, name, found);
    }
}

impl Comparison {
    fn holds(self, left: &Value, right: &Value) -> bool {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let ordering = match (left, right) {
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            (Value::Number(a), Value::Number(b)) => a
                .as_f64()
                .zip(b.as_f64())
                .and_then(|(a, b)| a.partial_cmp(&b)),
            _ => None,
        };
        match self {
            Self::Equal => ordering == Some(Equal),
            Self::NotEqual => ordering != Some(Equal),
            Self::Less => ordering == Some(Less),
            Self::LessOrEqual => matches!(ordering, Some(Less | Equal)),
            Self::Greater => ordering == Some(Greater),
            Self::GreaterOrEqual => matches!(ordering, Some(Greater | Equal)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_to_their_values() {
        let object = json!({"status": {"conditions": [{"type": "A", "status": "x"}, {"type": "Ready", "status": "True"}]},
            "metadata": {"labels": {"a.b/c": "v"}}, "spec": {"n": [1, 2, 3]}});
        let first = |path: &str| JsonPath::parse(path).unwrap().first(&object).cloned();
        assert_eq!(
            first(".status.conditions[?(@.type==\"Ready\")].status"),
            Some(json!("True"))
        );
        assert_eq!(first(".metadata.labels.a\\.b/c"), Some(json!("v")));
        assert_eq!(first(".metadata.labels['a.b/c']"), Some(json!("v")));
        assert_eq!(first(".spec.n[-1]"), Some(json!(3)));
        assert_eq!(first(".spec.n[*]"), Some(json!(1)));
        assert_eq!(first("..type"), Some(json!("A")));
        assert_eq!(first(".spec.missing.deep"), None);
        assert_eq!(JsonPath::parse(".spec["), None);
        assert_eq!(
            JsonPath::parse(".spec.n").unwrap().fields(),
            Some(vec!["spec", "n"])
        );
    }
}
