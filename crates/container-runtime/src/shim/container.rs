//! One container as its shim sees it: its process, its streams, and who is attached to them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::log::{LineBuffer, Log, Stream, timestamp};
use super::protocol::{Create, Exit};

/// Bytes read from a stream at once.
const CHUNK: usize = 16 * 1024;

#[derive(Debug)]
pub struct Container {
    pub request: Create,
    pub pid: i32,
    pub started: bool,
    /// Why its program could not be executed.
    pub start_error: Option<String>,
    pub exit: Option<Exit>,
    /// Becomes readable or closed when the program is executed.
    pub exec_error: Option<OwnedFd>,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    pub input: Input,
    pub log: Option<Log>,
    pub attachments: Vec<Attachment>,
}

/// The shim's end of a stream of output.
#[derive(Debug)]
pub struct Output {
    pub fd: OwnedFd,
    pub lines: LineBuffer,
    /// Not read while an attached client hasn't taken what it was given.
    pub paused: bool,
}

/// What goes to the container's standard input.
#[derive(Debug, Default)]
pub struct Input {
    /// The pipe, or the tty's master. `None` when closed or never wanted.
    pub fd: Option<OwnedFd>,
    pub pending: Vec<u8>,
    /// The attached clients' ends, by token.
    pub sources: Vec<(u64, OwnedFd)>,
    /// `fd` is watched until it takes more.
    pub blocked: bool,
}

/// A client that gets the container's output.
#[derive(Debug)]
pub struct Attachment {
    pub stdout: Option<Sink>,
    pub stderr: Option<Sink>,
}

/// A client's end for one stream.
#[derive(Debug)]
pub struct Sink {
    pub token: u64,
    pub fd: OwnedFd,
    pub pending: Vec<u8>,
    pub watched: bool,
}

/// What one reading of a stream brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// There may be more.
    More,
    Drained,
    Ended,
}

// === impl Container ===

impl Container {
    pub fn output(&mut self, stream: Stream) -> &mut Option<Output> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Reads once from a stream, into the log and to whoever is attached.
    pub fn pump(&mut self, stream: Stream) -> Progress {
        let mut chunk = [0u8; CHUNK];
        let Some(output) = self.output(stream).as_mut() else {
            return Progress::Ended;
        };
        let length = match nix::unistd::read(&output.fd, &mut chunk) {
            Ok(0) => 0,
            Ok(length) => length,
            Err(nix::Error::EAGAIN) => return Progress::Drained,
            Err(nix::Error::EINTR) => return Progress::More,
            // EIO: the last process with the tty open is gone.
            Err(_) => 0,
        };
        let time = timestamp();
        let mut records = Vec::new();
        if length == 0 {
            output.lines.finish(&time, &mut records);
            *self.output(stream) = None;
        } else {
            output.lines.push(&chunk[..length], &time, &mut records);
            for attachment in &mut self.attachments {
                attachment.push(stream, &chunk[..length]);
            }
        }
        if let Some(log) = &mut self.log {
            log.write(&records);
        }
        if length == 0 {
            Progress::Ended
        } else {
            Progress::More
        }
    }

    /// Whether an attached client has to be waited for.
    pub fn is_stalled(&self) -> bool {
        self.sinks().any(|sink| !sink.pending.is_empty())
    }

    pub fn sinks(&self) -> impl Iterator<Item = &Sink> {
        self.attachments
            .iter()
            .flat_map(|attachment| attachment.stdout.iter().chain(attachment.stderr.iter()))
    }
}

// === impl Output ===

impl Output {
    pub fn new(fd: OwnedFd, stream: Stream) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Self {
            fd,
            lines: LineBuffer::new(stream),
            paused: false,
        })
    }
}

// === impl Attachment ===

impl Attachment {
    /// Passes output on; a client that is gone is forgotten.
    fn push(&mut self, stream: Stream, output: &[u8]) {
        let slot = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        if let Some(sink) = slot {
            sink.pending.extend_from_slice(output);
            if !sink.flush() {
                *slot = None;
            }
        }
    }

    pub fn is_over(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }
}

// === impl Sink ===

impl Sink {
    pub fn new(token: u64, fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Self {
            token,
            fd,
            pending: Vec::new(),
            watched: false,
        })
    }

    /// Writes what the client takes. Returns false when the client is gone; its output is dropped then.
    pub fn flush(&mut self) -> bool {
        while !self.pending.is_empty() {
            match nix::unistd::write(self.fd.as_fd(), &self.pending) {
                Ok(written) => {
                    self.pending.drain(..written);
                }
                Err(nix::Error::EAGAIN) => return true,
                Err(nix::Error::EINTR) => {}
                Err(_) => {
                    self.pending = Vec::new();
                    return false;
                }
            }
        }
        true
    }
}

// === impl Input ===

impl Input {
    /// Writes what the container takes. Returns false when it takes no more, ever.
    pub fn flush(&mut self) -> bool {
        let Some(fd) = &self.fd else {
            return false;
        };
        while !self.pending.is_empty() {
            match nix::unistd::write(fd.as_fd(), &self.pending) {
                Ok(written) => {
                    self.pending.drain(..written);
                }
                Err(nix::Error::EAGAIN) => return true,
                Err(nix::Error::EINTR) => {}
                Err(_) => {
                    self.pending = Vec::new();
                    return false;
                }
            }
        }
        true
    }
}

pub fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

pub fn resize(master: &OwnedFd, columns: u16, rows: u16) -> io::Result<()> {
    rustix::termios::tcsetwinsize(
        master,
        rustix::termios::Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )?;
    Ok(())
}
