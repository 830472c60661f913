//! ExecSync and Exec.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use super::container::{Container, Phase};
use super::{Error, Result, Runtime, new_id};
use crate::shim::protocol::{Exec, ExecProcess, Operation};

/// Bytes of each stream that ExecSync keeps, as containerd does.
const MAX_OUTPUT: usize = 16 * 1024 * 1024;
/// How long output may follow the end of a process whose children keep its streams open.
const DRAIN: Duration = Duration::from_secs(1);

/// What ExecSync returns.
#[derive(Debug)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// A client's ends of an interactive process's streams.
pub struct ExecStreams {
    pub stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub stdout: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stderr: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub resize: mpsc::Receiver<TerminalSize>,
}

/// A process that was started in a container.
struct Running {
    pid: i32,
    exit: oneshot::Receiver<i32>,
    master: Option<OwnedFd>,
}

impl Runtime {
    /// Runs a process to its end and returns its output. `timeout` zero is none.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<Output> {
        let container = self.container(id)?;
        let (mut stdout, their_stdout) = output_pipe()?;
        let (mut stderr, their_stderr) = output_pipe()?;
        let stdin = std::fs::File::open("/dev/null")
            .map_err(|error| Error::internal("opening /dev/null", error))?;
        let running = self
            .start(
                &container,
                command,
                false,
                vec![stdin.into(), their_stdout, their_stderr],
            )
            .await?;
        let run = async {
            let mut out = Vec::new();
            let mut err = Vec::new();
            let exit_code = {
                let read = async {
                    tokio::join!(read(&mut stdout, &mut out), read(&mut stderr, &mut err))
                };
                tokio::pin!(read);
                let mut exit = running.exit;
                tokio::select! {
                    code = &mut exit => {
                        let _ = tokio::time::timeout(DRAIN, read).await;
                        code
                    }
                    _ = &mut read => exit.await,
                }
            };
            Output {
                stdout: out,
                stderr: err,
                exit_code: exit_code.unwrap_or(137),
            }
        };
        if timeout.is_zero() {
            return Ok(run.await);
        }
        match tokio::time::timeout(timeout, run).await {
            Ok(output) => Ok(output),
            Err(_) => {
                // The exit wasn't reported yet, so the number is still the process's.
                let _ = kill(Pid::from_raw(running.pid), Signal::SIGKILL);
                Err(Error::DeadlineExceeded(format!(
                    "failed to exec in container: timeout {timeout:?} exceeded"
                )))
            }
        }
    }

    /// Runs a process with a client's streams, and returns its exit code.
    pub async fn exec(
        &self,
        id: &str,
        command: Vec<String>,
        tty: bool,
        streams: ExecStreams,
    ) -> Result<i32> {
        let container = self.container(id)?;
        if tty {
            let running = self.start(&container, command, true, Vec::new()).await?;
            return with_terminal(running, streams).await;
        }
        let (stdin, their_stdin) = match &streams.stdin {
            Some(_) => {
                let (reader, writer) = std_pipe()?;
                (Some(sender(writer)?), reader)
            }
            None => {
                let null = std::fs::File::open("/dev/null")
                    .map_err(|error| Error::internal("opening /dev/null", error))?;
                (None, null.into())
            }
        };
        let (stdout, their_stdout) = output_pipe()?;
        let (stderr, their_stderr) = output_pipe()?;
        let running = self
            .start(
                &container,
                command,
                false,
                vec![their_stdin, their_stdout, their_stderr],
            )
            .await?;
        let input = forward_input(streams.stdin, stdin);
        let output = async {
            tokio::join!(
                forward_output(stdout, streams.stdout),
                forward_output(stderr, streams.stderr)
            )
        };
        tokio::pin!(input, output);
        let mut exit = running.exit;
        let mut input_open = true;
        let mut output_open = true;
        let code = loop {
            tokio::select! {
                () = &mut input, if input_open => input_open = false,
                _ = &mut output, if output_open => output_open = false,
                code = &mut exit => break code.unwrap_or(137),
            }
        };
        if output_open {
            let _ = tokio::time::timeout(DRAIN, output).await;
        }
        Ok(code)
    }

    async fn start(
        &self,
        container: &Container,
        command: Vec<String>,
        tty: bool,
        fds: Vec<OwnedFd>,
    ) -> Result<Running> {
        if container.phase() != Phase::Running {
            return Err(Error::FailedPrecondition(format!(
                "container {} is not running",
                container.id
            )));
        }
        let path = container.directory.join(format!("exec-{}", new_id()));
        write_process(container, command, tty, &path)?;
        let operation = Operation::Exec(Exec {
            container: container.id.clone(),
            process: path,
            tty,
        });
        let reply = container
            .sandbox
            .shim()?
            .call(operation, &fds)
            .await
            .map_err(|error| {
                Error::internal("failed to exec in container: failed to start exec", error)
            })?;
        match (reply.answer, reply.exec_exit) {
            (crate::shim::protocol::Answer::Exec { pid, .. }, Some(exit)) => Ok(Running {
                pid,
                exit,
                master: reply.fds.into_iter().next(),
            }),
            _ => Err(Error::Internal("unexpected answer of the shim".to_owned())),
        }
    }
}

