//! Cron jobs.

use serde_json::Value;

use super::{Strategy, job};
use crate::validation::Errors;

pub(super) struct CronJob;

impl Strategy for CronJob {
    fn default(&self, object: &mut Value) {
        let spec = &mut object["spec"]["jobTemplate"]["spec"];
        if let Some(map) = spec.as_object_mut() {
            // The jobs' own defaults are filled in when the jobs are created.
            map.remove("completionMode");
            map.remove("suspend");
        }
        super::template::default_spec(&mut spec["template"]["spec"]);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        match spec["schedule"].as_str().unwrap_or_default() {
            "" => errors.required("spec.schedule", ""),
            schedule if schedule.contains("TZ") => {
                errors.invalid(
                    "spec.schedule",
                    &spec["schedule"],
                    "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
                );
            }
            schedule if !plausible_schedule(schedule) => {
                let found = schedule.split_whitespace().count();
                errors.invalid(
                    "spec.schedule",
                    &spec["schedule"],
                    &format!(
                        "expected exactly 5 fields, found {found}: {:?}",
                        schedule.split_whitespace().collect::<Vec<_>>()
                    ),
                );
            }
            _ => {}
        }
        errors.one_of(
            "spec.concurrencyPolicy",
            &spec["concurrencyPolicy"],
            &["Allow", "Forbid", "Replace"],
        );
        for field in [
            "startingDeadlineSeconds",
            "successfulJobsHistoryLimit",
            "failedJobsHistoryLimit",
        ] {
            errors.non_negative(&format!("spec.{field}"), &spec[field]);
        }
        job::validate_spec(
            &spec["jobTemplate"]["spec"],
            "spec.jobTemplate.spec",
            errors,
        );
    }
}

fn plausible_schedule(schedule: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "*/,-?".contains(c);
    match schedule.strip_prefix('@') {
        Some(name) => {
            [
                "yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly",
            ]
            .contains(&name)
                || name.starts_with("every ")
        }
        None => {
            let fields: Vec<&str> = schedule.split_whitespace().collect();
            fields.len() == 5 && fields.iter().all(|f| f.chars().all(allowed))
        }
    }
}
