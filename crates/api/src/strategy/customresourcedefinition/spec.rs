//! The spec of a definition: group, names, versions, subresources, columns, conversion.

use std::collections::HashSet;

use serde_json::Value;

use super::{defaults, schema, structural};
use crate::validation::{self, Errors};

/// What an update does not have to satisfy because the present definition does not either.
pub(super) struct Options<'a> {
    /// The present spec, of an update.
    pub old: Option<&'a Value>,
    pub check_ca_bundle: bool,
    pub require_review_version: bool,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            old: None,
            check_ca_bundle: false,
            require_review_version: true,
        }
    }
}

impl<'a> Options<'a> {
    pub(super) fn of_update(old: &'a Value, established: bool) -> Self {
        let versions = old["conversion"]["webhook"]["conversionReviewVersions"].as_array();
        let client = &old["conversion"]["webhook"]["clientConfig"];
        Self {
            old: Some(old),
            check_ca_bundle: established && is_pem(&client["caBundle"]),
            require_review_version: versions
                .is_none_or(|v| v.is_empty() || v.iter().any(|v| v == "v1" || v == "v1beta1")),
        }
    }
}

pub(super) const SELECTABLE_FIELDS: usize = 8;

const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] = [
    "byte",
    "date",
    "date-time",
    "double",
    "float",
    "int32",
    "int64",
    "password",
];

pub(super) fn validate(spec: &Value, options: &Options<'_>, errors: &mut Errors) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let group = text(&spec["group"]);
    let problems = validation::dns_subdomain(&group);
    if group.is_empty() {
        errors.required("spec.group", "");
    } else if !problems.is_empty() {
        errors.invalid("spec.group", &spec["group"], &problems.join(","));
    } else if !group.contains('.') {
        errors.invalid(
            "spec.group",
            &spec["group"],
            "should be a domain with at least one dot",
        );
    }
    enumeration(
        errors,
        "spec.scope",
        &spec["scope"],
        &["Cluster", "Namespaced"],
    );
    let versions: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
    validate_versions(spec, &versions, options, errors);
    let names = &spec["names"];
    for name in ["plural", "singular", "kind", "listKind"] {
        if text(&names[name]).is_empty() {
            errors.required(format!("spec.names.{name}"), "");
        }
    }
    validate_names(names, "spec.names", errors);
    validate_conversion(&spec["conversion"], options, errors);
}

fn enumeration(errors: &mut Errors, field: &str, value: &Value, allowed: &[&str]) {
    match value.as_str().unwrap_or_default() {
        "" => errors.required(field, ""),
        text if allowed.contains(&text) => {}
        _ => errors.not_supported(field, value, allowed),
    }
}

/// Names of a definition's spec or those that its status accepts.
pub(super) fn validate_names(names: &Value, at: &str, errors: &mut Errors) {
    let label = |name: &str, field: &str, errors: &mut Errors| {
        let problems = validation::dns_1035_label(name);
        if !problems.is_empty() {
            errors.invalid(field, &name.into(), &problems.join(","));
        }
    };
    let mixed = |name: &str, field: &str, errors: &mut Errors| {
        let problems = validation::dns_1035_label(&name.to_lowercase());
        if !problems.is_empty() {
            let problems = problems.join(",");
            let detail = format!("may have mixed case, but should otherwise match: {problems}");
            errors.invalid(field, &name.into(), &detail);
        }
    };
    for field in ["plural", "singular"] {
        if let Some(name) = names[field].as_str().filter(|n| !n.is_empty()) {
            label(name, &format!("{at}.{field}"), errors);
        }
    }
    for field in ["kind", "listKind"] {
        if let Some(name) = names[field].as_str().filter(|n| !n.is_empty()) {
            mixed(name, &format!("{at}.{field}"), errors);
        }
    }
    let list = |field: &str, errors: &mut Errors| {
        for (i, name) in names[field].as_array().into_iter().flatten().enumerate() {
            label(
                name.as_str().unwrap_or_default(),
                &format!("{at}.{field}[{i}]"),
                errors,
            );
        }
    };
    list("shortNames", errors);
    let kind = names["kind"].as_str().unwrap_or_default();
    if !kind.is_empty() && names["kind"] == names["listKind"] {
        let detail = "kind and listKind may not be the same";
        errors.invalid(format!("{at}.listKind"), &names["listKind"], detail);
    }
    list("categories", errors);
}

