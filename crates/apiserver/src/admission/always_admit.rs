//! `AlwaysAdmit` has no objection to anything. Upstream keeps it for those who still name it, and so is it here.

use super::Plugin;

pub(super) struct AlwaysAdmit;

impl AlwaysAdmit {
    pub(super) fn new() -> Self {
        warn_of("AlwaysAdmit");
        Self
    }
}

impl Plugin for AlwaysAdmit {}

/// What the log says about plugins that nobody needs.
pub(super) fn warn_of(plugin: &str) {
    tracing::warn!(
        "{plugin} admission controller is deprecated. Please remove this controller from your configuration files and scripts."
    );
}
