//! What a job's controller may say of it, and in which order.

use std::collections::HashSet;

use serde_json::Value;

use super::policies::{parse_indexes, parse_interval};
use crate::strategy::template::options::list;
use crate::validation::{At, Errors, internal};

/// Whether a condition is true.
pub(super) fn is_true(status: &Value, condition: &str) -> bool {
    list(&status["conditions"]).any(|c| c["type"] == condition && c["status"] == "True")
}

fn is_finished(status: &Value) -> bool {
    is_true(status, "Complete") || is_true(status, "Failed")
}

/// The first index that two lists of intervals share.
fn overlap(completed: &str, failed: &str, completions: i64) -> Option<i64> {
    let intervals = |text: &str| -> Vec<(i64, i64)> {
        text.split(',')
            .filter_map(|i| parse_interval(i, completions).ok())
            .collect()
    };
    let failed = intervals(failed);
    intervals(completed).into_iter().find_map(|(start, end)| {
        failed
            .iter()
            .find(|(first, last)| start <= *last && *first <= end)
            .map(|(first, _)| start.max(*first))
    })
}

/// A job's status before and after an update.
struct Update<'a> {
    job: &'a Value,
    new: &'a Value,
    old: &'a Value,
}

impl Update<'_> {
    /// Whether fields have changed, or conditions where a name starts with a capital.
    fn changed(&self, fields: &[&str]) -> bool {
        fields.iter().any(|field| {
            if field.starts_with(|c: char| c.is_ascii_uppercase()) {
                is_true(self.new, field) != is_true(self.old, field)
            } else {
                self.new[*field] != self.old[*field]
            }
        })
    }

    fn number(&self, field: &str) -> i64 {
        self.new[field].as_i64().unwrap_or_default()
    }
}

pub(super) fn validate(object: &Value, old: &Value, errors: &mut Errors) {
    let root = At::root(object);
    let status = root.field("status");
    let update = Update {
        job: object,
        new: &object["status"],
        old: &old["status"],
    };
    errors.non_negative_fields(
        &status,
        &["active", "succeeded", "failed", "ready", "terminating"],
    );
    validate_uncounted(&status.field("uncountedTerminatedPods"), errors);
    validate_ends(&status, &update, errors);
    validate_finished(&status, &update, errors);
    validate_indexes(&status, &update, errors);
    validate_success(&status, &update, errors);
    validate_progress(&status, &update, errors);
}

fn validate_uncounted(pods: &At<'_, '_>, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for kind in ["succeeded", "failed"] {
        for uid in pods.field(kind).items() {
            if uid.is_empty() {
                errors.bad(&uid, "must not be empty");
            } else if !seen.insert(uid.str()) {
                errors.duplicate(uid, uid.value());
            }
        }
    }
}

/// Conditions that end a job, and the times that go with them.
fn validate_ends(status: &At<'_, '_>, update: &Update<'_>, errors: &mut Errors) {
    let conditions = status.field("conditions");
    let (complete, failed) = (
        is_true(update.new, "Complete"),
        is_true(update.new, "Failed"),
    );
    let completion = status.field("completionTime");
    let start = status.field("startTime");
    let ended_anew = update.changed(&["Complete", "completionTime"]);
    if update.changed(&["Complete", "Failed"]) && complete && failed {
        let detail = "cannot set Complete=True and Failed=true conditions";
        errors.invalid_omitted(conditions, detail);
    }
    if update.changed(&["Complete", "FailureTarget"])
        && complete
        && is_true(update.new, "FailureTarget")
    {
        let detail = "cannot set Complete=True and FailureTarget=true conditions";
        errors.invalid_omitted(conditions, detail);
    }
    if ended_anew && completion.is_set() && !complete {
        let detail = "cannot set completionTime when there is no Complete=True condition";
        errors.bad(&completion, detail);
    }
    if ended_anew && !completion.is_set() && complete {
        errors.required(completion, "completionTime is required for Complete jobs");
    }
    let time = |at: &At<'_, '_>| at.str().parse::<jiff::Timestamp>().ok();
    if update.changed(&["startTime", "completionTime"])
        && let (Some(start), Some(end)) = (time(&start), time(&completion))
        && end < start
    {
        errors.bad(&completion, "must be equal to or after `startTime`");
    }
    if update.changed(&["Failed", "failedIndexes"])
        && failed
        && !is_true(update.new, "FailureTarget")
    {
        let detail = "cannot set Failed=True condition without the FailureTarget=true condition";
        errors.invalid_omitted(conditions, detail);
    }
    if update.changed(&["Complete", "SuccessCriteriaMet"])
        && complete
        && !is_true(update.new, "SuccessCriteriaMet")
    {
        let detail =
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition";
        errors.invalid_omitted(conditions, detail);
    }
}

/// A finished job has nothing running and nothing left to count.
fn validate_finished(status: &At<'_, '_>, update: &Update<'_>, errors: &mut Errors) {
    let finished = is_finished(update.new);
    let finished_anew = finished != is_finished(update.old);
    let active = status.field("active");
    if (finished_anew || update.changed(&["active"])) && finished && update.number("active") > 0 {
        errors.bad(&active, "active>0 is invalid for finished job");
    }
    let start = status.field("startTime");
    let never_ran = update.job["spec"]["suspend"] == true && update.job["spec"]["completions"] == 0;
    if (finished_anew || update.changed(&["startTime"]))
        && !never_ran
        && finished
        && !start.is_set()
    {
        errors.required(start, "startTime is required for finished job");
    }
    let uncounted = status.field("uncountedTerminatedPods");
    let left = !uncounted.field("failed").is_empty() || !uncounted.field("succeeded").is_empty();
    if (finished_anew || update.changed(&["uncountedTerminatedPods"])) && finished && left {
        let shown = internal(
            "io.k8s.api.batch.v1.UncountedTerminatedPods",
            uncounted.value(),
        );
        errors.invalid_as(uncounted, &shown, "must be empty for finished job");
    }
}

