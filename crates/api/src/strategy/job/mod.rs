//! Jobs.

mod policies;
mod status;

use std::borrow::Cow;

use serde_json::{Value, json};

use super::template::{self, Options, warnings as template_warnings};
use super::{MetaCheck, Strategy, at_mut, copy_field, default_at, items_mut, text, workload};
use crate::meta;
use crate::validation::{
    At, Errors, SelectorOptions, api, dns_label, has_invalid_selector, has_invalid_values,
    internal, label_selector_with, selector_matches,
};

const MAX_PARALLELISM: i64 = 100_000;
const MAX_FAILED_INDEXES: i64 = 100_000;
/// From here on, completions are many.
const MANY_COMPLETIONS: i64 = 100_000;
const MAX_WHEN_MANY: i64 = 10_000;
const MAX_MANAGED_BY: usize = 63;
const LEGACY_LABELS: [&str; 2] = ["controller-uid", "job-name"];
const LABELS: [&str; 2] = [
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
];

pub(super) struct Job;

/// Defaults of a job's spec.
fn default_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    let absent = |field: &str| spec.get(field).is_none_or(Value::is_null);
    if absent("completions") && absent("parallelism") {
        spec["completions"] = 1.into();
    }
    default_at(spec, &["parallelism"], 1);
    let per_index = spec
        .get("backoffLimitPerIndex")
        .is_some_and(|limit| !limit.is_null());
    default_at(
        spec,
        &["backoffLimit"],
        if per_index { i32::MAX } else { 6 },
    );
    let replacement = if spec.get("podFailurePolicy").is_some_and(Value::is_object) {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    default_at(spec, &["podReplacementPolicy"], replacement);
    default_at(spec, &["completionMode"], "NonIndexed");
    default_at(spec, &["suspend"], false);
    default_at(spec, &["manualSelector"], false);
    template::default_template(spec, &["template"]);
}

