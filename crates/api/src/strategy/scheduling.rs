//! How pods are scheduled and run: PriorityClass and RuntimeClass.

use serde_json::Value;

use super::template::{self, Options, warnings};
use super::{MetaCheck, Strategy};
use crate::meta;
use crate::validation::{At, Errors, dns_label, internal, labels};

/// Highest value of a class that users define; higher ones are the system's.
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;
/// The classes of the system itself.
const SYSTEM_CLASSES: [(&str, i64); 2] = [
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];

pub(super) struct PriorityClass;

/// Why a class with a name of the system's is not one of those.
fn unknown_system_class(object: &Value) -> Option<String> {
    let name = meta::name(object);
    let Some((_, value)) = SYSTEM_CLASSES.iter().find(|(known, _)| *known == name) else {
        return Some(format!("{name} is not a known system priority class"));
    };
    if object["value"].as_i64() != Some(*value) {
        return Some(format!("value of {name} PriorityClass must be {value}"));
    }
    (object["globalDefault"] == true)
        .then(|| format!("globalDefault of {name} PriorityClass must be false"))
}

impl Strategy for PriorityClass {
    fn default(&self, object: &mut Value) {
        super::default_at(object, &["preemptionPolicy"], "PreemptLowerPriority");
    }

    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        if meta::name(object).starts_with("system-") {
            if let Some(problem) = unknown_system_class(object) {
                let detail = format!(
                    "priority class names with 'system-' prefix are reserved for system use only. error: {problem}"
                );
                errors.forbidden("metadata.name", &detail);
            }
        } else if object["value"].as_i64() > Some(HIGHEST_USER_PRIORITY) {
            let detail = format!(
                "maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"
            );
            errors.forbidden("value", &detail);
        }
        let policy = root.field("preemptionPolicy");
        if policy.is_set() {
            errors.one_of_required(&policy, template::PREEMPTION);
        }
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let value = |o: &Value| o["value"].as_i64().unwrap_or(0);
        if value(object) != value(old) {
            errors.forbidden("value", "may not be changed in an update.");
        }
        let (root, old) = (At::root(object), At::root(old));
        errors.immutable_field(&root, &old, "preemptionPolicy");
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

pub(super) struct RuntimeClass;

fn validate_scheduling(at: &At<'_, '_>, errors: &mut Errors) {
    labels(errors, &at.field("nodeSelector"));
    let tolerations = at.field("tolerations");
    template::scheduling::validate_tolerations(&tolerations, &Options::new(false), errors);
    let key = |toleration: &Value| {
        ["key", "operator", "value", "effect"].map(|field| toleration[field].clone())
    };
    for (i, toleration) in tolerations.items().enumerate() {
        let own = key(toleration.value());
        if tolerations.list()[..i].iter().any(|t| key(t) == own) {
            let shown = internal("io.k8s.api.core.v1.Toleration", toleration.value());
            errors.duplicate_as(toleration, &shown);
        }
    }
}

impl Strategy for RuntimeClass {
    fn has_standard_finalizers(&self) -> bool {
        false
    }

    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        errors.required_name(&root.field("handler"), dns_label);
        let overhead = root.field("overhead");
        if overhead.is_set() {
            let fixed = At::named(overhead.get("podFixed"), "overhead");
            template::validate_overhead(&fixed, &Options::new(false), errors);
        }
        let scheduling = root.field("scheduling");
        if scheduling.is_set() {
            validate_scheduling(&scheduling, errors);
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let (root, old) = (At::root(object), At::root(old));
        errors.immutable_field(&root, &old, "handler");
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole, MetaCheck::Update]
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let selector = object["scheduling"]["nodeSelector"].as_object();
        let keys = selector.into_iter().flat_map(|s| s.keys());
        keys.filter_map(|key| warnings::deprecated_node_label(key))
            .map(|message| format!("scheduling.nodeSelector: {message}"))
            .collect()
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}
