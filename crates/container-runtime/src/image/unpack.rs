//! Unpacking a layer's tar into a directory that overlayfs can stack.
//!
//! A hostile image must not write outside its layer: every parent directory is opened with `openat2` as if the layer
//! were `/`, and the last component is created relative to it, never followed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    linkat, mkdirat, mknodat, openat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tar::{Archive, Entry, EntryType};

use super::{Context, Error, Result, format_digest};
use crate::in_root;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const PAX_XATTR: &str = "SCHILY.xattr.";

/// What a directory tree occupies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

#[derive(Debug)]
pub struct Unpacked {
    /// Digest of the uncompressed tar.
    pub diff_id: String,
    pub usage: Usage,
}

/// Passes bytes on and hashes them.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

/// Unpacks a tar, compressed by gzip or zstd or not at all, into the empty directory `target`.
pub fn unpack(reader: impl Read, target: &Path) -> Result<Unpacked> {
    let mut hashing = Hashing {
        inner: decompress(reader).context(|| "decompressing a layer".to_owned())?,
        hash: Sha256::new(),
    };
    let root = in_root::open(target).context(|| format!("opening {}", target.display()))?;
    let usage = unpack_entries(&mut hashing, &root)?;
    // What follows the last entry belongs to the digest as well.
    io::copy(&mut hashing, &mut io::sink()).context(|| "reading a layer".to_owned())?;
    Ok(Unpacked {
        diff_id: format_digest(hashing.hash.finalize().as_slice()),
        usage,
    })
}

/// Undoes whatever compression the first bytes show.
pub fn decompress<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut reader = BufReader::with_capacity(256 * 1024, reader);
    let magic = io::BufRead::fill_buf(&mut reader)?;
    if magic.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(flate2::bufread::MultiGzDecoder::new(reader)))
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Ok(Box::new(zstd::stream::read::Decoder::with_buffer(reader)?))
    } else {
        Ok(Box::new(reader))
    }
}

fn unpack_entries(reader: impl Read, root: &OwnedFd) -> Result<Usage> {
    let mut usage = Usage::default();
    // A directory's time changes with each entry made in it, so they are set at the end, deepest last.
    let mut directories: BTreeMap<PathBuf, i64> = BTreeMap::new();
    let mut archive = Archive::new(reader);
    let entries = archive.entries().context(|| "reading a layer".to_owned())?;
    for entry in entries {
        let mut entry = entry
            .map_err(readable)
            .context(|| "reading a layer".to_owned())?;
        let path = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()).to_owned());
        let parts = in_root::normal(&path);
        let Some((name, parents)) = parts.split_last() else {
            continue;
        };
        let parent: PathBuf = parents.iter().collect();
        let describe = || format!("unpacking {}", path.display());
        let parent = in_root::ensure_directory(root, &parent).context(describe)?;
        usage.inodes += 1;
        usage.bytes += entry.size();
        unpack_entry(root, &parent, name, &mut entry).context(describe)?;
        if entry.header().entry_type() == EntryType::Directory {
            let time = entry.header().mtime().unwrap_or(0);
            directories.insert(parts.iter().collect(), i64::try_from(time).unwrap_or(0));
        }
    }
    for (path, seconds) in directories.into_iter().rev() {
        if let Ok(directory) = in_root::open_directory(root, &path) {
            let _ = set_time(directory.as_fd(), OsStr::new("."), seconds);
        }
    }
    Ok(usage)
}

/// The tar crate quotes the bytes of a header that it cannot read; they are no text for a Status or an Event.
fn readable(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::Other => io::Error::new(io::ErrorKind::InvalidData, "invalid tar header"),
        _ => error,
    }
}