/// Writes the process as the container's own, with another command.
fn write_process(
    container: &Container,
    command: Vec<String>,
    tty: bool,
    path: &std::path::Path,
) -> Result<()> {
    if command.is_empty() {
        return Err(Error::InvalidArgument("no command specified".to_owned()));
    }
    let write = || -> io::Result<()> {
        let text = std::fs::read(container.bundle().join("config.json"))?;
        let spec: oci_spec::runtime::Spec = serde_json::from_slice(&text)?;
        let mut process = spec
            .process()
            .clone()
            .ok_or_else(|| io::Error::other("the container's spec has no process"))?;
        process.set_args(Some(command));
        process.set_terminal(Some(tty));
        if tty {
            let env = process.env_mut().get_or_insert_default();
            if !env.iter().any(|variable| variable.starts_with("TERM=")) {
                env.push("TERM=xterm".to_owned());
            }
        }
        let seccomp = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.seccomp().clone());
        std::fs::write(path, serde_json::to_vec(&ExecProcess { process, seccomp })?)
    };
    write().map_err(|error| Error::internal("preparing the process", error))
}

/// Connects the client with the process's tty until the process ends.
async fn with_terminal(running: Running, mut streams: ExecStreams) -> Result<i32> {
    let master = running
        .master
        .ok_or_else(|| Error::Internal("the process has no tty".to_owned()))?;
    let terminal =
        Terminal::new(master).map_err(|error| Error::internal("using the tty", error))?;
    let output = async {
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(length) = terminal.read(&mut chunk).await {
            let Some(stdout) = &mut streams.stdout else {
                continue;
            };
            if length == 0 || stdout.write_all(&chunk[..length]).await.is_err() {
                break;
            }
            let _ = stdout.flush().await;
        }
    };
    let input = async {
        if let Some(stdin) = &mut streams.stdin {
            let mut chunk = vec![0; 4096];
            while let Ok(length) = stdin.read(&mut chunk).await {
                if length == 0 || terminal.write_all(&chunk[..length]).await.is_err() {
                    break;
                }
            }
        }
    };
    let resize = async {
        while let Some(size) = streams.resize.recv().await {
            terminal.resize(size);
        }
    };
    let mut exit = running.exit;
    let mut output_open = true;
    let mut input_open = true;
    let mut resize_open = true;
    tokio::pin!(output, input, resize);
    let code = loop {
        tokio::select! {
            () = &mut output, if output_open => output_open = false,
            () = &mut input, if input_open => input_open = false,
            () = &mut resize, if resize_open => resize_open = false,
            code = &mut exit => break code.unwrap_or(137),
        }
    };
    if output_open {
        let _ = tokio::time::timeout(DRAIN, output).await;
    }
    Ok(code)
}

/// A tty's master, asynchronously.
struct Terminal {
    master: AsyncFd<OwnedFd>,
}

impl Terminal {
    fn new(master: OwnedFd) -> io::Result<Self> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let flags = OFlag::from_bits_truncate(fcntl(&master, FcntlArg::F_GETFL)?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self {
            // SAFETY: the descriptor belongs to the `AsyncFd`, which deregisters it before closing it.
            master: unsafe { AsyncFd::register(master) }?,
        })
    }

    /// An error (EIO) is how the end of the last process with the tty looks like.
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.master
            .async_io(Interest::READABLE, |fd| {
                nix::unistd::read(fd, buffer).map_err(io::Error::from)
            })
            .await
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self
                .master
                .async_io(Interest::WRITABLE, |fd| {
                    nix::unistd::write(fd, bytes).map_err(io::Error::from)
                })
                .await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    fn resize(&self, size: TerminalSize) {
        let _ = rustix::termios::tcsetwinsize(
            self.master.get_ref(),
            rustix::termios::Winsize {
                ws_col: size.columns,
                ws_row: size.rows,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        );
    }
}

/// Passes a client's input on; its end closes the process's standard input.
pub(super) async fn forward_input(
    from: Option<Box<dyn AsyncRead + Send + Unpin>>,
    to: Option<pipe::Sender>,
) {
    if let (Some(mut from), Some(mut to)) = (from, to) {
        let _ = tokio::io::copy(&mut from, &mut to).await;
    }
}

/// Passes output on to the client, or drops it if the client doesn't want it.
pub(super) async fn forward_output(
    mut from: pipe::Receiver,
    to: Option<Box<dyn AsyncWrite + Send + Unpin>>,
) {
    match to {
        Some(mut to) => {
            let mut chunk = vec![0; 16 * 1024];
            while let Ok(length) = from.read(&mut chunk).await {
                if length == 0
                    || to.write_all(&chunk[..length]).await.is_err()
                    || to.flush().await.is_err()
                {
                    return;
                }
            }
        }
        None => {
            let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
        }
    }
}

async fn read(from: &mut pipe::Receiver, into: &mut Vec<u8>) {
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(length) = from.read(&mut chunk).await {
        if length == 0 {
            return;
        }
        let room = MAX_OUTPUT.saturating_sub(into.len());
        into.extend_from_slice(&chunk[..length.min(room)]);
    }
}

fn std_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe().map_err(|error| Error::internal("making a pipe", error))?;
    Ok((reader.into(), writer.into()))
}

/// A pipe for output: our end and the process's.
pub(super) fn output_pipe() -> Result<(pipe::Receiver, OwnedFd)> {
    let (reader, writer) = std_pipe()?;
    let reader = pipe::Receiver::from_owned_fd(reader)
        .map_err(|error| Error::internal("using a pipe", error))?;
    Ok((reader, writer))
}

/// A pipe for input: our end and the process's.
pub(super) fn input_pipe() -> Result<(pipe::Sender, OwnedFd)> {
    let (reader, writer) = std_pipe()?;
    Ok((sender(writer)?, reader))
}

fn sender(writer: OwnedFd) -> Result<pipe::Sender> {
    pipe::Sender::from_owned_fd(writer).map_err(|error| Error::internal("using a pipe", error))
}
