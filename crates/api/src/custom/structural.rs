//! A custom resource's structural schema: the OpenAPI v3 schema of one version, parsed once into a tree that pruning,
//! defaulting, validation and CEL typing walk.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

use crate::schema::ListType;

/// One node: what its values look like.
#[derive(Clone, Debug, Default)]
pub struct Structural {
    /// `object`, `array`, `string`, `integer`, `number`, `boolean`, or empty.
    pub ty: Box<str>,
    pub properties: BTreeMap<Box<str>, Structural>,
    pub items: Option<Box<Structural>>,
    /// `additionalProperties`.
    pub additional: Additional,
    pub nullable: bool,
    pub preserve_unknown_fields: bool,
    pub embedded_resource: bool,
    pub int_or_string: bool,
    pub list: ListType,
    /// `x-kubernetes-map-type: atomic`.
    pub atomic: bool,
    pub default: Option<Value>,
    pub validation: Validation,
    /// `x-kubernetes-validations`, as they were written.
    pub rules: Vec<Rule>,
}

/// What an object may have besides its properties.
#[derive(Clone, Debug, Default)]
pub enum Additional {
    #[default]
    Unspecified,
    Bool(bool),
    Schema(Box<Structural>),
}

/// Constraints on a value.
#[derive(Clone, Debug, Default)]
pub struct Validation {
    pub format: Box<str>,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub multiple_of: Option<f64>,
    pub max_length: Option<i64>,
    pub min_length: Option<i64>,
    pub pattern: Option<Pattern>,
    pub max_items: Option<i64>,
    pub min_items: Option<i64>,
    pub unique_items: bool,
    pub max_properties: Option<i64>,
    pub min_properties: Option<i64>,
    pub required: Vec<Box<str>>,
    pub enumeration: Vec<Value>,
    pub all_of: Vec<Structural>,
    pub any_of: Vec<Structural>,
    pub one_of: Vec<Structural>,
    pub not: Option<Box<Structural>>,
}

/// A regular expression and the text that it was written as.
#[derive(Clone, Debug)]
pub struct Pattern {
    pub text: Box<str>,
    /// `None` when the text is no regular expression; nothing matches it then.
    pub regex: Option<Regex>,
}

/// One CEL rule.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    pub rule: Box<str>,
    pub message: Box<str>,
    pub message_expression: Box<str>,
    pub reason: Box<str>,
    pub field_path: Box<str>,
    pub optional_old_self: Option<bool>,
}

/// Larger compiled patterns are refused; a pattern comes from whoever may define resources.
const PATTERN_SIZE: usize = 1 << 20;

impl Pattern {
    #[must_use]
    pub fn new(text: &str) -> Self {
        let regex = regex::RegexBuilder::new(text)
            .size_limit(PATTERN_SIZE)
            .build()
            .ok();
        Self {
            text: text.into(),
            regex,
        }
    }
}

impl Structural {
    /// Parses a schema. Malformed parts are left out: the definition's own validation has refused them before.
    #[must_use]
    pub fn parse(schema: &Value) -> Self {
        let flag = |name: &str| schema[name] == true;
        let int_or_string = flag("x-kubernetes-int-or-string");
        let additional = match &schema["additionalProperties"] {
            Value::Bool(allowed) => Additional::Bool(*allowed),
            object @ Value::Object(_) => Additional::Schema(Box::new(Self::parse(object))),
            _ => Additional::Unspecified,
        };
        Self {
            ty: text(&schema["type"]),
            properties: schema["properties"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, property)| (name.as_str().into(), Self::parse(property)))
                .collect(),
            items: schema["items"]
                .is_object()
                .then(|| Box::new(Self::parse(&schema["items"]))),
            additional,
            nullable: flag("nullable"),
            preserve_unknown_fields: flag("x-kubernetes-preserve-unknown-fields"),
            embedded_resource: flag("x-kubernetes-embedded-resource"),
            int_or_string,
            list: list_type(schema),
            atomic: schema["x-kubernetes-map-type"] == "atomic",
            default: schema.get("default").filter(|d| !d.is_null()).cloned(),
            validation: Validation::parse(schema),
            rules: schema["x-kubernetes-validations"]
                .as_array()
                .into_iter()
                .flatten()
                .map(Rule::parse)
                .collect(),
        }
    }

    /// The node of an object's values that are no properties.
    #[must_use]
    pub fn additional_schema(&self) -> Option<&Structural> {
        match &self.additional {
            Additional::Schema(schema) => Some(schema),
            _ => None,
        }
    }

    /// Whether any default is set here or below.
    #[must_use]
    pub fn has_defaults(&self) -> bool {
        self.default.is_some()
            || self.properties.values().any(Self::has_defaults)
            || self.items.as_deref().is_some_and(Self::has_defaults)
            || self.additional_schema().is_some_and(Self::has_defaults)
    }

    /// Every node, with its own rules, at any depth.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
            || self.properties.values().any(Self::has_rules)
            || self.items.as_deref().is_some_and(Self::has_rules)
            || self.additional_schema().is_some_and(Self::has_rules)
    }
}

impl Validation {
    fn parse(schema: &Value) -> Self {
        let many = |name: &str| {
            schema[name]
                .as_array()
                .into_iter()
                .flatten()
                .map(Structural::parse)
                .collect()
        };
        Self {
            format: text(&schema["format"]),
            maximum: schema["maximum"].as_f64(),
            exclusive_maximum: schema["exclusiveMaximum"] == true,
            minimum: schema["minimum"].as_f64(),
            exclusive_minimum: schema["exclusiveMinimum"] == true,
            multiple_of: schema["multipleOf"].as_f64(),
            max_length: schema["maxLength"].as_i64(),
            min_length: schema["minLength"].as_i64(),
            pattern: schema["pattern"]
                .as_str()
                .filter(|p| !p.is_empty())
                .map(Pattern::new),
            max_items: schema["maxItems"].as_i64(),
            min_items: schema["minItems"].as_i64(),
            unique_items: schema["uniqueItems"] == true,
            max_properties: schema["maxProperties"].as_i64(),
            min_properties: schema["minProperties"].as_i64(),
            required: strings(&schema["required"]),
            enumeration: schema["enum"].as_array().cloned().unwrap_or_default(),
            all_of: many("allOf"),
            any_of: many("anyOf"),
            one_of: many("oneOf"),
            not: schema["not"]
                .is_object()
                .then(|| Box::new(Structural::parse(&schema["not"]))),
        }
    }
}

impl Rule {
    fn parse(rule: &Value) -> Self {
        Self {
            rule: text(&rule["rule"]),
            message: text(&rule["message"]),
            message_expression: text(&rule["messageExpression"]),
            reason: text(&rule["reason"]),
            field_path: text(&rule["fieldPath"]),
            optional_old_self: rule["optionalOldSelf"].as_bool(),
        }
    }
}

fn text(value: &Value) -> Box<str> {
    value.as_str().unwrap_or_default().into()
}

fn strings(value: &Value) -> Vec<Box<str>> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(Into::into))
        .collect()
}

fn list_type(schema: &Value) -> ListType {
    match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => ListType::Set,
        Some("map") => ListType::Map(strings(&schema["x-kubernetes-list-map-keys"]).into()),
        _ => ListType::Atomic,
    }
}
