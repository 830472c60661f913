//! Claims of persistent volumes, of their own and in templates.

use serde_json::{Value, json};

use super::{BETA_CLASS, BETA_CLASS_WARNING, VOLUME_MODES, validate_access_modes};
use crate::meta;
use crate::strategy::{MetaCheck, Strategy, copy_field, default_at};
use crate::validation::{
    At, Errors, SelectorOptions, dns_label, dns_subdomain, internal_diff, label_selector,
    label_selector_with, positive_quantity, qualified_name, quantity_of, quote, resource,
};

const RESIZE_STATUSES: &[&str] = &[
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

pub(in crate::strategy) struct PersistentVolumeClaim;

/// What an existing claim may keep.
#[derive(Clone, Copy, Default)]
pub(in crate::strategy) struct Options {
    invalid_label_values: bool,
    invalid_api_groups: bool,
}

impl Options {
    fn for_update(old: &Value) -> Self {
        let spec = &old["spec"];
        let mut errors = Errors::default();
        label_selector(&mut errors, &At::root(&spec["selector"]));
        Self {
            invalid_label_values: !errors.is_empty(),
            invalid_api_groups: ["dataSource", "dataSourceRef"]
                .iter()
                .any(|source| !spec[*source]["apiGroup"].is_null()),
        }
    }
}

/// Defaults of a claim's spec, wherever it is.
pub(in crate::strategy) fn default_spec(spec: &mut Value) {
    default_at(spec, &["volumeMode"], "Filesystem");
}

/// Static defaults of a claim that is embedded in another object.
pub(in crate::strategy) fn default_claim(claim: &mut Value) {
    default_at(claim, &["spec", "volumeMode"], "Filesystem");
    default_at(claim, &["status", "phase"], "Pending");
}

/// Validates a claim's spec.
pub(in crate::strategy) fn validate_spec(spec: &At<'_, '_>, options: Options, errors: &mut Errors) {
    let modes = spec.field("accessModes");
    if modes.is_empty() {
        errors.required(modes, "at least 1 access mode is required");
    }
    let selector_options = SelectorOptions {
        allow_invalid_values: options.invalid_label_values,
    };
    label_selector_with(errors, &spec.field("selector"), selector_options);
    validate_access_modes(&modes, errors);
    let storage = &spec.get("resources")["requests"]["storage"];
    let resources = spec.place("resources", spec.get("resources"));
    let place = resources.key("storage");
    if storage.is_null() {
        errors.required(place, "");
    } else {
        let name = format!("{place}");
        positive_quantity(errors, &At::named(storage, &name));
    }
    errors.optional_name(&spec.field("storageClassName"), dns_subdomain);
    errors.one_of_optional(&spec.field("volumeMode"), VOLUME_MODES);
    let (source, reference) = (spec.field("dataSource"), spec.field("dataSourceRef"));
    for at in [&source, &reference] {
        if at.is_set() {
            validate_source(at, options, errors);
        }
    }
    if reference.is_set() && !reference.text("namespace").is_empty() {
        if source.is_set() {
            let detail = "may not be specified when dataSourceRef.namespace is specified";
            errors.invalid_as(spec, "{}", detail);
        }
    } else if source.is_set() && reference.is_set() {
        let same = ["apiGroup", "kind", "name"]
            .iter()
            .all(|field| source.get(field) == reference.get(field));
        if !same {
            errors.invalid_as(spec, "{}", "must match dataSourceRef");
        }
    }
    errors.optional_name(&spec.field("volumeAttributesClassName"), dns_subdomain);
}

fn validate_source(at: &At<'_, '_>, options: Options, errors: &mut Errors) {
    let (name, kind, group) = (at.field("name"), at.field("kind"), at.field("apiGroup"));
    errors.required_text(&name);
    errors.required_text(&kind);
    if group.is_empty() && kind.str() != "PersistentVolumeClaim" {
        let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.invalid_text(at, kind.str(), detail);
    }
    if !options.invalid_api_groups {
        errors.optional_name(&group, dns_subdomain);
    }
    errors.optional_name(&at.field("namespace"), dns_label);
}

/// Bytes come in whole numbers.
pub(in crate::strategy) fn warnings(spec: &At<'_, '_>, warnings: &mut Vec<String>) {
    let resources = spec.field("resources");
    for kind in ["requests", "limits"] {
        let amounts = resources.field(kind);
        let at = amounts.key("storage");
        if let Some(quantity) = quantity_of(at.value()).filter(|q| q.millis() % 1000 != 0) {
            let value = quote(&quantity.to_string());
            warnings.push(format!(
                "{at}: fractional byte value {value} is invalid, must be an integer"
            ));
        }
    }
}

/// What may be a source as before there were others: claims and snapshots.
fn is_claim_or_snapshot(source: &Value) -> bool {
    let text = |field: &str| source[field].as_str().unwrap_or_default();
    matches!(
        (text("kind"), text("apiGroup")),
        ("PersistentVolumeClaim", "") | ("VolumeSnapshot", "snapshot.storage.k8s.io")
    )
}

/// Makes both ways of naming a source agree.
fn normalise_sources(object: &mut Value, old: Option<&Value>) {
    let Some(spec) = object["spec"].as_object_mut() else {
        return;
    };
    let has = |spec: &Value, field: &str| spec[field].is_object();
    let in_another_namespace = spec
        .get("dataSourceRef")
        .is_some_and(|r| r["namespace"].as_str().is_some_and(|n| !n.is_empty()));
    let old_has_reference = old.is_some_and(|o| has(&o["spec"], "dataSourceRef"));
    if in_another_namespace && !old_has_reference {
        spec.remove("dataSourceRef");
    }
    let old_has_source = old_has_reference || old.is_some_and(|o| has(&o["spec"], "dataSource"));
    let has_reference = spec.get("dataSourceRef").is_some_and(Value::is_object);
    if !old_has_source
        && !has_reference
        && spec
            .get("dataSource")
            .is_some_and(|s| !is_claim_or_snapshot(s))
    {
        spec.remove("dataSource");
    }
    let (source, reference) = (
        spec.get("dataSource").cloned(),
        spec.get("dataSourceRef").cloned(),
    );
    match (source, reference) {
        (Some(source), None) => {
            spec.insert("dataSourceRef".into(), source);
        }
        (None, Some(mut reference))
            if reference["namespace"].as_str().is_none_or(str::is_empty) =>
        {
            if let Some(map) = reference.as_object_mut() {
                map.remove("namespace");
            }
            spec.insert("dataSource".into(), reference);
        }
        _ => {}
    }
}

/// Whether an update only turns the annotation that used to name the class into the field.
fn upgrades_class_annotation(new: &Value, old: &Value) -> bool {
    let class = |o: &Value| o["spec"]["storageClassName"].as_str().map(str::to_owned);
    let annotated = meta::annotation(old, BETA_CLASS);
    annotated.is_some()
        && class(old).is_none()
        && class(new).as_deref() == annotated
        && meta::annotation(new, BETA_CLASS).is_none_or(|a| Some(a) == annotated)
}

/// Whether an update only says which class a claim without one has.
fn sets_class(new: &Value, old: &Value) -> bool {
    let class = new["spec"]["storageClassName"].as_str();
    class.is_some()
        && old["spec"]["storageClassName"].is_null()
        && meta::annotation(old, BETA_CLASS).is_none_or(|a| Some(a) == class)
}

fn validate_immutable_spec(object: &Value, old: &Value, errors: &mut Errors) {
    let (mut new, mut before) = (object["spec"].clone(), old["spec"].clone());
    if before["volumeName"].as_str().is_none_or(str::is_empty) {
        copy_field(&mut before, &object["spec"], "volumeName");
    }
    if upgrades_class_annotation(object, old) {
        copy_field(&mut new, &before, "storageClassName");
    } else {
        let annotation = |o: &Value| {
            meta::annotation(o, BETA_CLASS)
                .unwrap_or_default()
                .to_owned()
        };
        if annotation(object) != annotation(old) {
            errors.invalid_text(
                format!("metadata.annotations.{BETA_CLASS}"),
                &annotation(object),
                "field is immutable",
            );
        }
        if sets_class(object, old) {
            copy_field(&mut new, &before, "storageClassName");
        }
    }
    let storage = &old["spec"]["resources"]["requests"]["storage"];
    if object["status"]["phase"] == "Bound" {
        if new["resources"]["requests"].is_object() {
            new["resources"]["requests"]["storage"] = storage.clone();
        }
        copy_field(&mut new, &before, "volumeAttributesClassName");
    }
    if new != before {
        let diff = internal_diff(
            "io.k8s.api.core.v1.PersistentVolumeClaimSpec",
            &before,
            &new,
        );
        let detail = format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{diff}"
        );
        errors.forbidden("spec", &detail);
    }
    let size = |v: &Value| quantity_of(v);
    let wanted = size(&object["spec"]["resources"]["requests"]["storage"]);
    let have = size(&old["status"]["capacity"]["storage"]);
    let zero = crate::quantity::Quantity::ZERO;
    if wanted.unwrap_or(zero) < size(storage).unwrap_or(zero)
        && wanted.unwrap_or(zero) <= have.unwrap_or(zero)
    {
        errors.forbidden(
            "spec.resources.requests.storage",
            "field can not be less than status.capacity",
        );
    }
    errors.immutable(
        "volumeMode",
        &object["spec"]["volumeMode"],
        &old["spec"]["volumeMode"],
    );
    let class = &object["spec"]["volumeAttributesClassName"];
    if *class != old["spec"]["volumeAttributesClassName"]
        && !old["status"]["currentVolumeAttributesClassName"].is_null()
    {
        let what = match class.as_str() {
            None => "nil",
            Some("") => "empty string",
            Some(_) => return,
        };
        let detail = format!(
            "update to {what} is forbidden when status.currentVolumeAttributesClassName is not nil"
        );
        errors.forbidden("spec.volumeAttributesClassName", &detail);
    }
}

