//! `fsGroup`: a volume whose type supports it belongs to the pod's group, group-writable, with the setgid bit on
//! directories so that new files stay in the group.

use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use crate::VolumeError;

/// Gives everything below `root` to the pod's `fsGroup`, if it has one. `fsGroupChangePolicy: OnRootMismatch`
/// skips a tree whose root is right already.
pub fn apply_fs_group(pod: &Pod, root: &Path, read_only: bool) -> Result<(), VolumeError> {
    let Some(group) = crate::fs_group(pod) else {
        return Ok(());
    };
    let policy = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref())
        .and_then(|context| context.fs_group_change_policy.as_deref());
    if policy == Some("OnRootMismatch") && root_matches(root, group) {
        return Ok(());
    }
    change(root, group, read_only).map_err(VolumeError::io(format!(
        "setting the group of {}",
        root.display()
    )))
}

fn root_matches(root: &Path, group: u32) -> bool {
    std::fs::metadata(root).is_ok_and(|meta| meta.gid() == group && meta.mode() & 0o2060 == 0o2060)
}

fn change(path: &Path, group: u32, read_only: bool) -> std::io::Result<()> {
    let meta = std::fs::symlink_metadata(path)?;
    if meta.is_dir() {
        // Children first: a root that matches then means the whole tree does.
        for entry in std::fs::read_dir(path)? {
            change(&entry?.path(), group, read_only)?;
        }
    }
    lchown(path, None, Some(group))?;
    if meta.is_symlink() {
        return Ok(());
    }
    let mut mode = meta.mode() & 0o7777 | if read_only { 0o440 } else { 0o660 };
    if meta.is_dir() {
        mode |= 0o2000 | 0o110;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_modes() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("sub");
        std::fs::create_dir(&sub).unwrap();
        std::fs::write(sub.join("file"), "x").unwrap();
        std::fs::set_permissions(sub.join("file"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "spec": {"containers": [], "securityContext": {"fsGroup": 4242}}
        }))
        .unwrap();
        apply_fs_group(&pod, dir.path(), false).unwrap();
        let file = std::fs::metadata(sub.join("file")).unwrap();
        assert_eq!((file.gid(), file.mode() & 0o7777), (4242, 0o660));
        assert_eq!(std::fs::metadata(&sub).unwrap().mode() & 0o2070, 0o2070);
        assert!(root_matches(dir.path(), 4242));
        assert!(!root_matches(dir.path(), 1));
    }
}
