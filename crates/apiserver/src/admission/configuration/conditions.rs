//! Expressions, and the conditions under which a webhook or a policy is asked at all.

use fluyt_api::validation::{At, Errors, qualified_name};
use fluyt_cel::{Environment, Type};

use crate::admission::expressions;

const MAX_CONDITIONS: usize = 64;

/// A list of named conditions.
pub(super) fn validate(at: &At<'_, '_>, environment: &Environment, errors: &mut Errors) {
    let count = at.list().len();
    if count > MAX_CONDITIONS {
        errors.too_many(at, count, MAX_CONDITIONS);
    }
    let mut names = Vec::new();
    for condition in at.items() {
        let text = condition.field("expression");
        if text.str().trim().is_empty() {
            errors.required(text, "");
        } else {
            trimmed(&text, environment, &[Type::Bool], errors);
        }
        let name = condition.field("name");
        errors.required_name(&name, qualified_name);
        if !name.is_empty() && names.contains(&name.str()) {
            errors.duplicate(name, name.value());
        }
        names.push(name.str());
    }
}

/// An expression that is compiled as it is written.
pub(super) fn expression(
    at: &At<'_, '_>,
    environment: &Environment,
    types: &[Type],
    errors: &mut Errors,
) {
    if let Err(problem) = expressions::typed(environment, at.str(), types) {
        errors.bad(at, &problem);
    }
}

/// An expression that is compiled, and shown, without the space around it.
pub(super) fn trimmed(
    at: &At<'_, '_>,
    environment: &Environment,
    types: &[Type],
    errors: &mut Errors,
) {
    let text = at.str().trim();
    if let Err(problem) = expressions::typed(environment, text, types) {
        errors.invalid_text(at, text, &problem);
    }
}
