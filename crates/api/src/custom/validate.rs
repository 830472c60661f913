//! Validation of a custom resource against its structural schema, in upstream's words. An update is ratcheted: what was
//! invalid before and has not changed is no error.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::formats;
use super::structural::{Additional, Structural, Validation};
use crate::schema::ListType;
use crate::validation::Errors;
use crate::{meta, validation};

/// Checks `value` at `path` (empty for the root) against its schema.
pub fn validate(
    schema: &Structural,
    path: &str,
    value: &Value,
    old: Option<&Value>,
    errors: &mut Errors,
) {
    let mut found = node(schema, path, value, old);
    found.dedup();
    errors.0.append(&mut found.errors.0);
}

/// Errors of one node and below, and how many checks were made: upstream reports the alternative that got furthest.
#[derive(Default)]
struct Findings {
    errors: Errors,
    checks: usize,
}

impl Findings {
    fn merge(&mut self, mut other: Self) {
        self.errors.0.append(&mut other.errors.0);
        self.checks += other.checks;
    }

    fn is_valid(&self) -> bool {
        self.errors.is_empty()
    }

    fn dedup(&mut self) {
        let mut seen = HashSet::new();
        self.errors
            .0
            .retain(|cause| seen.insert((cause.field.clone(), cause.message.clone())));
    }
}

fn node(schema: &Structural, path: &str, value: &Value, old: Option<&Value>) -> Findings {
    let mut found = Findings::default();
    if value.is_null() {
        if let Some(types) = types(schema)
            && !schema.nullable
        {
            type_error(&mut found.errors, path, &types, "null");
        }
        check_enum(schema, path, value, &mut found.errors);
    } else {
        check_type(schema, path, value, &mut found.errors);
        found.merge(junctors(&schema.validation, path, value));
        match value {
            Value::String(text) => check_string(schema, path, text, &mut found.errors),
            Value::Number(number) => check_number(schema, path, number, &mut found.errors),
            Value::Array(items) => found.merge(array(schema, path, items, old)),
            _ => {}
        }
        check_enum(schema, path, value, &mut found.errors);
        if let Value::Object(map) = value {
            found.merge(object(schema, path, map, old));
        }
        found.checks += usize::from(found.is_valid());
    }
    if !found.is_valid() && old == Some(value) {
        found.errors.0.clear();
    }
    found
}

/// The allowed JSON types as messages name them; `None` when any will do.
fn types(schema: &Structural) -> Option<String> {
    if schema.int_or_string {
        Some("integer,string".into())
    } else if schema.ty.is_empty() {
        None
    } else {
        Some(schema.ty.to_string())
    }
}

/// A path as the head of a message.
fn type_error(errors: &mut Errors, path: &str, expected: &str, found: &str) {
    errors.type_invalid(
        at(path),
        &found.into(),
        &format!("{path} in body must be of type {expected}: \"{found}\""),
    );
}

