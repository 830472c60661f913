//! The part of a definition's validation that needs expressions: every rule compiles and stays within what it may cost.

use fluyt_api::Cause;
use fluyt_api::custom::Structural;
use fluyt_api::custom::structural::Rule;
use fluyt_api::resources::Resource;
use fluyt_api::strategy::customresourcedefinition::violations;
use fluyt_api::validation::Errors;
use fluyt_cel::{STATIC_COST_LIMIT, STATIC_TOTAL_LIMIT, maximum_cardinality, of_structural};
use serde_json::Value;

use super::rules::Compiled;

/// Checks the rules of all versions of a definition. Nothing is said of other resources.
pub fn validate(resource: &Resource, crd: &Value, old: Option<&Value>, errors: &mut Errors) {
    if resource.kind != "CustomResourceDefinition" {
        return;
    }
    let versions: Vec<&Value> = crd["spec"]["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    let shared = versions
        .iter()
        .all(|v| v["schema"] == versions[0]["schema"]);
    for (i, version) in versions.iter().enumerate() {
        let schema = &version["schema"]["openAPIV3Schema"];
        if (shared && i > 0) || !violations(schema, "").is_empty() {
            continue;
        }
        let at = if shared {
            "spec.validation.openAPIV3Schema".to_owned()
        } else {
            format!("spec.versions[{i}].schema.openAPIV3Schema")
        };
        // Of a schema with other problems, upstream does not look at the rules.
        if errors.0.iter().any(|cause| cause.field.starts_with(&at)) {
            continue;
        }
        let unchanged = old.is_some_and(|old| {
            let before = old["spec"]["versions"].as_array().into_iter().flatten();
            before
                .into_iter()
                .any(|v| v["name"] == version["name"] && v["schema"] == version["schema"])
        });
        let mut walk = Walk {
            errors,
            unchanged,
            total: 0,
            expensive: Vec::new(),
        };
        walk.schema(schema, &at, true, Some(1), None);
        let (total, mut expensive) = (walk.total, std::mem::take(&mut walk.expensive));
        if total > STATIC_TOTAL_LIMIT {
            expensive.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
            for (path, _) in expensive.iter().take(4) {
                errors.forbidden(path, "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema");
            }
            let detail = exceeded(
                "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema",
                total,
                STATIC_TOTAL_LIMIT,
            );
            errors.forbidden(&at, &detail);
        }
    }
}

struct Walk<'a> {
    errors: &'a mut Errors,
    /// A schema that was taken before is not refused for the cost of one rule.
    unchanged: bool,
    total: u64,
    expensive: Vec<(String, u64)>,
}

impl Walk<'_> {
    /// `cardinality` is how often the schema can occur in an object, if that is limited; `lost` is the place from which on
    /// old and new values cannot be told to be the same.
    fn schema(
        &mut self,
        schema: &Value,
        at: &str,
        root: bool,
        cardinality: Option<u64>,
        lost: Option<&str>,
    ) {
        self.rules(schema, at, root, cardinality, lost);
        let count = |word: &str| schema[word].as_u64();
        let atomic = schema["x-kubernetes-map-type"] == "atomic";
        let below = lost.or(atomic.then_some(at));
        if schema["additionalProperties"].is_object() {
            let times = cardinality
                .zip(count("maxProperties"))
                .map(|(a, b)| a.saturating_mul(b));
            let child = &schema["additionalProperties"];
            self.schema(
                child,
                &format!("{at}.additionalProperties"),
                false,
                times,
                lost,
            );
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            self.schema(
                property,
                &format!("{at}.properties[{name}]"),
                false,
                cardinality,
                below,
            );
        }
        if schema["items"].is_object() {
            let times = cardinality
                .zip(count("maxItems"))
                .map(|(a, b)| a.saturating_mul(b));
            let keyed = schema["x-kubernetes-list-type"] == "map";
            let below = lost.or((!keyed).then_some(at));
            self.schema(
                &schema["items"],
                &format!("{at}.items"),
                false,
                times,
                below,
            );
        }
    }

    fn rules(
        &mut self,
        schema: &Value,
        at: &str,
        root: bool,
        cardinality: Option<u64>,
        lost: Option<&str>,
    ) {
        let rules = schema["x-kubernetes-validations"].as_array();
        if rules.is_none_or(Vec::is_empty) {
            return;
        }
        let node = Structural::parse(schema);
        let Some(field) = of_structural("self", &node, root || node.embedded_resource) else {
            return;
        };
        let times = cardinality.unwrap_or_else(|| maximum_cardinality(field.min_size));
        for (i, rule) in node.rules.iter().enumerate() {
            if rule.rule.trim().is_empty() {
                continue;
            }
            let compiled = Compiled::new(&field, rule, schema);
            let at = format!("{at}.x-kubernetes-validations[{i}]");
            self.compiled(&compiled, rule, &at, times, lost);
        }
    }

    fn compiled(
        &mut self,
        compiled: &Compiled,
        rule: &Rule,
        at: &str,
        times: u64,
        lost: Option<&str>,
    ) {
        let field = format!("{at}.rule");
        match &compiled.program {
            Ok(program) => {
                self.charge(
                    &field,
                    "estimated rule cost",
                    program.estimate.max.saturating_mul(times),
                );
            }
            Err(why) => invalid(self.errors, &field, rule, why),
        }
        match &compiled.message {
            Some(Ok(program)) => {
                self.charge(
                    &format!("{at}.messageExpression"),
                    "estimated messageExpression cost",
                    program.estimate.max,
                );
            }
            Some(Err(why)) => invalid(self.errors, &format!("{at}.messageExpression"), rule, why),
            None => {}
        }
        if compiled.uses_old_self() {
            if let Some(place) = lost {
                let detail = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {place}"
                );
                self.errors.invalid(&field, &(&*rule.rule).into(), &detail);
            }
        } else if let Some(optional) = rule.optional_old_self {
            self.errors.invalid(
                format!("{at}.optionalOldSelf"),
                &optional.into(),
                "may not be set if oldSelf is not used in rule",
            );
        }
    }

    fn charge(&mut self, field: &str, what: &str, cost: u64) {
        if cost > STATIC_COST_LIMIT && !self.unchanged {
            self.errors
                .forbidden(field, &exceeded(what, cost, STATIC_COST_LIMIT));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= STATIC_TOTAL_LIMIT / 100 {
            self.expensive.push((field.to_owned(), cost));
        }
    }
}

/// A rule that does not compile, shown as upstream shows its own structure.
fn invalid(errors: &mut Errors, field: &str, rule: &Rule, why: &str) {
    let text = |t: &str| Value::from(t).to_string();
    let optional = rule
        .optional_old_self
        .map_or("null".to_owned(), |b| b.to_string());
    let reason = if rule.reason.is_empty() {
        "null".to_owned()
    } else {
        text(&rule.reason)
    };
    let shown = format!(
        "{{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{reason},\"FieldPath\":{},\"OptionalOldSelf\":{optional}}}",
        text(&rule.rule),
        text(&rule.message),
        text(&rule.message_expression),
        text(&rule.field_path)
    );
    // As Go writes JSON.
    let shown = shown
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026");
    errors.0.push(Cause {
        reason: "FieldValueInvalid",
        message: format!("Invalid value: {shown}: {why}"),
        field: field.to_owned(),
    });
}

#[allow(clippy::cast_precision_loss)]
fn exceeded(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}
