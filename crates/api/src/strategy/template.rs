//! Pod specs, as pods and the templates of workloads share them.

use serde_json::{Value, json};

use super::{Strategy, default_at};
use crate::quantity::Quantity;
use crate::validation::{self, Errors};

pub(super) struct PodTemplate;

impl Strategy for PodTemplate {
    fn default(&self, object: &mut Value) {
        default_spec(&mut object["template"]["spec"]);
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &["template"]
    }
}

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Defaults of a pod spec that depend on other fields.
pub(super) fn default_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    for (one, other) in [
        ("serviceAccountName", "serviceAccount"),
        ("serviceAccount", "serviceAccountName"),
    ] {
        if let Some(name) = spec[one]
            .as_str()
            .filter(|n| !n.is_empty())
            .map(str::to_owned)
        {
            default_at(spec, &[other], name);
        }
    }
    let host_network = spec["hostNetwork"] == true;
    for list in CONTAINER_LISTS {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            default_container(container, host_network);
        }
    }
    for volume in spec["volumes"].as_array_mut().into_iter().flatten() {
        default_volume(volume);
    }
    for constraint in spec["topologySpreadConstraints"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        default_at(constraint, &["nodeAffinityPolicy"], "Honor");
        default_at(constraint, &["nodeTaintsPolicy"], "Ignore");
    }
}

/// What a container may use at most is what it asks for, unless it says otherwise. Pods only, not their templates.
pub(super) fn default_requests(spec: &mut Value) {
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            if let Some(limits) = container["resources"]["limits"].as_object().cloned() {
                for (name, limit) in limits {
                    default_at(container, &["resources", "requests", &name], limit);
                }
            }
        }
    }
}

