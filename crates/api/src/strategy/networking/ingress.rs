//! Ingresses and their classes.

use serde_json::{Value, json};

use crate::meta;
use crate::strategy::service::{ingress_warnings, validate_ingress_points};
use crate::strategy::template::options::list;
use crate::strategy::{MetaCheck, Strategy, copy_field, default_at};
use crate::validation::{
    At, Errors, dns_label, dns_subdomain, ip, path_segment, port_name, port_range,
    wildcard_dns_subdomain,
};

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const NOT_IN_PATHS: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
const NOT_AT_END: [&str; 2] = ["/..", "/."];
const MAX_CONTROLLER: usize = 250;

pub(in crate::strategy) struct Ingress;

/// What an existing ingress may keep.
#[derive(Clone, Copy, Default)]
struct Kept {
    secret_names: bool,
    wildcard_rules: bool,
}

fn validate_spec(spec: &At<'_, '_>, kept: Kept, errors: &mut Errors) {
    let (backend, rules) = (spec.field("defaultBackend"), spec.field("rules"));
    if rules.is_empty() && !backend.is_set() {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.invalid(spec, rules.value(), detail);
    }
    if backend.is_set() {
        validate_backend(&backend, errors);
    }
    for rule in rules.items() {
        let host = rule.field("host");
        let is_wildcard = host.str().contains('*');
        if !host.is_empty() {
            if ip::parse_sloppy(host.str()).is_some() {
                errors.bad(&host, "must be a DNS name, not an IP address");
            }
            validate_host(&host, errors);
        }
        let http = rule.field("http");
        if http.is_set() && !(is_wildcard && kept.wildcard_rules) {
            validate_http(&http, errors);
        }
    }
    for tls in spec.field("tls").items() {
        for host in tls.field("hosts").items() {
            validate_host(&host, errors);
        }
        if !kept.secret_names {
            errors.optional_name(&tls.field("secretName"), dns_subdomain);
        }
    }
    let class = spec.field("ingressClassName");
    if class.is_set() {
        errors.problems(&class, dns_subdomain(class.str()));
    }
}

fn validate_host(host: &At<'_, '_>, errors: &mut Errors) {
    let rule = if host.str().contains('*') {
        wildcard_dns_subdomain
    } else {
        dns_subdomain
    };
    errors.problems(host, rule(host.str()));
}

fn validate_http(http: &At<'_, '_>, errors: &mut Errors) {
    let paths = http.field("paths");
    if paths.is_empty() {
        errors.required(paths, "");
    }
    for path in paths.items() {
        let (at, ty) = (path.field("path"), path.field("pathType"));
        if !ty.is_set() {
            errors.required(ty, "pathType must be specified");
            continue;
        }
        let text = at.str();
        match ty.str() {
            "Exact" | "Prefix" => {
                if !text.starts_with('/') {
                    errors.bad(&at, "must be an absolute path");
                }
                for part in NOT_IN_PATHS.iter().filter(|p| text.contains(**p)) {
                    errors.bad(&at, &format!("must not contain '{part}'"));
                }
                for end in NOT_AT_END.iter().filter(|e| text.ends_with(**e)) {
                    errors.bad(&at, &format!("cannot end with '{end}'"));
                }
            }
            "ImplementationSpecific" => {
                if !text.is_empty() && !text.starts_with('/') {
                    errors.bad(&at, "must be an absolute path");
                }
            }
            _ => errors.unsupported(&ty, &["Exact", "ImplementationSpecific", "Prefix"]),
        }
        validate_backend(&path.field("backend"), errors);
    }
}

fn validate_backend(backend: &At<'_, '_>, errors: &mut Errors) {
    let (resource, service) = (backend.field("resource"), backend.field("service"));
    match (resource.is_set(), service.is_set()) {
        (true, true) => {
            errors.invalid_text(backend, "", "cannot set both resource and service backends");
        }
        (true, false) => validate_reference(&resource, errors),
        (false, true) => {
            errors.required_name(&service.field("name"), dns_label);
            let port = service.field("port");
            let (name, number) = (port.field("name"), port.field("number"));
            let value = number.int().unwrap_or_default();
            match (!name.is_empty(), value != 0) {
                (true, true) => {
                    errors.invalid_text(backend, "", "cannot set both port name & port number");
                }
                (true, false) => errors.problems(&name, port_name(name.str())),
                (false, true) => {
                    if let Some(problem) = port_range(value) {
                        errors.bad(&number, problem);
                    }
                }
                (false, false) => errors.required(backend, "port name or number is required"),
            }
        }
        (false, false) => {
            errors.invalid_text(backend, "", "resource or service backend is required");
        }
    }
}

