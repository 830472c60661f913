//! Port numbers and names.

use serde_json::Value;

use super::{At, Errors, Problems};

/// Protocols of ports, as messages list them.
pub const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

#[must_use]
pub fn port_range(number: i64) -> Option<&'static str> {
    (!(1..=65535).contains(&number)).then_some("must be between 1 and 65535, inclusive")
}

/// A port number; nothing counts as 0.
pub fn port_number(errors: &mut Errors, at: &At<'_, '_>) {
    let number = at.int().unwrap_or_default();
    if let Some(problem) = port_range(number) {
        errors.invalid(at, &number.into(), problem);
    }
}

/// An IANA service name.
#[must_use]
pub fn port_name(name: &str) -> Problems {
    let mut problems = Vec::new();
    let mut unless = |fine: bool, problem: &str| {
        if !fine {
            problems.push(problem.to_owned());
        }
    };
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    unless(name.len() <= 15, "must be no more than 15 characters");
    unless(
        !name.is_empty() && name.bytes().all(allowed),
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
    );
    unless(
        name.bytes().any(|b| b.is_ascii_lowercase()),
        "must contain at least one letter (a-z)",
    );
    unless(!name.contains("--"), "must not contain consecutive hyphens");
    unless(
        !name.starts_with('-') && !name.ends_with('-'),
        "must not begin or end with a hyphen",
    );
    problems
}

/// The number of a port, or its name.
pub fn port_number_or_name(errors: &mut Errors, at: &At<'_, '_>) {
    match at.value() {
        Value::String(name) => errors.problems(at, port_name(name)),
        _ => port_number(errors, at),
    }
}
