//! Volumes of pods, and the sources that persistent volumes share with them.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::environment::{VOLUME_FIELDS, validate_field_ref, validate_resource_field_ref};
use super::options::Options;
use super::projected;
use crate::strategy::storage::claim;
use crate::validation::{
    At, Errors, annotations, descending_path, dns_label, dns_subdomain, labels, no_backsteps,
    non_reserved_path, pattern, quantity_of,
};

/// How one type of volume is validated.
pub(in crate::strategy) type Validate = fn(&At<'_, '_>, &Options, &mut Errors);

/// A type of volume: its field, what errors inside it and about a second type call it, and its rules.
pub(in crate::strategy) struct Kind {
    pub field: &'static str,
    pub called: &'static str,
    /// What errors call it when another kind is there already; nothing when that is not minded.
    pub when_second: &'static str,
    pub validate: Validate,
}

const fn kind(field: &'static str, validate: Validate) -> Kind {
    Kind {
        field,
        called: field,
        when_second: field,
        validate,
    }
}

/// In the order in which upstream looks at them.
const KINDS: &[Kind] = &[
    kind("emptyDir", empty_dir),
    kind("hostPath", host_path),
    kind("gitRepo", git_repo),
    GCE_PERSISTENT_DISK,
    kind("awsElasticBlockStore", aws_elastic_block_store),
    kind("secret", |at, _, e| keyed(at, "secretName", e)),
    kind("nfs", nfs),
    kind("iscsi", iscsi),
    kind("glusterfs", |at, _, e| need(at, &["endpoints", "path"], e)),
    kind("flocker", flocker),
    kind("persistentVolumeClaim", |at, _, e| {
        need(at, &["claimName"], e)
    }),
    kind("rbd", |at, _, e| need(at, &["monitors", "image"], e)),
    kind("cinder", |at, _, e| {
        need(at, &["volumeID"], e);
        need_of_reference(&at.field("secretRef"), &["name"], e);
    }),
    CEPH_FS,
    kind("quobyte", quobyte),
    Kind {
        field: "downwardAPI",
        called: "downwardAPI",
        when_second: "downwarAPI",
        validate: downward_api,
    },
    kind("fc", fibre_channel),
    kind("flexVolume", flex),
    kind("configMap", |at, _, e| keyed(at, "name", e)),
    kind("azureFile", |at, _, e| {
        need(at, &["secretName", "shareName"], e)
    }),
    kind("vsphereVolume", |at, _, e| need(at, &["volumePath"], e)),
    kind("photonPersistentDisk", |at, _, e| need(at, &["pdID"], e)),
    kind("portworxVolume", |at, _, e| need(at, &["volumeID"], e)),
    kind("azureDisk", azure_disk),
    kind("storageos", storage_os),
    kind("projected", projected::validate),
    kind("scaleIO", scale_io),
    kind("csi", csi),
    kind("ephemeral", ephemeral),
    kind("image", image),
];

pub(in crate::strategy) const GCE_PERSISTENT_DISK: Kind = Kind {
    field: "gcePersistentDisk",
    called: "persistentDisk",
    when_second: "gcePersistentDisk",
    validate: gce_persistent_disk,
};

/// In persistent volumes too: their monitors are all that is asked for.
pub(in crate::strategy) const CEPH_FS: Kind = Kind {
    field: "cephfs",
    called: "cephfs",
    when_second: "cephFS",
    validate: |at, _, e| need(at, &["monitors"], e),
};

const SECOND: &str = "may not specify more than 1 volume type";
const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const MAX_MODE: i64 = 0o777;
const ISCSI_NAME: usize = 64;
const ISCSI_LENGTH: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";

