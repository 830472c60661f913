//! Errors of configuration files in one sentence.

use fluyt_api::validation::Errors;

/// All errors as upstream prints an aggregate; `None` when there are none.
#[must_use]
pub fn sentence(errors: &Errors) -> Option<String> {
    let all = errors
        .0
        .iter()
        .map(|cause| format!("{}: {}", cause.field, cause.message))
        .collect();
    crate::authz::aggregate(all)
}
