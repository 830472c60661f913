//! Jobs.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{Strategy, default_at, template, text};
use crate::meta;
use crate::validation::Errors;

pub(super) struct Job;

/// Defaults of a job's spec, as cron jobs share them.
pub(super) fn default_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        spec["completions"] = 1.into();
    }
    default_at(spec, &["parallelism"], 1);
    let per_index = !spec["backoffLimitPerIndex"].is_null();
    default_at(
        spec,
        &["backoffLimit"],
        if per_index { i32::MAX } else { 6 },
    );
    let replacement = if spec["podFailurePolicy"].is_object() {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    default_at(spec, &["podReplacementPolicy"], replacement);
    if let Some(map) = spec.as_object_mut() {
        map.retain(|_, v| !v.is_null());
    }
    template::default_spec(&mut spec["template"]["spec"]);
}

/// Validates a job's spec at `at`, as cron jobs share it.
pub(super) fn validate_spec(spec: &Value, at: &str, errors: &mut Errors) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
    ] {
        errors.non_negative(&format!("{at}.{field}"), &spec[field]);
    }
    errors.one_of(
        &format!("{at}.completionMode"),
        &spec["completionMode"],
        &["Indexed", "NonIndexed"],
    );
    if spec["completionMode"] == "Indexed" && spec["completions"].is_null() {
        errors.required(
            &format!("{at}.completions"),
            "when completion mode is Indexed",
        );
    }
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy == "Always" {
        errors.required(
            &format!("{at}.template.spec.restartPolicy"),
            "valid values: \"OnFailure\", \"Never\"",
        );
        let mut rest = spec["template"].clone();
        rest["spec"]["restartPolicy"] = "Never".into();
        template::validate_template(
            &rest,
            &format!("{at}.template"),
            &["OnFailure", "Never"],
            errors,
        );
    } else {
        template::validate_template(
            &spec["template"],
            &format!("{at}.template"),
            &["OnFailure", "Never"],
            errors,
        );
    }
}

impl Strategy for Job {
    fn default(&self, object: &mut Value) {
        default_spec(&mut object["spec"]);
        // Not in the template of a cron job.
        default_at(object, &["spec", "completionMode"], "NonIndexed");
        default_at(object, &["spec", "suspend"], false);
        let labels = object["spec"]["template"]["metadata"]["labels"].clone();
        if labels.is_object()
            && object["metadata"]["labels"]
                .as_object()
                .is_none_or(serde_json::Map::is_empty)
        {
            object["metadata"]["labels"] = labels;
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            map.remove("status");
        }
        if object["spec"]["manualSelector"] == true {
            return;
        }
        // Pods are found by the job's own uid, under the new and the legacy label names.
        let (uid, name) = (meta::uid(object).to_owned(), meta::name(object).to_owned());
        let labels = meta::child(&mut object["spec"]["template"], "metadata");
        let labels = match labels.entry("labels").or_insert_with(|| json!({})) {
            Value::Object(map) => map,
            _ => return,
        };
        for (key, value) in [
            ("batch.kubernetes.io/controller-uid", &uid),
            ("controller-uid", &uid),
            ("batch.kubernetes.io/job-name", &name),
            ("job-name", &name),
        ] {
            labels.insert(key.into(), value.as_str().into());
        }
        object["spec"]["selector"] =
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate_spec(&object["spec"], "spec", errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        for field in [
            "selector",
            "completionMode",
            "podFailurePolicy",
            "backoffLimitPerIndex",
        ] {
            errors.immutable(
                &format!("spec.{field}"),
                &object["spec"][field],
                &old["spec"][field],
            );
        }
        let suspended = old["spec"]["suspend"] == true;
        if !suspended {
            errors.immutable(
                "spec.template",
                &object["spec"]["template"],
                &old["spec"]["template"],
            );
        }
        if object["spec"]["completionMode"] != "Indexed" {
            errors.immutable(
                "spec.completions",
                &object["spec"]["completions"],
                &old["spec"]["completions"],
            );
        }
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["status.successful"]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        (field == "status.successful").then(|| text(object, "/status/succeeded"))
    }
}
