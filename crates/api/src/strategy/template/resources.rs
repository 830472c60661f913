//! Requests and limits of pods and containers.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::CONTAINER_LISTS;
use super::container::Context;
use super::options::{Options, list};
use crate::component_helpers::resource::{Amounts, Options as Counted, PodResources, Requirement};
use crate::quantity::Quantity;
use crate::validation::{At, Errors, dns_label, quantity_of, resource};

/// How the names of resources are validated.
type NameRule = fn(&mut Errors, &At<'_, '_>, &str);

pub(super) fn validate_container(at: &At<'_, '_>, context: &Context<'_>, errors: &mut Errors) {
    if !at.is_empty() {
        validate(at, resource::container_name, &context.options, errors);
        validate_claims(&at.field("claims"), context, errors);
    }
}

/// What the sandbox of a pod takes besides its containers: validated like limits.
pub(in crate::strategy) fn validate_overhead(
    at: &At<'_, '_>,
    options: &Options,
    errors: &mut Errors,
) {
    let limits = at.place("limits", at.value());
    validate_lists(
        at,
        &limits,
        &at.place("requests", &Value::Null),
        resource::container_name,
        options,
        errors,
    );
}

fn validate(at: &At<'_, '_>, name_rule: NameRule, options: &Options, errors: &mut Errors) {
    let (limits, requests) = (at.field("limits"), at.field("requests"));
    validate_lists(at, &limits, &requests, name_rule, options, errors);
}