fn unpack_entry<R: Read>(
    root: &OwnedFd,
    parent: &OwnedFd,
    name: &OsStr,
    entry: &mut Entry<'_, R>,
) -> io::Result<()> {
    if name.as_bytes() == OPAQUE {
        return set_xattr(
            parent.as_fd(),
            OsStr::new("."),
            "trusted.overlay.opaque",
            b"y",
        );
    }
    if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
        let hidden = OsStr::from_bytes(hidden);
        replace(parent, hidden)?;
        mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0)?;
        return Ok(());
    }
    let kind = entry.header().entry_type();
    let mode = Mode::from_raw_mode(entry.header().mode()? & 0o7777);
    match kind {
        EntryType::Directory => match mkdirat(parent, name, mode) {
            Ok(()) => {}
            Err(Errno::EXIST) if is_directory(parent, name) => {}
            Err(Errno::EXIST) => {
                replace(parent, name)?;
                mkdirat(parent, name, mode)?;
            }
            Err(error) => return Err(error.into()),
        },
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            replace(parent, name)?;
            let mut file: std::fs::File = openat(
                parent,
                name,
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::RUSR | Mode::WUSR,
            )?
            .into();
            io::copy(entry, &mut file)?;
        }
        EntryType::Symlink => {
            let target = link_target(entry)?;
            replace(parent, name)?;
            symlinkat(&target, parent, name)?;
        }
        EntryType::Link => {
            let target = link_target(entry)?;
            let parts = in_root::normal(&target);
            let Some((target_name, target_parent)) = parts.split_last() else {
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            };
            let target_parent: PathBuf = target_parent.iter().collect();
            let target_parent = in_root::open_directory(root, &target_parent)?;
            replace(parent, name)?;
            linkat(&target_parent, *target_name, parent, name, AtFlags::empty())?;
            // Owner, mode and times are the target's.
            return Ok(());
        }
        EntryType::Char | EntryType::Block | EntryType::Fifo => {
            let file_type = match kind {
                EntryType::Char => FileType::CharacterDevice,
                EntryType::Block => FileType::BlockDevice,
                _ => FileType::Fifo,
            };
            let device = rustix::fs::makedev(
                entry.header().device_major()?.unwrap_or(0),
                entry.header().device_minor()?.unwrap_or(0),
            );
            replace(parent, name)?;
            mknodat(parent, name, file_type, mode, device)?;
        }
        // Extended headers are the reader's business, and others have no meaning in a layer.
        _ => return Ok(()),
    }
    // Archives made with little care leave them empty, which stands for zero.
    let uid = u32::try_from(entry.header().uid().unwrap_or(0)).unwrap_or(0);
    let gid = u32::try_from(entry.header().gid().unwrap_or(0)).unwrap_or(0);
    chownat(
        parent,
        name,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    if kind != EntryType::Symlink {
        // After the owner, whose change clears set-uid bits.
        chmodat(parent, name, mode, AtFlags::empty())?;
    }
    for (key, value) in xattrs(entry)? {
        match set_xattr(parent.as_fd(), name, &key, &value) {
            // Not every filesystem has every namespace; upstream's runtimes go on as well.
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {}
            other => other?,
        }
    }
    let seconds = i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0);
    set_time(parent.as_fd(), name, seconds)
}

fn link_target<R: Read>(entry: &Entry<'_, R>) -> io::Result<PathBuf> {
    let target = entry
        .link_name_bytes()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(PathBuf::from(OsStr::from_bytes(&target).to_owned()))
}

fn xattrs<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions.flatten() {
            if let Ok(key) = extension.key()
                && let Some(key) = key.strip_prefix(PAX_XATTR)
                // overlayfs's own attributes in an image could reach into other layers.
                && !key.starts_with("trusted.overlay.")
            {
                found.push((key.to_owned(), extension.value_bytes().to_vec()));
            }
        }
    }
    Ok(found)
}

/// Makes way for an entry: a tar may have the same name twice, and the last one counts.
fn replace(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => {
            let path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name);
            std::fs::remove_dir_all(path)
        }
        Err(error) => Err(error.into()),
    }
}