/// Upstream speaks of what all versions have in common as if it stood at the top level of the spec.
fn is_shared(versions: &[&Value], field: &str) -> bool {
    let first = versions.first().map_or(&Value::Null, |v| &v[field]);
    !first.is_null() && versions.iter().all(|v| v[field] == *first)
}

fn validate_versions(
    spec: &Value,
    versions: &[&Value],
    options: &Options<'_>,
    errors: &mut Errors,
) {
    for (i, version) in versions.iter().enumerate() {
        if !version["schema"]["openAPIV3Schema"].is_object() {
            errors.required(format!("spec.versions[{i}].schema.openAPIV3Schema"), "");
        }
    }
    let at = |i: usize, field: &str, shared: &str| {
        if is_shared(versions, field) {
            (i == 0).then(|| format!("spec.{shared}"))
        } else {
            Some(format!("spec.versions[{i}].{field}"))
        }
    };
    let (mut names, mut unique, mut storage) = (HashSet::new(), true, 0);
    for (i, version) in versions.iter().enumerate() {
        let name = version["name"].as_str().unwrap_or_default();
        storage += usize::from(version["storage"] == true);
        unique &= names.insert(name);
        let problems = validation::dns_1035_label(name);
        if !problems.is_empty() {
            let field = format!("spec.versions[{i}].name");
            errors.invalid(&field, &version["name"], &problems.join(","));
        }
        validate_deprecation(
            version,
            &format!("spec.versions[{i}].deprecationWarning"),
            errors,
        );
        let own = &version["schema"]["openAPIV3Schema"];
        if let Some(field) = at(i, "schema", "validation").filter(|_| own.is_object()) {
            let old = options.old.and_then(|old| version_of(old, name));
            let context = schema::Context {
                has_status: version["subresources"]["status"].is_object(),
                old: old.map(|v| &v["schema"]["openAPIV3Schema"]),
            };
            validate_schema(own, &format!("{field}.openAPIV3Schema"), &context, errors);
        }
        if let Some(field) = at(i, "subresources", "subresources") {
            validate_scale(
                &version["subresources"]["scale"],
                &format!("{field}.scale"),
                errors,
            );
        }
        if let Some(field) = at(i, "additionalPrinterColumns", "additionalPrinterColumns") {
            let columns = version["additionalPrinterColumns"].as_array();
            for (j, column) in columns.into_iter().flatten().enumerate() {
                validate_column(column, &format!("{field}[{j}]"), errors);
            }
        }
        if let Some(field) = at(i, "selectableFields", "selectableFields") {
            let old = options.old.and_then(|old| version_of(old, name));
            let kept = old.is_some_and(|o| o["selectableFields"] == version["selectableFields"]);
            validate_selectable(version, &field, kept, errors);
        }
    }
    if !unique {
        let detail = "must contain unique version names";
        errors.invalid_as("spec.versions", &shown(spec), detail);
    }
    if storage != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.invalid_as("spec.versions", &shown(spec), detail);
    }
    // The first version is at the top level as well.
    let first = versions.first().map_or(&Value::Null, |v| &v["name"]);
    let problems = validation::dns_1035_label(first.as_str().unwrap_or_default());
    if first.as_str().is_some_and(|name| !name.is_empty()) && !problems.is_empty() {
        errors.invalid("spec.version", first, &problems.join(","));
    }
}

