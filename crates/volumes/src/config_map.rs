//! `configMap`: the keys of a ConfigMap as files.

use k8s_openapi::api::core::v1::{ConfigMap, ConfigMapVolumeSource, KeyToPath, Pod};

use crate::atomic_writer::{File, Payload};
use crate::{Context, Mounted, VolumeError, namespace, projected, uid};

pub async fn set_up(
    context: &Context,
    pod: &Pod,
    name: &str,
    source: &ConfigMapVolumeSource,
) -> Result<Mounted, VolumeError> {
    let mode = projected::mode(source.default_mode, 0o644);
    let files = payload(
        context,
        namespace(pod),
        &source.name,
        source.items.as_deref(),
        source.optional.unwrap_or(false),
        mode,
    )
    .await?;
    projected::write(
        pod,
        &context.volume_dir(uid(pod), "configmap", name),
        &files,
        false,
    )
}

/// The files of one ConfigMap; also a part of a projected volume.
pub(crate) async fn payload(
    context: &Context,
    namespace: &str,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
) -> Result<Payload, VolumeError> {
    match context.objects.config_map(namespace, name).await? {
        Some(object) => select(&object, items, optional, mode),
        None if optional => Ok(Payload::new()),
        None => Err(VolumeError::NotFound {
            kind: "configmap",
            name: name.to_string(),
        }),
    }
}

fn select(
    object: &ConfigMap,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
) -> Result<Payload, VolumeError> {
    let value = |key: &str| {
        let text = object.data.as_ref().and_then(|data| data.get(key));
        let binary = object.binary_data.as_ref().and_then(|data| data.get(key));
        text.map(|text| text.clone().into_bytes())
            .or_else(|| binary.map(|bytes| bytes.0.clone()))
    };
    let keys = object
        .data
        .iter()
        .flat_map(|data| data.keys())
        .chain(object.binary_data.iter().flat_map(|data| data.keys()));
    projected::select_keys("config", keys, value, items, optional, mode)
}

/// A file's content and mode.
pub(crate) fn file(data: Vec<u8>, mode: u32) -> File {
    File {
        data,
        mode,
        owner: None,
    }
}
