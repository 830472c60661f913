//! Containers of all three sorts.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::options::Options;
use super::{environment, mounts, probe, resources, security};
use crate::validation::{At, Errors, PROTOCOLS, dns_label, port_name, port_range};

const MAX_RESTART_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;
/// What ephemeral containers may not have, in the order of the type's fields.
const NOT_EPHEMERAL: [&str; 8] = [
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
];

/// What containers need to know of their pod.
pub(super) struct Context<'v> {
    pub options: Options,
    /// The valid volumes of the pod.
    pub volumes: HashMap<&'v str, &'v Value>,
    pub claims: Vec<&'v str>,
    pub restart_policy: &'v str,
    pub grace_period: Option<i64>,
    pub host_users: bool,
    /// The name of the operating system, if the pod says which.
    pub os: Option<&'v str>,
}

impl<'v> Context<'v> {
    pub fn new(spec: &At<'v, '_>, volumes: HashMap<&'v str, &'v Value>, options: &Options) -> Self {
        let mut claims: Vec<&str> = super::options::list(spec.get("resourceClaims"))
            .filter_map(|c| c["name"].as_str().filter(|n| !n.is_empty()))
            .collect();
        claims.sort_unstable();
        claims.dedup();
        Self {
            options: *options,
            volumes,
            claims,
            restart_policy: spec.text("restartPolicy"),
            grace_period: spec.get("terminationGracePeriodSeconds").as_i64(),
            host_users: *spec.get("hostUsers") != false,
            os: spec
                .get("os")
                .is_object()
                .then(|| spec.get("os")["name"].as_str().unwrap_or_default()),
        }
    }

    pub fn volume(&self, name: &str) -> Option<&'v Value> {
        self.volumes.get(name).copied()
    }
}

fn is_sidecar(container: &At<'_, '_>) -> bool {
    container.text("restartPolicy") == "Always"
}

pub(super) fn validate_containers(spec: &At<'_, '_>, context: &Context<'_>, errors: &mut Errors) {
    let containers = spec.field("containers");
    if containers.is_empty() {
        errors.required(containers, "");
        return;
    }
    let mut names = HashSet::new();
    for container in containers.items() {
        validate_common(&container, context, errors);
        let name = container.field("name");
        if !names.insert(name.str()) {
            errors.duplicate(name, &name.str().into());
        }
        probe::validate_all(&container, context, errors);
        validate_restart_policy(&container, errors);
    }
    let mut ports = HashSet::new();
    for container in containers.items() {
        validate_host_ports(&container, &container, &mut ports, errors);
    }
}

pub(super) fn validate_init_containers(
    spec: &At<'_, '_>,
    context: &Context<'_>,
    errors: &mut Errors,
) {
    let containers = spec.field("initContainers");
    let regular = spec.field("containers");
    let mut names: HashSet<&str> = regular
        .list()
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect();
    for container in containers.items() {
        validate_common(&container, context, errors);
        if container.field("restartPolicy").is_set() {
            validate_restart_policy(&container, errors);
        } else if !container.field("restartPolicyRules").is_empty() {
            errors.required(container.field("restartPolicy"), RULES_NEED_POLICY);
        }
        let name = container.field("name");
        if !name.is_empty() && !names.insert(name.str()) {
            errors.duplicate(name, name.value());
        }
        // Each is looked at alone, as if it were the first.
        let alone = containers.index(0);
        validate_host_ports(&container, &alone, &mut HashSet::new(), errors);
        if is_sidecar(&container) {
            probe::validate_all(&container, context, errors);
            continue;
        }
        for field in [
            "lifecycle",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
        ] {
            let at = container.field(field);
            if at.is_set() {
                let detail = "may not be set for init containers without restartPolicy=Always";
                errors.forbidden(at, detail);
            }
        }
        if context.options.restarting_init_containers {
            continue;
        }
        for policy in container.field("resizePolicy").items() {
            let restart = policy.field("restartPolicy");
            if restart.str() == "RestartContainer" {
                let detail = "must not be set to 'RestartContainer' for non-sidecar initContainers";
                errors.bad(&restart, detail);
            }
        }
    }
}

pub(super) fn validate_ephemeral_containers(
    spec: &At<'_, '_>,
    context: &Context<'_>,
    errors: &mut Errors,
) {
    let names_of = |list| super::options::list(spec.get(list)).filter_map(|c| c["name"].as_str());
    let others: HashSet<&str> = names_of("containers")
        .chain(names_of("initContainers"))
        .collect();
    let mut names = others.clone();
    for container in spec.field("ephemeralContainers").items() {
        validate_common(&container, context, errors);
        validate_image(&container, errors);
        let name = container.field("name");
        if !names.insert(name.str()) {
            errors.duplicate(name, &name.str().into());
        }
        let target = container.field("targetContainerName");
        if !target.is_empty() && !others.contains(target.str()) {
            errors.not_found(target, target.value());
        }
        for field in NOT_EPHEMERAL {
            let at = container.field(field);
            if !at.is_empty() {
                errors.forbidden(at, "cannot be set for an Ephemeral Container");
            }
        }
        let lifecycle = container.field("lifecycle");
        if lifecycle.is_set() {
            errors.forbidden(lifecycle, "cannot be set for an Ephemeral Container");
        }
        for mount in container.field("volumeMounts").items() {
            for field in ["subPath", "subPathExpr"] {
                let at = mount.field(field);
                if !at.is_empty() {
                    errors.forbidden(at, "cannot be set for an Ephemeral Container");
                }
            }
        }
    }
}