/// The field of an error: the path without the dot that starts one below the root of an additional property.
fn at(path: &str) -> &str {
    match path.trim_start_matches('.') {
        "" => "<nil>",
        path => path,
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn check_type(schema: &Structural, path: &str, value: &Value, errors: &mut Errors) {
    let Some(types) = types(schema) else { return };
    let numeric = types.contains("integer") || types == "number";
    // A format says enough about strings.
    if is_known_format(schema) && !numeric && (value.is_string() || value.is_array()) {
        return;
    }
    let found = type_of(value);
    let integral = value.as_f64().is_some_and(|n| n.fract() == 0.0);
    let fits = types.split(',').any(|t| t == found)
        || (found == "number" && integral && types.contains("integer"))
        || (found == "integer" && types == "number");
    if !fits {
        type_error(errors, path, &types, found);
    }
}

fn is_known_format(schema: &Structural) -> bool {
    match &*schema.ty {
        "" | "string" => formats::check(&schema.validation.format, "").is_some(),
        "integer" => matches!(&*schema.validation.format, "int32" | "int64"),
        "number" => matches!(&*schema.validation.format, "float" | "double"),
        _ => false,
    }
}

fn check_string(schema: &Structural, path: &str, text: &str, errors: &mut Errors) {
    let rules = &schema.validation;
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    if let Some(max) = rules.max_length.filter(|max| length > *max) {
        errors.too_long(at(path), usize::try_from(max).unwrap_or(0));
    } else if let Some(min) = rules.min_length.filter(|min| length < *min) {
        let detail = format!("{path} in body should be at least {min} chars long");
        errors.invalid(at(path), &text.into(), &detail);
    } else if let Some(pattern) = &rules.pattern
        && !pattern.regex.as_ref().is_some_and(|r| r.is_match(text))
    {
        let detail = format!("{path} in body should match '{}'", pattern.text);
        errors.invalid(at(path), &text.into(), &detail);
    }
    if matches!(&*schema.ty, "" | "string") && formats::check(&rules.format, text) == Some(false) {
        let detail = format!("{path} in body must be of type {}: {text:?}", rules.format);
        errors.type_invalid(at(path), &text.into(), &detail);
    }
}

fn check_number(schema: &Structural, path: &str, number: &serde_json::Number, errors: &mut Errors) {
    let rules = &schema.validation;
    let (value, n) = (
        Value::Number(number.clone()),
        number.as_f64().unwrap_or_default(),
    );
    if &*schema.ty == "integer"
        && &*rules.format == "int32"
        && !(-2_147_483_648.0..=2_147_483_647.0).contains(&n)
    {
        let detail = format!("Checked value must be of type integer with format int32 in {path}");
        errors.invalid("<nil>", &"".into(), &detail);
    }
    let mut report = |words: String| {
        errors.invalid(
            at(path),
            &value,
            &format!("{path} in body should be {words}"),
        );
    };
    if let Some(factor) = rules.multiple_of {
        let multiple = if factor < 1.0 {
            1.0 / factor * n
        } else {
            n / factor
        };
        if factor > 0.0 && (multiple - multiple.round()).abs() > 1e-9 {
            report(format!("a multiple of {factor}"));
        }
    }
    if let Some(max) = rules.maximum {
        if rules.exclusive_maximum && n >= max {
            report(format!("less than {max}"));
        } else if n > max {
            report(format!("less than or equal to {max}"));
        }
    }
    if let Some(min) = rules.minimum {
        if rules.exclusive_minimum && n <= min {
            report(format!("greater than {min}"));
        } else if n < min {
            report(format!("greater than or equal to {min}"));
        }
    }
}

fn check_enum(schema: &Structural, path: &str, value: &Value, errors: &mut Errors) {
    let allowed = &schema.validation.enumeration;
    let equal = |a: &Value| {
        a == value || (a.is_number() && value.is_number() && a.as_f64() == value.as_f64())
    };
    if allowed.is_empty() || allowed.iter().any(equal) {
        return;
    }
    let names: Vec<String> = allowed
        .iter()
        .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    errors.not_supported(at(path), value, &names);
}

/// `allOf`, `anyOf`, `oneOf` and `not`.
fn junctors(rules: &Validation, path: &str, value: &Value) -> Findings {
    let mut found = Findings::default();
    let composite = |found: &mut Findings, message: String| {
        found.errors.invalid("<nil>", &"".into(), &message);
    };
    let each = |schemas: &[Structural]| -> Vec<Findings> {
        schemas
            .iter()
            .map(|schema| node(schema, path, value, None))
            .collect()
    };
    if !rules.any_of.is_empty() {
        let results = each(&rules.any_of);
        if !results.iter().any(Findings::is_valid) {
            composite(
                &mut found,
                format!("{path:?} must validate at least one schema (anyOf)"),
            );
            found.merge(furthest(results));
        }
    }
    if !rules.one_of.is_empty() {
        let results = each(&rules.one_of);
        match results.iter().filter(|r| r.is_valid()).count() {
            1 => {}
            0 => {
                composite(
                    &mut found,
                    format!(
                        "{path:?} must validate one and only one schema (oneOf). Found none valid"
                    ),
                );
                found.merge(furthest(results));
            }
            many => composite(
                &mut found,
                format!(
                    "{path:?} must validate one and only one schema (oneOf). Found {many} valid alternatives"
                ),
            ),
        }
    }
    if !rules.all_of.is_empty() {
        let results = each(&rules.all_of);
        let valid = results.iter().filter(|r| r.is_valid()).count();
        let all = results.len();
        for result in results {
            found.merge(result);
        }
        if valid != all {
            let none = if valid == 0 { ". None validated" } else { "" };
            composite(
                &mut found,
                format!("{path:?} must validate all the schemas (allOf){none}"),
            );
        }
    }
    if let Some(not) = &rules.not
        && node(not, path, value, None).is_valid()
    {
        composite(
            &mut found,
            format!("{path:?} must not validate the schema (not)"),
        );
    }
    found
}

/// The alternative that most checks agreed with, the first of several.
fn furthest(results: Vec<Findings>) -> Findings {
    results
        .into_iter()
        .reduce(|best, other| {
            if other.checks > best.checks {
                other
            } else {
                best
            }
        })
        .unwrap_or_default()
}

fn array(schema: &Structural, path: &str, items: &[Value], old: Option<&Value>) -> Findings {
    let mut found = Findings::default();
    if let Some(item_schema) = &schema.items {
        for (i, item) in items.iter().enumerate() {
            let old = correlated(schema, item, old);
            found.merge(node(item_schema, &format!("{path}[{i}]"), item, old));
        }
    }
    let (rules, size) = (
        &schema.validation,
        i64::try_from(items.len()).unwrap_or(i64::MAX),
    );
    if let Some(min) = rules.min_items.filter(|min| size < *min) {
        let detail = format!("{path} in body should have at least {min} items");
        found.errors.invalid(at(path), &size.into(), &detail);
    }
    if let Some(max) = rules.max_items.filter(|max| size > *max) {
        found.errors.too_many(at(path), size, max);
    }
    if rules.unique_items && (1..items.len()).any(|i| items[..i].contains(&items[i])) {
        let detail = format!("{path} in body shouldn't contain duplicates");
        found.errors.invalid(at(path), &"".into(), &detail);
    }
    found
}

/// The item of the old list that a new one replaces: known for lists of type map only.
#[must_use]
pub fn correlated<'a>(
    schema: &Structural,
    item: &Value,
    old: Option<&'a Value>,
) -> Option<&'a Value> {
    let ListType::Map(keys) = &schema.list else {
        return None;
    };
    let defaults = schema.items.as_deref();
    let key = |item: &Value, key: &str| {
        item.get(key).cloned().or_else(|| {
            let property = defaults?.properties.get(key)?;
            property.default.clone()
        })
    };
    old?.as_array()?
        .iter()
        .find(|candidate| keys.iter().all(|k| key(candidate, k) == key(item, k)))
}