/// Validates a job's spec, as cron jobs share it.
pub(super) fn validate_spec(spec: &At<'_, '_>, options: &Options, errors: &mut Errors) {
    errors.non_negative_fields(
        spec,
        &[
            "parallelism",
            "completions",
            "activeDeadlineSeconds",
            "backoffLimit",
            "ttlSecondsAfterFinished",
            "backoffLimitPerIndex",
            "maxFailedIndexes",
        ],
    );
    let per_index = spec.field("backoffLimitPerIndex");
    let failed_indexes = spec.field("maxFailedIndexes");
    if failed_indexes.is_set() && !per_index.is_set() {
        errors.required(per_index, "when maxFailedIndexes is specified");
    }
    let manager = spec.field("managedBy");
    if manager.is_set() {
        errors.domain_prefixed_path(manager, manager.str());
        if manager.str().len() > MAX_MANAGED_BY {
            errors.too_long(manager, MAX_MANAGED_BY);
        }
    }
    let mode = spec.field("completionMode");
    errors.one_of_optional(&mode, &["NonIndexed", "Indexed"]);
    if mode.str() == "Indexed" {
        validate_indexed(spec, errors);
    }
    if !mode.is_set() || mode.str() == "NonIndexed" {
        for at in [&per_index, &failed_indexes] {
            if at.is_set() {
                errors.bad(at, "requires indexed completion mode");
            }
        }
    }
    policies::validate_failure_policy(spec, errors);
    let success = spec.field("successPolicy");
    if success.is_set() {
        if mode.str() == "Indexed" {
            policies::validate_success_policy(spec, &success, errors);
        } else {
            let shown = internal("io.k8s.api.batch.v1.SuccessPolicy", success.value());
            errors.invalid_as(success, &shown, "requires indexed completion mode");
        }
    }
    let replacement = spec.field("podReplacementPolicy");
    if spec.field("podFailurePolicy").is_set() {
        errors.one_of_optional(&replacement, &["Failed"]);
    } else {
        errors.one_of_optional(&replacement, &["Failed", "TerminatingOrFailed"]);
    }
    let template = spec.field("template");
    template::validate(&template, options, errors);
    let pod_spec = template.field("spec");
    let policy = pod_spec.field("restartPolicy");
    match policy.str() {
        "" | "Always" => errors.required(policy, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec.field("podFailurePolicy").is_set() => {
            let detail = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.bad(&policy, detail);
        }
        _ => errors.member(&policy, &["OnFailure", "Never"]),
    }
}

fn validate_indexed(spec: &At<'_, '_>, errors: &mut Errors) {
    let (completions, parallelism) = (spec.field("completions"), spec.field("parallelism"));
    let failed = spec.field("maxFailedIndexes");
    let over = |at: &At<'_, '_>, most: i64| at.int().is_some_and(|n| n > most);
    if !completions.is_set() {
        errors.required(completions, "when completion mode is Indexed");
    }
    if over(&parallelism, MAX_PARALLELISM) {
        let detail = format!(
            "must be less than or equal to {MAX_PARALLELISM} when completion mode is Indexed"
        );
        errors.bad(&parallelism, &detail);
    }
    if completions.int().is_some_and(|most| over(&failed, most)) {
        errors.bad(&failed, "must be less than or equal to completions");
    }
    if over(&failed, MAX_FAILED_INDEXES) {
        let detail = format!("must be less than or equal to {MAX_FAILED_INDEXES}");
        errors.bad(&failed, &detail);
    }
    if !over(&completions, MANY_COMPLETIONS) || !spec.field("backoffLimitPerIndex").is_set() {
        return;
    }
    if !failed.is_set() {
        let detail = format!("must be specified when completions is above {MANY_COMPLETIONS}");
        errors.required(failed, &detail);
    }
    for at in [&parallelism, &failed] {
        if over(at, MAX_WHEN_MANY) {
            let detail = format!(
                "must be less than or equal to {MAX_WHEN_MANY} when completions are above {MANY_COMPLETIONS} and used with backoff limit per index"
            );
            errors.bad(at, &detail);
        }
    }
}

/// Warnings of a job's spec at a place, of a new job or a changed one.
pub(super) fn spec_warnings(spec: &At<'_, '_>) -> Vec<String> {
    let number = |field: &str| spec.get(field).as_i64().unwrap_or_default();
    let mut warnings = Vec::new();
    if spec.text("completionMode") == "Indexed"
        && number("completions") > MANY_COMPLETIONS
        && number("parallelism") > MAX_WHEN_MANY
    {
        warnings.push(format!("{spec}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"));
    }
    warnings.extend(template_warnings::of(&spec.field("template"), true));
    warnings
}

impl Job {
    fn validate_with(
        object: &Value,
        options: &Options,
        prefixed_labels: bool,
        errors: &mut Errors,
    ) {
        let root = At::root(object);
        let spec = root.field("spec");
        validate_generated_selector(object, prefixed_labels, errors);
        validate_spec_and_selector(&spec, options, errors);
        let completions = spec.get("completions").as_i64().unwrap_or_default();
        if spec.text("completionMode") == "Indexed" && completions > 0 {
            let hostname = format!("{}-{}", meta::name(object), completions - 1);
            if !dns_label(&hostname).is_empty() {
                errors.invalid_text(
                    "metadata.name",
                    meta::name(object),
                    &format!("will not able to create pod with invalid DNS label: {hostname}"),
                );
            }
        }
    }
}

fn validate_spec_and_selector(spec: &At<'_, '_>, options: &Options, errors: &mut Errors) {
    validate_spec(spec, options, errors);
    let selector = spec.field("selector");
    if !selector.is_set() {
        errors.required(selector, "");
    }
    let before = errors.len();
    let selector_options = SelectorOptions {
        allow_invalid_values: options.invalid_label_values_in_selectors,
    };
    label_selector_with(errors, &selector, selector_options);
    let template = spec.field("template");
    let metadata = template.field("metadata");
    let labels = metadata.field("labels");
    if errors.len() == before && !selector_matches(selector.value(), labels.value()) {
        let detail = "`selector` does not match template `labels`";
        errors.invalid(labels, labels.value(), detail);
    }
}

/// Pods are found by labels that the server gives them, unless the job says otherwise.
fn validate_generated_selector(object: &Value, prefixed_labels: bool, errors: &mut Errors) {
    let spec = &object["spec"];
    if spec["manualSelector"] == true || spec["selector"].is_null() {
        return;
    }
    let (uid, name) = (meta::uid(object), meta::name(object));
    let labels = &spec["template"]["metadata"]["labels"];
    let sets: &[[&str; 2]] = if prefixed_labels {
        &[LEGACY_LABELS, LABELS]
    } else {
        &[LEGACY_LABELS]
    };
    let mut expected = serde_json::Map::new();
    for set in sets {
        for (label, value) in set.iter().zip([uid, name]) {
            let place = format!("spec.template.metadata.labels[{label}]");
            let detail = format!("must be '{value}'");
            match labels[*label].as_str() {
                None => errors.required(place, &detail),
                Some(other) if other != value => errors.invalid(place, labels, &detail),
                Some(_) => {}
            }
            expected.insert((*label).to_owned(), value.into());
        }
    }
    let selector = &spec["selector"];
    if !has_invalid_selector(selector) && !selector_matches(selector, &expected.into()) {
        let shown = api(template::SELECTOR, &spec["selector"]);
        errors.invalid_as("spec.selector", &shown, "`selector` not auto-generated");
    }
}

/// A job without labels has those of its pods.
fn adopt_labels(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    let own = object["metadata"]["labels"].as_object();
    if labels.is_object() && own.is_none_or(serde_json::Map::is_empty) {
        meta::set(object, "labels", labels);
    }
}

/// A job that waits may still be changed.
fn is_waiting(job: &Value) -> bool {
    let status = &job["status"];
    let suspended_now = status::is_true(status, "Suspended");
    job["spec"]["suspend"] == true
        && (status["startTime"].is_null() || suspended_now)
        && status["active"].as_i64().unwrap_or_default() == 0
}

fn validate_template_update(object: &Value, old: &Value, errors: &mut Errors) {
    let template = &object["spec"]["template"];
    let mut before = old["spec"]["template"].clone();
    let waiting = is_waiting(old);
    if waiting {
        for field in ["nodeSelector", "tolerations", "schedulingGates"] {
            copy_field(&mut before["spec"], &template["spec"], field);
        }
        for field in ["annotations", "labels"] {
            copy_field(&mut before["metadata"], &template["metadata"], field);
        }
        let affinity = &template["spec"]["affinity"];
        if affinity.is_object() && before["spec"]["affinity"].is_null() {
            before["spec"]["affinity"] = json!({});
        }
        if before["spec"]["affinity"].is_object() {
            copy_field(&mut before["spec"]["affinity"], affinity, "nodeAffinity");
            let is_empty = before["spec"]["affinity"] == json!({});
            if is_empty && affinity.is_null() {
                copy_field(&mut before["spec"], &Value::Null, "affinity");
            }
        }
    }
    if !waiting || old["spec"]["suspend"] != true {
        if *template != before {
            let shown = internal("io.k8s.api.core.v1.PodTemplateSpec", template);
            errors.invalid_as("spec.template", &shown, "field is immutable");
        }
        return;
    }
    for name in ["containers", "initContainers"] {
        let count = |t: &Value| t["spec"][name].as_array().map_or(0, Vec::len);
        if count(template) != count(&before) {
            continue;
        }
        let new = template["spec"][name].as_array().into_iter().flatten();
        let kept = items_mut(&mut before, &["spec", name]);
        for (kept, new) in kept
            .zip(new)
            .filter(|(kept, new)| kept["name"] == new["name"])
        {
            copy_field(kept, new, "resources");
        }
    }
    if template["spec"] != before["spec"] {
        let shown = internal("io.k8s.api.core.v1.PodSpec", &template["spec"]);
        errors.invalid_as("spec.template.spec", &shown, "field is immutable");
    }
}

fn validate_spec_update(object: &Value, old: &Value, errors: &mut Errors) {
    let (root, before) = (At::root(object), At::root(old));
    let (spec, was) = (root.field("spec"), before.field("spec"));
    let completions = spec.field("completions");
    if spec.text("completionMode") != "Indexed" {
        errors.immutable_field(&spec, &was, "completions");
    } else if completions.value() != was.get("completions")
        && completions.is_set()
        && completions.value() != spec.get("parallelism")
    {
        errors.bad(
            &completions,
            "can only be modified in tandem with spec.parallelism",
        );
    }
    let selector = spec.field("selector");
    errors.immutable_as(
        selector,
        template::SELECTOR,
        selector.value(),
        was.get("selector"),
    );
    validate_template_update(object, old, errors);
    errors.immutable_field(&spec, &was, "completionMode");
    for (field, ty) in [
        ("podFailurePolicy", "io.k8s.api.batch.v1.PodFailurePolicy"),
        ("backoffLimitPerIndex", ""),
        ("managedBy", ""),
        ("successPolicy", "io.k8s.api.batch.v1.SuccessPolicy"),
    ] {
        let at = spec.field(field);
        if at.value() == was.get(field) {
            continue;
        }
        if ty.is_empty() || !at.is_set() {
            errors.invalid(at, at.value(), "field is immutable");
        } else {
            errors.invalid_as(at, &internal(ty, at.value()), "field is immutable");
        }
    }
}

impl Strategy for Job {
    fn gated_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[(
            "GenericWorkload",
            &["spec", "template", "spec", "schedulingGroup"],
        )]
    }

    fn orphans_by_default(&self) -> bool {
        true
    }

    fn warning_of_orphans(&self) -> Option<&'static str> {
        Some(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning",
        )
    }

    fn default(&self, object: &mut Value) {
        if let Some(spec) = at_mut(object, &["spec"]) {
            default_spec(spec);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            map.remove("status");
        }
        if object["spec"]["manualSelector"] == true {
            adopt_labels(object);
            return;
        }
        // Pods are found by the job's own uid, under the new and the legacy label names.
        let (uid, name) = (meta::uid(object).to_owned(), meta::name(object).to_owned());
        for labels in [LEGACY_LABELS, LABELS] {
            for (label, value) in labels.into_iter().zip([&uid, &name]) {
                let path = ["spec", "template", "metadata", "labels", label];
                default_at(object, &path, value.as_str());
            }
        }
        default_at(object, &["spec", "selector", "matchLabels", LABELS[0]], uid);
        adopt_labels(object);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "status");
        adopt_labels(object);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        Self::validate_with(object, &Options::new(false), true, errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let mut options = Options::for_update(false, &old["spec"]["template"]);
        options.invalid_label_values_in_selectors |= has_invalid_values(&old["spec"]["selector"]);
        let labels = &old["spec"]["template"]["metadata"]["labels"];
        let prefixed = LABELS.iter().all(|label| !labels[*label].is_null());
        Self::validate_with(object, &options, prefixed, errors);
        let root = At::root(object);
        validate_spec_and_selector(&root.field("spec"), &options, errors);
        validate_spec_update(object, old, errors);
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        status::validate(object, old, errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings: Vec<String> = workload::name_warning(object, old).into_iter().collect();
        if workload::changed(object, old) {
            let root = At::root(object);
            warnings.extend(spec_warnings(&root.field("spec")));
        }
        warnings
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole, MetaCheck::Update]
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["status.successful"]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        (field == "status.successful").then(|| text(object, "/status/succeeded"))
    }
}