fn is_directory(parent: &OwnedFd, name: &OsStr) -> bool {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn set_time(parent: BorrowedFd<'_>, name: &OsStr, seconds: i64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    utimensat(
        parent,
        name,
        &Timestamps {
            last_access: time,
            last_modification: time,
        },
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    Ok(())
}

fn set_xattr(parent: BorrowedFd<'_>, name: &OsStr, key: &str, value: &[u8]) -> io::Result<()> {
    // There is no `setxattrat` in older kernels; the parent is pinned by its descriptor and the last link not followed.
    let path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name);
    if name == "." {
        rustix::fs::setxattr(&path, key, value, XattrFlags::empty())?;
    } else {
        rustix::fs::lsetxattr(&path, key, value, XattrFlags::empty())?;
    }
    Ok(())
}

// === impl Hashing ===

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Error::Io {
            what: "unpacking".to_owned(),
            source: errno.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

    use super::*;

    fn header(path: &str, kind: EntryType, size: usize) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        // Bypasses the builder's own checks, as an attacker would.
        let name = &mut header.as_gnu_mut().unwrap().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_mode(0o644);
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_000_000);
        header.set_cksum();
        header
    }

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    #[test]
    fn owners_modes_times_and_hardlinks_are_kept() {
        let bytes = archive(|tar| {
            tar.append(&header("dir/file", EntryType::Regular, 3), &b"abc"[..])
                .unwrap();
            let mut link = header("link", EntryType::Link, 0);
            link.set_link_name("dir/file").unwrap();
            link.set_cksum();
            tar.append(&link, &b""[..]).unwrap();
        });
        let directory = tempfile::tempdir().unwrap();
        let unpacked = unpack(&bytes[..], directory.path()).unwrap();
        assert_eq!(unpacked.diff_id, super::super::digest_of(&bytes));
        let metadata = std::fs::metadata(directory.path().join("link")).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1000, 1001));
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o644);
        assert_eq!(metadata.mtime(), 1_000_000);
        assert_eq!(metadata.nlink(), 2);
    }

    #[test]
    fn whiteouts_become_overlayfs_s() {
        let bytes = archive(|tar| {
            tar.append(&header("a/.wh.gone", EntryType::Regular, 0), &b""[..])
                .unwrap();
            tar.append(&header("b/.wh..wh..opq", EntryType::Regular, 0), &b""[..])
                .unwrap();
        });
        let directory = tempfile::tempdir().unwrap();
        unpack(&bytes[..], directory.path()).unwrap();
        let gone = std::fs::symlink_metadata(directory.path().join("a/gone")).unwrap();
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
        assert_eq!(
            xattr::get(directory.path().join("b"), "trusted.overlay.opaque").unwrap(),
            Some(b"y".to_vec())
        );
    }

    #[test]
    fn no_entry_escapes_the_layer() {
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().join("layer");
        std::fs::create_dir(&target).unwrap();
        let bytes = archive(|tar| {
            let mut link = header("evil", EntryType::Symlink, 0);
            link.set_link_name(outside.path()).unwrap();
            link.set_cksum();
            tar.append(&link, &b""[..]).unwrap();
            tar.append(&header("evil/file", EntryType::Regular, 1), &b"x"[..])
                .unwrap();
            tar.append(&header("../../up", EntryType::Regular, 1), &b"x"[..])
                .unwrap();
        });
        let _ = unpack(&bytes[..], &target);
        assert!(!outside.path().join("file").exists());
        assert!(!outside.path().join("up").exists());
    }

    #[test]
    fn compressed_layers_have_the_digest_of_the_plain_one() {
        let bytes = archive(|tar| {
            tar.append(&header("f", EntryType::Regular, 1), &b"x"[..])
                .unwrap();
        });
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, &bytes).unwrap();
        let zstd = zstd::encode_all(&bytes[..], 1).unwrap();
        for compressed in [gzip.finish().unwrap(), zstd] {
            let directory = tempfile::tempdir().unwrap();
            let unpacked = unpack(&compressed[..], directory.path()).unwrap();
            assert_eq!(unpacked.diff_id, super::super::digest_of(&bytes));
        }
    }
}
