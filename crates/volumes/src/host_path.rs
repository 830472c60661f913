//! `hostPath`: a path of the node itself, checked or created as its `type` says.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use crate::{Mounted, VolumeError};

pub fn set_up(source: &HostPathVolumeSource) -> Result<Mounted, VolumeError> {
    let path = Path::new(&source.path);
    check(path, source.type_.as_deref().unwrap_or_default())?;
    Ok(Mounted {
        host_path: path.to_path_buf(),
        can_create_subpath: true,
        ..Mounted::default()
    })
}

fn check(path: &Path, kind: &str) -> Result<(), VolumeError> {
    let wrong = |what: &str| {
        Err(VolumeError::Invalid(format!(
            "hostPath type check failed: {} is not {what}",
            path.display()
        )))
    };
    let file_type = std::fs::metadata(path).map(|meta| meta.file_type()).ok();
    match (kind, file_type) {
        ("", _) => Ok(()),
        ("DirectoryOrCreate", None) => make(path, 0o755, |path| std::fs::create_dir_all(path)),
        ("FileOrCreate", None) => make(path, 0o644, |path| std::fs::File::create(path).map(drop)),
        ("Directory" | "DirectoryOrCreate", Some(t)) if t.is_dir() => Ok(()),
        ("File" | "FileOrCreate", Some(t)) if t.is_file() => Ok(()),
        ("Socket", Some(t)) if t.is_socket() => Ok(()),
        ("CharDevice", Some(t)) if t.is_char_device() => Ok(()),
        ("BlockDevice", Some(t)) if t.is_block_device() => Ok(()),
        ("Directory" | "DirectoryOrCreate", _) => wrong("a directory"),
        ("File" | "FileOrCreate", _) => wrong("a file"),
        ("Socket", _) => wrong("a socket file"),
        ("CharDevice", _) => wrong("a character device"),
        ("BlockDevice", _) => wrong("a block device"),
        (other, _) => Err(VolumeError::Invalid(format!(
            "{other} is an invalid volume type"
        ))),
    }
}

fn make(
    path: &Path,
    mode: u32,
    create: impl FnOnce(&Path) -> std::io::Result<()>,
) -> Result<(), VolumeError> {
    create(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)))
        .map_err(VolumeError::io(format!("creating {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let missing = dir.path().join("missing");
        for (path, kind, ok) in [
            (&missing, "", true),
            (&missing, "Directory", false),
            (&missing, "File", false),
            (&file, "File", true),
            (&file, "Directory", false),
            (&file, "DirectoryOrCreate", false),
            (&file, "Socket", false),
            (&file, "Nonsense", false),
            (&dir.path().join("a/b"), "DirectoryOrCreate", true),
            (&dir.path().join("new"), "FileOrCreate", true),
            (&Path::new("/dev/null").to_path_buf(), "CharDevice", true),
        ] {
            assert_eq!(check(path, kind).is_ok(), ok, "{} {kind}", path.display());
        }
        assert!(dir.path().join("a/b").is_dir());
        assert!(dir.path().join("new").is_file());
    }
}
