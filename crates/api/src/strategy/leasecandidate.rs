//! Candidates of coordinated leader election.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

use super::{Strategy, text};
use crate::validation::{At, Errors, Problems, config_map_key, qualified_name};

pub(super) struct LeaseCandidate;

const OLDEST_EMULATION_VERSION: &str = "OldestEmulationVersion";

/// A semantic version: numbers, and what comes before their release.
#[derive(Debug, Default, PartialEq, Eq)]
struct Version {
    numbers: [u64; 3],
    prerelease: Vec<String>,
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let (text, build) = match text.split_once('+') {
            Some((text, build)) => (text, Some(build)),
            None => (text, None),
        };
        let (numbers, prerelease) = match text.split_once('-') {
            Some((numbers, prerelease)) => (numbers, Some(prerelease)),
            None => (text, None),
        };
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let plain = digits && (text == "0" || !text.starts_with('0'));
            plain.then(|| text.parse().ok()).flatten()
        };
        let identifiers = |text: Option<&str>, numbers_are_plain: bool| {
            let list: Vec<String> = text
                .into_iter()
                .flat_map(|t| t.split('.'))
                .map(str::to_owned)
                .collect();
            let fine = |part: &String| {
                let named = !part.is_empty()
                    && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
                let is_number = part.bytes().all(|b| b.is_ascii_digit());
                named && (!numbers_are_plain || !is_number || number(part).is_some())
            };
            list.iter().all(fine).then_some(list)
        };
        let mut parts = numbers.split('.');
        let mut next = || parts.next().and_then(number);
        let numbers = [next()?, next()?, next()?];
        if parts.next().is_some() {
            return None;
        }
        identifiers(build, false)?;
        Some(Self {
            numbers,
            prerelease: identifiers(prerelease, true)?,
        })
    }

    fn is_before(&self, other: &Self) -> bool {
        let by_prerelease = || match (self.prerelease.is_empty(), other.prerelease.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let key = |part: &String| match part.parse::<u64>() {
                    Ok(number) => (0, number, String::new()),
                    Err(_) => (1, 0, part.clone()),
                };
                let ours = self.prerelease.iter().map(key);
                ours.cmp(other.prerelease.iter().map(key))
            }
        };
        self.numbers.cmp(&other.numbers).then_with(by_prerelease) == Ordering::Less
    }
}

/// A version that is there must be one.
fn version(at: &At<'_, '_>, errors: &mut Errors) -> Version {
    if at.is_empty() {
        return Version::default();
    }
    Version::parse(at.str()).unwrap_or_else(|| {
        errors.bad(at, "must be a valid semantic version");
        Version::default()
    })
}

impl Strategy for LeaseCandidate {
    fn name_rule(&self) -> fn(&str) -> Problems {
        config_map_key
    }

    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        let (emulation, binary) = (spec.field("emulationVersion"), spec.field("binaryVersion"));
        errors.required_text(&spec.field("leaseName"));
        let emulated = version(&emulation, errors);
        errors.required_text(&binary);
        let built = version(&binary, errors);
        if !binary.is_empty() && !emulation.is_empty() && built.is_before(&emulated) {
            errors.bad(
                &binary,
                "must be greater than or equal to `emulationVersion`",
            );
        }
        let strategy = spec.field("strategy");
        if strategy.is_empty() {
            errors.required(strategy, "");
            return;
        }
        if strategy.str() == OLDEST_EMULATION_VERSION && emulated == Version::default() {
            let detail = "must be specified when `strategy` is 'OldestEmulationVersion'";
            errors.required(emulation, detail);
        }
        // Upstream names the field twice.
        let named_twice = strategy.place("strategy", strategy.value());
        if strategy.str().contains('/') {
            errors.problems(&named_twice, qualified_name(strategy.str()));
        } else {
            errors.member(&named_twice, &[OLDEST_EMULATION_VERSION]);
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let (root, before) = (At::root(object), At::root(old));
        errors.immutable_field(&root.field("spec"), &before.field("spec"), "leaseName");
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn selectable_fields(&self) -> &[&'static str] {
        &["spec.leaseName"]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        (field == "spec.leaseName").then(|| text(object, "/spec/leaseName"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_are_semantic() {
        let parse = |text| Version::parse(text);
        for wrong in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "v1.2.3",
            "01.2.3",
            "1.2.3-",
            "1.2.3-a..b",
            "1.2.3+",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        let ordered = [
            "1.2.3-alpha.2",
            "1.2.3-alpha.10",
            "1.2.3-beta",
            "1.2.3",
            "1.10.0",
        ];
        for pair in ordered.windows(2) {
            let (a, b) = (parse(pair[0]).unwrap(), parse(pair[1]).unwrap());
            assert!(a.is_before(&b) && !b.is_before(&a), "{pair:?}");
        }
        assert!(parse("1.2.3-a+b.01").is_some());
    }

    #[test]
    fn candidates_are_checked() {
        let check = |spec: Value| {
            let mut errors = Errors::default();
            LeaseCandidate.validate(&json!({"spec": spec}), &mut errors);
            let list = errors.0.into_iter();
            list.map(|e| format!("{}: {}", e.field, e.message))
                .collect::<Vec<_>>()
        };
        let fine = json!({"leaseName": "l", "binaryVersion": "1.36.0", "emulationVersion": "1.35.0", "strategy": "OldestEmulationVersion"});
        assert!(check(fine).is_empty());
        assert_eq!(
            check(
                json!({"binaryVersion": "1.34.0", "emulationVersion": "1.35.0", "strategy": "Newest"})
            ),
            [
                "spec.leaseName: Required value",
                "spec.binaryVersion: Invalid value: \"1.34.0\": must be greater than or equal to `emulationVersion`",
                "spec.strategy.strategy: Unsupported value: \"Newest\": supported values: \"OldestEmulationVersion\"",
            ]
        );
        assert_eq!(
            check(
                json!({"leaseName": "l", "binaryVersion": "1", "strategy": "OldestEmulationVersion"})
            ),
            [
                "spec.binaryVersion: Invalid value: \"1\": must be a valid semantic version",
                "spec.emulationVersion: Required value: must be specified when `strategy` is 'OldestEmulationVersion'",
            ]
        );
    }
}
