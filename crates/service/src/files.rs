//! Files with secrets in them, written whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context as _;

/// Writes a file that only root may read, replacing what was there in one step.
///
/// # Errors
/// When the disk refuses.
pub fn write_private(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    write(path, contents, 0o600)
}

/// As [`write_private`], with other permissions.
///
/// # Errors
/// When the disk refuses.
pub fn write(path: &Path, contents: &[u8], mode: u32) -> anyhow::Result<()> {
    let attempt = || -> io::Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        let _ = fs::remove_file(&temporary);
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    attempt().with_context(|| format!("writing {}", path.display()))
}

/// A file's text, named in the error if it can't be read.
///
/// # Errors
/// When there is none.
pub fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}
