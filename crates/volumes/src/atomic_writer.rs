//! Writes a set of files so that a reader sees either all of the old ones or all of the new ones.
//!
//! The files live in a timestamped directory; `..data` is a symlink to it that is replaced by rename; what the user
//! sees are symlinks through `..data`. This layout is what upstream's tools (and many applications that watch
//! their configuration) expect.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

/// One file of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Owner, where a single user must be able to read it (service account tokens).
    pub owner: Option<u32>,
}

/// Relative path to file.
pub type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Brings `dir` to show exactly `payload`. Returns whether anything changed.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> std::io::Result<bool> {
    for path in payload.keys() {
        check_path(path)?;
    }
    std::fs::create_dir_all(dir)?;
    let old = std::fs::read_link(dir.join(DATA)).ok();
    if let Some(old) = &old
        && shows(&dir.join(old), payload)
    {
        link_users_view(dir, payload)?;
        return Ok(false);
    }
    let name = fresh_name(dir);
    let fresh = dir.join(&name);
    std::fs::create_dir(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let path = fresh.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, &file.data)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(file.mode))?;
        if file.owner.is_some() {
            chown(&path, file.owner, None)?;
        }
    }
    if let Some(group) = group {
        set_group(&fresh, group)?;
    }
    let pending = dir.join(NEW_DATA);
    let _ = std::fs::remove_file(&pending);
    symlink(&name, &pending)?;
    std::fs::rename(&pending, dir.join(DATA))?;
    link_users_view(dir, payload)?;
    if let Some(old) = old {
        let _ = std::fs::remove_dir_all(dir.join(old));
    }
    Ok(true)
}

/// Only paths that stay inside and don't collide with our own names.
fn check_path(path: &str) -> std::io::Result<()> {
    let fine = !path.is_empty()
        && !path.starts_with("..")
        && Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
    if fine {
        Ok(())
    } else {
        Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            format!("invalid path: {path:?} must be relative and not contain '..'"),
        ))
    }
}

fn fresh_name(dir: &Path) -> String {
    let now = jiff::Timestamp::now();
    let mut serial = now.subsec_nanosecond();
    loop {
        let name = format!("..{}.{serial}", now.strftime("%Y_%m_%d_%H_%M_%S"));
        if !dir.join(&name).exists() {
            return name;
        }
        serial += 1;
    }
}

fn shows(data: &Path, payload: &Payload) -> bool {
    let mut present = BTreeSet::new();
    if files_below(data, data, &mut present).is_err() || present.len() != payload.len() {
        return false;
    }
    payload.iter().all(|(path, file)| {
        present.contains(Path::new(path))
            && std::fs::read(data.join(path)).is_ok_and(|data| data == file.data)
            && std::fs::metadata(data.join(path))
                // A group's read bit may have been added for fsGroup.
                .is_ok_and(|meta| meta.permissions().mode() & 0o777 & !0o040 == file.mode & !0o040)
    })
}

fn files_below(root: &Path, dir: &Path, found: &mut BTreeSet<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files_below(root, &entry.path(), found)?;
        } else if let Ok(path) = entry.path().strip_prefix(root) {
            found.insert(path.to_path_buf());
        }
    }
    Ok(())
}

/// The user's view: a symlink through `..data` for each first path element, and none that is no longer there.
fn link_users_view(dir: &Path, payload: &Payload) -> std::io::Result<()> {
    let wanted: BTreeSet<&str> = payload
        .keys()
        .filter_map(|path| path.split('/').next())
        .collect();
    for name in &wanted {
        let link = dir.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn set_group(path: &Path, group: u32) -> std::io::Result<()> {
    let meta = std::fs::metadata(path)?;
    if meta.is_dir() {
        for entry in std::fs::read_dir(path)? {
            set_group(&entry?.path(), group)?;
        }
    }
    chown(path, None, Some(group))?;
    let extra = if meta.is_dir() { 0o2050 } else { 0o040 };
    let mode = meta.permissions().mode() & 0o7777 | extra;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, data)| {
                let file = File {
                    data: data.as_bytes().to_vec(),
                    mode: 0o644,
                    owner: None,
                };
                (path.to_string(), file)
            })
            .collect()
    }

    #[test]
    fn replaces_the_whole_set_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert!(write(root, &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!(std::fs::read_to_string(root.join("a")).unwrap(), "1");
        assert_eq!(std::fs::read_to_string(root.join("d/b")).unwrap(), "2");
        assert_eq!(
            std::fs::read_link(root.join("a")).unwrap(),
            Path::new("..data/a")
        );
        assert!(
            !write(root, &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap(),
            "unchanged"
        );
        assert!(write(root, &payload(&[("a", "3"), ("c", "4")]), None).unwrap());
        assert_eq!(std::fs::read_to_string(root.join("a")).unwrap(), "3");
        assert_eq!(std::fs::read_to_string(root.join("c")).unwrap(), "4");
        assert!(std::fs::symlink_metadata(root.join("d")).is_err());
        let versions = std::fs::read_dir(root)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir())
            .count();
        assert_eq!(versions, 1, "the old version is gone");
        assert!(write(root, &Payload::new(), None).unwrap());
        assert!(std::fs::symlink_metadata(root.join("a")).is_err());
    }

    #[test]
    fn keeps_out_of_other_places() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["/etc/passwd", "../x", "a/../../x", "..data", ""] {
            assert!(
                write(dir.path(), &payload(&[(path, "x")]), None).is_err(),
                "{path}"
            );
        }
    }

    #[test]
    fn group_can_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = payload(&[("a", "1")]);
        files.get_mut("a").unwrap().mode = 0o400;
        write(dir.path(), &files, Some(77)).unwrap();
        let meta = std::fs::metadata(dir.path().join("a")).unwrap();
        assert_eq!((meta.gid(), meta.mode() & 0o777), (77, 0o440));
        assert!(!write(dir.path(), &files, Some(77)).unwrap());
    }
}
