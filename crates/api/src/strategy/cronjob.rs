//! Cron jobs.

use serde_json::Value;

use super::template::Options;
use super::{Strategy, job, workload};
use crate::meta;
use crate::validation::{At, Errors, quote};

/// Jobs get the name and eleven characters of their time.
const MAX_NAME: usize = 52;

pub(super) struct CronJob;

impl CronJob {
    fn validate_with(object: &Value, old: Option<&Value>, options: &Options, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        let schedule = spec.field("schedule");
        let zone = spec.field("timeZone");
        if schedule.is_empty() {
            errors.required(schedule, "");
        } else {
            let had_zone = old.is_some_and(|o| {
                o["spec"]["schedule"]
                    .as_str()
                    .unwrap_or_default()
                    .contains("TZ")
            });
            validate_schedule(&schedule, zone.is_set(), had_zone, errors);
        }
        errors.non_negative(&spec.field("startingDeadlineSeconds"));
        if zone.is_set() && old.is_none_or(|old| old["spec"]["timeZone"] != *zone.value()) {
            validate_time_zone(&zone, errors);
        }
        errors.one_of_required(
            &spec.field("concurrencyPolicy"),
            &["Allow", "Forbid", "Replace"],
        );
        let template = spec.field("jobTemplate");
        let job = template.field("spec");
        job::validate_spec(&job, options, errors);
        let selector = job.field("selector");
        if selector.is_set() {
            errors.bad(&selector, "`selector` will be auto-generated");
        }
        let manual = job.field("manualSelector");
        if manual.is_true() {
            errors.unsupported(&manual, &["nil", "false"]);
        }
        errors.non_negative_fields(
            &spec,
            &["successfulJobsHistoryLimit", "failedJobsHistoryLimit"],
        );
    }
}

fn validate_schedule(at: &At<'_, '_>, has_zone: bool, had_zone: bool, errors: &mut Errors) {
    if let Err(why) = parse_schedule(at.str()) {
        errors.bad(at, &why);
    }
    match (at.str().contains("TZ"), had_zone) {
        (true, true) if has_zone => errors.bad(
            at,
            "cannot use both timeZone field and TZ or CRON_TZ in schedule",
        ),
        (true, false) => errors.bad(
            at,
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        ),
        _ => {}
    }
}

fn validate_time_zone(at: &At<'_, '_>, errors: &mut Errors) {
    const LONGEST_PART: usize = 14;
    if at.is_empty() {
        errors.bad(at, "timeZone must be nil or non-empty string");
        return;
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-_+".contains(&b);
    let well_formed = at.str().split('/').all(|part| {
        !matches!(part, "" | "." | "..")
            && !part.starts_with('-')
            && part.len() <= LONGEST_PART
            && part.bytes().all(allowed)
    });
    let unknown = format!("unknown time zone {}", at.str());
    if !well_formed {
        errors.bad(at, &unknown);
        return;
    }
    if at.str().eq_ignore_ascii_case("Local") {
        errors.bad(
            at,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        );
    }
    let is_known = at.str() == "Local" || jiff::tz::TimeZone::get(at.str()).is_ok();
    if !is_known {
        errors.bad(at, &unknown);
    }
}

/// A field of a schedule: the least and the greatest number, and names of some.
struct Bounds {
    least: u64,
    greatest: u64,
    names: &'static [&'static str],
}

const MONTHS: &[&str] = &[
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

const fn bounds(least: u64, greatest: u64, names: &'static [&'static str]) -> Bounds {
    Bounds {
        least,
        greatest,
        names,
    }
}

const FIELDS: [Bounds; 5] = [
    bounds(0, 59, &[]),
    bounds(0, 23, &[]),
    bounds(1, 31, &[]),
    bounds(1, 12, MONTHS),
    bounds(0, 6, DAYS),
];

/// Says what is wrong with a schedule.
fn parse_schedule(schedule: &str) -> Result<(), String> {
    let mut text = schedule;
    if let Some(rest) = schedule
        .strip_prefix("TZ=")
        .or_else(|| schedule.strip_prefix("CRON_TZ="))
    {
        let Some((zone, rest)) = rest.split_once(' ') else {
            let problem = "invalid schedule format: runtime error: slice bounds out of range [:-1]";
            return Err(problem.to_owned());
        };
        if !zone.is_empty() && jiff::tz::TimeZone::get(zone).is_err() {
            return Err(format!(
                "provided bad location {zone}: unknown time zone {zone}"
            ));
        }
        text = rest.trim();
    }
    if text.starts_with('@') {
        return parse_descriptor(text);
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    for (field, bounds) in fields.iter().zip(&FIELDS) {
        for range in field.split(',').filter(|r| !r.is_empty()) {
            parse_range(range, bounds)?;
        }
    }
    Ok(())
}

fn parse_descriptor(text: &str) -> Result<(), String> {
    const KNOWN: [&str; 7] = [
        "@yearly",
        "@annually",
        "@monthly",
        "@weekly",
        "@daily",
        "@midnight",
        "@hourly",
    ];
    if KNOWN.contains(&text) {
        return Ok(());
    }
    match text.strip_prefix("@every ") {
        Some(duration) => parse_duration(duration)
            .map_err(|why| format!("failed to parse duration {text}: {why}")),
        None => Err(format!("unrecognized descriptor: {text}")),
    }
}

/// Says what is wrong with a duration such as `1h30m`.
fn parse_duration(text: &str) -> Result<(), String> {
    let invalid = || format!("time: invalid duration {}", quote(text));
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return Ok(());
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        if !number.bytes().any(|b| b.is_ascii_digit()) || number.matches('.').count() > 1 {
            return Err(invalid());
        }
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, next) = tail.split_at(end);
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {}", quote(text)));
        }
        if !["ns", "us", "µs", "μs", "ms", "s", "m", "h"].contains(&unit) {
            let (unit, text) = (quote(unit), quote(text));
            return Err(format!("time: unknown unit {unit} in duration {text}"));
        }
        rest = next;
    }
    Ok(())
}

