//! Requests without credentials.

use serde::Deserialize;

/// Whether they are taken for `system:anonymous`, and for which paths.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anonymous {
    pub enabled: bool,
    /// Any path when empty.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    pub path: String,
}

impl Default for Anonymous {
    fn default() -> Self {
        Self {
            enabled: true,
            conditions: Vec::new(),
        }
    }
}

impl Anonymous {
    /// For these paths only.
    #[must_use]
    pub fn only(paths: &[&str]) -> Self {
        let condition = |path: &&str| Condition {
            path: (*path).to_owned(),
        };
        Self {
            enabled: true,
            conditions: paths.iter().map(condition).collect(),
        }
    }

    #[must_use]
    pub fn allows(&self, path: &str) -> bool {
        self.enabled
            && (self.conditions.is_empty() || self.conditions.iter().any(|c| c.path == path))
    }
}