/// The versions as upstream's internal type holds them: what they have in common is elsewhere.
fn shown(spec: &Value) -> String {
    let Some(versions) = spec["versions"].as_array() else {
        return "null".to_owned();
    };
    let each = versions.iter().map(|version| {
        let flag = |field: &str| version[field] == true;
        let name = validation::quote(version["name"].as_str().unwrap_or_default());
        let warning = validation::go_json(&version["deprecationWarning"]);
        format!(
            "{{\"Name\":{name},\"Served\":{},\"Storage\":{},\"Deprecated\":{},\"DeprecationWarning\":{warning},\"Schema\":null,\"Subresources\":null,\"AdditionalPrinterColumns\":null,\"SelectableFields\":null}}",
            flag("served"),
            flag("storage"),
            flag("deprecated"),
        )
    });
    format!("[{}]", each.collect::<Vec<_>>().join(","))
}

fn version_of<'a>(spec: &'a Value, name: &str) -> Option<&'a Value> {
    spec["versions"]
        .as_array()?
        .iter()
        .find(|v| v["name"] == name)
}

fn validate_schema(own: &Value, field: &str, context: &schema::Context<'_>, errors: &mut Errors) {
    let before = errors.0.len();
    schema::validate_root(own, field, context, errors);
    let mut found = Errors::default();
    // What was structural stays so; a schema that never was may be kept.
    if !schema::anywhere(own, schema::keeps_nothing_unknown)
        && context
            .old
            .is_none_or(|old| structural::violations(old, "").is_empty())
    {
        let mut violations = structural::violations(own, field);
        found.0.append(&mut violations.0);
        if found.is_empty() {
            defaults::validate(own, field, &mut found);
        }
    }
    errors.0.append(&mut found.0);
    schema::validate(own, field, errors);
    if errors.0.len() == before && schema::anywhere(own, schema::names_its_dialect) {
        let detail = "OpenAPIV3Schema 'schema' is not supported";
        errors.invalid_text(field, "", detail);
    }
}

fn validate_deprecation(version: &Value, field: &str, errors: &mut Errors) {
    let warning = &version["deprecationWarning"];
    let Some(text) = warning.as_str() else { return };
    if version["deprecated"] != true {
        errors.invalid(field, warning, "can only be set for deprecated versions");
        return;
    }
    if text.len() > 256 {
        errors.invalid(field, warning, "must be <= 256 characters long");
    }
    if text.is_empty() {
        errors.invalid(field, warning, "must not be an empty string");
    }
    if let Some((i, _)) = text.char_indices().find(|(_, c)| c.is_control()) {
        let detail = format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {i}"
        );
        errors.invalid(field, warning, &detail);
    }
}

fn validate_scale(scale: &Value, field: &str, errors: &mut Errors) {
    if !scale.is_object() {
        return;
    }
    for (name, prefixes, where_) in [
        (
            "specReplicasPath",
            &[".spec."][..],
            "should be a json path under .spec",
        ),
        (
            "statusReplicasPath",
            &[".status."],
            "should be a json path under .status",
        ),
        (
            "labelSelectorPath",
            &[".spec.", ".status."],
            "should be a json path under either .spec or .status",
        ),
    ] {
        let path = scale[name].as_str().unwrap_or_default();
        let at = format!("{field}.{name}");
        if path.is_empty() {
            if name != "labelSelectorPath" {
                errors.required(&at, "");
            }
        } else if !path.starts_with('.') {
            errors.invalid(
                &at,
                &path.into(),
                "must be a simple json path starting with .",
            );
        } else if !prefixes.iter().any(|p| path.starts_with(p)) {
            errors.invalid(&at, &path.into(), where_);
        }
    }
}

