//! Groups of pods that are scheduled together, and workloads, which have templates of them. Constraints, claims, disruption
//! and priority of groups need features that are off, so that these fields do not stay.

use serde_json::{Map, Value};

use super::{Strategy, at_mut, copy_field, keep_metadata};
use crate::validation::{At, Errors, api, conditions, dns_label, dns_subdomain, path_segment};

pub(super) struct PodGroup;
pub(super) struct Workload;

const MAX_TEMPLATES: usize = 8;
const IMMUTABLE: &str = "field is immutable";

/// Fields that need a feature which is off.
const DISABLED: [&str; 5] = [
    "disruptionMode",
    "priority",
    "priorityClassName",
    "resourceClaims",
    "schedulingConstraints",
];

/// Drops what needs a feature that is off, unless it was there before.
fn drop_disabled(object: Option<&mut Value>, old: Option<&Value>) {
    let Some(map) = object.and_then(Value::as_object_mut) else {
        return;
    };
    for field in DISABLED {
        let was_there = old.is_some_and(|old| !old[field].is_null());
        if !was_there {
            map.remove(field);
        }
    }
}

/// What was there already may stay as it is, and not change.
fn forbid_disabled(at: &At<'_, '_>, old: &Value, errors: &mut Errors) {
    for field in DISABLED {
        let here = at.field(field);
        if here.is_set() && *here.value() != old[field] {
            errors.forbidden(here, "");
        }
    }
}

/// Exactly one of the members of a union must be there.
fn validate_union(at: &At<'_, '_>, members: &[&str], errors: &mut Errors) {
    let all: Vec<String> = members.iter().map(|m| format!("`{m}`")).collect();
    let all = all.join(", ");
    let set: Vec<&str> = (members.iter().copied())
        .filter(|m| !at.get(m).is_null())
        .collect();
    match set.as_slice() {
        [] => errors.invalid_text(at, "", &format!("must specify one of: {all}")),
        [_] => {}
        several => {
            let shown = format!("{{{}}}", several.join(", "));
            let detail = format!("must specify exactly one of: {all}");
            errors.invalid_text(at, &shown, &detail);
        }
    }
}

fn validate_policy(policy: &At<'_, '_>, errors: &mut Errors) {
    validate_union(policy, &["basic", "gang"], errors);
    let gang = policy.field("gang");
    if gang.is_set() {
        let count = gang.field("minCount");
        match count.int().unwrap_or_default() {
            0 => errors.required(count, ""),
            n if n < 1 => errors.bad(&count, "must be greater than or equal to 1"),
            _ => {}
        }
    }
}

fn validate_group(spec: &At<'_, '_>, errors: &mut Errors) {
    let reference = spec.field("podGroupTemplateRef");
    if reference.is_set() {
        validate_union(&reference, &["workload"], errors);
        let workload = reference.field("workload");
        if workload.is_set() {
            errors.required_name(&workload.field("workloadName"), dns_subdomain);
            errors.required_name(&workload.field("podGroupTemplateName"), dns_label);
        }
    }
    validate_policy(&spec.field("schedulingPolicy"), errors);
}