fn parse_number(text: &str) -> Result<u64, String> {
    let number: i64 = text.parse().map_err(|_| {
        let why = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            "value out of range"
        } else {
            "invalid syntax"
        };
        let quoted = quote(text);
        format!("failed to parse int from {text}: strconv.Atoi: parsing {quoted}: {why}")
    })?;
    u64::try_from(number).map_err(|_| format!("negative number ({number}) not allowed: {text}"))
}

fn parse_number_or_name(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let named = bounds
        .names
        .iter()
        .zip(bounds.least..)
        .find(|(name, _)| **name == lower);
    named.map_or_else(|| parse_number(text), |(_, number)| Ok(number))
}

fn parse_range(text: &str, bounds: &Bounds) -> Result<(), String> {
    let mut steps = text.split('/');
    let (range, step) = (steps.next().unwrap_or_default(), steps.next());
    let too_many_steps = steps.next().is_some();
    let ends: Vec<&str> = range.split('-').collect();
    let (start, mut end) = match ends.as_slice() {
        ["*" | "?", ..] => (bounds.least, bounds.greatest),
        [one] => {
            let number = parse_number_or_name(one, bounds)?;
            (number, number)
        }
        [low, high] => (
            parse_number_or_name(low, bounds)?,
            parse_number_or_name(high, bounds)?,
        ),
        [low, ..] => {
            parse_number_or_name(low, bounds)?;
            return Err(format!("too many hyphens: {text}"));
        }
        [] => return Ok(()),
    };
    if too_many_steps {
        return Err(format!("too many slashes: {text}"));
    }
    let step = match step {
        Some(step) => {
            let step = parse_number(step)?;
            if ends.len() == 1 {
                end = bounds.greatest;
            }
            step
        }
        None => 1,
    };
    let (least, greatest) = (bounds.least, bounds.greatest);
    if start < least {
        return Err(format!(
            "beginning of range ({start}) below minimum ({least}): {text}"
        ));
    }
    if end > greatest {
        return Err(format!(
            "end of range ({end}) above maximum ({greatest}): {text}"
        ));
    }
    if start > end {
        return Err(format!(
            "beginning of range ({start}) beyond end of range ({end}): {text}"
        ));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    Ok(())
}

impl Strategy for CronJob {
    fn gated_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[(
            "GenericWorkload",
            &[
                "spec",
                "jobTemplate",
                "spec",
                "template",
                "spec",
                "schedulingGroup",
            ],
        )]
    }

    fn default(&self, object: &mut Value) {
        // The jobs' own defaults are filled in when the jobs are created.
        super::template::default_template(object, &["spec", "jobTemplate", "spec", "template"]);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        Self::validate_with(object, None, &Options::new(false), errors);
        if meta::name(object).len() > MAX_NAME {
            errors.invalid_text(
                "metadata.name",
                meta::name(object),
                "must be no more than 52 characters",
            );
        }
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let options = Options::for_update(false, &old["spec"]["jobTemplate"]["spec"]["template"]);
        Self::validate_with(object, Some(old), &options, errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings: Vec<String> = workload::name_warning(object, old).into_iter().collect();
        let root = At::root(object);
        let spec = root.field("spec");
        if workload::changed(object, old) {
            let template = spec.field("jobTemplate");
            warnings.extend(job::spec_warnings(&template.field("spec")));
        }
        if old.is_some() && spec.text("schedule").contains("TZ") {
            warnings.push("cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details".into());
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for fine in [
            "* * * * *",
            "*/5 0-6 1,15 JAN-mar sun",
            "@daily",
            "@every 1h30m",
            "0/2 ? * * 6",
        ] {
            assert_eq!(parse_schedule(fine), Ok(()), "{fine}");
        }
        for (wrong, why) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            (
                "5-1 * * * *",
                "beginning of range (5) beyond end of range (1): 5-1",
            ),
            (
                "*/0 * * * *",
                "step of range should be a positive number: */0",
            ),
            (
                "a * * * *",
                "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax",
            ),
            ("@often", "unrecognized descriptor: @often"),
            (
                "@every x",
                "failed to parse duration @every x: time: invalid duration \"x\"",
            ),
        ] {
            assert_eq!(parse_schedule(wrong), Err(why.to_owned()), "{wrong}");
        }
    }
}