fn validate_common(container: &At<'_, '_>, context: &Context<'_>, errors: &mut Errors) {
    errors.required_name(&container.field("name"), dns_label);
    errors.required_text(&container.field("image"));
    errors.one_of_required(
        &container.field("terminationMessagePolicy"),
        &["File", "FallbackToLogsOnError"],
    );
    validate_ports(&container.field("ports"), errors);
    environment::validate_env(&container.field("env"), errors);
    environment::validate_env_from(&container.field("envFrom"), errors);
    mounts::validate_mounts(container, context, errors);
    mounts::validate_devices(container, context, errors);
    errors.one_of_required(
        &container.field("imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
    );
    resources::validate_container(&container.field("resources"), context, errors);
    validate_resize_policy(&container.field("resizePolicy"), context, errors);
    security::validate_container(&container.field("securityContext"), context, errors);
}

/// What only pods are held to, since templates were stored before there was the rule.
pub(in crate::strategy) fn validate_image(container: &At<'_, '_>, errors: &mut Errors) {
    let image = container.field("image");
    if image.str().trim().len() != image.str().len() {
        errors.bad(&image, "must not have leading or trailing whitespace");
    }
}

fn validate_ports(ports: &At<'_, '_>, errors: &mut Errors) {
    let mut names = HashSet::new();
    for port in ports.items() {
        let name = port.field("name");
        if !name.is_empty() {
            let problems = port_name(name.str());
            if problems.is_empty() && !names.insert(name.str()) {
                errors.duplicate(name, name.value());
            }
            errors.problems(&name, problems);
        }
        let number = port.field("containerPort");
        match number.int().unwrap_or_default() {
            0 => errors.required(number, ""),
            n => {
                if let Some(problem) = port_range(n) {
                    errors.bad(&number, problem);
                }
            }
        }
        let host = port.field("hostPort");
        if let Some(problem) = host.int().filter(|n| *n != 0).and_then(port_range) {
            errors.bad(&host, problem);
        }
        errors.one_of_required(&port.field("protocol"), PROTOCOLS);
    }
}

/// Ports of the host that containers would fight for. Errors are about a port of `place`.
fn validate_host_ports(
    container: &At<'_, '_>,
    place: &At<'_, '_>,
    seen: &mut HashSet<String>,
    errors: &mut Errors,
) {
    for (i, port) in container.field("ports").list().iter().enumerate() {
        let number = port["hostPort"].as_i64().unwrap_or_default();
        if number == 0 {
            continue;
        }
        let text = |field: &str| port[field].as_str().unwrap_or_default();
        let identity = format!("{}/{}/{number}", text("protocol"), text("hostIP"));
        if seen.contains(&identity) {
            let ports = place.field("ports");
            let port = ports.index(i);
            errors.duplicate(port.field("hostPort"), &identity.into());
        } else {
            seen.insert(identity);
        }
    }
}

fn validate_resize_policy(policies: &At<'_, '_>, context: &Context<'_>, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for policy in policies.items() {
        let (resource, restart) = (policy.text("resourceName"), policy.text("restartPolicy"));
        if !seen.insert(resource) {
            errors.duplicate(policy, &resource.into());
        }
        // Errors of items are about the list.
        let resource = policies.place("", policy.get("resourceName"));
        let named = |value, supported: &[&str], errors: &mut Errors| match value {
            "" => errors.required(policies, ""),
            text if !supported.contains(&text) => {
                errors.not_supported(policies, &text.into(), supported);
            }
            _ => {}
        };
        named(resource.str(), &["cpu", "memory"], errors);
        named(restart, &["NotRequired", "RestartContainer"], errors);
        if context.restart_policy == "Never" && restart != "NotRequired" {
            errors.invalid_text(
                policies,
                restart,
                "must be 'NotRequired' when pod `restartPolicy` is 'Never'",
            );
        }
    }
}

const RULES_NEED_POLICY: &str = "must specify restartPolicy when restart rules are used";

fn validate_restart_policy(container: &At<'_, '_>, errors: &mut Errors) {
    let policy = container.field("restartPolicy");
    let rules = container.field("restartPolicyRules");
    if policy.is_set() {
        errors.member(&policy, &["Always", "Never", "OnFailure"]);
    } else if rules.is_empty() {
        return;
    } else {
        errors.required(policy, RULES_NEED_POLICY);
    }
    let count = rules.list().len();
    if count > MAX_RESTART_RULES {
        errors.too_many(rules, count, MAX_RESTART_RULES);
    }
    for rule in rules.items() {
        errors.member(&rule.field("action"), &["Restart", "RestartAllContainers"]);
        let codes = rule.field("exitCodes");
        if !codes.is_set() {
            errors.required(codes, "must be specified");
            continue;
        }
        errors.member(&codes.field("operator"), &["In", "NotIn"]);
        let values = codes.field("values");
        if values.list().len() > MAX_EXIT_CODES {
            errors.too_many(values, values.list().len(), MAX_EXIT_CODES);
        }
    }
}
