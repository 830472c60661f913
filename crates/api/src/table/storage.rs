//! What drivers of volumes tell of themselves.

use super::{AGE, Column, NAME, column, items, or, string};

pub(super) static CSI_DRIVER: &[Column] = &[
    NAME,
    column("AttachRequired", "boolean", |o| {
        (o["spec"]["attachRequired"] != false).into()
    }),
    column("PodInfoOnMount", "boolean", |o| {
        (o["spec"]["podInfoOnMount"] == true).into()
    }),
    column("StorageCapacity", "boolean", |o| {
        (o["spec"]["storageCapacity"] == true).into()
    }),
    column("TokenRequests", "string", |o| {
        if o["spec"]["tokenRequests"].is_null() {
            return "<unset>".into();
        }
        let audiences = items(o, "/spec/tokenRequests").map(|t| string(t, "/audience"));
        audiences.collect::<Vec<_>>().join(",").into()
    }),
    column("RequiresRepublish", "boolean", |o| {
        (o["spec"]["requiresRepublish"] == true).into()
    }),
    column("Modes", "string", |o| {
        let modes = items(o, "/spec/volumeLifecycleModes").filter_map(|mode| mode.as_str());
        or(modes.collect::<Vec<_>>().join(","), "<none>")
    }),
    AGE,
];

pub(super) static CSI_NODE: &[Column] = &[
    NAME,
    column("Drivers", "integer", |o| {
        items(o, "/spec/drivers").count().into()
    }),
    AGE,
];

pub(super) static VOLUME_ATTACHMENT: &[Column] = &[
    NAME,
    column("Attacher", "string", |o| string(o, "/spec/attacher").into()),
    column("PV", "string", |o| {
        string(o, "/spec/source/persistentVolumeName").into()
    }),
    column("Node", "string", |o| string(o, "/spec/nodeName").into()),
    column("Attached", "boolean", |o| {
        (o["status"]["attached"] == true).into()
    }),
    AGE,
];
