//! The CRI log format: `<time> <stream> <P|F> <line>`, one record per line of output.
//!
//! The kubelet rotates: it renames the file and asks for [`Log::reopen`].

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// A longer line is split into partial records of this many bytes, as containerd does.
const MAX_LINE: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A container's log file.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

/// Splits one stream into records.
#[derive(Debug)]
pub struct LineBuffer {
    stream: Stream,
    pending: Vec<u8>,
}

// === impl Log ===

impl Log {
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let file = Self::open_file(&path)?;
        Ok(Self { path, file })
    }

    /// Goes on in a new file at the same path.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = Self::open_file(&self.path)?;
        Ok(())
    }

    /// Appends records. A full disk loses output but never stops the container.
    pub fn write(&mut self, records: &[u8]) {
        let _ = self.file.write_all(records);
    }

    fn open_file(path: &PathBuf) -> io::Result<File> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        File::options()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(path)
    }
}

// === impl LineBuffer ===

impl LineBuffer {
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            pending: Vec::new(),
        }
    }

    /// Adds output and appends the records that are complete to `records`.
    pub fn push(&mut self, mut output: &[u8], time: &str, records: &mut Vec<u8>) {
        while let Some(end) = output.iter().position(|&byte| byte == b'\n') {
            self.take(&output[..end], time, records);
            self.record(b'F', time, records);
            output = &output[end + 1..];
        }
        self.take(output, time, records);
    }

    /// The stream ended. A last line without newline stays without: readers add one to whole lines only.
    pub fn finish(&mut self, time: &str, records: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.record(b'P', time, records);
        }
    }

    /// Adds a piece of a line, writing partial records as it grows too long.
    fn take(&mut self, mut piece: &[u8], time: &str, records: &mut Vec<u8>) {
        while self.pending.len() + piece.len() > MAX_LINE {
            let (now, rest) = piece.split_at(MAX_LINE - self.pending.len());
            self.pending.extend_from_slice(now);
            self.record(b'P', time, records);
            piece = rest;
        }
        self.pending.extend_from_slice(piece);
    }

    fn record(&mut self, tag: u8, time: &str, records: &mut Vec<u8>) {
        records.extend_from_slice(time.as_bytes());
        records.extend_from_slice(match self.stream {
            Stream::Stdout => b" stdout ",
            Stream::Stderr => b" stderr ",
        });
        records.extend_from_slice(&[tag, b' ']);
        records.append(&mut self.pending);
        records.push(b'\n');
    }
}

/// The time of a record, RFC 3339 with nine digits as upstream writes it.
pub fn timestamp() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(pushes: &[&[u8]]) -> Vec<String> {
        let mut buffer = LineBuffer::new(Stream::Stdout);
        let mut out = Vec::new();
        for push in pushes {
            buffer.push(push, "T", &mut out);
        }
        buffer.finish("T", &mut out);
        String::from_utf8(out)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn lines_are_records_however_they_arrive() {
        assert_eq!(
            records(&[b"a\nb", b"c\n\nd"]),
            [
                "T stdout F a",
                "T stdout F bc",
                "T stdout F ",
                "T stdout P d"
            ]
        );
    }

    #[test]
    fn a_long_line_is_split_into_partial_records() {
        let line = vec![b'x'; MAX_LINE * 2 + 5];
        let got = records(&[&line, b"\n"]);
        assert_eq!(got.len(), 3);
        assert!(got[0].starts_with("T stdout P ") && got[1].starts_with("T stdout P "));
        assert_eq!(got[2], "T stdout F xxxxx");
    }

    #[test]
    fn a_line_of_just_the_maximum_is_whole() {
        let line = vec![b'x'; MAX_LINE];
        assert!(records(&[&line, b"\n"])[0].starts_with("T stdout F "));
    }

    #[test]
    fn times_have_nine_digits() {
        let time = timestamp();
        assert_eq!(time.len(), "2026-11-22T12:00:00.000000000Z".len(), "{time}");
    }
}
