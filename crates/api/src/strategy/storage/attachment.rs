//! Attachments of volumes to nodes.

use serde_json::Value;

use super::volume;
use crate::strategy::template::volume::csi_driver_name;
use crate::strategy::{MetaCheck, Strategy};
use crate::validation::{At, Errors, dns_subdomain, internal};

const MAX_METADATA: usize = 256 * 1024;
const MAX_MESSAGE: usize = 1024;

pub(in crate::strategy) struct VolumeAttachment;

impl Strategy for VolumeAttachment {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        csi_driver_name(&spec.field("attacher"), errors);
        let source = spec.field("source");
        let (name, inline) = (
            source.field("persistentVolumeName"),
            source.field("inlineVolumeSpec"),
        );
        const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
        match (name.is_set(), inline.is_set()) {
            (false, false) => errors.required(source, ONE),
            (true, true) => errors.forbidden(source, ONE),
            (true, false) => {
                if name.is_empty() {
                    errors.required(name, "must specify non empty persistentVolumeName");
                }
            }
            (false, true) => volume::validate_spec(&inline, true, false, errors),
        }
        let node = spec.field("nodeName");
        errors.problems(&node, dns_subdomain(node.str()));
        validate_status(&root.field("status"), errors);
        if name.is_set() {
            errors.problems(&name, dns_subdomain(name.str()));
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        if object["spec"] != old["spec"] {
            let shown = internal(
                "io.k8s.api.storage.v1.VolumeAttachmentSpec",
                &object["spec"],
            );
            errors.invalid_as("spec", &shown, "field is immutable");
        }
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        self.validate_on_update(object, old, errors);
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

fn validate_status(status: &At<'_, '_>, errors: &mut Errors) {
    let metadata = status.field("attachmentMetadata");
    let entries = metadata.map().into_iter().flatten();
    let size: usize = entries
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if size > MAX_METADATA {
        errors.too_long(metadata, MAX_METADATA);
    }
    for failure in ["attachError", "detachError"] {
        let failure = status.field(failure);
        let message = failure.field("message");
        if message.str().len() > MAX_MESSAGE {
            errors.too_long(message, MAX_METADATA);
        }
        let code = failure.field("errorCode");
        if code.int().is_some_and(|n| n < 0) {
            errors.bad(&code, "must be between 0 and 2147483647, inclusive");
        }
    }
}
