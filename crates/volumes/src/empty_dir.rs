//! `emptyDir`: a directory that lives as long as the pod, on the node's disk or in memory.

use std::os::unix::fs::PermissionsExt;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};

use crate::{Context, Mounted, VolumeError, mount, ownership, quantity, uid};

pub fn set_up(
    context: &Context,
    pod: &Pod,
    name: &str,
    source: &EmptyDirVolumeSource,
) -> Result<Mounted, VolumeError> {
    let dir = context.volume_dir(uid(pod), "empty-dir", name);
    let mounted = Mounted {
        host_path: dir.clone(),
        can_create_subpath: true,
        ..Mounted::default()
    };
    let in_memory = source.medium.as_deref() == Some("Memory");
    if dir.exists() && (!in_memory || mount::is_mount_point(&dir)?) {
        return Ok(mounted);
    }
    std::fs::create_dir_all(&dir)
        .map_err(VolumeError::io(format!("creating {}", dir.display())))?;
    if in_memory {
        let limit = source
            .size_limit
            .as_ref()
            .and_then(quantity::value)
            .filter(|limit| *limit > 0);
        mount::mount_tmpfs(&dir, limit, "0777")?;
    }
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).map_err(
        VolumeError::io(format!("setting mode of {}", dir.display())),
    )?;
    ownership::apply_fs_group(pod, &dir, false)?;
    Ok(mounted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fake, tear_down_pod};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    #[test]
    fn disk_and_memory_survive_a_second_set_up_and_go_with_the_pod() {
        let (_dir, context) = fake::context(fake::Objects::default());
        let pod = fake::pod();
        let memory = EmptyDirVolumeSource {
            medium: Some("Memory".into()),
            size_limit: Some(Quantity("1Mi".into())),
        };
        for (name, source) in [
            ("disk", EmptyDirVolumeSource::default()),
            ("memory", memory),
        ] {
            let mounted = set_up(&context, &pod, name, &source).unwrap();
            std::fs::write(mounted.host_path.join("data"), "kept").unwrap();
            let again = set_up(&context, &pod, name, &source).unwrap();
            assert_eq!(
                std::fs::read(again.host_path.join("data")).unwrap(),
                b"kept"
            );
            let mode = std::fs::metadata(&again.host_path)
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o777);
        }
        let memory_dir = context.volume_dir("u", "empty-dir", "memory");
        assert!(mount::is_mount_point(&memory_dir).unwrap());
        let too_much = std::fs::write(memory_dir.join("big"), vec![0u8; 2 << 20]);
        assert!(too_much.is_err(), "sizeLimit bounds the tmpfs");
        tear_down_pod(&context, "u").unwrap();
        assert!(!context.pod_dir("u").exists());
        assert!(!mount::is_mount_point(&memory_dir).unwrap());
    }
}