fn object(
    schema: &Structural,
    path: &str,
    map: &Map<String, Value>,
    old: Option<&Value>,
) -> Findings {
    let mut found = Findings::default();
    let (rules, size) = (
        &schema.validation,
        i64::try_from(map.len()).unwrap_or(i64::MAX),
    );
    if let Some(min) = rules.min_properties.filter(|min| size < *min) {
        let detail = format!("{path} in body should have at least {min} properties");
        found.errors.invalid(at(path), &size.into(), &detail);
    }
    if let Some(max) = rules.max_properties.filter(|max| size > *max) {
        found.errors.too_many(at(path), size, max);
    }
    let old = if schema.atomic { None } else { old };
    for (name, value) in map {
        let old = old.and_then(|o| o.get(name));
        if let Some(property) = schema.properties.get(name.as_str()) {
            let child = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            found.merge(node(property, &child, value, old));
            continue;
        }
        match &schema.additional {
            Additional::Schema(values) => {
                found.merge(node(values, &format!("{path}.{name}"), value, old));
            }
            Additional::Bool(false) => {
                let detail = format!("{path}.{name} in body is a forbidden property");
                found
                    .errors
                    .invalid(at(path), &name.as_str().into(), &detail);
            }
            _ => {}
        }
    }
    for name in &rules.required {
        if !map.contains_key(&**name) {
            found.errors.required(at(&format!("{path}.{name}")), "");
        }
    }
    found
}