fn default_container(container: &mut Value, host_network: bool) {
    if container["imagePullPolicy"]
        .as_str()
        .unwrap_or_default()
        .is_empty()
    {
        let policy = match tag(container["image"].as_str().unwrap_or_default()) {
            Some("latest") | None => "Always",
            Some(_) => "IfNotPresent",
        };
        container["imagePullPolicy"] = policy.into();
    }
    for requirement in ["limits", "requests"] {
        for amount in container["resources"][requirement]
            .as_object_mut()
            .into_iter()
            .flat_map(|m| m.values_mut())
        {
            if let Some(quantity) = amount.as_str().and_then(|a| a.parse::<Quantity>().ok()) {
                *amount = quantity.to_string().into();
            }
        }
    }
    if host_network {
        for port in container["ports"].as_array_mut().into_iter().flatten() {
            let number = port["containerPort"].clone();
            default_at(port, &["hostPort"], number);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[probe]["grpc"].is_object() {
            default_at(container, &[probe, "grpc", "service"], "");
        }
    }
}

/// The tag of an image reference; a digest counts as one, nothing at all as none.
fn tag(image: &str) -> Option<&str> {
    if image.contains('@') {
        return Some("@");
    }
    let name = image.rsplit('/').next().unwrap_or_default();
    name.split_once(':').map(|(_, tag)| tag)
}

fn default_volume(volume: &mut Value) {
    let Some(map) = volume.as_object() else {
        return;
    };
    if map.keys().all(|k| k == "name") {
        volume["emptyDir"] = json!({});
    }
}

/// Validates a pod spec at `at` (e.g. `spec.template.spec`).
pub(super) fn validate_spec(spec: &Value, at: &str, errors: &mut Errors) {
    let containers = spec["containers"].as_array().map_or(&[][..], Vec::as_slice);
    if containers.is_empty() {
        errors.required(&format!("{at}.containers"), "");
    }
    let volumes = validate_volumes(spec, at, errors);
    let mut names = Vec::new();
    for list in CONTAINER_LISTS {
        for (i, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let at = format!("{at}.{list}[{i}]");
            validate_container(container, &at, &volumes, errors);
            let name = container["name"].as_str().unwrap_or_default();
            if !name.is_empty() && names.contains(&name) {
                errors.duplicate(&format!("{at}.name"), &container["name"]);
            }
            names.push(name);
        }
    }
    errors.one_of(
        &format!("{at}.restartPolicy"),
        &spec["restartPolicy"],
        &["Always", "OnFailure", "Never"],
    );
    errors.one_of(
        &format!("{at}.dnsPolicy"),
        &spec["dnsPolicy"],
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    errors.non_negative(
        &format!("{at}.terminationGracePeriodSeconds"),
        &spec["terminationGracePeriodSeconds"],
    );
    if spec["activeDeadlineSeconds"]
        .as_i64()
        .is_some_and(|n| n < 1)
    {
        errors.invalid(
            &format!("{at}.activeDeadlineSeconds"),
            &spec["activeDeadlineSeconds"],
            "must be between 1 and 2147483647, inclusive",
        );
    }
    validation::labels(errors, &format!("{at}.nodeSelector"), &spec["nodeSelector"]);
    for (field, rule) in [
        ("hostname", validation::dns_label as fn(&str) -> Vec<String>),
        ("subdomain", validation::dns_label),
        ("nodeName", validation::dns_subdomain),
        ("serviceAccountName", validation::dns_subdomain),
        ("priorityClassName", validation::dns_subdomain),
    ] {
        if let Some(value) = spec[field].as_str().filter(|v| !v.is_empty()) {
            for problem in rule(value) {
                errors.invalid(&format!("{at}.{field}"), &spec[field], &problem);
            }
        }
    }
    for (i, toleration) in spec["tolerations"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        validate_toleration(toleration, &format!("{at}.tolerations[{i}]"), errors);
    }
    for (i, constraint) in spec["topologySpreadConstraints"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let at = format!("{at}.topologySpreadConstraints[{i}]");
        if constraint["maxSkew"].as_i64().is_none_or(|n| n <= 0) {
            errors.invalid(
                &format!("{at}.maxSkew"),
                &constraint["maxSkew"],
                "must be greater than zero",
            );
        }
        if constraint["topologyKey"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
        {
            errors.required(&format!("{at}.topologyKey"), "can not be empty");
        }
        errors.one_of(
            &format!("{at}.whenUnsatisfiable"),
            &constraint["whenUnsatisfiable"],
            &["DoNotSchedule", "ScheduleAnyway"],
        );
    }
}

fn validate_toleration(toleration: &Value, at: &str, errors: &mut Errors) {
    let key = toleration["key"].as_str().unwrap_or_default();
    let operator = toleration["operator"].as_str().unwrap_or("Equal");
    if !key.is_empty() {
        for problem in validation::qualified_name(key) {
            errors.invalid(&format!("{at}.key"), &toleration["key"], &problem);
        }
    } else if operator != "Exists" {
        errors.invalid(
            &format!("{at}.operator"),
            &operator.into(),
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        );
    }
    if !["Exists", "Equal", ""].contains(&operator) {
        errors.not_supported(
            &format!("{at}.operator"),
            &toleration["operator"],
            &["Equal", "Exists"],
        );
    }
    if operator == "Exists" && !toleration["value"].as_str().unwrap_or_default().is_empty() {
        errors.invalid(
            &format!("{at}.operator"),
            &toleration["value"],
            "value must be empty when `operator` is 'Exists'",
        );
    }
    errors.one_of(
        &format!("{at}.effect"),
        &toleration["effect"],
        &["", "NoSchedule", "PreferNoSchedule", "NoExecute"],
    );
}

fn validate_volumes<'a>(spec: &'a Value, at: &str, errors: &mut Errors) -> Vec<&'a str> {
    let mut names = Vec::new();
    for (i, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{at}.volumes[{i}]");
        let name = volume["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            errors.required(&format!("{at}.name"), "");
        }
        for problem in if name.is_empty() {
            Vec::new()
        } else {
            validation::dns_label(name)
        } {
            errors.invalid(&format!("{at}.name"), &volume["name"], &problem);
        }
        if names.contains(&name) {
            errors.duplicate(&format!("{at}.name"), &volume["name"]);
        }
        names.push(name);
        let sources = volume.as_object().map_or(0, |m| m.len().saturating_sub(1));
        if sources > 1 {
            errors.forbidden(&at, "may not specify more than 1 volume type");
        }
        if volume["hostPath"].is_object()
            && volume["hostPath"]["path"]
                .as_str()
                .unwrap_or_default()
                .is_empty()
        {
            errors.required(&format!("{at}.hostPath.path"), "");
        }
        if volume["persistentVolumeClaim"].is_object()
            && volume["persistentVolumeClaim"]["claimName"]
                .as_str()
                .unwrap_or_default()
                .is_empty()
        {
            errors.required(&format!("{at}.persistentVolumeClaim.claimName"), "");
        }
    }
    names
}

fn validate_container(container: &Value, at: &str, volumes: &[&str], errors: &mut Errors) {
    let name = container["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        errors.required(&format!("{at}.name"), "");
    } else {
        for problem in validation::dns_label(name) {
            errors.invalid(&format!("{at}.name"), &container["name"], &problem);
        }
    }
    match container["image"].as_str().unwrap_or_default() {
        "" => errors.required(&format!("{at}.image"), ""),
        image if image.trim() != image => {
            errors.invalid(
                &format!("{at}.image"),
                &container["image"],
                "must not have leading or trailing whitespace",
            );
        }
        _ => {}
    }
    errors.one_of(
        &format!("{at}.imagePullPolicy"),
        &container["imagePullPolicy"],
        &["Always", "IfNotPresent", "Never"],
    );
    validate_ports(container, at, errors);
    for (i, env) in container["env"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        match env["name"].as_str().unwrap_or_default() {
            "" => errors.required(&format!("{at}.env[{i}].name"), ""),
            name => {
                for problem in validation::env_var_name(name) {
                    errors.invalid(&format!("{at}.env[{i}].name"), &env["name"], &problem);
                }
            }
        }
        if env["valueFrom"].is_object() && !env["value"].as_str().unwrap_or_default().is_empty() {
            errors.invalid(
                &format!("{at}.env[{i}].valueFrom"),
                &"".into(),
                "may not be specified when `value` is not empty",
            );
        }
    }
    let mut paths = Vec::new();
    for (i, mount) in container["volumeMounts"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let at = format!("{at}.volumeMounts[{i}]");
        let volume = mount["name"].as_str().unwrap_or_default();
        if volume.is_empty() {
            errors.required(&format!("{at}.name"), "");
        } else if !volumes.contains(&volume) {
            errors.not_found(&format!("{at}.name"), &mount["name"]);
        }
        match mount["mountPath"].as_str().unwrap_or_default() {
            "" => errors.required(&format!("{at}.mountPath"), ""),
            path if paths.contains(&path) => {
                errors.invalid(
                    &format!("{at}.mountPath"),
                    &mount["mountPath"],
                    "must be unique",
                );
            }
            path => paths.push(path),
        }
        if mount["subPath"]
            .as_str()
            .is_some_and(|p| p.starts_with('/') || p.split('/').any(|s| s == ".."))
        {
            errors.invalid(
                &format!("{at}.subPath"),
                &mount["subPath"],
                "must be a relative path without '..'",
            );
        }
    }
    validate_resources(&container["resources"], &format!("{at}.resources"), errors);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[probe].is_object() {
            validate_probe(&container[probe], &format!("{at}.{probe}"), probe, errors);
        }
    }
    for hook in ["postStart", "preStop"] {
        if container["lifecycle"][hook].is_object() {
            validate_handler(
                &container["lifecycle"][hook],
                &format!("{at}.lifecycle.{hook}"),
                errors,
            );
        }
    }
}

