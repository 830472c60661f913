//! `downwardAPI`: fields of the pod as files.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, DownwardAPIVolumeSource, Pod};

use crate::atomic_writer::Payload;
use crate::config_map::file;
use crate::{Context, Mounted, VolumeError, field_ref, projected, resource_field_ref, uid};

pub fn set_up(
    context: &Context,
    pod: &Pod,
    name: &str,
    source: &DownwardAPIVolumeSource,
) -> Result<Mounted, VolumeError> {
    let mode = projected::mode(source.default_mode, 0o644);
    let files = payload(
        context,
        pod,
        source.items.as_deref().unwrap_or_default(),
        mode,
    )?;
    projected::write(
        pod,
        &context.volume_dir(uid(pod), "downward-api", name),
        &files,
        false,
    )
}

/// The files of a downward API source; also a part of a projected volume.
pub(crate) fn payload(
    context: &Context,
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    default_mode: u32,
) -> Result<Payload, VolumeError> {
    let mut files = Payload::new();
    for item in items {
        let value = if let Some(field) = &item.field_ref {
            field_ref::extract(pod, &field.field_path).ok_or_else(|| {
                VolumeError::Invalid(format!("unsupported fieldPath: {}", field.field_path))
            })?
        } else if let Some(resource) = &item.resource_field_ref {
            resource_field_ref::extract(pod, None, resource, &context.allocatable)?
        } else {
            continue;
        };
        let mode = projected::mode(item.mode, default_mode);
        files.insert(item.path.clone(), file(value.into_bytes(), mode));
    }
    Ok(files)
}