/// Validates all volumes and returns the valid ones, by which mounts find them.
pub(super) fn validate_all<'v>(
    volumes: &At<'v, '_>,
    metadata: Option<&Value>,
    options: &Options,
    errors: &mut Errors,
) -> HashMap<&'v str, &'v Value> {
    let pod = metadata
        .and_then(|m| m["name"].as_str())
        .unwrap_or_default();
    let mut valid: HashMap<&str, &Value> = HashMap::new();
    for volume in volumes.items() {
        let before = errors.len();
        let name = volume.field("name");
        validate_source(&volume, pod, options, errors);
        errors.required_name(&name, dns_label);
        if valid.contains_key(name.str()) {
            errors.duplicate(name, name.value());
        }
        if errors.len() == before {
            valid.insert(name.str(), volume.value());
        }
        let claims = volume.field("persistentVolumeClaim");
        let claim = claims.field("claimName");
        let made_for = claim
            .str()
            .strip_prefix(pod)
            .and_then(|rest| rest.strip_prefix('-'));
        if let Some(made_for) = made_for.filter(|_| !pod.is_empty()) {
            let ephemeral = |v: &Value| v["name"] == made_for && v["ephemeral"].is_object();
            if volumes.list().iter().any(ephemeral) {
                let detail = "must not reference a PVC that gets created for an ephemeral volume";
                errors.bad(&claim, detail);
            }
        }
    }
    valid
}

fn validate_source(volume: &At<'_, '_>, pod: &str, options: &Options, errors: &mut Errors) {
    let name = volume.field("name");
    let count = validate_kinds(volume, KINDS, options, errors, |kind, errors| match kind {
        "iscsi" => {
            let portal = volume.get("iscsi")["targetPortal"]
                .as_str()
                .unwrap_or_default();
            let length = name.str().len() + 1 + portal.len();
            if volume.get("iscsi")["initiatorName"].is_string() && length > ISCSI_NAME {
                errors.bad(&name, ISCSI_LENGTH);
            }
        }
        "ephemeral" if !pod.is_empty() && !name.is_empty() => {
            let claim = format!("{pod}-{}", name.str());
            for problem in dns_subdomain(&claim) {
                errors.bad(&name, &format!("PVC name \"{claim}\": {problem}"));
            }
        }
        _ => {}
    });
    if count == 0 {
        errors.required(volume, "must specify a volume type");
    }
}

/// Validates the first type that is there, forbids the others, and returns how many there are. `after` adds what
/// depends on more than the source.
pub(in crate::strategy) fn validate_kinds(
    holder: &At<'_, '_>,
    kinds: &[Kind],
    options: &Options,
    errors: &mut Errors,
    after: impl Fn(&str, &mut Errors),
) -> usize {
    let mut count = 0;
    for kind in kinds {
        let source = holder.field_as(kind.field, kind.called);
        if !source.is_set() {
            continue;
        }
        count += 1;
        if count == 1 || kind.when_second.is_empty() {
            (kind.validate)(&source, options, errors);
            after(kind.field, errors);
        } else {
            errors.forbidden(holder.field(kind.when_second), SECOND);
            if kind.field == "iscsi" {
                after(kind.field, errors);
            }
        }
    }
    count
}

/// Fields that must not be empty.
pub(in crate::strategy) fn need(at: &At<'_, '_>, fields: &[&str], errors: &mut Errors) {
    for field in fields {
        let at = at.field(field);
        if at.is_empty() {
            errors.required(at, "");
        }
    }
}

/// Fields of a reference that must not be empty, if there is a reference.
pub(in crate::strategy) fn need_of_reference(
    reference: &At<'_, '_>,
    fields: &[&str],
    errors: &mut Errors,
) {
    if reference.is_set() {
        need(reference, fields, errors);
    }
}

pub(super) fn mode(at: &At<'_, '_>, errors: &mut Errors) {
    if at.int().is_some_and(|m| !(0..=MAX_MODE).contains(&m)) {
        errors.bad(at, MODE);
    }
}

fn empty_dir(at: &At<'_, '_>, _: &Options, errors: &mut Errors) {
    let limit = at.field("sizeLimit");
    if quantity_of(limit.value()).is_some_and(|q| q.is_negative()) {
        errors.forbidden(limit, "SizeLimit field must be a valid resource quantity");
    }
}

