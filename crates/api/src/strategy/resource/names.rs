//! How drivers, pools, devices and their attributes are called.

use crate::validation::{At, Errors, c_identifier, dns_subdomain};

pub(super) use crate::strategy::template::volume::csi_driver_name as driver;

const MAX_POOL: usize = 253;

const MAX_ID: usize = 32;

/// A path of domains.
pub(super) fn pool(at: &At<'_, '_>, errors: &mut Errors) {
    if at.is_empty() {
        errors.required(at, "");
        return;
    }
    if at.str().len() > MAX_POOL {
        errors.too_long(at, MAX_POOL);
    }
    for part in at.str().split('/') {
        for problem in dns_subdomain(part) {
            errors.invalid_text(at, part, &problem);
        }
    }
}

/// An identifier, perhaps of a domain: `example.com/id`. More than one slash goes unnoticed, as it does upstream.
pub(super) fn qualified(at: &At<'_, '_>, text: &str, errors: &mut Errors) {
    match text.split('/').collect::<Vec<_>>().as_slice() {
        [id] => identifier(at, id, errors),
        [domain, id] => {
            if domain.is_empty() {
                errors.invalid_text(at, "", "the domain must not be empty");
            } else {
                driver(&renamed(at, &(*domain).into()), errors);
            }
            if id.is_empty() {
                errors.invalid_text(at, "", "the name must not be empty");
            } else {
                identifier(at, id, errors);
            }
        }
        _ => {}
    }
}

/// An identifier with a domain.
pub(super) fn fully_qualified(at: &At<'_, '_>, errors: &mut Errors) {
    qualified(at, at.str(), errors);
    if !at.str().contains('/') {
        let detail = "a fully qualified name must be a domain and a name separated by a slash";
        errors.invalid_text(at, at.str(), detail);
    }
}

fn identifier(at: &At<'_, '_>, id: &str, errors: &mut Errors) {
    if id.len() > MAX_ID {
        errors.too_long(at, MAX_ID);
    }
    for problem in c_identifier(id) {
        errors.invalid_text(at, id, &problem);
    }
}

/// The same place with another value.
fn renamed<'v, 'p>(at: &'p At<'v, 'p>, value: &'v serde_json::Value) -> At<'v, 'p> {
    at.place("", value)
}

/// An identifier in RFC 4122's normal form.
pub(super) fn uid(at: &At<'_, '_>, errors: &mut Errors) {
    const FORM: &str = "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters";
    let text = at.str();
    if let Some(problem) = uid_problem(text) {
        let detail = format!("error validating uid: {problem}");
        errors.invalid_text(at, text, &detail);
    } else if text.len() != 36 || text.bytes().any(|b| b.is_ascii_uppercase()) {
        errors.invalid_text(at, text, FORM);
    }
}

/// What the parser of Go's usual library says; it takes several forms.
fn uid_problem(text: &str) -> Option<String> {
    let bare = match text.len() {
        36 | 32 => text,
        38 => match text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
            Some(bare) => bare,
            None => return Some("invalid bracketed UUID format".to_owned()),
        },
        45 => match text.get(..9) {
            Some(prefix) if prefix.eq_ignore_ascii_case("urn:uuid:") => &text[9..],
            prefix => {
                let shown = crate::validation::quote(prefix.unwrap_or_default());
                return Some(format!("invalid urn prefix: {shown}"));
            }
        },
        length => return Some(format!("invalid UUID length: {length}")),
    };
    let is_digit = |(i, b): (usize, u8)| match i {
        8 | 13 | 18 | 23 if bare.len() == 36 => b == b'-',
        _ => b.is_ascii_hexdigit(),
    };
    let valid = bare.bytes().enumerate().all(is_digit);
    (!valid).then(|| "invalid UUID format".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_have_one_normal_form() {
        let plain = "0a0b0c0d-0000-0000-0000-000000000001";
        assert_eq!(uid_problem(plain), None);
        assert_eq!(uid_problem(&format!("urn:uuid:{plain}")), None);
        assert_eq!(uid_problem("x").as_deref(), Some("invalid UUID length: 1"));
        let broken = plain.replace('-', "x");
        assert_eq!(uid_problem(&broken).as_deref(), Some("invalid UUID format"));
    }
}
