//! Classes of storage and of attributes of volumes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use crate::strategy::template::warnings::deprecated_node_label;
use crate::strategy::{MetaCheck, Strategy};
use crate::validation::{At, Errors, label_key, qualified_name};

const MAX_PARAMETERS: usize = 512;
const MAX_PARAMETERS_SIZE: usize = 256 * 1024;

fn validate_provisioner(at: &At<'_, '_>, errors: &mut Errors) {
    if at.is_empty() {
        errors.required(at, "");
        return;
    }
    let name = at.str().to_lowercase();
    for problem in qualified_name(&name) {
        errors.invalid_text(at, &name, &problem);
    }
}

fn validate_parameters(at: &At<'_, '_>, allow_empty: bool, errors: &mut Errors) {
    let count = at.map().map_or(0, serde_json::Map::len);
    if count > MAX_PARAMETERS {
        errors.too_long(at, MAX_PARAMETERS);
        return;
    }
    let mut size = 0;
    for (key, value) in at.map().into_iter().flatten() {
        if key.is_empty() {
            errors.invalid_text(at, "", "field can not be empty.");
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX_PARAMETERS_SIZE {
        errors.too_long(at, MAX_PARAMETERS_SIZE);
    }
    if !allow_empty && count == 0 {
        errors.required(at, "must contain at least one key/value pair");
    }
}

/// Every term is told for every equal one; of many that would be more than anybody has memory for.
const MOST_REPEATED: usize = 10_000;

/// Where volumes of a class may be: no two terms say the same.
fn validate_topologies(at: &At<'_, '_>, errors: &mut Errors) {
    let mut left = MOST_REPEATED;
    let mut seen: HashMap<BTreeMap<&str, Vec<&str>>, usize> = HashMap::new();
    for term in at.items() {
        let mut selected: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for requirement in term.field("matchLabelExpressions").items() {
            let (key, values) = (requirement.field("key"), requirement.field("values"));
            if values.is_empty() {
                errors.required(values, "");
            }
            let mut distinct = BTreeSet::new();
            for value in values.items() {
                if !distinct.insert(value.str()) {
                    errors.duplicate(value, value.value());
                }
            }
            label_key(errors, &key);
            let distinct = distinct.into_iter().collect();
            if selected.insert(key.str(), distinct).is_some() {
                errors.duplicate(key, &key.str().into());
            }
        }
        // Upstream starts from as many empty terms as there are.
        let before_first = if selected.is_empty() {
            at.list().len()
        } else {
            0
        };
        let others = seen.entry(selected).or_default();
        let same = (*others + before_first).min(left);
        for _ in 0..same {
            errors.duplicate(term.field("matchLabelExpressions"), &"".into());
        }
        *others += 1;
        left -= same;
    }
}

pub(in crate::strategy) struct StorageClass;

impl Strategy for StorageClass {
    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        validate_provisioner(&root.field("provisioner"), errors);
        validate_parameters(&root.field("parameters"), true, errors);
        let policy = root.field("reclaimPolicy");
        if !policy.is_empty() {
            errors.member(&policy, &["Delete", "Retain"]);
        }
        let mode = root.field("volumeBindingMode");
        if mode.is_set() {
            errors.member(&mode, &["Immediate", "WaitForFirstConsumer"]);
        } else {
            errors.required(mode, "");
        }
        validate_topologies(&root.field("allowedTopologies"), errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        for field in [
            "parameters",
            "provisioner",
            "reclaimPolicy",
            "volumeBindingMode",
        ] {
            errors.immutable(field, &object[field], &old[field]);
        }
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let root = At::root(object);
        let mut warnings = Vec::new();
        for term in root.field("allowedTopologies").items() {
            for expression in term.field("matchLabelExpressions").items() {
                let key = expression.field("key");
                if let Some(why) = deprecated_node_label(key.str()) {
                    warnings.push(format!("{key}: {why}"));
                }
            }
        }
        warnings
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole, MetaCheck::Update]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

pub(in crate::strategy) struct VolumeAttributesClass;

impl Strategy for VolumeAttributesClass {
    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        validate_provisioner(&root.field("driverName"), errors);
        validate_parameters(&root.field("parameters"), false, errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        for field in ["driverName", "parameters"] {
            if object[field] != old[field] {
                errors.forbidden(field, &format!("updates to {field} are forbidden."));
            }
        }
        self.validate(object, errors);
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Update, MetaCheck::Whole]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}
