//! What is checked before a data directory is used: that nobody else uses it, that it is this format's, and that its
//! files are as they were written.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

/// Written into the file `format`; a directory of another format is refused.
const FORMAT: u64 = 3;

const FORMAT_FILE: &str = "format";
const LOCK_FILE: &str = "lock";

/// Names that a store is made of; anything else in a directory without a `format` file is somebody else's.
const OWN: [&str; 5] = [LOCK_FILE, "wal", "committed", "state", "log"];

/// A file that cannot be trusted.
#[derive(Debug, thiserror::Error)]
#[error("{} is damaged: {what}", path.display())]
pub struct Damage {
    pub path: PathBuf,
    pub what: String,
}

impl Damage {
    pub fn file(path: &Path, what: impl std::fmt::Display) -> Self {
        Self {
            path: path.to_owned(),
            what: what.to_string(),
        }
    }
}

/// Why a data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
    #[error(
        "{path} has data of format {found}, this version knows {FORMAT}: run the version that wrote it, or restore a snapshot into an empty directory"
    )]
    Format { path: String, found: u64 },
    #[error(
        "{path} holds files that are not a store's: use an empty directory, or the one that the store was made in"
    )]
    Foreign { path: String },
    #[error("{path} is in use by another process")]
    InUse { path: String },
    #[error("{0}; nothing was changed: restore a snapshot into an empty directory")]
    Damaged(#[from] Damage),
}

impl OpenError {
    pub fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io {
            path: path.clone(),
            source,
        }
    }
}

/// Locks a directory for as long as the file is open.
pub fn lock(directory: &Path) -> Result<File, OpenError> {
    let path = directory.join(LOCK_FILE);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(OpenError::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse {
            path: directory.display().to_string(),
        }),
        Err(TryLockError::Error(error)) => Err(OpenError::io(&path)(error)),
    }
}

/// The id of the store in a directory, or `None` when there is none yet.
pub fn store_id(directory: &Path) -> Result<Option<u64>, OpenError> {
    let path = directory.join(FORMAT_FILE);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            foreign(directory)?;
            return Ok(None);
        }
        Err(error) => return Err(OpenError::io(&path)(error)),
    };
    let damaged = || Damage::file(&path, "it is not valid");
    let text = std::str::from_utf8(&text).map_err(|_| damaged())?;
    let mut words = text.split_ascii_whitespace();
    let (Some("fluyt-etcd"), Some(format)) = (words.next(), words.next()) else {
        return Err(damaged().into());
    };
    let found = format.parse().map_err(|_| damaged())?;
    let id = words
        .next()
        .and_then(|id| u64::from_str_radix(id, 16).ok())
        .ok_or_else(damaged)?;
    if text != format_text(found, id) {
        return Err(damaged().into());
    }
    if found != FORMAT {
        return Err(OpenError::Format {
            path: directory.display().to_string(),
            found,
        });
    }
    Ok(Some(id))
}

fn format_text(format: u64, id: u64) -> String {
    let line = format!("fluyt-etcd {format} {id:016x}");
    format!("{line} {:016x}\n", xxh3_64(line.as_bytes()))
}

fn foreign(directory: &Path) -> Result<(), OpenError> {
    let fail = OpenError::io(directory);
    for entry in std::fs::read_dir(directory).map_err(&fail)? {
        let name = entry.map_err(&fail)?.file_name();
        if !OWN.iter().any(|own| name == *own) {
            return Err(OpenError::Foreign {
                path: directory.display().to_string(),
            });
        }
    }
    Ok(())
}

/// Declares a directory to be a store: the last step of making one.
pub fn declare(directory: &Path, id: u64) -> io::Result<()> {
    let draft = directory.join("format.new");
    std::fs::write(&draft, format_text(FORMAT, id))?;
    File::open(&draft)?.sync_all()?;
    std::fs::rename(&draft, directory.join(FORMAT_FILE))?;
    File::open(directory)?.sync_all()
}