/// Lists of type set and map hold every item once.
pub fn unique_lists(schema: &Structural, path: &str, value: &Value, errors: &mut Errors) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if let Some(property) = schema.properties.get(name.as_str()) {
                    let child = if path.is_empty() {
                        name.clone()
                    } else {
                        format!("{path}.{name}")
                    };
                    unique_lists(property, &child, value, errors);
                } else if let Some(values) = schema.additional_schema() {
                    unique_lists(values, &format!("{path}[{name}]"), value, errors);
                }
            }
        }
        Value::Array(items) => {
            match &schema.list {
                ListType::Atomic => {}
                ListType::Set => duplicates(path, items, items, errors),
                ListType::Map(keys) => {
                    let stray = items.iter().position(|i| !i.is_object() && !i.is_null());
                    if let Some(i) = stray {
                        let detail = "must be an object for an array of list-type map";
                        errors.invalid(format!("{path}[{i}]"), &items[i], detail);
                    } else {
                        let identities: Vec<Value> = items
                            .iter()
                            .map(|item| {
                                keys.iter()
                                    .filter_map(|k| Some((k.to_string(), item.get(&**k)?.clone())))
                                    .collect::<Map<_, _>>()
                                    .into()
                            })
                            .collect();
                        duplicates(path, &identities, &identities, errors);
                    }
                }
            }
            if let Some(schema) = &schema.items {
                for (i, item) in items.iter().enumerate() {
                    unique_lists(schema, &format!("{path}[{i}]"), item, errors);
                }
            }
        }
        _ => {}
    }
}

/// Reports the second appearance of each item.
fn duplicates(path: &str, items: &[Value], shown: &[Value], errors: &mut Errors) {
    let mut seen: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    for (i, item) in items.iter().enumerate() {
        let times = seen.entry(item.to_string()).or_default();
        *times += 1;
        if *times == 2 {
            errors.duplicate(format!("{path}[{i}]"), &shown[i]);
        }
    }
}

