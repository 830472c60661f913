//! Paths inside a root filesystem that isn't ours: symbolic links and `..` never lead out of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

/// Opens the directory `root` to resolve paths in.
pub fn open(root: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        CWD,
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens a directory below `root`, following links as if `root` were `/`.
pub fn open_directory(root: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat2(
        root,
        non_empty(path),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Opens a regular file below `root` for reading. Devices and pipes of the image are never opened.
pub fn open_file(root: impl AsFd, path: &Path) -> io::Result<std::fs::File> {
    let file: std::fs::File = openat2(
        root,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?
    .into();
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok(file)
}

/// Opens the directory at `path` below `root`, making what is missing of it (mode 0755).
pub fn ensure_directory(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let root = root.as_fd();
    match open_directory(root, path) {
        Err(Errno::NOENT) => {}
        other => return Ok(other?),
    }
    let mut prefix = PathBuf::new();
    let mut directory = open_directory(root, Path::new("."))?;
    for component in normal(path) {
        let parent = directory;
        prefix.push(component);
        directory = match open_directory(root, &prefix) {
            Err(Errno::NOENT) => {
                match mkdirat(&parent, component, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                open_directory(root, &prefix)?
            }
            other => other?,
        };
    }
    Ok(directory)
}

/// As [`ensure_directory`] for a root given by its path.
pub fn create_dir_all(root: &Path, path: &Path) -> io::Result<()> {
    ensure_directory(open(root)?, path).map(drop)
}

/// The path's plain components, `..` resolved by its text.
pub fn normal(path: &Path) -> Vec<&std::ffi::OsStr> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::ParentDir => {
                parts.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    parts
}

fn non_empty(path: &Path) -> &Path {
    if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_out_of_the_root() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::os::unix::fs::symlink("/../../outside", root.join("link")).unwrap();
        std::fs::create_dir(root.join("outside")).unwrap();
        create_dir_all(&root, Path::new("link/made")).unwrap();
        create_dir_all(&root, Path::new("/../../up")).unwrap();
        assert!(root.join("outside/made").is_dir());
        assert!(root.join("up").is_dir());
        assert!(!directory.path().join("outside").exists());
    }
}