/// Which indexes have completed and which have failed.
fn validate_indexes(status: &At<'_, '_>, update: &Update<'_>, errors: &mut Errors) {
    let spec = &update.job["spec"];
    let (completed, failed) = (
        status.field("completedIndexes"),
        status.field("failedIndexes"),
    );
    let completed_changed = update.changed(&["completedIndexes"]);
    let failed_changed = update.changed(&["failedIndexes"]);
    let completions = spec["completions"].as_i64();
    let per_index = !spec["backoffLimitPerIndex"].is_null();
    for (at, relevant, name) in [
        (&completed, completed_changed, "completedIndexes"),
        (&failed, failed_changed && per_index, "failedIndexes"),
    ] {
        if let Some(completions) = completions.filter(|_| relevant)
            && let Err(why) = parse_indexes(at.str(), completions)
        {
            errors.bad(at, &format!("error parsing {name}: {why}"));
        }
    }
    if completed_changed && !completed.is_empty() && spec["completionMode"] != "Indexed" {
        let detail = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.bad(&completed, detail);
    }
    if failed_changed && failed.is_set() && !per_index {
        let detail = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errors.bad(&failed, detail);
    }
    if (completed_changed || failed_changed)
        && let Some(completions) = completions
        && let Some(index) = overlap(completed.str(), failed.str(), completions)
    {
        let detail = format!("failedIndexes and completedIndexes overlap at index: {index}");
        errors.bad(&failed, &detail);
    }
}

/// What success rules out.
fn validate_success(status: &At<'_, '_>, update: &Update<'_>, errors: &mut Errors) {
    let conditions = status.field("conditions");
    let finished = is_finished(update.new);
    let finished_anew = finished != is_finished(update.old);
    let terminating = status.field("terminating");
    if (finished_anew || update.changed(&["terminating"]))
        && finished
        && update.number("terminating") > 0
    {
        errors.bad(&terminating, "terminating>0 is invalid for finished job");
    }
    if update.changed(&["ready", "active"]) && update.number("ready") > update.number("active") {
        errors.bad(
            &status.field("ready"),
            "cannot set more ready pods than active",
        );
    }
    let met = is_true(update.new, "SuccessCriteriaMet");
    for (other, detail) in [
        (
            "Failed",
            "cannot set SuccessCriteriaMet=True and Failed=true conditions",
        ),
        (
            "FailureTarget",
            "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
        ),
    ] {
        if met && is_true(update.new, other) {
            errors.invalid_omitted(conditions, detail);
        }
    }
    let has_policy = update.job["spec"]["successPolicy"].is_object();
    if has_policy && !met && is_true(update.new, "Complete") {
        let detail =
            "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
        errors.invalid_omitted(conditions, detail);
    }
}

/// What never goes back.
fn validate_progress(status: &At<'_, '_>, update: &Update<'_>, errors: &mut Errors) {
    let conditions = status.field("conditions");
    for condition in ["Failed", "Complete", "FailureTarget"] {
        if is_true(update.old, condition) && !is_true(update.new, condition) {
            let detail = format!("cannot disable the terminal {condition}=True condition");
            errors.invalid_omitted(conditions, &detail);
        }
    }
    let spec = &update.job["spec"];
    let is_elastic =
        spec["completionMode"] == "Indexed" && spec["completions"] == spec["parallelism"];
    for counter in ["failed", "succeeded"] {
        let before = update.old[counter].as_i64().unwrap_or_default();
        if update.number(counter) < before && !(counter == "succeeded" && is_elastic) {
            let detail = format!("cannot decrease the {counter} counter");
            errors.invalid(
                status.field(counter),
                &update.number(counter).into(),
                &detail,
            );
        }
    }
    let (completion, start) = (status.field("completionTime"), status.field("startTime"));
    let had = |field: &str| !update.old[field].is_null();
    if completion.is_set() && had("completionTime") && update.changed(&["completionTime"]) {
        errors.bad(&completion, "field is immutable");
    }
    let resuming = is_true(update.old, "Suspended")
        && list(&update.new["conditions"])
            .any(|c| c["type"] == "Suspended" && c["status"] == "False");
    if update.changed(&["startTime"]) && had("startTime") && !resuming && spec["suspend"] != true {
        errors.invalid(
            start,
            start.value(),
            "field is immutable for unsuspended job once set",
        );
    }
    let (met, was_met) = (
        is_true(update.new, "SuccessCriteriaMet"),
        is_true(update.old, "SuccessCriteriaMet"),
    );
    if was_met && !met {
        let detail = "cannot disable the SuccessCriteriaMet=True condition";
        errors.invalid_omitted(conditions, detail);
    }
    if is_true(update.old, "Complete") && !was_met && met {
        let detail =
            "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        errors.invalid_omitted(conditions, detail);
    }
}