/// `apiVersion`, `kind` and `metadata` of embedded resources, at any depth.
pub fn embedded(schema: &Structural, path: &str, value: &Value, errors: &mut Errors) {
    match value {
        Value::Object(map) => {
            if schema.embedded_resource {
                embedded_resource(path, map, errors);
            }
            for (name, value) in map {
                if let Some(property) = schema.properties.get(name.as_str()) {
                    let child = if path.is_empty() {
                        name.clone()
                    } else {
                        format!("{path}.{name}")
                    };
                    embedded(property, &child, value, errors);
                } else if let Some(values) = schema.additional_schema() {
                    embedded(values, &format!("{path}[{name}]"), value, errors);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &schema.items {
                for (i, item) in items.iter().enumerate() {
                    embedded(schema, &format!("{path}[{i}]"), item, errors);
                }
            }
        }
        _ => {}
    }
}

fn embedded_resource(path: &str, map: &Map<String, Value>, errors: &mut Errors) {
    for name in ["apiVersion", "kind"] {
        let field = format!("{path}.{name}");
        match map.get(name) {
            None => errors.required(&field, ""),
            Some(Value::String(text)) if text.is_empty() => {
                errors.invalid(&field, &"".into(), "must not be empty");
            }
            Some(Value::String(text)) if name == "apiVersion" => {
                if text.matches('/').count() > 1 {
                    let detail = format!("unexpected GroupVersion string: {text}");
                    errors.invalid(&field, &text.as_str().into(), &detail);
                }
            }
            Some(Value::String(text)) => {
                let problems = validation::dns_1035_label(&text.to_lowercase());
                if !problems.is_empty() {
                    let detail = format!(
                        "may have mixed case, but should otherwise match: {}",
                        problems.join(",")
                    );
                    errors.invalid(&field, &text.as_str().into(), &detail);
                }
            }
            Some(other) => errors.invalid(&field, other, "must be a string"),
        }
    }
    let Some(metadata) = map.get("metadata") else {
        return;
    };
    let mut probe = serde_json::json!({"metadata": metadata});
    if meta::name(&probe).is_empty() {
        meta::set(&mut probe, "name", "fakename");
    }
    let namespaced = !meta::namespace(&probe).is_empty();
    let mut found = Errors::default();
    validation::object_meta(&mut found, &probe, namespaced, validation::path_segment);
    for mut cause in found.0 {
        cause.field = format!("{path}.{}", cause.field);
        errors.0.push(cause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(schema: &Value, value: &Value, old: Option<&Value>) -> Vec<String> {
        let schema = Structural::parse(schema);
        let mut errors = Errors::default();
        validate(&schema, "", value, old, &mut errors);
        unique_lists(&schema, "", value, &mut errors);
        embedded(&schema, "", value, &mut errors);
        errors
            .0
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect()
    }

    #[test]
    fn constraints_are_reported_in_upstreams_words() {
        let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object", "required": ["a"], "properties": {
            "n": {"type": "integer", "minimum": 1, "maximum": 3, "exclusiveMaximum": true},
            "s": {"type": "string", "maxLength": 3, "pattern": "^a"},
            "e": {"type": "string", "enum": ["x", "y"]},
            "ip": {"type": "string", "format": "ipv4"},
            "l": {"type": "array", "maxItems": 1, "items": {"type": "string"}},
            "q": {"x-kubernetes-int-or-string": true},
            "o": {"oneOf": [{"minimum": 1}, {"maximum": 5}], "type": "integer"}}}}});
        let errors = check(
            &schema,
            &json!({"spec": {"n": 3, "s": "bb", "e": "z", "ip": "x", "l": ["a", 1], "q": true, "o": 3}}),
            None,
        );
        for expected in [
            "spec.a: Required value",
            "spec.n: Invalid value: 3: spec.n in body should be less than 3",
            "spec.s: Invalid value: \"bb\": spec.s in body should match '^a'",
            "spec.e: Unsupported value: \"z\": supported values: \"x\", \"y\"",
            "spec.ip: Invalid value: \"x\": spec.ip in body must be of type ipv4: \"x\"",
            "spec.l: Too many: 2: must have at most 1 item",
            "spec.l[1]: Invalid value: \"integer\": spec.l[1] in body must be of type string: \"integer\"",
            "spec.q: Invalid value: \"boolean\": spec.q in body must be of type integer,string: \"boolean\"",
            "<nil>: Invalid value: \"\": \"spec.o\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
        ] {
            assert!(
                errors.contains(&expected.to_owned()),
                "{expected}\n{errors:#?}"
            );
        }
        assert_eq!(errors.len(), 9);
        assert_eq!(check(&schema, &json!({}), None), ["spec: Required value"]);
    }

    #[test]
    fn unchanged_parts_are_ratcheted() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "integer", "maximum": 1}, "b": {"type": "integer", "maximum": 1},
            "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object",
                "properties": {"k": {"type": "string"}, "v": {"type": "integer", "maximum": 1}}}}}});
        let old = json!({"a": 5, "b": 1, "m": [{"k": "x", "v": 9}]});
        let new = json!({"a": 5, "b": 7, "m": [{"k": "y", "v": 1}, {"k": "x", "v": 9}]});
        assert_eq!(
            check(&schema, &new, Some(&old)),
            ["b: Invalid value: 7: b in body should be less than or equal to 1"]
        );
    }

    #[test]
    fn sets_and_maps_are_unique() {
        let schema = json!({"type": "object", "properties": {
            "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "properties": {"k": {"type": "string"}}}}}});
        let value = json!({"s": ["a", "b", "a", "a"], "m": [{"k": "x"}, {"k": "x"}]});
        assert_eq!(
            check(&schema, &value, None),
            [
                "m[1]: Duplicate value: {\"k\":\"x\"}",
                "s[2]: Duplicate value: \"a\""
            ]
        );
    }
}