pub(in crate::strategy) fn host_path(at: &At<'_, '_>, _: &Options, errors: &mut Errors) {
    let path = at.field("path");
    if path.is_empty() {
        errors.required(path, "");
        return;
    }
    no_backsteps(errors, &path);
    errors.one_of_optional(
        &at.field("type"),
        &[
            "",
            "BlockDevice",
            "CharDevice",
            "Directory",
            "DirectoryOrCreate",
            "File",
            "FileOrCreate",
            "Socket",
        ],
    );
}

fn git_repo(at: &At<'_, '_>, _: &Options, errors: &mut Errors) {
    need(at, &["repository"], errors);
    descending_path(errors, &at.field("directory"));
}

fn partition(at: &At<'_, '_>, errors: &mut Errors) {
    let partition = at.field("partition");
    if partition.int().is_some_and(|n| !(0..=255).contains(&n)) {
        errors.bad(&partition, "must be between 1 and 255, inclusive");
    }
}

fn gce_persistent_disk(at: &At<'_, '_>, _: &Options, errors: &mut Errors) {
    need(at, &["pdName"], errors);
    partition(at, errors);
}

pub(in crate::strategy) fn aws_elastic_block_store(
    at: &At<'_, '_>,
    _: &Options,
    errors: &mut Errors,
) {
    need(at, &["volumeID"], errors);
    partition(at, errors);
}

/// A secret or configuration, some of whose keys become files.
fn keyed(at: &At<'_, '_>, name: &str, errors: &mut Errors) {
    need(at, &[name], errors);
    mode(&at.field("defaultMode"), errors);
    for item in at.field("items").items() {
        key_to_path(&item, errors);
    }
}

pub(super) fn key_to_path(item: &At<'_, '_>, errors: &mut Errors) {
    need(item, &["key", "path"], errors);
    non_reserved_path(errors, &item.field("path"));
    mode(&item.field("mode"), errors);
}

pub(in crate::strategy) fn nfs(at: &At<'_, '_>, _: &Options, errors: &mut Errors) {
    need(at, &["server", "path"], errors);
    let path = at.field("path");
    if !path.str().starts_with('/') {
        errors.bad(&path, "must be an absolute path");
    }
}

static IQN: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"iqn\.\d{4}-\d{2}\.([[:alnum:]\-.]+)(:[^,;*&$|\s]+)$"));
static EUI: LazyLock<Regex> = LazyLock::new(|| pattern("^eui.[[:alnum:]]{16}$"));
static NAA: LazyLock<Regex> = LazyLock::new(|| pattern("^naa.[[:alnum:]]{32}$"));

/// Whether an iSCSI name is fine; `None` when it does not even start like one.
fn iscsi_name(name: &str) -> Option<bool> {
    let rules: [(&str, &LazyLock<Regex>); 3] = [("iqn", &IQN), ("eui", &EUI), ("naa", &NAA)];
    let (_, rule) = rules.iter().find(|(prefix, _)| name.starts_with(prefix))?;
    Some(rule.is_match(name))
}

fn iscsi(at: &At<'_, '_>, _: &Options, errors: &mut Errors) {
    validate_iscsi(
        at,
        "must be valid format starting with iqn, eui, or naa",
        errors,
        |_| {},
    );
}

/// `how_it_starts` is what is said of a name that starts with nothing known; `between` adds what comes after the portal.
pub(in crate::strategy) fn validate_iscsi(
    at: &At<'_, '_>,
    how_it_starts: &str,
    errors: &mut Errors,
    between: impl Fn(&mut Errors),
) {
    let name = |at: &At<'_, '_>, errors: &mut Errors| match iscsi_name(at.str()) {
        None => errors.bad(at, how_it_starts),
        Some(false) => errors.bad(at, "must be valid format"),
        Some(true) => {}
    };
    need(at, &["targetPortal"], errors);
    between(errors);
    let iqn = at.field("iqn");
    if iqn.is_empty() {
        errors.required(iqn, "");
    } else {
        name(&iqn, errors);
    }
    errors.in_range(&at.field("lun"), 0, 255);
    let chap = ["chapAuthDiscovery", "chapAuthSession"];
    let secret = at.field("secretRef");
    if chap.iter().any(|c| at.field(c).is_true()) && !secret.is_set() {
        errors.required(secret, "");
    }
    let initiator = at.field_as("initiatorName", "initiatorname");
    if initiator.is_set() {
        name(&initiator, errors);
    }
}

