//! Classes of devices.

use serde_json::Value;

use super::{MAX_CONFIG, configuration, is_within, selectors};
use crate::strategy::{MetaCheck, Strategy};
use crate::validation::{At, Errors, resource};

pub(in crate::strategy) struct DeviceClass;

fn validate(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let root = At::root(object);
    let spec = root.field("spec");
    selectors(&spec.field("selectors"), errors);
    let config = spec.field("config");
    let stored = old.is_some_and(|old| old["spec"]["config"] == *config.value());
    if is_within(&config, MAX_CONFIG, errors) {
        for config in config.items() {
            configuration(&config, stored, errors);
        }
    }
    let extended = spec.field("extendedResourceName");
    if extended.is_set() && !resource::is_extended(extended.str()) {
        errors.bad(&extended, "must be a valid extended resource name");
    }
}

impl Strategy for DeviceClass {
    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate(object, None, errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate(object, Some(old), errors);
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole, MetaCheck::Update]
    }
}
