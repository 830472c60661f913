//! Webhooks and policies from files instead of the API: an alpha feature of upstream's that there is none of here.

use fluyt_api::validation::Errors;

/// Refuses a directory of them as upstream does while the feature is off.
pub(super) fn check(directory: &str, errors: &mut Errors) {
    if !directory.is_empty() {
        let field = "staticManifestsDir";
        let why = format!(
            "{field} requires the ManifestBasedAdmissionControlConfig feature gate to be enabled"
        );
        errors.forbidden(field, &why);
    }
}
