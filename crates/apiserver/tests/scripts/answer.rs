//! What is compared of answers: all but what is never the same twice.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::{Value, json};

use crate::common::sides::Response;

/// What of a run's values has a name.
pub struct Names {
    namespace: String,
    saved: BTreeMap<String, String>,
    uids: Vec<String>,
}

#[derive(Debug)]
pub struct Answer {
    code: u16,
    content_type: String,
    warnings: Vec<String>,
    /// The JSON value, the list of a watch's events, or the text.
    body: Value,
}

/// Where two answers differ.
pub struct Difference {
    pub at: String,
    pub theirs: String,
    pub ours: String,
}

static UID: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").unwrap()
});

/// Times of the run itself; what scripts write is older.
static NOW: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"202[5-9]-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z").unwrap());

/// Versions of the store in messages, and addresses that were chosen.
static CHANCE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(current: |record \()\d+|10\.0\.\d+\.\d+|gen-[a-z0-9]{5}").unwrap()
});

/// The manager of what our server writes at some time, and upstream's controller manager, which was not there.
const STATUS_OF_POLICIES: &str = "validatingadmissionpolicy-status";

static AGE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^\d+s$").unwrap());

impl Names {
    pub fn new(namespace: String) -> Self {
        Self {
            namespace,
            saved: BTreeMap::new(),
            uids: Vec::new(),
        }
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn add(&mut self, name: &str, value: &str) {
        self.saved.insert(name.to_owned(), value.to_owned());
    }

    /// Puts values where a script has names.
    pub fn fill_in(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // The longest first: one may begin with another.
        let mut saved: Vec<_> = self.saved.iter().collect();
        saved.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        for (name, value) in saved {
            text = text.replace(&format!("${name}"), value);
        }
        text.replace("$n", &self.namespace)
    }

    fn text(&mut self, text: &str) -> String {
        let text = UID.replace_all(text, |found: &Captures<'_>| {
            let known = self.uids.iter().position(|uid| *uid == found[0]);
            let number = known.unwrap_or_else(|| {
                self.uids.push(found[0].to_owned());
                self.uids.len() - 1
            });
            format!("<uid {number}>")
        });
        let text = NOW.replace_all(&text, "<now>");
        let mut text = CHANCE.replace_all(&text, "$1<any>").into_owned();
        for (name, value) in &self.saved {
            // Short numbers may be anything.
            if value.len() > 8 {
                text = text.replace(value, &format!("<{name}>"));
            }
        }
        text
    }

    fn value(&mut self, value: &Value) -> Value {
        match value {
            Value::String(text) if AGE.is_match(text) => "<age>".into(),
            Value::String(text) => self.text(text).into(),
            Value::Array(items) => items.iter().map(|i| self.value(i)).collect(),
            Value::Object(fields) => fields
                .iter()
                .map(|(name, member)| {
                    let member = match (name.as_str(), member.as_str()) {
                        ("resourceVersion", Some(text)) if text.parse::<u64>().is_ok() => {
                            "<version>".into()
                        }
                        ("continue", Some(_)) => "<continue>".into(),
                        _ => self.value(member),
                    };
                    (name.clone(), member)
                })
                .collect(),
            other => other.clone(),
        }
    }
}

impl Answer {
    pub fn of(response: &Response, names: &mut Names) -> Self {
        let lines = || -> Option<Value> {
            let lines = response.body.lines();
            let events: Vec<Value> = lines
                .map(|l| serde_json::from_str(l).ok())
                .collect::<Option<_>>()?;
            Some(events.into())
        };
        let body = serde_json::from_str(&response.body)
            .ok()
            .or_else(lines)
            .unwrap_or_else(|| response.body.clone().into());
        let mut body = names.value(&body);
        // Managers are in order of the second in which they wrote.
        settle_managers(&mut body);
        Self {
            code: response.code,
            content_type: response.content_type.clone(),
            warnings: response.warnings.iter().map(|w| names.text(w)).collect(),
            body,
        }
    }

    pub fn to_json(&self) -> Value {
        json!({"code": self.code, "type": self.content_type, "warnings": self.warnings, "body": self.body})
    }

    pub fn from_json(line: &str) -> Self {
        let json: Value = serde_json::from_str(line).unwrap();
        let warnings = json["warnings"].as_array().unwrap().iter();
        Self {
            code: u16::try_from(json["code"].as_u64().unwrap()).unwrap(),
            content_type: json["type"].as_str().unwrap().to_owned(),
            warnings: warnings.map(|w| w.as_str().unwrap().to_owned()).collect(),
            body: json["body"].clone(),
        }
    }

    pub fn differences(&self, ours: &Self) -> Vec<Difference> {
        let mut found = Vec::new();
        compare("code", &self.code.into(), &ours.code.into(), &mut found);
        compare(
            "type",
            &json!(self.content_type),
            &json!(ours.content_type),
            &mut found,
        );
        compare(
            "warnings",
            &json!(self.warnings),
            &json!(ours.warnings),
            &mut found,
        );
        compare("", &self.body, &ours.body, &mut found);
        found
    }
}

/// Finds the smallest parts that differ.
fn compare(at: &str, theirs: &Value, ours: &Value, found: &mut Vec<Difference>) {
    match (theirs, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let all = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k)));
            for name in all {
                let escaped = name.replace('~', "~0").replace('/', "~1").replace(' ', "_");
                let side = |m: &serde_json::Map<String, Value>| m.get(name).cloned();
                match (side(a), side(b)) {
                    (Some(a), Some(b)) => compare(&format!("{at}/{escaped}"), &a, &b, found),
                    (a, b) => differ(&format!("{at}/{escaped}"), a.as_ref(), b.as_ref(), found),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{at}/{i}"), a, b, found);
            }
        }
        _ if theirs == ours => {}
        _ => differ(
            if at.is_empty() { "/" } else { at },
            Some(theirs),
            Some(ours),
            found,
        ),
    }
}

fn differ(at: &str, theirs: Option<&Value>, ours: Option<&Value>, found: &mut Vec<Difference>) {
    let text = |v: Option<&Value>| v.map_or("nothing".into(), Value::to_string);
    found.push(Difference {
        at: at.to_owned(),
        theirs: text(theirs),
        ours: text(ours),
    });
}

fn settle_managers(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(settle_managers),
        Value::Object(fields) => {
            if let Some(managers) = fields
                .get_mut("managedFields")
                .and_then(Value::as_array_mut)
            {
                managers.retain(|m| m["manager"] != STATUS_OF_POLICIES);
                managers.sort_by_key(|m| {
                    ["manager", "operation", "subresource"]
                        .map(|f| m[f].as_str().unwrap_or_default().to_owned())
                });
            }
            fields.values_mut().for_each(settle_managers);
        }
        _ => {}
    }
}