fn validate_ports(container: &Value, at: &str, errors: &mut Errors) {
    let mut names = Vec::new();
    for (i, port) in container["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let at = format!("{at}.ports[{i}]");
        match port["containerPort"].as_i64() {
            None | Some(0) => errors.required(&format!("{at}.containerPort"), ""),
            Some(number) if !(1..=65535).contains(&number) => {
                errors.invalid(
                    &format!("{at}.containerPort"),
                    &port["containerPort"],
                    "must be between 1 and 65535, inclusive",
                );
            }
            Some(_) => {}
        }
        if port["hostPort"]
            .as_i64()
            .is_some_and(|n| !(0..=65535).contains(&n))
        {
            errors.invalid(
                &format!("{at}.hostPort"),
                &port["hostPort"],
                "must be between 1 and 65535, inclusive",
            );
        }
        errors.one_of(
            &format!("{at}.protocol"),
            &port["protocol"],
            &["SCTP", "TCP", "UDP"],
        );
        if let Some(name) = port["name"].as_str().filter(|n| !n.is_empty()) {
            if name.len() > 15
                || !validation::dns_label(name).is_empty()
                || !name.bytes().any(|b| b.is_ascii_lowercase())
            {
                errors.invalid(
                    &format!("{at}.name"),
                    &port["name"],
                    "must contain at least one letter (a-z), only lower case alphanumeric characters or '-', and be no more than 15 characters",
                );
            } else if names.contains(&name) {
                errors.duplicate(&format!("{at}.name"), &port["name"]);
            }
            names.push(name);
        }
    }
}

fn validate_resources(resources: &Value, at: &str, errors: &mut Errors) {
    let parse = |v: &Value| v.as_str().and_then(|t| t.parse::<Quantity>().ok());
    for requirement in ["limits", "requests"] {
        for (name, amount) in resources[requirement].as_object().into_iter().flatten() {
            let at = format!("{at}.{requirement}[{name}]");
            for problem in validation::qualified_name(name) {
                errors.invalid(&at, &name.as_str().into(), &problem);
            }
            if parse(amount).is_some_and(|q| q.is_negative()) {
                errors.invalid(&at, amount, "must be greater than or equal to 0");
            }
        }
    }
    for (name, request) in resources["requests"].as_object().into_iter().flatten() {
        let (Some(request_amount), Some(limit)) =
            (parse(request), parse(&resources["limits"][name]))
        else {
            continue;
        };
        if request_amount > limit {
            errors.invalid(
                &format!("{at}.requests"),
                request,
                &format!("must be less than or equal to {name} limit of {limit}"),
            );
        }
    }
}

