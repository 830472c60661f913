//! Pod specs.

use std::collections::HashSet;

use serde_json::Value;

use super::container::{self, Context};
use super::options::Options;
use super::{CONTAINER_LISTS, resources, scheduling, security, volume};
use crate::validation::{
    At, Errors, dns_label, dns_subdomain, dns_subdomain_with_underscore, ip, labels, qualified_name,
};

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;
const MAX_HOSTNAME_OVERRIDE: usize = 64;
pub(in crate::strategy) const PREEMPTION: &[&str] = &["PreemptLowerPriority", "Never"];

/// Validates a pod spec. `metadata` is a pod's; templates have none that counts.
pub(in crate::strategy) fn validate(
    spec: &At<'_, '_>,
    metadata: Option<&Value>,
    options: &Options,
    errors: &mut Errors,
) {
    let grace = spec.field("terminationGracePeriodSeconds");
    if !grace.is_set() {
        errors.required(grace, "");
    }
    let volumes = volume::validate_all(&spec.field("volumes"), metadata, options, errors);
    let context = Context::new(spec, volumes, options);
    validate_resource_claims(&spec.field("resourceClaims"), metadata, errors);
    container::validate_containers(spec, &context, errors);
    container::validate_init_containers(spec, &context, errors);
    container::validate_ephemeral_containers(spec, &context, errors);
    resources::validate_pod(spec, &context, errors);
    validate_host_network_ports(spec, options, errors);
    errors.one_of_required(
        &spec.field("restartPolicy"),
        &["Always", "OnFailure", "Never"],
    );
    errors.one_of_required(
        &spec.field("dnsPolicy"),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    labels(errors, &spec.field("nodeSelector"));
    security::validate_pod(spec, options, errors);
    scheduling::validate_affinity(&spec.field("affinity"), options, errors);
    validate_dns_config(spec, errors);
    for gate in spec.field("readinessGates").items() {
        let ty = gate.field("conditionType");
        errors.problems(&ty, qualified_name(ty.str()));
    }
    validate_scheduling_gates(&spec.field("schedulingGates"), errors);
    scheduling::validate_topology_spread(&spec.field("topologySpreadConstraints"), options, errors);
    security::validate_windows_host_process(spec, errors);
    validate_host_users(spec, options, errors);
    validate_hostname_override(spec, errors);
    errors.optional_name(&spec.field("serviceAccountName"), dns_subdomain);
    errors.optional_name(&spec.field("nodeName"), dns_subdomain);
    errors.in_range(&spec.field("activeDeadlineSeconds"), 1, i32::MAX.into());
    errors.optional_name(&spec.field("hostname"), dns_label);
    errors.optional_name(&spec.field("subdomain"), dns_label);
    scheduling::validate_tolerations(&spec.field("tolerations"), options, errors);
    validate_host_aliases(&spec.field("hostAliases"), errors);
    errors.optional_name(&spec.field("priorityClassName"), dns_subdomain);
    let runtime_class = spec.field("runtimeClassName");
    if runtime_class.is_set() {
        errors.problems(&runtime_class, dns_subdomain(runtime_class.str()));
    }
    let preemption = spec.field("preemptionPolicy");
    if preemption.is_set() {
        errors.one_of_required(&preemption, PREEMPTION);
    }
    resources::validate_overhead(&spec.field("overhead"), options, errors);
    security::validate_os(spec, errors);
    let group = spec.field("schedulingGroup");
    if group.is_set() {
        let name = group.field("podGroupName");
        if name.is_set() {
            errors.problems(&name, dns_subdomain(name.str()));
        } else {
            errors.invalid(name, name.value(), "must specify one of: `podGroupName`");
        }
    }
    validate_file_keys(spec, errors);
}

fn validate_resource_claims(claims: &At<'_, '_>, metadata: Option<&Value>, errors: &mut Errors) {
    let is_mirror =
        metadata.is_some_and(|m| m["annotations"]["kubernetes.io/config.mirror"].is_string());
    let mut names = HashSet::new();
    for claim in claims.items() {
        if is_mirror {
            errors.forbidden("", "static pods do not support resource claims");
            continue;
        }
        let name = claim.field("name");
        if name.is_empty() {
            errors.required(name, "");
        } else if !names.insert(name.str()) {
            errors.duplicate(name, name.value());
        } else {
            errors.problems(&name, dns_label(name.str()));
        }
        let (by_name, by_template) = (
            claim.field("resourceClaimName"),
            claim.field("resourceClaimTemplateName"),
        );
        let detail = match (by_name.is_set(), by_template.is_set()) {
            (true, true) => {
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"
            }
            (false, false) => {
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"
            }
            _ => "",
        };
        if !detail.is_empty() {
            errors.invalid_as(claim, &internal_claim(&claim), detail);
        }
        for name in [by_name, by_template] {
            if name.is_set() {
                errors.problems(&name, dns_subdomain(name.str()));
            }
        }
    }
}

/// A claim as messages show it: all of it, in upstream's internal form.
fn internal_claim(claim: &At<'_, '_>) -> String {
    format!(
        "{{\"Name\":{},\"ResourceClaimName\":{},\"ResourceClaimTemplateName\":{}}}",
        Value::from(claim.text("name")),
        claim.get("resourceClaimName"),
        claim.get("resourceClaimTemplateName")
    )
}

fn validate_host_network_ports(spec: &At<'_, '_>, options: &Options, errors: &mut Errors) {
    if !spec.field("hostNetwork").is_true() {
        return;
    }
    for container in spec.field("containers").items() {
        for port in container.field("ports").items() {
            let host = port.get("hostPort").as_i64().unwrap_or_default();
            let own = port.get("containerPort").as_i64().unwrap_or_default();
            if (options.is_pod || host != 0) && host != own {
                errors.invalid(
                    port.field("hostPort"),
                    &host.into(),
                    "must match `containerPort` when `hostNetwork` is true",
                );
            }
        }
    }
}

fn validate_dns_config(spec: &At<'_, '_>, errors: &mut Errors) {
    let config = spec.field("dnsConfig");
    let nameservers = config.field("nameservers");
    if spec.text("dnsPolicy") == "None" {
        if !config.is_set() {
            errors.required(config, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if nameservers.is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.required(nameservers, detail);
            return;
        }
    }
    if nameservers.list().len() > MAX_NAMESERVERS {
        errors.bad(&nameservers, "must not have more than 3 nameservers");
    }
    for nameserver in nameservers.items() {
        ip::legacy_ip(errors, &nameserver, &[]);
    }
    let searches = config.field("searches");
    if searches.list().len() > MAX_SEARCHES {
        errors.bad(&searches, "must not have more than 32 search paths");
    }
    let characters: usize = searches.items().map(|s| s.str().len() + 1).sum();
    if characters > MAX_SEARCH_CHARACTERS + 1 {
        errors.bad(
            &searches,
            "must not have more than 2048 characters (including spaces) in the search list",
        );
    }
    for search in searches.items().filter(|s| s.str() != ".") {
        let domain = search.str().strip_suffix('.').unwrap_or(search.str());
        for problem in dns_subdomain_with_underscore(domain) {
            errors.invalid_text(search, domain, &problem);
        }
    }
    for option in config.field("options").items() {
        if option.text("name").is_empty() {
            errors.required(option, "must not be empty");
        }
    }
}

fn validate_scheduling_gates(gates: &At<'_, '_>, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for gate in gates.items() {
        let name = gate.field("name");
        for problem in qualified_name(name.str()) {
            errors.invalid_text(gate, name.str(), &problem);
        }
        if !seen.insert(name.str()) {
            errors.duplicate(gate, &name.str().into());
        }
    }
}

fn validate_host_users(spec: &At<'_, '_>, options: &Options, errors: &mut Errors) {
    const DETAIL: &str = "when `hostUsers` is false";
    if *spec.get("hostUsers") != false {
        return;
    }
    let host_network = spec.field("hostNetwork");
    if host_network.is_true() && !options.host_network_in_user_namespace {
        errors.forbidden(host_network, DETAIL);
    }
    for (field, called) in [("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.field(field).is_true() {
            errors.forbidden(spec.field(called), DETAIL);
        }
    }
    if options.devices_in_user_namespace {
        return;
    }
    for list in CONTAINER_LISTS {
        for container in spec.field(list).items() {
            let devices = container.field("volumeDevices");
            if !devices.is_empty() {
                errors.forbidden(devices, DETAIL);
            }
        }
    }
}

fn validate_hostname_override(spec: &At<'_, '_>, errors: &mut Errors) {
    let name = spec.field("hostnameOverride");
    if !name.is_set() {
        return;
    }
    for (field, detail) in [
        (
            "setHostnameAsFQDN",
            "may not be specified when setHostnameAsFQDN is true",
        ),
        (
            "hostNetwork",
            "may not be specified when hostNetwork is true",
        ),
    ] {
        if spec.field(field).is_true() {
            errors.forbidden(name, detail);
        }
    }
    if name.str().len() > MAX_HOSTNAME_OVERRIDE {
        errors.too_long(name, MAX_HOSTNAME_OVERRIDE);
    }
    errors.problems(&name, dns_subdomain(name.str()));
}

fn validate_host_aliases(aliases: &At<'_, '_>, errors: &mut Errors) {
    for alias in aliases.items() {
        ip::legacy_ip(errors, &alias.field("ip"), &[]);
        for name in alias.field("hostnames").items() {
            errors.problems(&name, dns_subdomain(name.str()));
        }
    }
}

/// Environment files live in volumes of their pod.
fn validate_file_keys(spec: &At<'_, '_>, errors: &mut Errors) {
    for list in CONTAINER_LISTS {
        for container in spec.field(list).items() {
            for env in container.field("env").items() {
                let source = env.field("valueFrom");
                let key = source.field("fileKeyRef");
                if !key.is_set() {
                    continue;
                }
                let name = key.field("volumeName");
                let volumes = spec.get("volumes").as_array().into_iter().flatten();
                match volumes.into_iter().rfind(|v| v["name"] == name.str()) {
                    None => errors.not_found(name, &name.str().into()),
                    Some(volume) if volume["emptyDir"].is_null() => {
                        errors.bad(&name, "referenced volume must be of type emptyDir");
                    }
                    Some(_) => {}
                }
            }
        }
    }
}
