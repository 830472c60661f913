//! What CSI drivers say of themselves, their nodes and their capacity.

use std::collections::HashSet;

use serde_json::Value;

use crate::strategy::template::volume::csi_driver_name;
use crate::strategy::template::warnings::deprecated_node_label;
use crate::strategy::{MetaCheck, Strategy};
use crate::validation::{
    At, Errors, SelectorOptions, dns_subdomain, internal, label_selector, label_selector_with,
    non_negative_quantity, qualified_name,
};

const MAX_NODE_ID: usize = 256;
const SHORTEST_TOKEN: i64 = 10 * 60;
const LONGEST_TOKEN: i64 = 1 << 32;
const TOKENS_WARNING: &str = "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes";

pub(in crate::strategy) struct CsiDriver;

impl CsiDriver {
    fn warns_of_tokens(object: &Value) -> bool {
        object["spec"]["tokenRequests"]
            .as_array()
            .is_some_and(|t| !t.is_empty())
            && object["spec"]["serviceAccountTokenInSecrets"].is_null()
    }
}

impl Strategy for CsiDriver {
    fn prepare_create(&self, object: &mut Value) {
        drop_field(object, "preventPodSchedulingIfMissing");
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        if old["spec"]["preventPodSchedulingIfMissing"].is_null() {
            drop_field(object, "preventPodSchedulingIfMissing");
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        for (field, called) in [
            ("attachRequired", "attachedRequired"),
            ("podInfoOnMount", "podInfoOnMount"),
            ("storageCapacity", "storageCapacity"),
        ] {
            let at = spec.field_as(field, called);
            if !at.is_set() {
                errors.required(at, "");
            }
        }
        errors.one_of_optional(
            &spec.field("fsGroupPolicy"),
            &["File", "None", "ReadWriteOnceWithFSType"],
        );
        validate_token_requests(&spec.field("tokenRequests"), errors);
        let modes = spec.field("volumeLifecycleModes");
        for mode in modes.list() {
            errors.one_of(modes, mode, &["Persistent", "Ephemeral"]);
        }
        let selinux = spec.field("seLinuxMount");
        if !selinux.is_set() {
            errors.required(selinux, "");
        }
        let period = spec.field("nodeAllocatableUpdatePeriodSeconds");
        if period.int().is_some_and(|n| n < 10) {
            errors.bad(&period, "must be greater than or equal to 10 seconds");
        }
        let in_secrets = spec.field("serviceAccountTokenInSecrets");
        if in_secrets.is_set() && spec.field("tokenRequests").is_empty() {
            let detail = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
            errors.bad(&in_secrets, detail);
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let (new, before) = (&object["spec"], &old["spec"]);
        for (field, called) in [
            ("attachRequired", "spec.attachedRequired"),
            ("volumeLifecycleModes", "spec.volumeLifecycleModes"),
        ] {
            errors.immutable(called, &new[field], &before[field]);
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let same = |o: &Value| o["spec"]["tokenRequests"] == object["spec"]["tokenRequests"];
        if Self::warns_of_tokens(object) && !old.is_some_and(same) {
            vec![TOKENS_WARNING.to_owned()]
        } else {
            Vec::new()
        }
    }

    fn has_generation(&self) -> bool {
        false
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn drop_field(object: &mut Value, field: &str) {
    if let Some(spec) = object["spec"].as_object_mut() {
        spec.remove(field);
    }
}

fn validate_token_requests(requests: &At<'_, '_>, errors: &mut Errors) {
    let mut audiences = Vec::new();
    for request in requests.items() {
        let audience = request.field("audience");
        if audiences.contains(&audience.str()) {
            errors.duplicate(audience, &audience.str().into());
            continue;
        }
        audiences.push(audience.str());
        let expiration = request.field("expirationSeconds");
        let Some(seconds) = expiration.int() else {
            continue;
        };
        if seconds < SHORTEST_TOKEN {
            errors.bad(
                &expiration,
                "may not specify a duration less than 10 minutes",
            );
        }
        if seconds > LONGEST_TOKEN {
            errors.bad(
                &expiration,
                "may not specify a duration larger than 2^32 seconds",
            );
        }
    }
}

pub(in crate::strategy) struct CsiNode;

impl Strategy for CsiNode {
    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        let mut names = HashSet::new();
        for driver in spec.field("drivers").items() {
            let (name, id) = (driver.field("name"), driver.field("nodeID"));
            csi_driver_name(&name, errors);
            errors.required_text(&id);
            if id.str().len() > MAX_NODE_ID {
                errors.bad(&id, "must be 256 characters or less");
            }
            let allocatable = driver.field("allocatable");
            errors.non_negative(&allocatable.field("count"));
            if !names.insert(name.str()) {
                errors.duplicate(name, &name.str().into());
            }
            let mut keys = HashSet::new();
            for key in driver.field("topologyKeys").items() {
                if key.is_empty() {
                    errors.required(driver, "");
                }
                if !keys.insert(key.str()) {
                    errors.duplicate(driver, &key.str().into());
                }
                for problem in qualified_name(key.str()) {
                    errors.invalid_text(driver, key.str(), &problem);
                }
            }
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let drivers = |o: &Value| o["spec"]["drivers"].as_array().cloned().unwrap_or_default();
        let fixed = |driver: &Value| {
            let mut driver = driver.clone();
            if let Some(map) = driver.as_object_mut() {
                map.remove("allocatable");
            }
            driver
        };
        for before in drivers(old) {
            for driver in drivers(object)
                .iter()
                .filter(|d| d["name"] == before["name"])
            {
                if fixed(driver) != fixed(&before) {
                    let shown = internal("io.k8s.api.storage.v1.CSINodeDriver", &fixed(driver));
                    errors.invalid_as("spec.drivers", &shown, "field is immutable");
                }
            }
        }
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

pub(in crate::strategy) struct CsiStorageCapacity;

impl CsiStorageCapacity {
    fn validate_with(object: &Value, options: SelectorOptions, errors: &mut Errors) {
        let root = At::root(object);
        label_selector_with(errors, &root.field("nodeTopology"), options);
        let class = root.field("storageClassName");
        errors.problems(&class, dns_subdomain(class.str()));
        non_negative_quantity(errors, &root.field("capacity"));
    }
}

impl Strategy for CsiStorageCapacity {
    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        Self::validate_with(object, SelectorOptions::default(), errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let mut found = Errors::default();
        label_selector(&mut found, &At::root(&old["nodeTopology"]));
        let options = SelectorOptions {
            allow_invalid_values: !found.is_empty(),
        };
        Self::validate_with(object, options, errors);
        for field in ["nodeTopology", "storageClassName"] {
            errors.immutable(field, &object[field], &old[field]);
        }
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let root = At::root(object);
        let topology = root.field("nodeTopology");
        let mut warnings = Vec::new();
        for expression in topology.field("matchExpressions").items() {
            let key = expression.field("key");
            if let Some(why) = deprecated_node_label(key.str()) {
                warnings.push(format!("{key}: {} is {why}", key.str()));
            }
        }
        let labels = topology.field("matchLabels");
        for key in labels.map().into_iter().flat_map(|m| m.keys()) {
            if let Some(why) = deprecated_node_label(key) {
                warnings.push(format!("{}: {why}", labels.field(key)));
            }
        }
        warnings
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole, MetaCheck::Update]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}
