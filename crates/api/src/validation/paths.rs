//! Paths inside volumes.

use super::{At, Errors};

/// A path without `..` among its steps.
pub fn no_backsteps(errors: &mut Errors, at: &At<'_, '_>) {
    if at.str().split('/').any(|step| step == "..") {
        errors.bad(at, "must not contain '..'");
    }
}

/// A relative path that stays below where it starts.
pub fn descending_path(errors: &mut Errors, at: &At<'_, '_>) {
    if at.str().starts_with('/') {
        errors.bad(at, "must be a relative path");
    }
    no_backsteps(errors, at);
}

/// A descending path that does not look like the names which atomic updates of volumes use.
pub fn non_reserved_path(errors: &mut Errors, at: &At<'_, '_>) {
    descending_path(errors, at);
    if at.str().starts_with("..") && !at.str().starts_with("../") {
        errors.bad(at, "must not start with '..'");
    }
}