impl Strategy for PodGroup {
    fn prepare_create(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            map.remove("status");
        }
        drop_disabled(at_mut(object, &["spec"]), None);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "status");
        drop_disabled(at_mut(object, &["spec"]), Some(&old["spec"]));
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        keep_metadata(object, old);
        let has_claims = old["spec"]["resourceClaims"].is_array();
        if let Some(status) = at_mut(object, &["status"]).and_then(Value::as_object_mut)
            && !has_claims
        {
            status.remove("resourceClaimStatuses");
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        validate_group(&root.field("spec"), errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        for field in ["podGroupTemplateRef", "schedulingPolicy"] {
            if *spec.get(field) != old["spec"][field] {
                errors.invalid(spec.field(field), &Value::Null, IMMUTABLE);
            }
        }
        forbid_disabled(&spec, &old["spec"], errors);
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let status = root.field("status");
        conditions(errors, &status.field("conditions"));
        let claims = object["spec"]["resourceClaims"].as_array();
        for claim in status.field("resourceClaimStatuses").items() {
            let name = claim.field("name");
            let mut claims = claims.into_iter().flatten();
            if !claims.any(|c| c["name"] == *name.value()) {
                let detail = "must match the name of an entry in `spec.resourceClaims`";
                errors.bad(&name, detail);
            }
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

fn templates(object: &mut Value) -> impl Iterator<Item = &mut Value> {
    super::items_mut(object, &["spec", "podGroupTemplates"])
}

fn validate_templates(templates: &At<'_, '_>, errors: &mut Errors) {
    let list = templates.list();
    if list.is_empty() {
        errors.required(templates, "");
        return;
    }
    if list.len() > MAX_TEMPLATES {
        errors.too_many(templates, list.len(), MAX_TEMPLATES);
        return;
    }
    for (i, template) in templates.items().enumerate() {
        if list[..i].iter().any(|t| t["name"] == *template.get("name")) {
            let ty = "io.k8s.api.scheduling.v1alpha2.PodGroupTemplate";
            errors.duplicate_as(template, &api(ty, template.value()));
        }
    }
    for template in templates.items() {
        errors.required_name(&template.field("name"), dns_label);
        validate_policy(&template.field("schedulingPolicy"), errors);
    }
}

impl Strategy for Workload {
    fn prepare_create(&self, object: &mut Value) {
        templates(object).for_each(|template| drop_disabled(Some(template), None));
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        let nothing = Value::Object(Map::new());
        let before = old["spec"]["podGroupTemplates"].as_array();
        for (i, template) in templates(object).enumerate() {
            let old = before.and_then(|list| list.get(i)).unwrap_or(&nothing);
            drop_disabled(Some(template), Some(old));
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        let controller = spec.field("controllerRef");
        if controller.is_set() {
            errors.optional_name(&controller.field("apiGroup"), dns_subdomain);
            errors.required_name(&controller.field("kind"), path_segment);
            errors.required_name(&controller.field("name"), path_segment);
        }
        validate_templates(&spec.field("podGroupTemplates"), errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        for field in ["controllerRef", "podGroupTemplates"] {
            if *spec.get(field) != old["spec"][field] {
                errors.invalid(spec.field(field), &Value::Null, IMMUTABLE);
            }
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(strategy: &dyn Strategy, spec: Value, old: Option<Value>) -> Vec<String> {
        let mut errors = Errors::default();
        let object = json!({"spec": spec});
        match old {
            None => strategy.validate(&object, &mut errors),
            Some(old) => strategy.validate_on_update(&object, &json!({"spec": old}), &mut errors),
        }
        let list = errors.0.into_iter();
        list.map(|e| format!("{}: {}", e.field, e.message))
            .collect()
    }

    #[test]
    fn groups_have_one_policy() {
        assert!(found(&PodGroup, json!({"schedulingPolicy": {"basic": {}}}), None).is_empty());
        assert_eq!(
            found(
                &PodGroup,
                json!({"schedulingPolicy": {}, "podGroupTemplateRef": {"workload": {"workloadName": "w"}}}),
                None
            ),
            [
                "spec.podGroupTemplateRef.workload.podGroupTemplateName: Required value",
                "spec.schedulingPolicy: Invalid value: \"\": must specify one of: `basic`, `gang`",
            ]
        );
        assert_eq!(
            found(
                &PodGroup,
                json!({"schedulingPolicy": {"basic": {}, "gang": {"minCount": -1}}}),
                None
            ),
            [
                "spec.schedulingPolicy: Invalid value: \"{basic, gang}\": must specify exactly one of: `basic`, `gang`",
                "spec.schedulingPolicy.gang.minCount: Invalid value: -1: must be greater than or equal to 1",
            ]
        );
        let basic = json!({"schedulingPolicy": {"basic": {}}});
        assert_eq!(
            found(
                &PodGroup,
                json!({"schedulingPolicy": {"gang": {"minCount": 1}}}),
                Some(basic)
            ),
            ["spec.schedulingPolicy: Invalid value: null: field is immutable"]
        );
    }

    #[test]
    fn workloads_have_templates() {
        let template = json!({"name": "a", "schedulingPolicy": {"basic": {}}});
        let spec = json!({"podGroupTemplates": [template]});
        assert!(found(&Workload, spec.clone(), None).is_empty());
        assert!(found(&Workload, spec.clone(), Some(spec)).is_empty());
        assert_eq!(
            found(&Workload, json!({}), None),
            ["spec.podGroupTemplates: Required value"]
        );
        let twice = json!({"podGroupTemplates": [template, template]});
        assert!(
            found(&Workload, twice, None)[0]
                .starts_with("spec.podGroupTemplates[1]: Duplicate value")
        );
        let mut object = json!({"spec": {"podGroupTemplates": [{"name": "a", "priority": 5}]}});
        Workload.prepare_create(&mut object);
        assert_eq!(object["spec"]["podGroupTemplates"], json!([{"name": "a"}]));
    }
}