/// A table of an LSM tree and the checksum that it must have.
#[derive(Debug)]
pub struct TableFile {
    pub path: PathBuf,
    pub size: u64,
    checksum: u128,
}

impl TableFile {
    pub fn verify(&self) -> Result<(), Damage> {
        let fail = |e: io::Error| Damage::file(&self.path, e);
        let mut file = File::open(&self.path).map_err(fail)?;
        let mut hash = Xxh3::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = file.read(&mut buffer).map_err(fail)?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
        }
        if hash.digest128() != self.checksum {
            return Err(Damage::file(&self.path, "its checksum is wrong"));
        }
        Ok(())
    }
}

/// Deletes the drafts of files that a crash has left in an LSM tree's directory: none of them was ever part of it.
pub fn remove_drafts(tree: &Path) -> Result<(), OpenError> {
    let fail = OpenError::io(tree);
    for entry in std::fs::read_dir(tree).map_err(&fail)? {
        let entry = entry.map_err(&fail)?;
        if entry.file_name().to_string_lossy().starts_with(".tmp") {
            std::fs::remove_file(entry.path()).map_err(&fail)?;
        }
    }
    Ok(())
}

/// The tables of an LSM tree, from its checked list of them. The tree itself does not check that list, and deletes what
/// is not in it.
pub fn tables(tree: &Path) -> Result<Vec<TableFile>, Damage> {
    let current_path = tree.join("current");
    let current = std::fs::read(&current_path).map_err(|e| Damage::file(&current_path, e))?;
    let (id, checksum) = current
        .split_first_chunk::<8>()
        .and_then(|(id, rest)| Some((u64::from_le_bytes(*id), rest.split_first_chunk::<16>()?)))
        .filter(|(_, (_, kind))| **kind == [0])
        .map(|(id, (checksum, _))| (id, u128::from_le_bytes(*checksum)))
        .ok_or_else(|| Damage::file(&current_path, "it is not valid"))?;
    let path = tree.join(format!("v{id}"));
    let bytes = std::fs::read(&path).map_err(|e| Damage::file(&path, e))?;
    if xxh3_128(&bytes) != checksum {
        return Err(Damage::file(&path, "its checksum is wrong"));
    }
    let invalid = |e: sfa::Error| Damage::file(&path, format!("{e:?}"));
    let archive = sfa::Reader::new(&path).map_err(invalid)?;
    let section = archive
        .toc()
        .section(b"tables")
        .ok_or_else(|| Damage::file(&path, "it lists no tables"))?;
    let mut list = section
        .buf_reader(&path)
        .map_err(|e| Damage::file(&path, e))?;
    let mut tables = Vec::new();
    read_list(&mut list, &mut |id, checksum| {
        let path = tree.join("tables").join(id.to_string());
        tables.push((path, checksum));
    })
    .map_err(|e| Damage::file(&path, e))?;
    tables
        .into_iter()
        .map(|(path, checksum)| {
            let size = std::fs::metadata(&path).map_err(|e| Damage::file(&path, e))?;
            Ok(TableFile {
                size: size.len(),
                path,
                checksum,
            })
        })
        .collect()
}

fn read_list(reader: &mut impl io::Read, found: &mut impl FnMut(u64, u128)) -> io::Result<()> {
    let mut bytes = |n: usize| -> io::Result<u128> {
        let mut buffer = [0; 16];
        reader.read_exact(&mut buffer[..n])?;
        Ok(u128::from_le_bytes(buffer))
    };
    for _level in 0..bytes(1)? {
        for _run in 0..bytes(1)? {
            for _table in 0..bytes(4)? {
                let id = bytes(8)?;
                let _kind = bytes(1)?;
                let checksum = bytes(16)?;
                let _global_seqno = bytes(8)?;
                found(u64::try_from(id).unwrap_or(u64::MAX), checksum);
            }
        }
    }
    Ok(())
}
