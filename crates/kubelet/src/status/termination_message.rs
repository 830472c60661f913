//! What a container left as its last words: its termination message file, or the end of its log.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

const MAX_MESSAGE: u64 = 4096;
const MAX_LOG_BYTES: u64 = 2048;
const MAX_LOG_LINES: usize = 80;

/// The file's text; with `fall_back`, the end of the log when the file says nothing.
pub fn read(file: &Path, log: Option<&Path>, fall_back: bool) -> Option<String> {
    let message = head(file).filter(|text| !text.is_empty());
    message.or_else(|| log.filter(|_| fall_back).and_then(tail))
}

fn head(file: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .ok()?
        .take(MAX_MESSAGE)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of a CRI log, without their stamps.
fn tail(log: &Path) -> Option<String> {
    let mut file = std::fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    // Each line carries a stamp of some forty bytes.
    let from = length.saturating_sub(MAX_LOG_BYTES + 48 * MAX_LOG_LINES as u64);
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<&str> = text.lines().collect();
    if from > 0 && !lines.is_empty() {
        lines.remove(0);
    }
    let first = lines.len().saturating_sub(MAX_LOG_LINES);
    let mut out = String::new();
    for line in &lines[first..] {
        let mut fields = line.splitn(4, ' ').skip(2);
        let (Some(tag), Some(content)) = (fields.next(), fields.next()) else {
            continue;
        };
        out.push_str(content);
        if tag.starts_with('F') {
            out.push('\n');
        }
    }
    let cut = out
        .len()
        .saturating_sub(usize::try_from(MAX_LOG_BYTES).unwrap_or(usize::MAX));
    Some(out[out.ceil_char_boundary(cut)..].to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_then_log() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("message");
        let log = dir.path().join("0.log");
        std::fs::write(&file, "").unwrap();
        std::fs::write(&log, "2026-01-01T00:00:00Z stderr F bad\n2026-01-01T00:00:01Z stderr P wor\n2026-01-01T00:00:01Z stderr F se\n").unwrap();
        assert_eq!(
            read(&file, Some(&log), true).as_deref(),
            Some("bad\nworse\n")
        );
        assert_eq!(read(&file, Some(&log), false), None);
        std::fs::write(&file, "x".repeat(5000)).unwrap();
        assert_eq!(read(&file, Some(&log), true).unwrap().len(), 4096);
    }
}