fn validate_lists(
    at: &At<'_, '_>,
    limits: &At<'_, '_>,
    requests: &At<'_, '_>,
    name_rule: NameRule,
    options: &Options,
    errors: &mut Errors,
) {
    let (mut basic, mut huge) = (false, false);
    let mut validate_amount = |amount: &At<'_, '_>, name: &str, errors: &mut Errors| {
        name_rule(errors, amount, name);
        resource::amount(errors, amount, name);
        basic |= name == "cpu" || name == "memory";
        huge |= resource::is_huge_page(name);
    };
    for (name, limit) in limits.entries() {
        validate_amount(&limit, name, errors);
        validate_huge_page(&limit, name, options, errors);
    }
    for (name, request) in requests.entries() {
        validate_amount(&request, name, errors);
        let (wanted, most) = (quantity_of(request.value()), limits.get(name));
        match (wanted, quantity_of(most)) {
            (Some(wanted), Some(most)) => {
                let overcommits = resource::is_overcommit_allowed(name);
                if wanted != most && !overcommits {
                    let detail = format!("must be equal to {name} limit of {most}");
                    errors.invalid(requests, request.value(), &detail);
                } else if wanted > most {
                    let detail = format!("must be less than or equal to {name} limit of {most}");
                    errors.invalid(requests, request.value(), &detail);
                }
            }
            _ if !resource::is_overcommit_allowed(name) => {
                errors.required(limits, "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
        validate_huge_page(&request, name, options, errors);
    }
    if huge && !basic {
        errors.forbidden(at, "HugePages require cpu or memory");
    }
}

/// Huge pages are whole ones, unless the old pod already had others.
fn validate_huge_page(amount: &At<'_, '_>, name: &str, options: &Options, errors: &mut Errors) {
    let concerns = resource::is_huge_page(name) && !options.indivisible_huge_pages;
    if concerns && !is_divisible(name, amount.value()) {
        let written = quantity_of(amount.value())
            .map(|q| q.to_string())
            .unwrap_or_default();
        let detail = format!("{written} is not positive integer multiple of {name}");
        errors.bad(amount, &detail);
    }
}

/// Whether an amount of huge pages is a number of whole ones.
fn is_divisible(name: &str, amount: &Value) -> bool {
    let size = name
        .strip_prefix("hugepages-")
        .and_then(|size| size.parse::<Quantity>().ok())
        .filter(|size| !size.is_negative() && !size.is_zero() && size.millis() % 1000 == 0);
    match (size, quantity_of(amount)) {
        (Some(size), Some(amount)) => amount.value() % size.value() == 0,
        _ => false,
    }
}

pub(super) fn has_indivisible_huge_pages(spec: &Value) -> bool {
    CONTAINER_LISTS
        .iter()
        .flat_map(|name| list(&spec[*name]))
        .flat_map(|c| ["limits", "requests"].map(|kind| &c["resources"][kind]))
        .filter_map(Value::as_object)
        .flatten()
        .any(|(name, amount)| resource::is_huge_page(name) && !is_divisible(name, amount))
}

/// Claims of a container for devices that its pod has claimed.
fn validate_claims(claims: &At<'_, '_>, context: &Context<'_>, errors: &mut Errors) {
    let mut names: HashSet<String> = HashSet::new();
    // Requests of claims, by claim.
    let mut requests: HashMap<&str, usize> = HashMap::new();
    for claim in claims.items() {
        let (name, request) = (claim.text("name"), claim.field("request"));
        if name.is_empty() {
            errors.required(claim, "");
            continue;
        }
        if names.contains(name) {
            errors.duplicate(claim, &name.into());
        } else {
            let mut key = name.to_owned();
            if !request.is_empty() {
                errors.problems(&request, dns_label(request.str()));
                key = format!("{name}/{}", request.str());
            }
            if names.contains(&key) {
                errors.duplicate(claim, &key.as_str().into());
            } else if request.is_empty() {
                for _ in 0..requests.get(name).copied().unwrap_or_default() {
                    errors.duplicate(claim, &name.into());
                }
            }
            if !request.is_empty() {
                *requests.entry(name).or_default() += 1;
            }
            names.insert(key);
        }
        if context.claims.binary_search(&name).is_err() {
            let which = if context.claims.is_empty() {
                " which is empty".to_owned()
            } else {
                format!(": {}", context.claims.join(", "))
            };
            let detail = format!("must be one of the names in pod.spec.resourceClaims{which}");
            errors.not_found_because(claim, &name.into(), &detail);
        }
    }
}

/// Resources of a pod as a whole.
pub(super) fn validate_pod(spec: &At<'_, '_>, context: &Context<'_>, errors: &mut Errors) {
    let at = spec.field("resources");
    if !at.is_set() {
        return;
    }
    if context.os == Some("windows") {
        errors.forbidden(at, "may not be set for a windows pod");
        return;
    }
    let claims = at.field("claims");
    if claims.is_set() {
        errors.forbidden(claims, "claims may not be set for Resources at pod-level");
    }
    validate(&at, resource::pod_name, &context.options, errors);
    validate_claims(&claims, context, errors);
    let (limits, requests) = (at.field("limits"), at.field("requests"));
    for (name, sum) in aggregate(spec.value(), Requirement::Requests) {
        let own = requests.key(&name);
        if quantity_of(own.value()).is_some_and(|own| sum > own) {
            let detail =
                format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.bad(&own, &detail);
        }
    }
    for (name, sum) in aggregate(spec.value(), Requirement::Limits) {
        let own = limits.key(&name);
        let too_much = quantity_of(own.value()).is_some_and(|own| sum > own);
        if resource::is_huge_page(&name) && too_much {
            let detail =
                format!("must be greater than or equal to aggregate container limits of {sum}");
            errors.bad(&own, &detail);
        }
    }
    for (i, container) in list(spec.get("containers")).enumerate() {
        for (name, limit) in container["resources"]["limits"]
            .as_object()
            .into_iter()
            .flatten()
        {
            let most = quantity_of(&limits.value()[name]);
            if let (Some(limit_amount), Some(most)) = (quantity_of(limit), most)
                && limit_amount > most
            {
                let place = format!("{at}.containers[{i}][{name}].limits");
                let detail = format!("must be less than or equal to pod limits of {most}");
                errors.invalid(place, limit, &detail);
            }
        }
    }
}

/// What the containers of a pod ask for together.
pub(in crate::strategy) fn aggregate(spec: &Value, requirement: Requirement) -> Amounts {
    PodResources::of_spec(spec).aggregate(requirement, Counted::default())
}
