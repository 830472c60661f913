//! What containers write and read, between their descriptors, their logs and those who are attached.

use std::os::fd::OwnedFd;

use nix::sys::epoll::EpollFlags;

use super::{Outcome, Shim, Source, add, unknown};
use crate::shim::container::{self, Attachment, Progress, Sink};
use crate::shim::log::Stream;
use crate::shim::protocol::Answer;

/// Bytes of input that are kept for a container that doesn't read.
const MAX_INPUT: usize = 64 * 1024;

impl Shim {
    pub(super) fn output_readable(&mut self, token: u64, id: &str, stream: Stream) {
        let Some(container) = self.containers.get_mut(id) else {
            self.sources.remove(&token);
            return;
        };
        if container.pump(stream) == Progress::Ended {
            self.sources.remove(&token);
        }
        self.settle(id);
    }

    pub(super) fn sink_writable(&mut self, id: &str) {
        if let Some(container) = self.containers.get_mut(id) {
            for attachment in &mut container.attachments {
                for slot in [&mut attachment.stdout, &mut attachment.stderr] {
                    if let Some(sink) = slot
                        && !sink.flush()
                    {
                        self.sources.remove(&sink.token);
                        *slot = None;
                    }
                }
            }
        }
        self.settle(id);
    }

    /// Brings what is watched in line with what the container and its clients can do now: clients that are behind
    /// are waited for, and the container's output isn't read meanwhile.
    pub(super) fn settle(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let over = container.stdout.is_none() && container.stderr.is_none();
        for attachment in &mut container.attachments {
            for slot in [&mut attachment.stdout, &mut attachment.stderr] {
                let Some(sink) = slot else {
                    continue;
                };
                let behind = !sink.pending.is_empty();
                if behind && !sink.watched {
                    sink.watched =
                        add(&self.epoll, &sink.fd, EpollFlags::EPOLLOUT, sink.token).is_ok();
                } else if !behind && sink.watched {
                    let _ = self.epoll.delete(&sink.fd);
                    sink.watched = false;
                }
                if over && !behind {
                    self.sources.remove(&sink.token);
                    *slot = None;
                }
            }
        }
        container
            .attachments
            .retain(|attachment| !attachment.is_over());
        let stalled = container.is_stalled();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let Some(output) = container.output(stream) else {
                continue;
            };
            if stalled && !output.paused {
                output.paused = self.epoll.delete(&output.fd).is_ok();
            } else if !stalled && output.paused {
                let token = self
                    .sources
                    .iter()
                    .find(|(_, source)| matches!(source, Source::Output(of, which) if of == id && *which == stream))
                    .map(|(token, _)| *token);
                if let Some(token) = token
                    && add(&self.epoll, &output.fd, EpollFlags::EPOLLIN, token).is_ok()
                {
                    output.paused = false;
                }
            }
        }
    }

    pub(super) fn attach(
        &mut self,
        id: &str,
        wanted: [bool; 3],
        fds: Vec<OwnedFd>,
    ) -> Outcome<Answer> {
        let mut fds = fds.into_iter();
        let mut next = |wanted: bool| wanted.then(|| fds.next()).flatten();
        let [stdin, stdout, stderr] = wanted.map(&mut next);
        if !self.containers.contains_key(id) {
            return Err(unknown(id));
        }
        let mut sink = |fd: Option<OwnedFd>| -> Outcome<Option<Sink>> {
            let Some(fd) = fd else {
                return Ok(None);
            };
            let token = self.token(Source::Sink(id.to_owned()));
            Sink::new(token, fd)
                .map(Some)
                .map_err(|error| error.to_string())
        };
        let attachment = Attachment {
            stdout: sink(stdout)?,
            stderr: sink(stderr)?,
        };
        let token = stdin
            .as_ref()
            .map(|_| self.token(Source::InputFrom(id.to_owned())));
        let container = self.containers.get_mut(id).ok_or_else(|| unknown(id))?;
        if container.exit.is_some() {
            return Err(format!("container {id} has exited"));
        }
        if let (Some(stdin), Some(token)) = (stdin, token) {
            if container.input.fd.is_none() {
                return Err(format!("container {id} has no standard input"));
            }
            container::set_nonblocking(&stdin).map_err(|error| error.to_string())?;
            add(&self.epoll, &stdin, EpollFlags::EPOLLIN, token)?;
            container.input.sources.push((token, stdin));
        }
        if !attachment.is_over() {
            container.attachments.push(attachment);
        }
        Ok(Answer::Done)
    }

    /// An attached client sent input.
    pub(super) fn input_arrived(&mut self, token: u64, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            self.sources.remove(&token);
            return;
        };
        let input = &mut container.input;
        let Some(position) = input.sources.iter().position(|(other, _)| *other == token) else {
            self.sources.remove(&token);
            return;
        };
        let mut chunk = [0u8; 4096];
        match nix::unistd::read(&input.sources[position].1, &mut chunk) {
            Ok(0) => {
                input.sources.remove(position);
                self.sources.remove(&token);
                if container.request.stdin_once
                    && !container.request.tty
                    && input.sources.is_empty()
                {
                    input.flush();
                    if input.pending.is_empty() {
                        input.fd = None;
                    }
                }
            }
            Ok(length) => input.pending.extend_from_slice(&chunk[..length]),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            Err(_) => {
                input.sources.remove(position);
                self.sources.remove(&token);
            }
        }
        self.input_writable(id);
    }

    /// Passes input on, and waits for the container where it doesn't take it.
    pub(super) fn input_writable(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let once = container.request.stdin_once && !container.request.tty;
        let input = &mut container.input;
        if !input.flush() {
            // Nobody reads it any more.
            input.fd = None;
            for (token, _) in input.sources.drain(..) {
                self.sources.remove(&token);
            }
            return;
        }
        let waiting = !input.pending.is_empty();
        if !waiting && once && input.sources.is_empty() && input.blocked {
            input.fd = None;
            input.blocked = false;
            return;
        }
        let Some(fd) = &input.fd else {
            return;
        };
        if waiting && !input.blocked {
            let token = self.next_token;
            self.next_token += 1;
            self.sources.insert(token, Source::Input(id.to_owned()));
            // A tty's master is a second descriptor of what is watched for output already, which epoll allows.
            input.blocked = add(&self.epoll, fd, EpollFlags::EPOLLOUT, token).is_ok();
            if input.pending.len() >= MAX_INPUT {
                for (_, source) in &input.sources {
                    let _ = self.epoll.delete(source);
                }
            }
        } else if !waiting && input.blocked {
            let _ = self.epoll.delete(fd);
            input.blocked = false;
            for (token, source) in &input.sources {
                // Present already unless the client was too fast.
                let _ = add(&self.epoll, source, EpollFlags::EPOLLIN, *token);
            }
        }
    }
}
