//! What an endpoint resets, whatever it is sent: nobody comes to own those fields through it.

use crate::resources::Resource;

type Paths = &'static [&'static [&'static str]];

/// The paths that an endpoint of a resource resets.
#[must_use]
pub fn reset_fields(resource: &Resource, subresource: &str) -> Paths {
    const STATUS: Paths = &[&["status"]];
    const SPEC: Paths = &[&["spec"]];
    const ALL_BUT_STATUS: Paths = &[&["metadata"], &["spec"]];
    if let Some(definition) = &resource.definition {
        return match subresource {
            "status" => ALL_BUT_STATUS,
            "" if definition.has_status => STATUS,
            _ => &[],
        };
    }
    match (resource.group, resource.kind, subresource) {
        ("certificates.k8s.io", "CertificateSigningRequest", "") => &[&["spec"], &["status"]],
        ("certificates.k8s.io", "CertificateSigningRequest", "status") => {
            &[&["spec"], &["status", "conditions"]]
        }
        ("certificates.k8s.io", "CertificateSigningRequest", "approval") => {
            &[&["spec"], &["status", "certificate"]]
        }
        ("networking.k8s.io", "ServiceCIDR", "") => &[],
        ("", "Namespace", "finalize") | (_, _, "") => STATUS,
        ("apps", "Deployment", "status") => &[&["spec"], &["metadata", "labels"]],
        ("", "Pod", "status") => &[
            &["spec"],
            &["metadata", "deletionTimestamp"],
            &["metadata", "ownerReferences"],
        ],
        (
            "admissionregistration.k8s.io"
            | "flowcontrol.apiserver.k8s.io"
            | "internal.apiserver.k8s.io"
            | "resource.k8s.io"
            | "scheduling.k8s.io"
            | "storage.k8s.io"
            | "storagemigration.k8s.io",
            _,
            "status",
        )
        | ("networking.k8s.io", "ServiceCIDR", "status") => ALL_BUT_STATUS,
        (_, _, "status") => SPEC,
        _ => &[],
    }
}