pub(in crate::strategy) fn flocker(at: &At<'_, '_>, _: &Options, errors: &mut Errors) {
    let (name, uuid) = (at.field("datasetName"), at.field("datasetUUID"));
    match (name.is_empty(), uuid.is_empty()) {
        (true, true) => errors.required(at, "one of datasetName and datasetUUID is required"),
        (false, false) => errors.invalid_text(
            at,
            "resource",
            "datasetName and datasetUUID can not be specified simultaneously",
        ),
        _ => {}
    }
    if name.str().contains('/') {
        errors.bad(&name, "must not contain '/'");
    }
}

pub(in crate::strategy) fn quobyte(at: &At<'_, '_>, _: &Options, errors: &mut Errors) {
    const FORM: &str = "must be a host:port pair or multiple pairs separated by commas";
    let (registry, tenant) = (at.field("registry"), at.field("tenant"));
    if registry.is_empty() {
        errors.required(registry, FORM);
    } else if tenant.str().len() >= 65 {
        let detail = "must be a UUID and may not exceed a length of 64 characters";
        errors.required(tenant, detail);
    } else {
        let wrong = registry
            .str()
            .split(',')
            .filter(|pair| !is_host_port(pair))
            .count();
        for _ in 0..wrong {
            errors.bad(&registry, FORM);
        }
    }
    need(at, &["volume"], errors);
}

/// `host:port` or `[host]:port`, both of which may be anything.
fn is_host_port(text: &str) -> bool {
    match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').is_some_and(|(host, port)| {
            port.starts_with(':') && port.matches(':').count() == 1 && !host.contains(['[', ']'])
        }),
        None => text.matches(':').count() == 1 && !text.contains(['[', ']']),
    }
}

fn downward_api(at: &At<'_, '_>, _: &Options, errors: &mut Errors) {
    mode(&at.field("defaultMode"), errors);
    for file in at.field("items").list() {
        downward_api_file(at, file, errors);
    }
}

/// A file of the downward API; errors do not say which of the volume's.
pub(super) fn downward_api_file(volume: &At<'_, '_>, file: &Value, errors: &mut Errors) {
    let path = volume.place("path", &file["path"]);
    errors.required_text(&path);
    non_reserved_path(errors, &path);
    let field = volume.place("fieldRef", &file["fieldRef"]);
    let resource = volume.place("resourceFieldRef", &file["resourceFieldRef"]);
    if field.is_set() {
        validate_field_ref(&field, VOLUME_FIELDS, errors);
        if resource.is_set() {
            errors.invalid_text(
                volume,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            );
        }
    } else if resource.is_set() {
        validate_resource_field_ref(&resource, true, errors);
    } else {
        errors.required(volume, "one of fieldRef and resourceFieldRef is required");
    }
    mode(&volume.place("mode", &file["mode"]), errors);
}

pub(in crate::strategy) fn fibre_channel(at: &At<'_, '_>, _: &Options, errors: &mut Errors) {
    let (targets, ids, lun) = (at.field("targetWWNs"), at.field("wwids"), at.field("lun"));
    match (targets.is_empty(), ids.is_empty()) {
        (true, true) => {
            let detail = "must specify either targetWWNs or wwids, but not both";
            errors.required(targets, detail);
        }
        (false, false) => {
            let detail = "targetWWNs and wwids can not be specified simultaneously";
            errors.bad(&targets, detail);
        }
        _ => {}
    }
    if !targets.is_empty() {
        if lun.is_set() {
            errors.in_range(&lun, 0, 255);
        } else {
            errors.required(lun, "lun is required if targetWWNs is specified");
        }
    }
}