fn validate_probe(probe: &Value, at: &str, which: &str, errors: &mut Errors) {
    validate_handler(probe, at, errors);
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        errors.non_negative(&format!("{at}.{field}"), &probe[field]);
    }
    if which != "readinessProbe" && probe["successThreshold"].as_i64().is_some_and(|n| n != 1) {
        errors.invalid(
            &format!("{at}.successThreshold"),
            &probe["successThreshold"],
            "must be 1",
        );
    }
}

fn validate_handler(handler: &Value, at: &str, errors: &mut Errors) {
    let kinds = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
    match kinds.iter().filter(|k| handler[**k].is_object()).count() {
        0 => errors.required(at, "must specify a handler type"),
        1 => {}
        _ => errors.forbidden(at, "may not specify more than 1 handler type"),
    }
}

/// A workload's selector must be present and match its template's labels.
pub(super) fn validate_selector(object: &Value, errors: &mut Errors) {
    let selector = &object["spec"]["selector"];
    let empty = |field: &str| {
        selector[field]
            .as_object()
            .is_none_or(serde_json::Map::is_empty)
            && selector[field].as_array().is_none_or(Vec::is_empty)
    };
    if selector.is_null() {
        errors.required("spec.selector", "");
        return;
    }
    validation::label_selector(errors, "spec.selector", selector);
    if empty("matchLabels") && empty("matchExpressions") {
        errors.invalid(
            "spec.selector",
            selector,
            "empty selector is invalid for deployment",
        );
        return;
    }
    let labels = &object["spec"]["template"]["metadata"]["labels"];
    if let Ok(parsed) = crate::selector::LabelSelector::from_json(selector)
        && !parsed.matches(labels.as_object())
    {
        errors.invalid(
            "spec.template.metadata.labels",
            labels,
            "`selector` does not match template `labels`",
        );
    }
}

/// A workload's template: labels and pod spec, with the restart policies that the workload allows.
pub(super) fn validate_template(
    template: &Value,
    at: &str,
    restart_policies: &[&str],
    errors: &mut Errors,
) {
    validation::labels(
        errors,
        &format!("{at}.metadata.labels"),
        &template["metadata"]["labels"],
    );
    validate_spec(&template["spec"], &format!("{at}.spec"), errors);
    let policy = &template["spec"]["restartPolicy"];
    if policy
        .as_str()
        .is_some_and(|p| !restart_policies.contains(&p))
    {
        errors.not_supported(
            &format!("{at}.spec.restartPolicy"),
            policy,
            restart_policies,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(spec: Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate_spec(&spec, "spec", &mut errors);
        errors.0.into_iter().map(|c| c.field).collect()
    }

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("a:1", "IfNotPresent"),
            ("r:5000/a", "Always"),
            ("r:5000/a@sha256:0", "IfNotPresent"),
        ] {
            let mut spec = json!({"containers": [{"image": image}]});
            default_spec(&mut spec);
            assert_eq!(spec["containers"][0]["imagePullPolicy"], policy, "{image}");
        }
    }

    #[test]
    fn limits_become_requests() {
        let mut spec = json!({"containers": [{"resources": {"limits": {"cpu": "1000m"}}}]});
        default_spec(&mut spec);
        assert!(spec["containers"][0]["resources"]["requests"].is_null());
        default_requests(&mut spec);
        assert_eq!(spec["containers"][0]["resources"]["requests"]["cpu"], "1");
    }

    #[test]
    fn bad_specs_name_their_fields() {
        assert_eq!(fields(json!({})), ["spec.containers"]);
        let spec = json!({"containers": [{"name": "A", "image": "", "volumeMounts": [{"name": "v", "mountPath": "/x"}],
            "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}, "ports": [{"containerPort": 70000}],
            "livenessProbe": {}}]});
        assert_eq!(
            fields(spec),
            [
                "spec.containers[0].name",
                "spec.containers[0].image",
                "spec.containers[0].ports[0].containerPort",
                "spec.containers[0].volumeMounts[0].name",
                "spec.containers[0].resources.requests",
                "spec.containers[0].livenessProbe",
            ]
        );
    }
}
