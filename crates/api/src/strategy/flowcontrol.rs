//! `FlowSchema` and `PriorityLevelConfiguration`.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{Strategy, default_at};
use crate::flowcontrol::{EXEMPT, FLOW_SCHEMAS, PRIORITY_LEVELS, can_deal};
use crate::meta;
use crate::validation::{self, Errors, internal};

const VERBS: [&str; 9] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "proxy",
    "update",
    "watch",
];

const MAX_PRECEDENCE: i64 = 10_000;
const MAX_QUEUES: i64 = 10_000_000;

pub(super) struct FlowSchema;

impl Strategy for FlowSchema {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        let (name, spec) = (meta::name(object), &object["spec"]);
        validate_schema(name, spec, errors);
        if let Some(fixed) = FLOW_SCHEMAS.fixed_spec(name)
            && spec != fixed
        {
            let why = format!("spec of '{name}' must equal the fixed value");
            let shown = internal("io.k8s.api.flowcontrol.v1.FlowSchemaSpec", spec);
            errors.invalid_as("spec", &shown, &why);
        }
        validate_conditions(object, errors);
    }

    fn validate_status(&self, object: &Value, _: &Value, errors: &mut Errors) {
        validate_conditions(object, errors);
    }
}

fn validate_conditions(object: &Value, errors: &mut Errors) {
    let mut types = HashSet::new();
    for (i, condition) in list(&object["status"]["conditions"]).enumerate() {
        let field = format!("status.conditions[{i}].type");
        let kind = condition["type"].as_str().unwrap_or_default();
        if !types.insert(kind) {
            errors.duplicate(&field, &kind.into());
        }
        if kind.is_empty() {
            errors.required(&field, "");
        }
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn validate_schema(name: &str, spec: &Value, errors: &mut Errors) {
    let field = "spec.matchingPrecedence";
    let precedence = spec["matchingPrecedence"].as_i64().unwrap_or_default();
    let shown = precedence.into();
    if precedence <= 0 {
        errors.invalid(field, &shown, "must be a positive value");
    }
    if precedence > MAX_PRECEDENCE {
        let why = format!("must not be greater than {MAX_PRECEDENCE}");
        errors.invalid(field, &shown, &why);
    }
    if precedence == 1 && name != EXEMPT {
        errors.invalid(
            field,
            &shown,
            "only the schema named 'exempt' may have matchingPrecedence 1",
        );
    }
    let method = &spec["distinguisherMethod"];
    if method.is_object() && !["ByNamespace", "ByUser"].contains(&text(method, "type")) {
        errors.not_supported(
            "spec.distinguisherMethod.type",
            &json!({"Type": method["type"]}),
            &["ByNamespace", "ByUser"],
        );
    }
    let field = "spec.priorityLevelConfiguration.name";
    match text(&spec["priorityLevelConfiguration"], "name") {
        "" => errors.required(field, "must reference a priority level"),
        level => {
            for problem in validation::dns_subdomain(level) {
                errors.invalid(field, &level.into(), &problem);
            }
        }
    }
    for (i, rule) in list(&spec["rules"]).enumerate() {
        validate_rule(rule, &format!("spec.rules[{i}]"), errors);
    }
}

fn validate_rule(rule: &Value, at: &str, errors: &mut Errors) {
    if list(&rule["subjects"]).next().is_none() {
        errors.required(
            format!("{at}.subjects"),
            "subjects must contain at least one value",
        );
    }
    for (i, subject) in list(&rule["subjects"]).enumerate() {
        validate_subject(subject, &format!("{at}.subjects[{i}]"), errors);
    }
    let (resources, paths) = (&rule["resourceRules"], &rule["nonResourceRules"]);
    if list(resources).next().is_none() && list(paths).next().is_none() {
        errors.required(
            at,
            "at least one of resourceRules and nonResourceRules has to be non-empty",
        );
    }
    for (i, rule) in list(resources).enumerate() {
        validate_resource_rule(rule, &format!("{at}.resourceRules[{i}]"), errors);
    }
    for (i, rule) in list(paths).enumerate() {
        let at = format!("{at}.nonResourceRules[{i}]");
        validate_verbs(rule, &at, errors);
        let field = format!("{at}.nonResourceURLs");
        let urls = &rule["nonResourceURLs"];
        if wildcard_alone(
            urls,
            &field,
            "nonResourceURLs must contain at least one value",
            "if '*' is present, must not specify other non-resource URLs",
            errors,
        ) {
            for (i, url) in list(urls).enumerate() {
                validate_url(url, &format!("{field}[{i}]"), errors);
            }
        }
    }
}

fn validate_subject(subject: &Value, at: &str, errors: &mut Errors) {
    const KINDS: [(&str, &str); 3] = [
        ("ServiceAccount", "serviceAccount"),
        ("User", "user"),
        ("Group", "group"),
    ];
    let kind = text(subject, "kind");
    let Some((_, own)) = KINDS.iter().find(|(k, _)| *k == kind) else {
        let supported = ["Group", "ServiceAccount", "User"];
        return errors.not_supported(format!("{at}.kind"), &kind.into(), &supported);
    };
    let (field, named) = (format!("{at}.{own}"), &subject[*own]);
    if !named.is_object() {
        let why = format!("{own} is required when subject kind is '{kind}'");
        errors.required(&field, &why);
    } else {
        let name = text(named, "name");
        if name.is_empty() {
            errors.required(format!("{field}.name"), "");
        } else if kind == "ServiceAccount" && name != "*" {
            for problem in validation::dns_subdomain(name) {
                errors.invalid(format!("{field}.name"), &name.into(), &problem);
            }
        }
        if kind == "ServiceAccount" {
            let at = format!("{field}.namespace");
            match text(named, "namespace") {
                "" => errors.required(&at, "must specify namespace for service account"),
                namespace => {
                    for problem in validation::dns_label(namespace) {
                        errors.invalid(&at, &namespace.into(), &problem);
                    }
                }
            }
        }
    }
    for (other, field) in KINDS.iter().filter(|(k, _)| *k != kind) {
        if subject[*field].is_object() {
            let why = format!("{field} is forbidden when subject kind is not '{other}'");
            errors.forbidden(format!("{at}.{field}"), &why);
        }
    }
}

/// Whether a list's members are to be looked at: it has some, and no wildcard.
fn wildcard_alone(
    value: &Value,
    field: &str,
    required: &str,
    alone: &str,
    errors: &mut Errors,
) -> bool {
    let (count, wild) = (list(value).count(), list(value).any(|v| v == "*"));
    if count == 0 {
        errors.required(field, required);
    } else if wild && count > 1 {
        errors.invalid(field, value, alone);
    }
    count > 0 && !wild
}

fn validate_verbs(rule: &Value, at: &str, errors: &mut Errors) {
    let (field, verbs) = (format!("{at}.verbs"), &rule["verbs"]);
    let named = wildcard_alone(
        verbs,
        &field,
        "verbs must contain at least one value",
        "if '*' is present, must not specify other verbs",
        errors,
    );
    let known = |verb: &Value| verb.as_str().is_some_and(|v| VERBS.contains(&v));
    if named && !list(verbs).all(known) {
        errors.not_supported(&field, verbs, &VERBS);
    }
}

fn validate_resource_rule(rule: &Value, at: &str, errors: &mut Errors) {
    validate_verbs(rule, at, errors);
    for (name, required, alone) in [
        (
            "apiGroups",
            "resource rules must supply at least one api group",
            "if '*' is present, must not specify other api groups",
        ),
        (
            "resources",
            "resource rules must supply at least one resource",
            "if '*' is present, must not specify other resources",
        ),
    ] {
        wildcard_alone(
            &rule[name],
            &format!("{at}.{name}"),
            required,
            alone,
            errors,
        );
    }
    let (field, namespaces) = (format!("{at}.namespaces"), &rule["namespaces"]);
    if list(namespaces).next().is_none() && rule["clusterScope"] == true {
        return;
    }
    let named = wildcard_alone(
        namespaces,
        &field,
        "resource rules that are not cluster scoped must supply at least one namespace",
        "if '*' is present, must not specify other namespaces",
        errors,
    );
    if named {
        for (i, namespace) in list(namespaces).enumerate() {
            for problem in validation::dns_label(namespace.as_str().unwrap_or_default()) {
                let why =
                    format!("each member of this list must be '*' or a DNS-1123 label; {problem}");
                errors.invalid(format!("{field}[{i}]"), namespace, &why);
            }
        }
    }
}

fn validate_url(url: &Value, field: &str, errors: &mut Errors) {
    let path = url.as_str().unwrap_or_default();
    let why = if path.is_empty() {
        "must not be empty"
    } else if path == "/" {
        return;
    } else if !path.starts_with('/') {
        "must start with slash"
    } else if path.contains(' ') {
        "must not contain white-space"
    } else if path.contains("//") {
        "must not contain double slash"
    } else if path.matches('*').count() > 1 || (path.contains('*') && !path.ends_with("/*")) {
        "wildcard can only do suffix matching"
    } else {
        return;
    };
    errors.invalid(field, url, why);
}

pub(super) struct PriorityLevelConfiguration;

impl Strategy for PriorityLevelConfiguration {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec") else {
            return;
        };
        if spec.get("exempt").is_some_and(Value::is_object) {
            default_at(spec, &["exempt", "nominalConcurrencyShares"], 0);
            default_at(spec, &["exempt", "lendablePercent"], 0);
        }
        let Some(queuing) = spec.pointer_mut("/limited/limitResponse/queuing") else {
            return;
        };
        if queuing.is_object() {
            for (field, value) in [("queues", 64), ("handSize", 8), ("queueLengthLimit", 50)] {
                if queuing[field].as_i64().unwrap_or_default() == 0 {
                    queuing[field] = value.into();
                }
            }
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let (name, spec) = (meta::name(object), &object["spec"]);
        let kind = text(spec, "type");
        if (name == EXEMPT) != (kind == "Exempt") {
            errors.invalid(
                "spec.type",
                &kind.into(),
                "must be 'Exempt' if and only if `name` is 'exempt'",
            );
        }
        match kind {
            "Exempt" => {
                if spec["limited"].is_object() {
                    errors.forbidden("spec.limited", "must be nil if the type is not Limited");
                }
                validate_shares(&spec["exempt"], "spec.exempt", errors);
                validate_lendable(&spec["exempt"], "spec.exempt", errors);
            }
            "Limited" => {
                if spec["exempt"].is_object() {
                    errors.forbidden("spec.exempt", "must be nil if the type is Limited");
                }
                if spec["limited"].is_object() {
                    validate_limited(&spec["limited"], errors);
                } else {
                    errors.required("spec.limited", "must not be empty when type is Limited");
                }
            }
            _ => errors.not_supported("spec.type", &kind.into(), &["Exempt", "Limited"]),
        }
        if let Some(fixed) = PRIORITY_LEVELS.fixed_spec(name) {
            let (mut own, mut fixed, mut except) = (spec.clone(), fixed.clone(), "");
            if name == EXEMPT {
                own["exempt"] = Value::Null;
                fixed["exempt"] = Value::Null;
                except = " except the 'spec.exempt' field";
            }
            if own != fixed {
                let why = format!("spec of '{name}'{except} must equal the fixed value");
                let ty = "io.k8s.api.flowcontrol.v1.PriorityLevelConfigurationSpec";
                errors.invalid_as("spec", &internal(ty, spec), &why);
            }
        }
        validate_conditions(object, errors);
    }

    fn validate_status(&self, object: &Value, _: &Value, errors: &mut Errors) {
        validate_conditions(object, errors);
    }
}

fn validate_shares(level: &Value, at: &str, errors: &mut Errors) {
    let shares = &level["nominalConcurrencyShares"];
    if shares.as_i64().is_some_and(|n| n < 0) {
        errors.invalid(
            format!("{at}.nominalConcurrencyShares"),
            shares,
            "must be a non-negative integer",
        );
    }
}

fn validate_lendable(level: &Value, at: &str, errors: &mut Errors) {
    let lendable = &level["lendablePercent"];
    if lendable.as_i64().is_some_and(|n| !(0..=100).contains(&n)) {
        errors.invalid(
            format!("{at}.lendablePercent"),
            lendable,
            "must be between 0 and 100, inclusive",
        );
    }
}

fn validate_limited(limited: &Value, errors: &mut Errors) {
    validate_shares(limited, "spec.limited", errors);
    validate_response(&limited["limitResponse"], errors);
    validate_lendable(limited, "spec.limited", errors);
    let borrowing = &limited["borrowingLimitPercent"];
    if borrowing.as_i64().is_some_and(|n| n < 0) {
        errors.invalid(
            "spec.limited.borrowingLimitPercent",
            borrowing,
            "if specified, must be a non-negative integer",
        );
    }
}

fn validate_response(response: &Value, errors: &mut Errors) {
    let (field, queuing) = ("spec.limited.limitResponse.queuing", &response["queuing"]);
    match text(response, "type") {
        "Reject" if queuing.is_object() => errors.forbidden(
            field,
            "must be nil if limited.limitResponse.type is not Limited",
        ),
        "Reject" => {}
        "Queue" if queuing.is_object() => validate_queuing(queuing, field, errors),
        "Queue" => errors.required(
            field,
            "must not be empty if limited.limitResponse.type is Limited",
        ),
        kind => errors.not_supported(
            "spec.limited.limitResponse.type",
            &kind.into(),
            &["Queue", "Reject"],
        ),
    }
}

fn validate_queuing(queuing: &Value, at: &str, errors: &mut Errors) {
    let number = |field: &str| queuing[field].as_i64().unwrap_or_default();
    let mut invalid = |field: &str, why: &str| {
        errors.invalid(format!("{at}.{field}"), &number(field).into(), why);
    };
    if number("queueLengthLimit") <= 0 {
        invalid("queueLengthLimit", "must be positive");
    }
    let (queues, hand) = (number("queues"), number("handSize"));
    if queues <= 0 {
        invalid("queues", "must be positive");
    } else if queues > MAX_QUEUES {
        invalid("queues", &format!("must not be greater than {MAX_QUEUES}"));
    }
    #[allow(clippy::cast_precision_loss)]
    let (deck, dealt) = (queues as f64, hand as f64);
    if hand <= 0 {
        invalid("handSize", "must be positive");
    } else if hand > queues {
        invalid(
            "handSize",
            &format!("should not be greater than queues ({queues})"),
        );
    } else if !can_deal(deck, dealt) {
        invalid(
            "handSize",
            &format!(
                "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than 60"
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(strategy: &dyn Strategy, object: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        strategy.validate(object, &mut errors);
        errors
            .0
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect()
    }

    #[test]
    fn what_a_cluster_begins_with_is_valid() {
        for bootstrap in [&*FLOW_SCHEMAS, &*PRIORITY_LEVELS] {
            let is_schema = std::ptr::eq(bootstrap, &raw const *FLOW_SCHEMAS);
            for object in bootstrap.mandatory.iter().chain(&bootstrap.suggested) {
                let strategy: &dyn Strategy = if is_schema {
                    &FlowSchema
                } else {
                    &PriorityLevelConfiguration
                };
                assert_eq!(problems(strategy, object), [] as [&str; 0]);
                let mut defaulted = object.clone();
                strategy.default(&mut defaulted);
                assert_eq!(defaulted, *object, "nothing is left to default");
            }
        }
    }

    #[test]
    fn schemas() {
        let schema = |spec: Value| json!({"metadata": {"name": "s"}, "spec": spec});
        let found = problems(
            &FlowSchema,
            &schema(
                json!({"matchingPrecedence": 1, "distinguisherMethod": {"type": "ByUser"}, "rules": [
                {"subjects": [{"kind": "User", "group": {"name": "g"}}], "resourceRules": [
                    {"verbs": ["get", "eat"], "apiGroups": ["*", "a"], "resources": [], "namespaces": ["A"]}],
                 "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["a", "/x*"]}]}]}),
            ),
        );
        for part in [
            "only the schema named 'exempt' may have matchingPrecedence 1",
            "spec.priorityLevelConfiguration.name: Required value: must reference a priority level",
            "spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'",
            "spec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'",
            "spec.rules[0].resourceRules[0].verbs: Unsupported value",
            "if '*' is present, must not specify other api groups",
            "resource rules must supply at least one resource",
            "each member of this list must be '*' or a DNS-1123 label",
            "must start with slash",
            "wildcard can only do suffix matching",
        ] {
            assert!(
                found.iter().any(|p| p.contains(part)),
                "{part} in {found:#?}"
            );
        }
        let mut exempt = FLOW_SCHEMAS.mandatory[0].clone();
        exempt["spec"]["rules"] = json!([]);
        assert!(problems(&FlowSchema, &exempt)[0].contains("must equal the fixed value"));
    }

    #[test]
    fn levels() {
        let level = |spec: Value| {
            let mut object = json!({"metadata": {"name": "l"}, "spec": spec});
            PriorityLevelConfiguration.default(&mut object);
            problems(&PriorityLevelConfiguration, &object)
        };
        assert_eq!(level(json!({"type": "Exempt"})).len(), 1);
        assert!(
            level(json!({"type": "Limited"}))[0].contains("must not be empty when type is Limited")
        );
        let queues = |queuing: Value| {
            level(
                json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": queuing}}}),
            )
        };
        assert_eq!(queues(json!({})), [] as [&str; 0]);
        assert!(
            queues(json!({"queues": 4, "handSize": 5}))[0]
                .contains("should not be greater than queues (4)")
        );
        assert!(
            queues(json!({"queues": 1024, "handSize": 8}))[0].contains("required entropy bits")
        );
        let mut exempt = PRIORITY_LEVELS.mandatory[0].clone();
        exempt["spec"]["exempt"]["lendablePercent"] = 50.into();
        assert_eq!(
            problems(&PriorityLevelConfiguration, &exempt),
            [] as [&str; 0]
        );
        let mut fixed = PRIORITY_LEVELS.mandatory[1].clone();
        fixed["spec"]["limited"]["nominalConcurrencyShares"] = 6.into();
        assert!(
            problems(&PriorityLevelConfiguration, &fixed)[0].contains("must equal the fixed value")
        );
    }
}