/// A reference to an object of any kind.
fn validate_reference(reference: &At<'_, '_>, errors: &mut Errors) {
    let group = reference.field("apiGroup");
    if group.is_set() {
        errors.problems(&group, dns_subdomain(group.str()));
    }
    errors.required_name(&reference.field("kind"), path_segment);
    errors.required_name(&reference.field("name"), path_segment);
}

fn has_bad_wildcard_rule(old: &Value) -> bool {
    list(&old["spec"]["rules"])
        .filter(|r| r["host"].as_str().is_some_and(|h| h.contains('*')))
        .filter(|r| r["http"].is_object())
        .any(|rule| {
            let mut errors = Errors::default();
            validate_http(&At::root(&rule["http"]), &mut errors);
            !errors.is_empty()
        })
}

impl Strategy for Ingress {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        validate_spec(&root.field("spec"), Kept::default(), errors);
        let class = &object["spec"]["ingressClassName"];
        if let Some(annotation) = meta::annotation(object, CLASS_ANNOTATION)
            && class.as_str().is_some_and(|c| c != annotation)
        {
            let place = format!("annotations.{CLASS_ANNOTATION}");
            let detail = "must match `ingressClassName` when both are specified";
            errors.invalid_text(place, annotation, detail);
        }
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let mut secrets = list(&old["spec"]["tls"]).filter_map(|t| t["secretName"].as_str());
        let kept = Kept {
            secret_names: secrets.any(|s| !s.is_empty() && !dns_subdomain(s).is_empty()),
            wildcard_rules: has_bad_wildcard_rule(old),
        };
        let root = At::root(object);
        validate_spec(&root.field("spec"), kept, errors);
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let status = root.field("status");
        let balancer = status.field("loadBalancer");
        validate_ingress_points(&balancer.field("ingress"), &old["status"], false, errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let is_deprecated = old.is_none()
            && meta::annotation(object, CLASS_ANNOTATION).is_some()
            && object["spec"]["ingressClassName"].is_null();
        let warning = format!(
            "annotation \"{CLASS_ANNOTATION}\" is deprecated, please use 'spec.ingressClassName' instead"
        );
        is_deprecated.then_some(warning).into_iter().collect()
    }

    fn status_warnings(&self, object: &Value) -> Vec<String> {
        ingress_warnings(object)
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Update, MetaCheck::Whole]
    }
}

pub(in crate::strategy) struct IngressClass;

impl Strategy for IngressClass {
    fn default(&self, object: &mut Value) {
        if object["spec"]["parameters"].is_object() {
            default_at(object, &["spec", "parameters", "scope"], "Cluster");
        }
    }

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        let controller = spec.field("controller");
        if controller.str().len() > MAX_CONTROLLER {
            errors.too_long(controller, MAX_CONTROLLER);
        }
        errors.domain_prefixed_path(controller, controller.str());
        let parameters = spec.field("parameters");
        if parameters.is_set() {
            validate_parameters(&parameters, errors);
        }
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let (root, was) = (At::root(object), &old["spec"]["controller"]);
        let spec = root.field("spec");
        let controller = spec.field("controller");
        if controller.value() != was {
            errors.bad(&controller, "field is immutable");
        }
        self.validate(object, errors);
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Update, MetaCheck::Whole]
    }
}

fn validate_parameters(parameters: &At<'_, '_>, errors: &mut Errors) {
    validate_reference(parameters, errors);
    let (scope, namespace) = (parameters.field("scope"), parameters.field("namespace"));
    if !scope.is_set() {
        errors.required(scope, "");
        return;
    }
    match scope.str() {
        "Namespace" if !namespace.is_set() => {
            errors.required(namespace, "`parameters.scope` is set to 'Namespace'");
        }
        "Namespace" => errors.problems(&namespace, dns_label(namespace.str())),
        "Cluster" => {
            if namespace.is_set() {
                errors.forbidden(namespace, "`parameters.scope` is set to 'Cluster'");
            }
        }
        _ => errors.unsupported(&scope, &["Cluster", "Namespace"]),
    }
}
