//! Every plugin that there is.

use super::{
    Plugin, Shared, Tolerations, always_admit, always_deny, always_pull_images, certificates,
    default_ingress_class, default_storage_class, default_toleration_seconds,
    deny_service_external_ips, event_rate_limit, extended_resource_toleration,
    image_policy_webhook, job_validation, limit_pod_hard_anti_affinity_topology, limit_ranger,
    namespace_auto_provision, namespace_exists, namespace_lifecycle,
    node_declared_feature_validator, node_restriction, owner_references_permission_enforcement,
    persistent_volume_claim_resize, pod_group_protection, pod_group_workload_exists,
    pod_node_selector, pod_resize_validator, pod_security, pod_toleration_restriction,
    pod_topology_labels, policy, priority, resource_quota, runtime_class, service_account,
    storage_object_in_use_protection, taint_nodes_by_condition, webhook,
};
use crate::features::{Feature, Features};

/// One plugin.
pub(super) struct Known {
    /// Upstream's name.
    pub name: &'static str,
    /// Whether it runs unless it is turned off, or else only if it is turned on.
    pub by_default: bool,
    /// The feature without which it never runs.
    pub feature: Option<Feature>,
    pub make: Make,
}

/// Makes a plugin.
type Make = fn(&Setup<'_>) -> anyhow::Result<Box<dyn Plugin>>;

/// A configuration that can be read and makes no sense, where upstream tells one from the other.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Invalid(pub String);

/// What plugins are made with.
pub(super) struct Setup<'a> {
    pub shared: &'a Shared,
    pub features: Features,
    pub tolerations: Tolerations,
    /// Its part of the `AdmissionConfiguration`.
    pub configuration: Option<&'a str>,
}

const fn on(name: &'static str, make: Make) -> Known {
    Known {
        name,
        by_default: true,
        feature: None,
        make,
    }
}

const fn off(name: &'static str, make: Make) -> Known {
    Known {
        by_default: false,
        ..on(name, make)
    }
}

fn made(plugin: impl Plugin + 'static) -> anyhow::Result<Box<dyn Plugin>> {
    Ok(Box::new(plugin))
}

/// All of them in upstream's order, in which they run. `NodeRestriction` is on here: nodes are confined unless somebody does
/// not want it.
pub(super) static ALL: [Known; 41] = [
    off("AlwaysAdmit", |_| made(always_admit::AlwaysAdmit::new())),
    off("NamespaceAutoProvision", |with| {
        let server = with.shared.server.clone();
        made(namespace_auto_provision::NamespaceAutoProvision(server))
    }),
    on("NamespaceLifecycle", |_| {
        made(namespace_lifecycle::NamespaceLifecycle)
    }),
    off("NamespaceExists", |_| {
        made(namespace_exists::NamespaceExists)
    }),
    off("LimitPodHardAntiAffinityTopology", |_| {
        made(limit_pod_hard_anti_affinity_topology::LimitPodHardAntiAffinityTopology)
    }),
    on("LimitRanger", |_| made(limit_ranger::LimitRanger)),
    on("ServiceAccount", |_| made(service_account::ServiceAccount)),
    on("NodeRestriction", |with| {
        made(node_restriction::NodeRestriction(with.shared.clone()))
    }),
    on("TaintNodesByCondition", |_| {
        made(taint_nodes_by_condition::TaintNodesByCondition)
    }),
    off("AlwaysPullImages", |_| {
        made(always_pull_images::AlwaysPullImages)
    }),
    off("ImagePolicyWebhook", |with| {
        made(image_policy_webhook::ImagePolicyWebhook::new(
            with.configuration,
        )?)
    }),
    on("PodSecurity", |with| {
        made(pod_security::PodSecurity::new(with.configuration)?)
    }),
    off("PodNodeSelector", |with| {
        made(pod_node_selector::PodNodeSelector::new(with.configuration))
    }),
    on("Priority", |_| made(priority::Priority)),
    on("DefaultTolerationSeconds", |with| {
        let tolerations = with.tolerations;
        made(default_toleration_seconds::DefaultTolerationSeconds(
            tolerations,
        ))
    }),
    off("PodTolerationRestriction", |with| {
        made(pod_toleration_restriction::PodTolerationRestriction::new(
            with.configuration,
        )?)
    }),
    off("EventRateLimit", |with| {
        made(event_rate_limit::EventRateLimit::new(with.configuration)?)
    }),
    off("ExtendedResourceToleration", |_| {
        made(extended_resource_toleration::ExtendedResourceToleration)
    }),
    on("DefaultStorageClass", |_| {
        made(default_storage_class::DefaultStorageClass)
    }),
    on("StorageObjectInUseProtection", |_| {
        made(storage_object_in_use_protection::StorageObjectInUseProtection)
    }),
    Known {
        feature: Some(Feature::GenericWorkload),
        ..on("PodGroupProtection", |_| {
            made(pod_group_protection::PodGroupProtection)
        })
    },
    off("OwnerReferencesPermissionEnforcement", |with| {
        let shared = with.shared.clone();
        made(owner_references_permission_enforcement::OwnerReferencesPermissionEnforcement(shared))
    }),
    on("PersistentVolumeClaimResize", |_| {
        made(persistent_volume_claim_resize::PersistentVolumeClaimResize)
    }),
    on("RuntimeClass", |_| made(runtime_class::RuntimeClass)),
    on("CertificateApproval", |with| {
        made(certificates::Approval(with.shared.clone()))
    }),
    on("CertificateSigning", |with| {
        made(certificates::Signing(with.shared.clone()))
    }),
    on("ClusterTrustBundleAttest", |with| {
        made(certificates::TrustBundleAttest(with.shared.clone()))
    }),
    on("CertificateSubjectRestriction", |_| {
        made(certificates::SubjectRestriction)
    }),
    on("DefaultIngressClass", |_| {
        made(default_ingress_class::DefaultIngressClass)
    }),
    off("DenyServiceExternalIPs", |_| {
        made(deny_service_external_ips::DenyServiceExternalIps)
    }),
    on("PodTopologyLabels", |_| {
        made(pod_topology_labels::PodTopologyLabels)
    }),
    on("PodGroupWorkloadExists", |_| {
        made(pod_group_workload_exists::PodGroupWorkloadExists)
    }),
    Known {
        feature: Some(Feature::NodeDeclaredFeatures),
        ..on("NodeDeclaredFeatureValidator", |_| {
            made(node_declared_feature_validator::NodeDeclaredFeatureValidator)
        })
    },
    Known {
        feature: Some(Feature::GenericWorkload),
        ..on("JobValidation", |_| made(job_validation::JobValidation))
    },
    on("PodResizeValidator", |_| {
        made(pod_resize_validator::PodResizeValidator)
    }),
    Known {
        feature: Some(Feature::MutatingAdmissionPolicy),
        ..on("MutatingAdmissionPolicy", |with| {
            made(policy::Mutating::new(with)?)
        })
    },
    on("MutatingAdmissionWebhook", |with| {
        made(webhook::Mutating::new(with)?)
    }),
    on("ValidatingAdmissionPolicy", |with| {
        made(policy::Validating::new(with)?)
    }),
    on("ValidatingAdmissionWebhook", |with| {
        made(webhook::Validating::new(with)?)
    }),
    on("ResourceQuota", |with| {
        made(resource_quota::ResourceQuota::new(with.configuration)?)
    }),
    off("AlwaysDeny", |_| made(always_deny::AlwaysDeny::new())),
];
