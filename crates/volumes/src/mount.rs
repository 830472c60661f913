//! The few mount operations that volumes need.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

use crate::VolumeError;

/// Mount points at or below `dir`, from this process's mount table.
pub fn mounts_under(dir: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(VolumeError::io("reading the mount table"))?;
    Ok(table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|path| path.starts_with(dir))
        .collect())
}

pub fn is_mount_point(path: &Path) -> Result<bool, VolumeError> {
    Ok(mounts_under(path)?.iter().any(|mount| mount == path))
}

/// The table writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let mut out = Vec::with_capacity(field.len());
    let bytes = field.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'\\')
            .then(|| field.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Unmounts `path`; a path that is no mount point is fine. Detaches lazily when something still uses it.
pub fn unmount(path: &Path) -> Result<(), VolumeError> {
    match nix::mount::umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(nix::Error::EBUSY) => {
            nix::mount::umount2(path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
                .map_err(VolumeError::nix(format!("unmounting {}", path.display())))
        }
        Err(errno) => Err(VolumeError::nix(format!("unmounting {}", path.display()))(
            errno,
        )),
    }
}

/// A tmpfs at `path`, limited to `size` bytes when one is given.
pub(crate) fn mount_tmpfs(path: &Path, size: Option<i64>, mode: &str) -> Result<(), VolumeError> {
    let mut options = format!("mode={mode}");
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    nix::mount::mount(
        Some("tmpfs"),
        path,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(options.as_str()),
    )
    .map_err(VolumeError::nix(format!(
        "mounting tmpfs on {}",
        path.display()
    )))
}

pub(crate) fn bind(source: &Path, target: &Path) -> Result<(), VolumeError> {
    nix::mount::mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(VolumeError::nix(format!(
        "binding {} to {}",
        source.display(),
        target.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_escapes() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/plain\"), r"/plain\");
    }
}
