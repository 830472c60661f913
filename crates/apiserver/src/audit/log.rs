//! The log file: a line for each event, rotated by size, and cleared of old ones by age and number.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::backend::Sink;
use super::event::Event;

/// How the log is written.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// `-` for standard output.
    pub path: PathBuf,
    pub format: Format,
    /// Days that rotated files are kept; for ever when 0.
    pub max_age: u64,
    /// Rotated files that are kept; all when 0.
    pub max_backups: usize,
    /// Megabytes of a file; 100 when 0.
    pub max_size: u64,
    pub compress: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Legacy,
}

const MEGABYTE: u64 = 1024 * 1024;

pub(super) struct Log {
    settings: LogSettings,
    /// The open file and its size; none for standard output.
    file: Mutex<Option<(File, u64)>>,
}

impl Log {
    pub(super) fn open(settings: &LogSettings) -> anyhow::Result<Self> {
        let file = if settings.path.as_os_str() == "-" {
            None
        } else {
            Some(open(&settings.path).with_context(|| settings.path.display().to_string())?)
        };
        Ok(Self {
            settings: settings.clone(),
            file: Mutex::new(file),
        })
    }

    fn append(&self, lines: &[u8]) -> io::Result<()> {
        let mut slot = self.file.lock();
        let Some((file, size)) = slot.as_mut() else {
            let mut out = io::stdout().lock();
            out.write_all(lines)?;
            return out.flush();
        };
        let limit = match self.settings.max_size {
            0 => 100 * MEGABYTE,
            megabytes => megabytes * MEGABYTE,
        };
        let length = lines.len() as u64;
        if *size > 0 && *size + length > limit {
            let fresh = self.rotate()?;
            (*file, *size) = fresh;
        }
        file.write_all(lines)?;
        *size += length;
        Ok(())
    }

    /// Puts the present file aside under the time's name and begins another.
    fn rotate(&self) -> io::Result<(File, u64)> {
        let path = &self.settings.path;
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S%.3f");
        let (stem, extension) = names(path);
        let aside = path.with_file_name(format!("{stem}-{now}{extension}"));
        std::fs::rename(path, &aside)?;
        if self.settings.compress
            && let Err(error) = compress(&aside)
        {
            tracing::warn!(%error, path = %aside.display(), "an audit log was not compressed");
        }
        self.clear();
        open(path)
    }

    /// Removes rotated files that are too old or too many.
    fn clear(&self) {
        let path = &self.settings.path;
        let (stem, extension) = names(path);
        let (begin, end) = (
            format!("{stem}-"),
            [extension.clone(), format!("{extension}.gz")],
        );
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty());
        let Ok(entries) = std::fs::read_dir(directory.unwrap_or_else(|| Path::new("."))) else {
            return;
        };
        let mut rotated: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|file| {
                let name = file
                    .file_name()
                    .and_then(|n| n.to_str())
                    .unwrap_or_default();
                name.starts_with(&begin) && end.iter().any(|e| name.ends_with(e.as_str()))
            })
            .collect();
        // Their names are times.
        rotated.sort_unstable_by(|a, b| b.cmp(a));
        let oldest = (self.settings.max_age > 0)
            .then(|| SystemTime::now() - Duration::from_secs(self.settings.max_age * 86_400));
        for (i, file) in rotated.iter().enumerate() {
            let surplus = self.settings.max_backups > 0 && i >= self.settings.max_backups;
            let modified = file.metadata().and_then(|m| m.modified());
            let expired = oldest.is_some_and(|oldest| modified.is_ok_and(|m| m < oldest));
            if surplus || expired {
                let _ = std::fs::remove_file(file);
            }
        }
    }
}

impl Sink for Log {
    fn name(&self) -> &'static str {
        "log"
    }

    fn write(&self, events: Vec<Event>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let mut lines = Vec::new();
            for event in &events {
                match self.settings.format {
                    Format::Json => {
                        serde_json::to_writer(&mut lines, event).map_err(|e| e.to_string())?;
                    }
                    Format::Legacy => lines.extend_from_slice(event.legacy().as_bytes()),
                }
                lines.push(b'\n');
            }
            self.append(&lines).map_err(|e| e.to_string())
        })
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    use std::os::unix::fs::OpenOptionsExt as _;
    if let Some(directory) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory)?;
    }
    let file = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// `audit` and `.log` of `audit.log`.
fn names(path: &Path) -> (String, String) {
    let stem = path
        .file_stem()
        .and_then(|s| s.to_str())
        .unwrap_or_default();
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .map(|e| format!(".{e}"))
        .unwrap_or_default();
    (stem.to_owned(), extension)
}

fn compress(path: &Path) -> io::Result<()> {
    let mut target = path.as_os_str().to_owned();
    target.push(".gz");
    let mut encoder = GzEncoder::new(File::create(&target)?, Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_rotated_and_cleared() {
        let directory = tempfile::tempdir().unwrap();
        let settings = LogSettings {
            path: directory.path().join("audit.log"),
            format: Format::Json,
            max_age: 0,
            max_backups: 2,
            max_size: 1,
            compress: false,
        };
        let log = Log::open(&settings).unwrap();
        let chunk = vec![b'x'; 600 * 1024];
        for _ in 0..5 {
            log.append(&chunk).unwrap();
            // Rotated files are named after the millisecond.
            std::thread::sleep(Duration::from_millis(2));
        }
        let files: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(files.len(), 3);
        assert_eq!(settings.path.metadata().unwrap().len(), chunk.len() as u64);
    }
}