fn validate_column(column: &Value, field: &str, errors: &mut Errors) {
    let text = |name: &str| column[name].as_str().unwrap_or_default();
    if text("name").is_empty() {
        errors.required(format!("{field}.name"), "");
    }
    let detail = format!("must be one of {}", COLUMN_TYPES.join(","));
    if text("type").is_empty() {
        errors.required(format!("{field}.type"), &detail);
    } else if !COLUMN_TYPES.contains(&text("type")) {
        errors.invalid(format!("{field}.type"), &column["type"], &detail);
    }
    if !text("format").is_empty() && !COLUMN_FORMATS.contains(&text("format")) {
        let detail = format!("must be one of {}", COLUMN_FORMATS.join(","));
        errors.invalid(format!("{field}.format"), &column["format"], &detail);
    }
    let path = text("jsonPath");
    if path.is_empty() {
        errors.required(format!("{field}.JSONPath"), "");
    } else if !path.starts_with('.') {
        let detail = "must be a simple json path starting with .";
        errors.invalid(format!("{field}.JSONPath"), &path.into(), detail);
    }
}

fn validate_selectable(version: &Value, field: &str, kept: bool, errors: &mut Errors) {
    let mut seen = HashSet::new();
    let fields = version["selectableFields"].as_array();
    for (i, selectable) in fields.into_iter().flatten().enumerate() {
        let at = format!("{field}[{i}].jsonPath");
        let value = &selectable["jsonPath"];
        let path = value.as_str().unwrap_or_default();
        if path.is_empty() {
            errors.required(&at, "");
            continue;
        }
        match schema::field_path(&version["schema"]["openAPIV3Schema"], path, false) {
            Err(why) => errors.invalid(&at, value, &format!("is an invalid path: {why}")),
            Ok(found) => {
                if found.names.first().is_some_and(|n| n == "metadata") {
                    errors.invalid(&at, value, "must not point to fields in metadata");
                }
                let ty = found.schema["type"].as_str().unwrap_or_default();
                if !["string", "boolean", "integer"].contains(&ty) {
                    errors.invalid(&at, value, "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.");
                }
                if !seen.insert(found.names.join(".")) {
                    errors.duplicate(&at, value);
                }
            }
        }
    }
    if seen.len() > SELECTABLE_FIELDS && !kept {
        let count = i64::try_from(seen.len()).unwrap_or(i64::MAX);
        errors.too_many(field, count, SELECTABLE_FIELDS as i64);
    }
}

fn validate_conversion(conversion: &Value, options: &Options<'_>, errors: &mut Errors) {
    if !conversion.is_object() {
        return;
    }
    const AT: &str = "spec.conversion";
    enumeration(
        errors,
        &format!("{AT}.strategy"),
        &conversion["strategy"],
        &["None", "Webhook"],
    );
    let webhook = &conversion["webhook"];
    let client = &webhook["clientConfig"];
    let client_field = format!("{AT}.webhookClientConfig");
    let versions_field = format!("{AT}.conversionReviewVersions");
    if conversion["strategy"] != "Webhook" {
        if client.is_object() {
            errors.forbidden(
                &client_field,
                "should not be set when strategy is not set to Webhook",
            );
        }
        if webhook["conversionReviewVersions"]
            .as_array()
            .is_some_and(|v| !v.is_empty())
        {
            errors.forbidden(
                &versions_field,
                "should not be set when strategy is not set to Webhook",
            );
        }
        return;
    }
    if client.is_object() {
        validation::webhook_client(errors, &client_field, client);
        if options.check_ca_bundle && client["caBundle"].is_string() && !is_pem(&client["caBundle"])
        {
            let detail = "unable to load root certificates: unable to parse bytes as PEM block";
            errors.invalid(
                format!("{client_field}.caBundle"),
                &client["caBundle"],
                detail,
            );
        }
    } else {
        errors.required(&client_field, "required when strategy is set to Webhook");
    }
    let versions: Vec<&Value> = webhook["conversionReviewVersions"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    validation::review_versions(
        errors,
        &versions_field,
        &versions,
        &["v1", "v1beta1"],
        options.require_review_version,
    );
}

/// Whether a base64 text holds a PEM certificate, or nothing at all.
#[must_use]
pub(super) fn is_pem(bundle: &Value) -> bool {
    use base64::Engine as _;
    let Some(text) = bundle.as_str().filter(|t| !t.is_empty()) else {
        return true;
    };
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .is_some_and(|pem| pem.contains("-----BEGIN CERTIFICATE-----"))
}
