//! Services. Cluster IPs and node ports are allocated by the API server; here is what can be said without allocating.

use std::borrow::Cow;

use serde_json::Value;

use super::{Strategy, copy_field, default_at, text};
use crate::validation::{self, Errors, Problems};

pub(super) struct Service;

impl Strategy for Service {
    fn name_rule(&self) -> fn(&str) -> Problems {
        validation::dns_1035_label
    }

    fn default(&self, object: &mut Value) {
        let spec = &mut object["spec"];
        if !spec.is_object() {
            return;
        }
        if spec["sessionAffinity"] == "ClientIP" {
            default_at(
                spec,
                &["sessionAffinityConfig", "clientIP", "timeoutSeconds"],
                10_800,
            );
        }
        let ty = spec["type"].as_str().unwrap_or_default().to_owned();
        if ty != "ExternalName" {
            default_at(spec, &["internalTrafficPolicy"], "Cluster");
        }
        let external = spec["externalIPs"]
            .as_array()
            .is_some_and(|ips| !ips.is_empty());
        if ty == "NodePort" || ty == "LoadBalancer" || (external && ty == "ClusterIP") {
            default_at(spec, &["externalTrafficPolicy"], "Cluster");
        }
        if ty == "LoadBalancer" {
            default_at(spec, &["allocateLoadBalancerNodePorts"], true);
        }
        for port in spec["ports"].as_array_mut().into_iter().flatten() {
            let number = port["port"].clone();
            let target = &port["targetPort"];
            if target.is_null() || target == 0 || target == "" {
                port["targetPort"] = number;
            }
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = serde_json::json!({"loadBalancer": {}});
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "status");
        let ty = object["spec"]["type"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if ty == "ExternalName" {
            return;
        }
        // What was allocated stays unless the client asks for something else.
        if old["spec"]["type"] != "ExternalName" {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                let kept = old["spec"][field].clone();
                if !kept.is_null()
                    && object["spec"][field].as_str().is_none_or(str::is_empty)
                    && object["spec"][field].as_array().is_none()
                {
                    object["spec"][field] = kept;
                }
            }
        }
        if ty == "NodePort" || ty == "LoadBalancer" {
            let before = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
            for port in object["spec"]["ports"].as_array_mut().into_iter().flatten() {
                let same = before
                    .iter()
                    .find(|b| b["port"] == port["port"] && b["protocol"] == port["protocol"]);
                if let Some(number) = same.and_then(|b| b["nodePort"].as_i64()) {
                    default_at(port, &["nodePort"], number);
                }
            }
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        let ty = spec["type"].as_str().unwrap_or_default();
        errors.one_of(
            "spec.type",
            &spec["type"],
            &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        );
        errors.one_of(
            "spec.sessionAffinity",
            &spec["sessionAffinity"],
            &["ClientIP", "None"],
        );
        errors.one_of(
            "spec.externalTrafficPolicy",
            &spec["externalTrafficPolicy"],
            &["Cluster", "Local"],
        );
        errors.one_of(
            "spec.internalTrafficPolicy",
            &spec["internalTrafficPolicy"],
            &["Cluster", "Local"],
        );
        validation::labels(errors, "spec.selector", &spec["selector"]);
        if ty == "ExternalName" {
            for problem in validation::dns_subdomain(
                spec["externalName"]
                    .as_str()
                    .unwrap_or_default()
                    .trim_end_matches('.'),
            ) {
                errors.invalid("spec.externalName", &spec["externalName"], &problem);
            }
            return;
        }
        let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
        let headless = spec["clusterIP"] == "None";
        if ports.is_empty() && !headless {
            errors.required("spec.ports", "");
        }
        if headless && ty != "ClusterIP" {
            errors.invalid(
                "spec.clusterIPs[0]",
                &"None".into(),
                "may not be set to 'None' for LoadBalancer services",
            );
        }
        validate_ports(ports, ty, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let (new, before) = (&object["spec"], &old["spec"]);
        let exempt = new["type"] == "ExternalName" || before["type"] == "ExternalName";
        if !exempt
            && before["clusterIP"]
                .as_str()
                .is_some_and(|ip| !ip.is_empty())
            && new["clusterIP"] != before["clusterIP"]
        {
            errors.invalid(
                "spec.clusterIPs[0]",
                &new["clusterIP"],
                "may not change once set",
            );
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["spec.clusterIP", "spec.type"]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        match field {
            "spec.clusterIP" => Some(text(object, "/spec/clusterIP")),
            "spec.type" => Some(text(object, "/spec/type")),
            _ => None,
        }
    }
}

fn validate_ports(ports: &[Value], ty: &str, errors: &mut Errors) {
    let (mut names, mut numbers) = (Vec::new(), Vec::new());
    for (i, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        let name = port["name"].as_str().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            errors.required(&format!("{at}.name"), "");
        }
        for problem in if name.is_empty() {
            Vec::new()
        } else {
            validation::dns_label(name)
        } {
            errors.invalid(&format!("{at}.name"), &port["name"], &problem);
        }
        if !name.is_empty() && names.contains(&name) {
            errors.duplicate(&format!("{at}.name"), &port["name"]);
        }
        names.push(name);
        if !port["port"]
            .as_i64()
            .is_some_and(|n| (1..=65535).contains(&n))
        {
            errors.invalid(
                &format!("{at}.port"),
                &port["port"],
                "must be between 1 and 65535, inclusive",
            );
        }
        if port["targetPort"]
            .as_i64()
            .is_some_and(|n| !(1..=65535).contains(&n))
        {
            errors.invalid(
                &format!("{at}.targetPort"),
                &port["targetPort"],
                "must be between 1 and 65535, inclusive",
            );
        }
        errors.one_of(
            &format!("{at}.protocol"),
            &port["protocol"],
            &["SCTP", "TCP", "UDP"],
        );
        if ty == "ClusterIP" && port["nodePort"].as_i64().is_some_and(|n| n != 0) {
            errors.forbidden(
                &format!("{at}.nodePort"),
                "may not be used when `type` is 'ClusterIP'",
            );
        }
        let identity = (&port["protocol"], &port["port"]);
        if numbers.contains(&identity) {
            errors.duplicate(
                &at,
                &serde_json::json!({"port": port["port"], "protocol": port["protocol"]}),
            );
        }
        numbers.push(identity);
    }
}
