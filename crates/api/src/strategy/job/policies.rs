//! What a job makes of failed pods, and when it has succeeded.

use std::collections::HashSet;

use crate::strategy::template::options::list;
use crate::validation::{At, Errors, qualified_name, quote};

const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const MAX_PATTERNS: usize = 20;
const MAX_INDEXES: usize = 64 * 1024;
const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];
const OPERATORS: &[&str] = &["In", "NotIn"];
const STATUSES: &[&str] = &["False", "True", "Unknown"];

/// A value that must be there, and what it may be.
fn required_member(at: &At<'_, '_>, supported: &[&str], errors: &mut Errors) {
    if at.is_empty() {
        let list: Vec<String> = supported.iter().map(|s| quote(s)).collect();
        errors.required(at, &format!("valid values: [{}]", list.join(" ")));
    } else {
        errors.member(at, supported);
    }
}

pub(super) fn validate_failure_policy(spec: &At<'_, '_>, errors: &mut Errors) {
    let policy = spec.field("podFailurePolicy");
    if !policy.is_set() {
        return;
    }
    let rules = policy.field("rules");
    if rules.list().len() > MAX_RULES {
        errors.too_many(rules, rules.list().len(), MAX_RULES);
    }
    for rule in rules.items() {
        let action = rule.field("action");
        if action.str() == "FailIndex" {
            if !spec.field("backoffLimitPerIndex").is_set() {
                errors.bad(&action, "requires the backoffLimitPerIndex to be set");
            }
        } else {
            required_member(&action, ACTIONS, errors);
        }
        let (codes, conditions) = (rule.field("onExitCodes"), rule.field("onPodConditions"));
        if codes.is_set() {
            validate_exit_codes(&codes, spec, errors);
        }
        validate_patterns(&conditions, errors);
        match (codes.is_set(), !conditions.is_empty()) {
            (true, true) => errors.invalid_omitted(
                rule,
                "specifying both OnExitCodes and OnPodConditions is not supported",
            ),
            (false, false) => errors.invalid_omitted(
                rule,
                "specifying one of OnExitCodes and OnPodConditions is required",
            ),
            _ => {}
        }
    }
}

fn validate_patterns(patterns: &At<'_, '_>, errors: &mut Errors) {
    if patterns.list().len() > MAX_PATTERNS {
        errors.too_many(patterns, patterns.list().len(), MAX_PATTERNS);
    }
    for pattern in patterns.items() {
        let ty = pattern.field("type");
        errors.problems(&ty, qualified_name(ty.str()));
        required_member(&pattern.field("status"), STATUSES, errors);
    }
}

fn validate_exit_codes(codes: &At<'_, '_>, spec: &At<'_, '_>, errors: &mut Errors) {
    let operator = codes.field("operator");
    required_member(&operator, OPERATORS, errors);
    let container = codes.field("containerName");
    if container.is_set() {
        let pod = &spec.get("template")["spec"];
        let mut all = list(&pod["containers"]).chain(list(&pod["initContainers"]));
        if !all.any(|c| c["name"] == container.str()) {
            let detail = "must be one of the container or initContainer names in the pod template";
            errors.bad(&container, detail);
        }
    }
    let values = codes.field("values");
    let count = values.list().len();
    if count == 0 {
        errors.invalid(values, values.value(), "at least one value is required");
    } else if count > MAX_EXIT_CODES {
        errors.too_many(values, count, MAX_EXIT_CODES);
    }
    let (mut codes, mut seen) = (Vec::new(), HashSet::new());
    for value in values.items() {
        let code = value.int().unwrap_or_default();
        if operator.str() == "In" && code == 0 {
            errors.bad(&value, "must not be 0 for the In operator");
        }
        if !seen.insert(code) {
            errors.duplicate(value, value.value());
        }
        codes.push(code);
    }
    if !codes.is_sorted() {
        errors.bad(&values, "must be ordered");
    }
}

pub(super) fn validate_success_policy(spec: &At<'_, '_>, policy: &At<'_, '_>, errors: &mut Errors) {
    let rules = policy.field("rules");
    if rules.is_empty() {
        let detail = "at least one rules must be specified when the successPolicy is specified";
        errors.required(rules, detail);
    }
    if rules.list().len() > MAX_RULES {
        errors.too_many(rules, rules.list().len(), MAX_RULES);
    }
    let completions = spec.get("completions").as_i64().unwrap_or_default();
    for rule in rules.items() {
        let (count, indexes) = (rule.field("succeededCount"), rule.field("succeededIndexes"));
        if !count.is_set() && !indexes.is_set() {
            let detail = "at least one of succeededCount or succeededIndexes must be specified";
            errors.required(rule, detail);
        }
        let mut total = 0;
        if indexes.is_set() {
            if indexes.str().len() > MAX_INDEXES {
                errors.too_long(indexes, MAX_INDEXES);
            }
            match parse_indexes(indexes.str(), completions) {
                Ok(number) => total = number,
                Err(why) => {
                    let detail = format!("error parsing succeededIndexes: {why}");
                    errors.bad(&indexes, &detail);
                }
            }
        }
        let Some(number) = count.int() else {
            continue;
        };
        errors.non_negative(&count);
        if number > completions {
            let detail = format!(
                "must be less than or equal to {completions} (the number of specified completions)"
            );
            errors.bad(&count, &detail);
        }
        if indexes.is_set() && number > total {
            let detail = format!(
                "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
            );
            errors.bad(&count, &detail);
        }
    }
}

/// How many indexes `0-2,5` stands for; they are below `completions` and in order.
pub(super) fn parse_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let (mut total, mut last) = (0, None);
    if text.is_empty() {
        return Ok(0);
    }
    for interval in text.split(',') {
        let (first, end) = parse_interval(interval, completions)?;
        if let Some(last) = last.filter(|last| *last >= first) {
            return Err(format!(
                "non-increasing order, previous: {last}, current: {first}"
            ));
        }
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

/// Both ends of an interval of indexes.
pub(super) fn parse_interval(text: &str, completions: i64) -> Result<(i64, i64), String> {
    let number = |part: &str| {
        let index: i64 = part.parse().map_err(|_| {
            format!(
                "cannot convert string to integer for index: {}",
                quote(part)
            )
        })?;
        if index >= completions {
            return Err(format!("too large index: {}", quote(part)));
        }
        Ok(index)
    };
    let mut parts = text.split('-');
    let (first, second) = (parts.next().unwrap_or_default(), parts.next());
    if parts.next().is_some() {
        return Err(format!(
            "the fragment {} violates the requirement that an index interval can have at most two parts separated by '-'",
            quote(text)
        ));
    }
    let first = number(first)?;
    let end = second.map_or(Ok(first), number)?;
    if second.is_some() && first >= end {
        return Err(format!(
            "non-increasing order, previous: {first}, current: {end}"
        ));
    }
    Ok((first, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes() {
        assert_eq!(parse_indexes("", 5), Ok(0));
        assert_eq!(parse_indexes("0-2,4", 5), Ok(4));
        for wrong in ["5", "2-1", "1,1", "a", "1-2-3", "0-5"] {
            assert!(parse_indexes(wrong, 5).is_err(), "{wrong}");
        }
    }
}
