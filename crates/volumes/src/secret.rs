//! `secret`: the keys of a Secret as files, in memory only.

use k8s_openapi::api::core::v1::{KeyToPath, Pod, SecretVolumeSource};

use crate::atomic_writer::Payload;
use crate::{Context, Mounted, VolumeError, namespace, projected, uid};

pub async fn set_up(
    context: &Context,
    pod: &Pod,
    name: &str,
    source: &SecretVolumeSource,
) -> Result<Mounted, VolumeError> {
    let mode = projected::mode(source.default_mode, 0o644);
    let files = payload(
        context,
        namespace(pod),
        source.secret_name.as_deref().unwrap_or_default(),
        source.items.as_deref(),
        source.optional.unwrap_or(false),
        mode,
    )
    .await?;
    projected::write(
        pod,
        &context.volume_dir(uid(pod), "secret", name),
        &files,
        true,
    )
}

/// The files of one Secret; also a part of a projected volume.
pub(crate) async fn payload(
    context: &Context,
    namespace: &str,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
) -> Result<Payload, VolumeError> {
    let Some(object) = context.objects.secret(namespace, name).await? else {
        return if optional {
            Ok(Payload::new())
        } else {
            Err(VolumeError::NotFound {
                kind: "secret",
                name: name.to_string(),
            })
        };
    };
    let value = |key: &str| object.data.as_ref()?.get(key).map(|bytes| bytes.0.clone());
    let keys = object.data.iter().flat_map(|data| data.keys());
    projected::select_keys("secret", keys, value, items, optional, mode)
}