pub(in crate::strategy) fn flex(at: &At<'_, '_>, _: &Options, errors: &mut Errors) {
    need(at, &["driver"], errors);
    let options = at.field("options");
    for (key, option) in options.entries() {
        let domain = key.split_once('/').map_or(key, |(domain, _)| domain);
        let domain = format!(".{}", domain.to_lowercase());
        if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
            let detail = "kubernetes.io and k8s.io namespaces are reserved";
            errors.invalid_text(option, key, detail);
        }
    }
}

pub(in crate::strategy) fn azure_disk(at: &At<'_, '_>, _: &Options, errors: &mut Errors) {
    need(at, &["diskName", "diskURI"], errors);
    errors.one_of_optional(&at.field("cachingMode"), &["None", "ReadOnly", "ReadWrite"]);
    let (kind, uri) = (at.field("kind"), at.field("diskURI"));
    errors.one_of_optional(&kind, &["Dedicated", "Managed", "Shared"]);
    match kind.str() {
        "Managed" if !uri.str().starts_with("/subscriptions/") => errors.unsupported(
            &uri,
            &["/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"],
        ),
        "Managed" => {}
        _ if kind.is_set() && !uri.str().starts_with("https://") => errors.unsupported(
            &uri,
            &["https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"],
        ),
        _ => {}
    }
}

fn storage_os(at: &At<'_, '_>, _: &Options, errors: &mut Errors) {
    storage_os_names(at, errors);
    need_of_reference(&at.field("secretRef"), &["name"], errors);
}

pub(in crate::strategy) fn storage_os_names(at: &At<'_, '_>, errors: &mut Errors) {
    errors.required_name(&at.field("volumeName"), dns_label);
    errors.optional_name(&at.field("volumeNamespace"), dns_label);
}

pub(in crate::strategy) fn scale_io(at: &At<'_, '_>, _: &Options, errors: &mut Errors) {
    need(at, &["gateway", "system", "volumeName"], errors);
}

/// The name of a CSI driver.
pub(in crate::strategy) fn csi_driver_name(at: &At<'_, '_>, errors: &mut Errors) {
    const MAX: usize = 63;
    if at.is_empty() {
        errors.required(at, "");
        return;
    }
    if at.str().len() > MAX {
        errors.too_long(at, MAX);
    }
    errors.problems(at, dns_subdomain(&at.str().to_lowercase()));
}

fn csi(at: &At<'_, '_>, _: &Options, errors: &mut Errors) {
    csi_driver_name(&at.field("driver"), errors);
    let secret = at.field("nodePublishSecretRef");
    if secret.is_set() {
        let name = secret.field("name");
        if name.is_empty() {
            errors.required(name, "");
        }
        let misplaced = at.place("name", name.value());
        errors.optional_name(&misplaced, dns_subdomain);
    }
}

/// What the metadata of a claim's template may not have, in the order of the type's fields.
const NOT_IN_TEMPLATE: [&str; 13] = [
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

fn ephemeral(at: &At<'_, '_>, _: &Options, errors: &mut Errors) {
    let template = at.field("volumeClaimTemplate");
    if !template.is_set() {
        errors.required(template, "");
        return;
    }
    template_metadata(&template.field("metadata"), errors);
    claim::validate_spec(&template.field("spec"), claim::Options::default(), errors);
}

/// Metadata of a template: labels and annotations only.
pub(in crate::strategy) fn template_metadata(metadata: &At<'_, '_>, errors: &mut Errors) {
    annotations(errors, &metadata.field("annotations"));
    labels(errors, &metadata.field("labels"));
    for field in NOT_IN_TEMPLATE {
        let called = if field == "uid" { "uID" } else { field };
        let at = metadata.field_as(field, called);
        if !at.is_empty() {
            errors.forbidden(at, "cannot be set");
        }
    }
}

fn image(at: &At<'_, '_>, options: &Options, errors: &mut Errors) {
    if options.is_pod {
        need(at, &["reference"], errors);
    }
    let policies = &["Always", "IfNotPresent", "Never"];
    errors.one_of_required(&at.field("pullPolicy"), policies);
}