impl Strategy for PersistentVolumeClaim {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
        normalise_sources(object, None);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "status");
        normalise_sources(object, Some(old));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        validate_spec(&root.field("spec"), Options::default(), errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        validate_spec(&root.field("spec"), Options::for_update(old), errors);
        validate_immutable_spec(object, old, errors);
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let status = root.field("status");
        if object["spec"]["accessModes"]
            .as_array()
            .is_none_or(Vec::is_empty)
        {
            errors.required("Spec.accessModes", "");
        }
        for (_, amount) in status.field("capacity").entries() {
            resource::basic_amount(errors, &amount);
        }
        let statuses = status.field("allocatedResourceStatuses");
        for (name, value) in statuses.map().into_iter().flatten() {
            resource_key(&statuses, name, errors);
            if !value.as_str().is_some_and(|v| RESIZE_STATUSES.contains(&v)) {
                errors.not_supported(statuses, &name.as_str().into(), RESIZE_STATUSES);
            }
        }
        let allocated = status.field("allocatedResources");
        for (name, amount) in allocated.entries() {
            if resource_key(&allocated, name, errors) {
                resource::basic_amount(errors, &amount);
            }
        }
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let root = At::root(object);
        let mut all = Vec::new();
        if meta::annotation(object, BETA_CLASS).is_some() {
            all.push(format!(
                "metadata.annotations[{BETA_CLASS}]: {BETA_CLASS_WARNING}"
            ));
        }
        warnings(&root.field("spec"), &mut all);
        all
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Update, MetaCheck::Whole]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

/// A resource that is resized: storage, or one that a driver has its own name for.
fn resource_key(at: &At<'_, '_>, name: &str, errors: &mut Errors) -> bool {
    let before = errors.len();
    for problem in qualified_name(name) {
        errors.invalid_text(at, name, &problem);
    }
    if errors.len() == before && resource::is_native(name) && name != "storage" {
        errors.not_supported(at, &name.into(), &["storage"]);
    }
    errors.len() == before
}
