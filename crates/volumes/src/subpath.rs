//! `subPath`: a part of a volume as the mount. The part is opened inside the volume's directory (a symlink can't lead
//! out of it), then bound to a path of the kubelet's own, so that what the container gets is what was checked.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

use crate::{Context, Mounted, VolumeError, is_mount_point, mount};

/// Binds `sub_path` of the volume and returns the path to mount; `index` is the mount's place in the container.
pub fn prepare(
    context: &Context,
    pod_uid: &str,
    volume: &str,
    mounted: &Mounted,
    container: &str,
    index: usize,
    sub_path: &str,
) -> Result<PathBuf, VolumeError> {
    let relative = Path::new(sub_path);
    if relative
        .components()
        .any(|part| !matches!(part, Component::Normal(_) | Component::CurDir))
    {
        return Err(VolumeError::Invalid(format!(
            "unable to provision SubPath `{sub_path}`: must be relative and not contain '..'"
        )));
    }
    let part = match open_inside(&mounted.host_path, relative) {
        Ok(part) => part,
        Err(nix::Error::ENOENT) if mounted.can_create_subpath => {
            create_inside(&mounted.host_path, relative)?
        }
        Err(errno) => {
            return Err(VolumeError::nix(format!(
                "failed to prepare subPath for volumeMount {volume:?} of container {container:?}"
            ))(errno));
        }
    };
    let target = context
        .pod_dir(pod_uid)
        .join("volume-subpaths")
        .join(volume)
        .join(container)
        .join(index.to_string());
    if is_mount_point(&target)? {
        // A previous start of the container: bind anew, the part may have been replaced since.
        mount::unmount(&target)?;
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", part.as_raw_fd()));
    let is_dir = std::fs::metadata(&source).is_ok_and(|meta| meta.is_dir());
    make_target(&target, is_dir)
        .map_err(VolumeError::io(format!("creating {}", target.display())))?;
    mount::bind(&source, &target)?;
    Ok(target)
}

fn open_inside(root: &Path, relative: &Path) -> nix::Result<OwnedFd> {
    let dir = nix::fcntl::open(root, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(
        &dir,
        if relative.as_os_str().is_empty() {
            Path::new(".")
        } else {
            relative
        },
        how,
    )
}

/// Makes each missing directory of the path in turn, never through a link that leads out.
fn create_inside(root: &Path, relative: &Path) -> Result<OwnedFd, VolumeError> {
    let failed = || {
        VolumeError::nix(format!(
            "creating {} in {}",
            relative.display(),
            root.display()
        ))
    };
    let mode = std::fs::metadata(root).map_or(0o750, |meta| meta.permissions().mode() & 0o777);
    let mut done = PathBuf::new();
    for part in relative.components() {
        let parent = open_inside(root, &done).map_err(failed())?;
        match nix::sys::stat::mkdirat(&parent, part.as_os_str(), Mode::from_bits_truncate(mode)) {
            Ok(()) => {
                let here =
                    PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(part);
                // The process's umask must not narrow what the volume's own mode gives.
                std::fs::set_permissions(&here, std::fs::Permissions::from_mode(mode)).map_err(
                    VolumeError::io(format!("setting mode of {}", done.display())),
                )?;
            }
            Err(nix::Error::EEXIST) => {}
            Err(errno) => return Err(failed()(errno)),
        }
        done.push(part);
    }
    open_inside(root, relative).map_err(failed())
}

fn make_target(target: &Path, is_dir: bool) -> std::io::Result<()> {
    if is_dir {
        if target.is_file() {
            std::fs::remove_file(target)?;
        }
        return std::fs::create_dir_all(target);
    }
    if target.is_dir() {
        std::fs::remove_dir(target)?;
    }
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(target)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fake, tear_down_pod};
    use std::os::unix::fs::symlink;

    #[test]
    fn stays_inside_the_volume() {
        let (dir, context) = fake::context(fake::Objects::default());
        let root = dir.path().join("volume");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(dir.path().join("outside"), "secret").unwrap();
        symlink("../outside", root.join("up")).unwrap();
        std::fs::write(root.join("file"), "inside").unwrap();
        let mounted = Mounted {
            host_path: root.clone(),
            can_create_subpath: true,
            ..Mounted::default()
        };
        let prepare = |index, path| prepare(&context, "u", "v", &mounted, "c", index, path);
        let file = prepare(0, "file").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "inside");
        let made = prepare(1, "a/b").unwrap();
        std::fs::write(made.join("x"), "1").unwrap();
        assert_eq!(std::fs::read_to_string(root.join("a/b/x")).unwrap(), "1");
        prepare(1, "a").unwrap();
        for path in ["../outside", "/etc"] {
            assert!(prepare(2, path).is_err(), "{path}");
        }
        // The link is resolved inside the volume, where its target is missing.
        if let Ok(path) = prepare(2, "up") {
            assert_ne!(std::fs::read_to_string(path).unwrap_or_default(), "secret");
        }
        tear_down_pod(&context, "u").unwrap();
        assert!(!context.pod_dir("u").exists());
        assert_eq!(std::fs::read_to_string(root.join("a/b/x")).unwrap(), "1");
    }
}
